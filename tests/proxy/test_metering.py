"""A model call's tokens and cost reach the record; nothing about them can break the call.

Costs are worked out by hand from the shipped list: gpt-5.1 takes $1.25 and $10, claude-opus-4-5 $5
and $25 for a million tokens of input and output.
"""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ledger import queries
from ledger.connection import open_reader
from policies.call import Request
from policies.meter.meter import Meter
from proxy.gate import Live
from proxy.identity import Credentials
from tests.proxy.controlled import Controlled, controlled

POLICY = """\
version: 1
tools:
  openai: {match: {host: api.openai.com}, model_api: openai}
  anthropic: {match: {host: api.anthropic.com}, model_api: anthropic}
  gateway: {match: {host: models.acme.example}, model_api: openai}
  own: {match: {host: llama.acme.example}, effect: model}
"""
CHAT = "/v1/chat/completions"
JSON = "application/json"
EVENTS = "text/event-stream; charset=utf-8"
USAGE = {"prompt_tokens": 1000, "completion_tokens": 200, "total_tokens": 1200}


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path, POLICY) as made:
        yield made


async def begun(
    running: Controlled, host: str, path: str = CHAT, method: str = "POST", **asked: Any
) -> Live:
    body = json.dumps(asked).encode()
    request = Request(method, "https", host, 443, path, (("content-type", JSON),), body)
    live = await running.gate.ask(request, Credentials("r1", "acme"), running)
    assert isinstance(live, Live)
    assert running.gate.sent(live) is None
    return live


async def recorded(running: Controlled, live: Live) -> tuple[Any, Any, Any]:
    """What the ledger says of the call once it has ended."""
    with closing(open_reader(running.data)) as reader:
        async with asyncio.timeout(5):
            while True:
                row = queries.call(reader, live.call_id)
                if row and row["state"] != "pending":
                    return row["input_tokens"], row["output_tokens"], row["cost_usd"]
                await asyncio.sleep(0.01)


async def ended(
    running: Controlled, live: Live, kind: str, *chunks: bytes, status: int = 200, **how: Any
) -> tuple[Any, Any, Any]:
    running.gate.answering(live, kind)
    for chunk in chunks:
        running.gate.body(live, chunk)
    await running.gate.settle(live, status=status, **{"complete": True, **how})
    return await recorded(running, live)


def answer(model: str, **usage: Any) -> bytes:
    return json.dumps({"model": model, "choices": [], "usage": usage or USAGE}).encode()


def events(*said: Any) -> list[bytes]:
    return [f"data: {json.dumps(each)}\n\n".encode() for each in said]


async def test_a_whole_answer_is_recorded_with_its_tokens_and_cost(running: Controlled) -> None:
    live = await begun(running, "api.openai.com", model="gpt-5.1")
    told = answer("gpt-5.1-2025-11-13")
    # 1000 x 1.25 + 200 x 10 = 3250 micro-dollars.
    assert await ended(running, live, JSON, told[:40], told[40:]) == (1000, 200, 0.00325)


async def test_cached_input_costs_what_the_list_says(running: Controlled) -> None:
    live = await begun(running, "api.openai.com", model="gpt-5.1")
    told = answer("gpt-5.1", **USAGE, prompt_tokens_details={"cached_tokens": 800})
    # 200 x 1.25 + 800 x 0.125 + 200 x 10 = 2350.
    assert await ended(running, live, JSON, told) == (1000, 200, 0.00235)


async def test_a_stream_is_recorded_by_its_last_word(running: Controlled) -> None:
    live = await begun(running, "api.anthropic.com", "/v1/messages", model="claude-opus-4-5")
    start = {"model": "claude-opus-4-5", "usage": {"input_tokens": 100, "output_tokens": 1}}
    chunks = events(
        {"type": "message_start", "message": start},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hello"}},
        {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 40}},
    )
    # 100 x 5 + 40 x 25 = 1500.
    assert await ended(running, live, EVENTS, *chunks) == (100, 40, 0.0015)


async def test_a_stream_that_broke_off_counts_what_was_seen_of_it(running: Controlled) -> None:
    live = await begun(running, "api.anthropic.com", "/v1/messages", model="claude-opus-4-5")
    start = {"model": "claude-opus-4-5", "usage": {"input_tokens": 100, "output_tokens": 1}}
    chunks = events(
        {"type": "message_start", "message": start},
        {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x" * 300}},
    )
    told = await ended(running, live, EVENTS, *chunks, complete=False, error="client left")
    assert told[0] == 100
    assert 100 <= told[1] <= 110, "300 bytes are taken for 100 tokens, beside the first"
    assert told[2] == pytest.approx((100 * 5 + told[1] * 25) / 1e6)


async def test_a_gateway_that_the_list_does_not_know_is_priced_by_its_api(
    running: Controlled,
) -> None:
    live = await begun(running, "models.acme.example", model="gpt-5.1")
    assert await ended(running, live, JSON, answer("gpt-5.1")) == (1000, 200, 0.00325)


@pytest.mark.parametrize("named", ["", "acme-prod-7"])
async def test_an_answer_that_names_no_listed_model_is_priced_as_asked(
    running: Controlled, named: str
) -> None:
    live = await begun(running, "api.openai.com", model="gpt-5.1")
    assert await ended(running, live, JSON, answer(named)) == (1000, 200, 0.00325)


@pytest.mark.parametrize("host", ["api.openai.com", "llama.acme.example"])
async def test_an_unknown_model_has_tokens_and_no_cost_and_is_named_in_the_log(
    running: Controlled, host: str
) -> None:
    live = await begun(running, host, model="acme-7b")
    with capture_logs() as logs:
        assert await ended(running, live, JSON, answer("acme-7b")) == (1000, 200, None)
    (line,) = [each for each in logs if each["event"] == "model.unpriced"]
    assert (line["call"], line["model"], line["log_level"]) == (live.call_id, "acme-7b", "warning")


@pytest.mark.parametrize(
    "told", [gzip.compress(answer("gpt-5.1")), b"{", b"", b"[]", answer("gpt-5.1", odd=1)]
)
async def test_an_answer_that_tells_no_usage_leaves_nothing(
    running: Controlled, told: bytes
) -> None:
    live = await begun(running, "api.openai.com", model="gpt-5.1")
    with capture_logs() as logs:
        assert await ended(running, live, JSON, told) == (None, None, None)
    assert [each["event"] for each in logs].count("model.unmetered") == 1


async def test_a_provider_that_refuses_is_no_news_about_the_meter(running: Controlled) -> None:
    live = await begun(running, "api.openai.com", model="gpt-5.1")
    with capture_logs() as logs:
        ending = await ended(running, live, JSON, b'{"error": {}}', status=429)
    assert ending == (None, None, None)
    assert [each["event"] for each in logs] == ["call.settled"]


@pytest.mark.parametrize("broken", ["__init__", "feed", "usage"])
async def test_a_meter_that_fails_is_told_once_and_breaks_nothing(
    running: Controlled, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Meter, broken, fails)
    live = await begun(running, "api.openai.com", model="gpt-5.1")
    with capture_logs() as logs:
        ending = await ended(running, live, JSON, answer("gpt-5.1"), b" ", b" ")
    assert ending == (None, None, None)
    assert [each["event"] for each in logs] == ["model.not_metered", "call.settled"]
    assert live.answer_bytes == len(answer("gpt-5.1")) + 2


async def test_a_call_to_no_model_is_not_metered(running: Controlled) -> None:
    live = await begun(running, "api.openai.com", "/v1/files", "GET")
    assert await ended(running, live, JSON, answer("gpt-5.1")) == (None, None, None)
    assert live.metering is None


async def test_a_call_that_got_no_answer_has_no_tokens(running: Controlled) -> None:
    live = await begun(running, "api.openai.com", model="gpt-5.1")
    await running.gate.settle(live, status=None, complete=False, error="connection lost")
    assert await recorded(running, live) == (None, None, None)
