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
from proxy.identity import Credentials
from proxy.live import Live
from tests.proxy.controlled import Controlled, controlled

POLICY = """\
version: 1
tools:
  openai: {match: {host: api.openai.com}, model_api: openai}
  anthropic: {match: {host: api.anthropic.com}, model_api: anthropic}
  gateway: {match: {host: models.acme.example}, model_api: openai}
  own: {match: {host: llama.acme.example}, effect: model}
  maps: {match: {host: maps.acme.example}, effect: read, cost_usd: 0.02}
  scans: {match: {host: scans.acme.example}, effect: read,
          cost: {from: response.price, scale: 0.01, reserve_usd: 0.5}}
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
async def test_an_unknown_model_costs_the_policys_rate_and_is_named_in_the_log(
    running: Controlled, host: str
) -> None:
    live = await begun(running, host, model="acme-7b")
    with capture_logs() as logs:
        # The rate is 100 USD for a million tokens where the policy states none.
        assert await ended(running, live, JSON, answer("acme-7b")) == (1000, 200, 0.12)
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


# What was reserved becomes what was used


async def used(
    running: Controlled, live: Live, kind: str, *chunks: bytes, **how: Any
) -> tuple[int | None, int | None]:
    """Tokens and micro-dollars that a call settles; None keeps what it reserved."""
    with capture_logs() as logs:
        await ended(running, live, kind, *chunks, **how)
    (line,) = [each for each in logs if each["event"] == "call.settled"]
    return line["tokens"], line["microusd"]


async def test_what_was_told_was_used(running: Controlled) -> None:
    live = await begun(running, "api.openai.com", model="gpt-5.1")
    assert await used(running, live, JSON, answer("gpt-5.1")) == (1200, 3250)


STARTED = {"model": "claude-opus-4-5", "usage": {"input_tokens": 100, "output_tokens": 1}}
THOUGHT = [
    {"type": "message_start", "message": STARTED},
    {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hello"}},
]
ENDED = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 40}}


@pytest.mark.parametrize("complete", [True, False])
async def test_of_a_stream_that_told_nothing_no_less_is_used_than_was_reserved(
    running: Controlled, complete: bool
) -> None:
    """A provider may have thought unseen as much as was asked for."""
    asked: dict[str, Any] = {
        "model": "gpt-5.1",
        "stream": True,
        "max_completion_tokens": 1000,
    }
    live = await begun(running, "api.openai.com", **asked)
    word = events({"choices": [{"delta": {"content": "x" * 300}}]})
    taken = -(-len(live.request.body) // 3)
    expected = (1000 + taken, 10_000 + -(-taken * 5 // 4))
    assert await used(running, live, EVENTS, *word, complete=complete) == expected


async def test_of_a_stream_that_told_nothing_what_was_seen_is_used_if_it_is_more(
    running: Controlled,
) -> None:
    asked: dict[str, Any] = {
        "model": "gpt-5.1",
        "stream": True,
        "max_completion_tokens": 10,
    }
    live = await begun(running, "api.openai.com", **asked)
    word = events({"choices": [{"delta": {"content": "x" * 300}}]})
    taken = -(-len(live.request.body) // 3)
    assert await used(running, live, EVENTS, *word) == (100 + taken, 1000 + -(-taken * 5 // 4))


@pytest.mark.parametrize("complete", [True, False])
async def test_what_only_the_beginning_of_a_stream_told_keeps_the_reservation(
    running: Controlled, complete: bool
) -> None:
    asked: dict[str, Any] = {"model": "claude-opus-4-5", "max_tokens": 2000}
    live = await begun(running, "api.anthropic.com", "/v1/messages", **asked)
    # 2,000 x 25 for the answer, and what was sent, whose size was estimated.
    taken = -(-len(live.request.body) // 3)
    expected = (2000 + taken, 50_000 + taken * 5)
    assert await used(running, live, EVENTS, *events(*THOUGHT), complete=complete) == expected


@pytest.mark.parametrize(
    "last, kind",
    [
        (events(ENDED), "anthropic"),
        ([*events({"choices": [], "usage": USAGE}), b"data: [DONE]\n\n"], "openai"),
        (
            events({"type": "response.completed", "response": {"usage": USAGE}}),
            "openai",
        ),
    ],
)
async def test_an_agent_that_leaves_after_the_last_word_is_charged_by_what_was_told(
    running: Controlled, last: list[bytes], kind: str
) -> None:
    model = {"anthropic": "claude-opus-4-5", "openai": "gpt-5.1"}[kind]
    path = {"anthropic": "/v1/messages", "openai": CHAT}[kind]
    live = await begun(running, f"api.{kind}.com", path, model=model, max_tokens=50_000)
    first = THOUGHT if kind == "anthropic" else []
    told = await used(running, live, EVENTS, *events(*first), *last, complete=False)
    assert told == {"anthropic": (140, 1500), "openai": (1200, 3250)}[kind]


async def test_usage_so_far_is_not_the_end_of_a_stream_that_was_left(running: Controlled) -> None:
    """Google, and some who imitate OpenAI, tell usage with every word."""
    live = await begun(running, "api.openai.com", model="gpt-5.1", stream=True, max_tokens=5000)
    word = events({"choices": [{"delta": {"content": "x"}}], "usage": USAGE})
    tokens, microusd = await used(running, live, EVENTS, *word, complete=False)
    assert tokens is not None
    assert tokens >= 5000
    assert microusd is not None
    assert microusd >= 50_000


async def test_what_is_no_inference_of_a_model_api_is_charged_as_reserved(
    running: Controlled,
) -> None:
    live = await begun(running, "api.openai.com", "/v1/batches", input_file_id="f1")
    nothing = b'{"id": "b1", "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}}'
    tokens, microusd = await used(running, live, JSON, nothing)
    assert (tokens, microusd) == (live.call.worth.tokens, live.call.worth.spend_microusd)
    assert microusd is not None
    assert microusd > 10_000_000


@pytest.mark.parametrize("status", [400, 429, 500, 529])
async def test_a_refusal_of_the_provider_used_nothing(running: Controlled, status: int) -> None:
    live = await begun(running, "api.openai.com", model="gpt-5.1")
    assert await used(running, live, JSON, b'{"error": {}}', status=status) == (0, 0)


@pytest.mark.parametrize(
    "kind, told, complete",
    [
        (EVENTS, b"", False),  # cut before its first word
        (EVENTS, b": keep-alive\n\n", False),
        (JSON, gzip.compress(answer("gpt-5.1")), True),
        ("audio/mpeg", b"\xff\xfb" * 50, True),
    ],
)
async def test_what_nobody_can_tell_keeps_its_reservation(
    running: Controlled, kind: str, told: bytes, complete: bool
) -> None:
    live = await begun(running, "api.openai.com", model="gpt-5.1")
    assert await used(running, live, kind, told, complete=complete) == (None, None)


async def test_a_call_that_got_no_answer_keeps_its_reservation(running: Controlled) -> None:
    live = await begun(running, "api.openai.com", model="gpt-5.1")
    with capture_logs() as logs:
        await running.gate.settle(live, status=None, complete=False)
    assert [(each["tokens"], each["microusd"]) for each in logs] == [(None, None)]


@pytest.mark.parametrize("status, cost_usd", [(200, 0.02), (302, 0.02), (404, 0.0), (500, None)])
async def test_a_tool_of_a_fixed_cost_costs_it_if_it_may_have_done_it(
    running: Controlled, status: int, cost_usd: float | None
) -> None:
    live = await begun(running, "maps.acme.example", "/route", "GET")
    told = await ended(running, live, JSON, b"{}", status=status)
    assert told == (None, None, cost_usd)


async def test_a_cost_is_read_from_the_answer(running: Controlled) -> None:
    live = await begun(running, "scans.acme.example", "/scan", "GET")
    assert await used(running, live, JSON, b'{"price": ', b"25}") == (None, 250_000)


async def test_a_cost_that_the_answer_does_not_tell_stays_as_reserved(running: Controlled) -> None:
    live = await begun(running, "scans.acme.example", "/scan", "GET")
    told = await ended(running, live, JSON, b"{}")
    assert told == (None, None, None)


async def test_what_fails_while_it_is_settled_keeps_the_reservation(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("a bug")

    live = await begun(running, "api.openai.com", model="gpt-5.1")
    monkeypatch.setattr("policies.costs.settled", fails)
    assert await used(running, live, JSON, answer("gpt-5.1")) == (None, None)
