"""Secrets in recorded text: what is masked, and what stays readable."""

import re
from pathlib import Path

import pytest
import yaml

from ledger.redact import KNOWN, TEXT_CHARS_MAX, redact

CASES = yaml.safe_load((Path(__file__).parents[1] / "cases" / "redaction.yaml").read_text("utf-8"))
KEY = b"k" * 32
MARK = re.compile(r"\[redacted:[0-9a-f]{8}\]")


@pytest.mark.parametrize("case", CASES, ids=[case["it"] for case in CASES])
def test_a_path(case: dict[str, str]) -> None:
    assert MARK.sub("[*]", redact(case["text"], KEY)) == case.get("shows", case["text"])


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_secret_has_an_example(name: str) -> None:
    assert any(re.search(KNOWN[name], case["text"]) for case in CASES if "shows" in case)


def test_equal_secrets_have_equal_marks_under_one_key_only() -> None:
    secret = "/ghp_16C7e42F292c6912E7710c838347"
    assert redact(secret, KEY) == redact(secret, KEY)
    assert redact(secret, KEY) != redact(secret, b"l" * 32)
    assert redact(secret, KEY) != redact(secret + "a", KEY)


def test_bytes_that_are_no_text_can_be_stored() -> None:
    redact("/caf\udce9", KEY).encode("utf-8")


def test_a_long_text_is_cut() -> None:
    assert len(redact("/a" * TEXT_CHARS_MAX, KEY)) == TEXT_CHARS_MAX
