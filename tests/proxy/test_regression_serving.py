"""The recorded answers, given again to an agent under test over a real socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ledger.connection import open_reader
from ledger.redact import redact_key
from ledger.trace import TraceStore
from ledger.traced import Caught, Side
from proxy import secret_keys, traces
from proxy.regression_serving import ENDPOINTS_SHOWN_MAX, Origin, recorded
from tests.proxy.runaway import START_US, Runaway

JSON = (("content-type", "application/json"), ("content-length", "99"), ("x-request-id", "7"),
        ("Pullcord-Decision", "allow"))  # fmt: skip


def an_answer(text: str, body: str = "", **rest: Any) -> dict[str, Any]:
    from proxy.regression_serving import digest

    told = {"method": "POST", "host": "pay.example", "path": "/v1/refunds", "status": 200}
    return {**told, "headers": [["content-type", "application/json"]], "text": text,
            "body": digest(body), **rest}  # fmt: skip


ANSWERS = [
    an_answer("first", '{"a":1}'),
    an_answer("second", '{"a":2}'),
    an_answer("page", method="GET", path="/v1/charges?page=2"),
    an_answer("other", '{"a":1}', host="mail.example"),
]


@asynccontextmanager
async def served(answers: list[dict[str, Any]]) -> AsyncIterator[str]:
    origin = Origin(answers, lambda asked, status: None)
    try:
        yield f"http://{await origin.start('127.0.0.1', 0)}"
    finally:
        await origin.stop()


async def asked(url: str, method: str = "POST", **rest: Any) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.request(method, url, **rest) as answer:
        return answer.status, await answer.text()


async def test_the_same_request_gets_its_answer_and_others_the_next() -> None:
    async with served(ANSWERS) as at:
        url = f"{at}/v1/refunds"
        assert await asked(url, data='{ "a": 2 }') == (200, "second")
        assert await asked(url, data='{"a":1}') == (200, "first")
        assert [(await asked(url, data=f'{{"b":{n}}}'))[1] for n in range(4)] == [
            "first",
            "second",
            "other",
            "other",
        ]
        assert await asked(f"{at}/v1/charges?page=2", "GET") == (200, "page")


async def test_as_a_proxy_it_tells_services_apart() -> None:
    async with served(ANSWERS) as at:
        found = await asked("http://mail.example/v1/refunds", data='{"a":1}', proxy=at)
        assert found == (200, "other")


async def test_what_was_not_recorded_is_said_to_be() -> None:
    many = [an_answer("x", path=f"/{number}") for number in range(2 * ENDPOINTS_SHOWN_MAX)]
    async with served(many) as at, aiohttp.ClientSession() as session:
        async with session.delete(f"{at}/v1/elsewhere") as answer:
            told = await answer.json()
        assert answer.status == 404
        assert told["error"]["type"] == "not_recorded"
        assert told["asked"] == "DELETE /v1/elsewhere"
        assert len(told["recorded"]) == ENDPOINTS_SHOWN_MAX


@pytest.mark.parametrize("status", [204, 304])
async def test_an_answer_without_a_body_has_none(status: int) -> None:
    async with served([an_answer("", status=status)]) as at:
        assert await asked(f"{at}/v1/refunds") == (status, "")


async def test_headers_that_break_the_answer_are_not_sent() -> None:
    """Anybody may have written the file."""
    broken = [["x-a", "1\r\nx-b: 2"], ["", "x"], ["x\0", "x"], ["Content-Length", "many"],
              ["transfer-encoding", "chunked"], ["x-good", "yes"]]  # fmt: skip
    async with (
        served([an_answer("whole \ud800", headers=broken)]) as at,
        aiohttp.ClientSession() as session,
        session.post(f"{at}/v1/refunds") as answer,
    ):
        assert (answer.status, await answer.text()) == (200, "whole ?")
        assert answer.headers["x-good"] == "yes"
        assert not {"x-a", "x-b"} & {name.lower() for name in answer.headers}


def test_answers_are_taken_out_of_the_trace(tmp_path: Path) -> None:
    """Redacted there; what only fits the bytes of then is left out."""
    made = Runaway(tmp_path)
    call_id = made.call("r1", "POST", "/v1/refunds", '{"charge":"ch_1"}')
    made.ends()
    store = TraceStore.open(tmp_path, redact_key(secret_keys.vault_key(tmp_path)), lambda: START_US)

    def caught(side: Side, start: str, body: bytes) -> Caught:
        about = (START_US, "r1", "acme", "refunds.create", "v7")
        return Caught(call_id, side, *about, "full", start, JSON, body, len(body))

    secret = "sk_live_0123456789abcdefghij"
    store.keep(
        [
            caught(
                Side.REQUEST, "POST https://pay.example:443/v1/refunds?x=1", b'{"charge":"ch_1"}'
            ),
            caught(Side.RESPONSE, "200", f'{{"key":"{secret}"}}'.encode()),
        ]
    )
    store.close()
    with (
        closing(open_reader(tmp_path)) as reader,
        traces.opened(reader, tmp_path) as opened,
    ):
        (found,) = recorded(reader, [call_id, "gone"], opened.of)
    assert (found["method"], found["host"], found["path"], found["status"]) == (
        *("POST", "pay.example", "/v1/refunds?x=1", 200),
    )
    assert found["body"] == an_answer("", '{"charge": "ch_1"}')["body"]
    assert secret not in str(found)
    assert [name for name, _ in found["headers"]] == ["content-type", "x-request-id"]
