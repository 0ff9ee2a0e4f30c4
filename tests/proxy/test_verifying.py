"""`pullcord ledger resolve CALL --verify`: what is asked, shown, noted, and then resolved."""

import hashlib
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ledger.redact import redact_key
from ledger.sqlite import sqlite3
from ledger.trace import TraceStore
from ledger.traced import Caught, Side
from proxy import operator_calls, secret_keys, verifying
from proxy.credentials import FILE
from proxy.operator_calls import Heard
from proxy.verifying import READ_BYTES_MAX
from tests.proxy.looked_at import Service, serving
from tests.proxy.verifiable import (
    CREDENTIALS,
    POLICY,
    SECRET,
    entries,
    record,
    rows_about,
    typed,
    unknown,
    written,
)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as served:
        served.says(200, '{"data":[{"id":"ch_1","amount":5}]}')
        yield served


@pytest.fixture
def data(tmp_path: Path, service: Service, monkeypatch: pytest.MonkeyPatch) -> Path:
    return unknown(tmp_path, service, monkeypatch)


# ---------------------------------------------------------------------------- without a proxy


def test_the_upstream_is_asked_and_nothing_is_resolved(data: Path, service: Service) -> None:
    told = typed("lost", "--verify")
    assert told.exit_code == 0, told.output
    assert told.stdout.splitlines()[4:] == [
        f"asked look: GET https://localhost:{service.port}/v1/charges"
        "?run=r1&created%5Bgte%5D=1795000000",
        "  x-asks: about lost",
        "  as ops of credentials.yaml, in the header authorization",
        "it says 200  application/json  35 bytes  sha256 " + _digest(service),
        "  | {",
        '  |   "data": [',
        "  |     {",
        '  |       "id": "ch_1",',
        '  |       "amount": 5',
        "  |     }",
        "  |   ]",
        "  | }",
        "nothing was resolved; where this shows how it ended, say so:",
        "  pullcord ledger resolve lost --as done --reason TEXT   # it was made",
        "  pullcord ledger resolve lost --as not_sent --reason TEXT   # it was not",
    ]
    ((method, path, headers),) = service.asked
    assert (method, path) == ("GET", "/v1/charges?run=r1&created%5Bgte%5D=1795000000")
    assert headers["authorization"] == f"Bearer {SECRET}"
    assert headers["x-asks"] == "about lost"
    assert record()["state"] == "unknown"
    rows = [row for row in record()["events"] if row["type"] == "call.verified"]
    assert [row["detail"] for row in rows] == [
        "asks look: GET localhost/v1/charges",
        f"look: GET localhost/v1/charges: 200, 35 bytes, sha256 {_digest(service)}",
    ]
    for row in rows:
        assert row["actor"]
        assert (row["run"], row["tenant"], row["tool"]) == ("r1", "acme", "pay")


def _digest(service: Service) -> str:
    return hashlib.sha256(service.said[2]).hexdigest()[:16]


def test_with_a_word_it_is_asked_and_then_resolved(data: Path, service: Service) -> None:
    told = typed("lost", "--verify", "--as", "done", "--reason", "it is listed")
    assert told.exit_code == 0, told.output
    lines = told.stdout.splitlines()
    assert '  |       "id": "ch_1",' in lines
    assert "resolved as done: it is listed" in lines
    assert not [line for line in lines if line.startswith("nothing was resolved")]
    kinds = [row["type"] for row in record()["events"]]
    assert kinds[-3:] == ["call.verified", "call.verified", "call.resolved"]
    assert record()["state"] == "done"


def test_a_dry_run_shows_the_plan_and_asks_nobody(data: Path, service: Service) -> None:
    told = typed("lost", "--verify", "--dry-run")
    assert told.exit_code == 0, told.output
    assert f"would ask look: GET https://localhost:{service.port}/v1/charges?" in told.stdout
    assert told.stdout.splitlines()[-1] == "nothing was asked"
    assert (service.asked, rows_about()) == ([], [])
    both = typed("lost", "--verify", "--dry-run", "--as", "done")
    assert both.stdout.splitlines()[-1] == "would be resolved as done; nothing was changed"


def test_one_object_tells_all(data: Path, service: Service) -> None:
    told = json.loads(typed("lost", "--verify", "--json").stdout)
    assert (told["heard"]["status"], told["tells"], told["resolved"]) == (200, True, None)
    assert told["plan"]["auth"] == "ops"
    again = typed("lost", "--verify", "--as", "not_sent", "--reason", "none", "--json")
    assert json.loads(again.stdout)["resolved"]["state"] == "not_sent"


@pytest.mark.parametrize("status", [301, 401, 403, 429, 500, 503])
def test_an_answer_that_tells_nothing_resolves_nothing(
    data: Path, service: Service, status: int
) -> None:
    service.says(status, "{}")
    told = typed("lost", "--verify", "--as", "not_sent", "--reason", "x")
    assert told.exit_code == 3, told.output
    assert f"the upstream answered {status}, which tells nothing of the write" in told.stderr
    assert record()["state"] == "unknown"
    assert len(rows_about()) == 2


@pytest.mark.parametrize("status", [200, 204, 404, 410])
def test_an_answer_that_tells_something_lets_a_word_count(
    data: Path, service: Service, status: int
) -> None:
    service.says(status, "")
    told = typed("lost", "--verify", "--as", "not_sent", "--reason", "x")
    assert told.exit_code == 0, told.output
    assert record()["state"] == "not_sent"


def test_who_does_not_answer_resolves_nothing(data: Path, service: Service) -> None:
    port = service.port
    written(data.parent, POLICY.replace("PORT", "1"), service)
    told = typed("lost", "--verify", "--as", "done", "--reason", "x")
    assert told.exit_code == 3, told.output
    assert "NO ANSWER: localhost" in told.stdout
    assert "127.0.0.1" not in told.output
    assert record()["state"] == "unknown"
    assert rows_about()[1].startswith("look: GET localhost/v1/charges: no answer: localhost")
    assert port == service.port


def test_a_long_answer_of_deep_nesting_is_not_laid_out_whole(data: Path, service: Service) -> None:
    """A megabyte of it makes two hundred, and all calls would wait while that is masked."""
    body = "[" * 200 + ",".join(["0"] * 520_000) + "]" * 200
    service.says(200, body)
    tracemalloc.start()
    told = json.loads(typed("lost", "--verify", "--json").stdout)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert told["heard"]["text"].startswith("[[[[")
    assert (told["heard"]["is_cut"], told["heard"]["bytes"]) == (True, len(body))
    assert told["heard"]["digest"] == hashlib.sha256(body.encode()).hexdigest()
    assert peak < 25 << 20


def test_a_short_answer_of_deep_nesting_is_laid_out_up_to_a_bound() -> None:
    body = b"[" * 200 + b",".join([b"0"] * 30_000) + b"]" * 200
    text, why, is_cut = verifying._text(Heard(200, "", "", "", body, False))
    assert (text[:7], why, is_cut) == ("[\n  [\n ", "", True)
    assert len(text) == READ_BYTES_MAX


def test_no_beginning_of_a_secret_is_shown_where_an_answer_is_cut(
    data: Path, service: Service
) -> None:
    """What stands before it is all masked, and so short that the cut is shown, too."""
    other = "aB1cD2eF3gH4iJ5kL6mN7oP8qR9sT0uV" * 10 + " "
    before = (other * 1_000)[: READ_BYTES_MAX - len(SECRET) // 2 - 1] + " "
    service.says(200, before + SECRET)
    told = json.loads(typed("lost", "--verify", "--json").stdout)["heard"]
    assert told["is_cut"]
    assert told["text"].startswith("[redacted:")
    assert SECRET[:5] not in told["text"]


@pytest.mark.parametrize("body", ["é" * (1 << 16), "a" + "é" * (1 << 16)])
def test_a_character_that_is_cut_in_two_makes_no_answer_unreadable(
    data: Path, service: Service, body: str
) -> None:
    service.says(200, body)
    told = json.loads(typed("lost", "--verify", "--json").stdout)["heard"]
    assert (told["text"], told["why_no_text"]) == (body[: len(told["text"])], None)
    assert told["is_cut"]


def test_only_an_unknown_call_is_verified(data: Path, service: Service) -> None:
    told = typed("made", "--verify")
    assert (told.exit_code, "only an unknown outcome is resolved" in told.stderr) == (2, True)
    assert typed("nobody", "--verify").exit_code == 4
    assert service.asked == []


def test_a_tool_without_a_read_says_what_to_write(data: Path, service: Service) -> None:
    told = typed("dim", "--verify")
    assert told.exit_code == 2
    assert "the policy names no read by which mail is verified" in told.stderr


def test_who_asks_is_on_the_disk_before_the_call_leaves(
    data: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ends the command while it waits, the record has it."""
    kept: list[str] = []

    async def dies(*_: object) -> None:
        kept.extend(rows_about())
        raise SystemExit(137)

    monkeypatch.setattr(operator_calls, "made", dies)
    assert typed("lost", "--verify").exit_code == 137
    assert kept == rows_about() == ["asks look: GET localhost/v1/charges"]


def test_what_cannot_be_noted_is_not_asked(data: Path, service: Service) -> None:
    with closing(sqlite3.connect(data / "ledger.db", isolation_level=None)) as conn:
        conn.execute(
            "CREATE TRIGGER broken BEFORE INSERT ON event WHEN NEW.type = 'call.verified' "
            "BEGIN SELECT raise(ABORT, 'disk I/O error'); END"
        )
        told = typed("lost", "--verify")
        conn.execute("DROP TRIGGER broken")
    assert told.exit_code != 0
    assert (service.asked, rows_about()) == ([], [])
    assert record()["state"] == "unknown"


# ---------------------------------------------------------------------------- what is missing


def test_without_the_credential_the_plan_says_so_and_nobody_is_asked(
    data: Path, service: Service
) -> None:
    (data / FILE).unlink()
    told = typed("lost", "--verify")
    assert told.exit_code == 3
    assert f"CANNOT BE ASKED: there is no {data / FILE}; write there" in told.stdout
    assert "counts when one starts" not in told.stderr
    planned = typed("lost", "--verify", "--dry-run")
    assert (planned.exit_code, "would ask look" in planned.stdout) == (3, True)
    entries(data, "other: {hosts: [localhost], bearer: x}\n")
    assert f"{data / FILE} has no entry 'ops'; write" in typed("lost", "--verify").stdout
    assert (service.asked, rows_about()) == ([], [])


def test_a_credential_does_not_go_to_another_host(data: Path, service: Service) -> None:
    entries(data, CREDENTIALS.replace("localhost", "api.stripe.com"))
    told = typed("lost", "--verify")
    assert f"the entry 'ops' of {data / FILE} is not for localhost" in told.stdout
    assert service.asked == []


def test_a_file_that_others_may_read_is_refused(data: Path, service: Service) -> None:
    entries(data, CREDENTIALS, 0o644)
    told = typed("lost", "--verify")
    assert (told.exit_code, "chmod 600" in told.stderr) == (2, True)
    assert SECRET not in told.output
    assert service.asked == []


def asking_for(place: str) -> str:
    return POLICY.replace('{run: "{run}", "created[gte]": "{at_seconds}"}', f'{{c: "{{{place}}}"}}')


def test_a_value_that_nobody_kept_is_asked_for(data: Path, service: Service) -> None:
    written(data.parent, asking_for("request.customer"), service)
    told = typed("lost", "--verify")
    assert told.exit_code == 2
    assert "type --set request.customer=VALUE" in told.stderr
    given = typed("lost", "--verify", "--set", "request.customer=cus 1&x=2")
    assert given.exit_code == 0, given.output
    assert service.asked[0][1] == "/v1/charges?c=cus%201%26x%3D2"


def traced(data: Path, media_type: str, body: bytes, level: Any = "full") -> None:
    """The request of `lost`, as the tracer would keep it."""
    store = TraceStore.open(data, redact_key(secret_keys.vault_key(data)), lambda: 1)
    headers = (("content-type", media_type),)
    caught = Caught(
        "lost", Side.REQUEST, 1, "r1", "acme", "pay", "", level,
        "POST https://api.example/v1/charges", headers, body, len(body),
    )  # fmt: skip
    store.keep([caught])
    store.close()


JSON_BODY = b'{"customer": "cus 1", "items": [{"sku": 7}], "deep": {"no": null}, "token": "TOKEN"}'
FORM_BODY = b"customer=cus+1&metadata[order]=o%2F7&metadata%5Bkey%5D=x"


@pytest.mark.parametrize(
    "media_type, body, path, value",
    [
        ("application/json", JSON_BODY, "customer", "cus%201"),
        ("application/json", JSON_BODY, "items.0.sku", "7"),
        ("application/x-www-form-urlencoded", FORM_BODY, "customer", "cus%201"),
        ("application/x-www-form-urlencoded", FORM_BODY, "metadata.order", "o%2F7"),
    ],
)
def test_a_value_of_the_request_comes_from_the_trace(
    data: Path, service: Service, media_type: str, body: bytes, path: str, value: str
) -> None:
    traced(data, media_type, body)
    written(data.parent, asking_for(f"request.{path}"), service)
    told = typed("lost", "--verify")
    assert told.exit_code == 0, told.output
    assert service.asked[0][1] == f"/v1/charges?c={value}"


@pytest.mark.parametrize(
    "path, level, body, why",
    [
        ("absent", "full", JSON_BODY, "holds nothing there"),
        ("items", "full", JSON_BODY, "no single value stands there"),
        ("deep.no", "full", JSON_BODY, "no single value stands there"),
        ("token", "full", JSON_BODY.replace(b"TOKEN", b"sk_live_abcdefgh12345678"), "masked it"),
        ("customer", "digest", JSON_BODY, "the trace has no body of the request"),
        ("customer", "full", b"{", "neither JSON nor a form"),
    ],
)
def test_what_the_trace_does_not_tell_is_asked_for(
    data: Path, service: Service, path: str, level: str, body: bytes, why: str
) -> None:
    traced(data, "application/json", body, level)
    written(data.parent, asking_for(f"request.{path}"), service)
    told = typed("lost", "--verify")
    assert told.exit_code == 2
    assert why in told.stderr
    assert f"type --set request.{path}=VALUE" in told.stderr
    assert service.asked == []
