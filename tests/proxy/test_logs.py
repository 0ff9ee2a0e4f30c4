"""What the log says of a call: no secret, wherever an agent put it."""

import secrets

from structlog.testing import capture_logs

from ledger.records import Ask, Decision
from policies.call import Effect, Request, ToolCall
from policies.verdict import Action, Reason, Verdict
from proxy import logs


def test_a_secret_in_a_host_name_is_not_logged():
    secret = secrets.token_hex(24)
    request = Request("GET", "https", f"{secret}.api.test", 443, f"/{secret}?key={secret}")
    call = ToolCall("unlisted", Effect.READ, f"GET {secret}", b"f" * 32)
    refused = Decision(Verdict(Action.REFUSE, Reason.DESTINATION_UNLISTED, "unlisted"), None)
    with capture_logs() as lines:
        logs.decided(Ask("id", 1, None, request, call), refused)
    assert lines[0]["host"].endswith(".api.test")
    assert secret not in str(lines)


def test_a_secret_in_the_place_of_a_models_name_is_masked() -> None:
    secret = "sk-proj-" + "Ab3dEf6hIj9kLm2n" * 2
    with capture_logs() as lines:
        logs.unpriced("call-1", "house-1", secret)
    (line,) = lines
    assert (line["event"], line["model"]) == ("model.unpriced", "house-1")
    assert secret[8:24] not in line["asked"]
