"""Secrets in recorded text: what is masked, and what stays readable."""

import hashlib
import hmac
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ledger.redact import KNOWN, TEXT_CHARS_MAX, redact, redact_host
from policies.call import Request
from tests.ledger.world import VAULT_KEY, World

CASES = yaml.safe_load((Path(__file__).parents[1] / "cases" / "redaction.yaml").read_text("utf-8"))
KEY = b"k" * 32
KEY_OF_WORLD = hmac.digest(VAULT_KEY, b"pullcord redaction marks", hashlib.sha256)
MARK = re.compile(r"\[redacted:[0-9a-f]{8}\]")


@pytest.mark.parametrize("case", CASES, ids=[case["it"] for case in CASES])
def test_a_text(case: dict[str, str]) -> None:
    hide, text = (redact_host, case["host"]) if "host" in case else (redact, case["text"])
    assert MARK.sub("[*]", hide(text, KEY)) == case.get("shows", text)


def test_what_an_agent_puts_into_method_host_and_path_is_recorded_masked(world: World) -> None:
    secret = "9f86d081884c7d659a2feaa0c55ad015"
    request = Request(secret, "https", f"{secret}.evil.test", 443, f"/{secret}?{secret}")
    ask = world.ask("a")
    world.decided(replace(ask, request=request, call=replace(ask.call, operation=secret)))
    (row,) = world.rows("SELECT method, host, path, operation FROM event WHERE call_id = 'a'")
    mark = redact(secret, KEY_OF_WORLD)
    assert row == (mark, f"{mark}.evil.test", f"/{mark}", mark)


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_secret_has_an_example(name: str) -> None:
    texts = [case.get("text", "") for case in CASES if "shows" in case]
    assert any(re.search(KNOWN[name], text) for text in texts)


def test_equal_secrets_have_equal_marks_under_one_key_only() -> None:
    secret = "/ghp_16C7e42F292c6912E7710c838347"
    assert redact(secret, KEY) == redact(secret, KEY)
    assert redact(secret, KEY) != redact(secret, b"l" * 32)
    assert redact(secret, KEY) != redact(secret + "a", KEY)


def test_bytes_that_are_no_text_can_be_stored() -> None:
    redact("/caf\udce9", KEY).encode("utf-8")


def test_a_long_text_is_cut() -> None:
    assert len(redact("/a" * TEXT_CHARS_MAX, KEY)) == TEXT_CHARS_MAX
