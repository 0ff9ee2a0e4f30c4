"""Values of what a call asked and was answered: which are known, and why others are not."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ledger.records import Answer
from ledger.trace import TraceStore, open_trace
from ledger.traced import Caught, Side
from policies.content import FORM
from proxy.recorded import Bare, Untold, in_answer, in_trace, value

JSON = (("Content-Type", "application/json; charset=utf-8"),)
BODY = {"id": "ch_1", "amount": 1250, "rate": 0.10, "paid": True, "none": None, "of": [{"a": "b"}]}


def answer(body: bytes, headers: tuple[tuple[str, str], ...] = JSON) -> Answer:
    return Answer(200, headers, body)


def untold(document: Any, path: str) -> str:
    with pytest.raises(Untold) as told:
        value(document, path, "it")
    return str(told.value)


def test_single_values_are_found_by_their_paths() -> None:
    document = in_answer(answer(json.dumps(BODY).encode()))
    found = [value(document, path, "it") for path in ("id", "amount", "rate", "paid", "of.0.a")]
    assert found == ["ch_1", "1250", "0.1", "true", "b"]
    assert [isinstance(each, Bare) for each in found] == [False, True, True, True, False]


@pytest.mark.parametrize(
    "path, why",
    [
        ("other", "it holds nothing there"),
        ("of.1.a", "it holds nothing there"),
        ("id.x", "it holds nothing there"),
        ("of", "no single value stands there"),
        ("none", "no single value stands there"),
    ],
)
def test_others_are_told(path: str, why: str) -> None:
    assert untold(in_answer(answer(json.dumps(BODY).encode())), path) == why


def test_numbers_stay_as_they_were_written() -> None:
    document = in_answer(answer(b'{"a": 12.50, "b": 10000000000000000000001, "c": NaN}'))
    assert value(document, "a", "it") == "12.50"
    assert value(document, "b", "it") == "10000000000000000000001"
    assert untold(document, "c") == "no single value stands there"


def test_codings_are_undone_and_forms_are_read() -> None:
    coded = (*JSON, ("content-encoding", "gzip"))
    assert value(in_answer(answer(gzip.compress(b'{"id": "x"}'), coded)), "id", "it") == "x"
    form = in_answer(answer(b"id=re_1&metadata%5Border%5D=6", (("content-type", FORM),)))
    assert (value(form, "id", "it"), value(form, "metadata.order", "it")) == ("re_1", "6")


@pytest.mark.parametrize(
    "body, coding, why",
    [
        (b"<html>", "", "neither JSON nor a form"),
        (b"\xff", "", "no text"),
        (b"{}", "odd", "coded in a way that is not known"),
        (gzip.compress(b"x" * (2 << 20)), "gzip", "too long"),
        (b"[" * 100_000, "", "neither JSON nor a form"),
    ],
)
def test_a_body_that_cannot_be_read_is_told(body: bytes, coding: str, why: str) -> None:
    headers = (*JSON, ("content-encoding", coding)) if coding else JSON
    with pytest.raises(Untold, match=why):
        in_answer(answer(body, headers))


def test_the_trace_is_asked_for_either_side_and_what_it_masked_is_told(tmp_path: Path) -> None:
    store = TraceStore.open(tmp_path, b"k" * 32, lambda: 1)
    bodies = {
        Side.REQUEST: b'{"customer": "cus_1"}',
        Side.RESPONSE: b'{"id": "ch_1", "api_key": "sk_live_abcdefgh12345678"}',
    }
    store.keep(
        [
            Caught(
                "c1", side, 1, "r1", "acme", "pay", "", "full", "POST /",
                JSON, body, len(body),
            )
            for side, body in bodies.items()
        ]
    )  # fmt: skip
    store.close()
    reader = open_trace(tmp_path)
    assert reader is not None
    assert value(in_trace(reader, "c1", Side.REQUEST), "customer", "it") == "cus_1"
    response = in_trace(reader, "c1", Side.RESPONSE)
    assert value(response, "id", "it") == "ch_1"
    assert untold(response, "api_key") == "the trace has masked it"
    with pytest.raises(Untold, match="has no body of the response"):
        in_trace(reader, "c2", Side.RESPONSE)
    reader.close()
    with pytest.raises(Untold, match="nothing was traced"):
        in_trace(None, "c1", Side.REQUEST)


@pytest.mark.parametrize(
    "media_type, query, body",
    [
        (FORM, "", b"charge=ch_own&ch]arge=ch_innocent"),
        (FORM, "", b"charge=ch_own&charge=ch_innocent"),
        (FORM, "?charge=ch_own", b"charge=ch_innocent"),
        (JSON[0][1], "", b'{"charge":"ch_own","charge":"ch_innocent"}'),
        (JSON[0][1], "", b'{"Charge":"ch_own","charge":"ch_innocent"}'),
        ("text/plain", "", b'{"charge":"ch_innocent"}'),
    ],
)
def test_what_an_agent_sent_in_two_ways_is_not_known(
    tmp_path: Path, media_type: str, query: str, body: bytes
) -> None:
    store = TraceStore.open(tmp_path, b"k" * 32, lambda: 1)
    start, head = f"POST https://pay.example/v1{query}", (("Content-Type", media_type),)
    store.keep(
        [
            Caught(
                "c1", Side.REQUEST, 1, "r1", "acme", "pay", "", "full", start, head, body,
                len(body),
            )
        ]
    )  # fmt: skip
    store.close()
    reader = open_trace(tmp_path)
    assert reader is not None
    with pytest.raises(Untold):
        value(in_trace(reader, "c1", Side.REQUEST), "charge", "the request")
    reader.close()
