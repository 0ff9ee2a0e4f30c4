"""A running stream draws more than it reserved, as much as its ceilings leave, or is denied.

gpt-5.1 takes $1.25 and $10 for a million tokens of input and output: 10 micro-dollars a token.
"""

import json
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ledger import queries
from ledger.connection import open_reader
from ledger.records import Ask, OwnState
from policies import costs
from policies.call import Identity, Request
from policies.load import load
from policies.meter.usage import Usage
from policies.verdict import Reason
from proxy.decider import Decider
from proxy.identity import Credentials
from proxy.judging import NotJudged
from proxy.live import Live
from proxy.replies import NOTHING_HEARD, UNREAD
from proxy.spending import STEP_PART, STEP_TOKENS, Spending
from tests.proxy.controlled import Controlled, controlled

TOOLS = """\
version: 1
tools:
  openai: {match: {host: api.openai.com}, model_api: openai}
"""
EVENTS = "text/event-stream"
BODY = {"model": "gpt-5.1", "stream": True, "max_completion_tokens": 100}


def policy(*ceilings: str) -> str:
    lines = "".join(f"  - {{{one}}}\n" for one in ceilings)
    return f"{TOOLS}ceilings:\n{lines}" if lines else TOOLS


def request(**asked: Any) -> Request:
    body = json.dumps(BODY | asked).encode()
    kind = (("content-type", "application/json"),)
    return Request("POST", "https", "api.openai.com", 443, "/v1/chat/completions", kind, body)


def spending(asked: Request) -> Spending:
    rules = load(TOOLS, "policy.yaml")
    return Spending(costs.asked(rules, rules.tool("openai"), asked), "")


def usage(given: int, taken: int = 0) -> Usage:
    return Usage("gpt-5.1", taken, 0, 0, given, 0)


# What is compared


def test_what_was_reserved_suffices_to_its_last_token() -> None:
    held = spending(request())
    reserved_input = held.tokens - 100
    assert not held.is_beyond(usage(100, reserved_input))
    assert held.is_beyond(usage(101, reserved_input))


def test_a_stream_of_single_tokens_is_beyond_exactly_where_the_price_says() -> None:
    held = spending(request())
    held.grant(10**6, 0)  # so that money alone decides
    rules = load(TOOLS, "policy.yaml")
    asked = costs.asked(rules, rules.tool("openai"), request())
    first = next(given for given in range(1, 10_000) if held.is_beyond(usage(given)))
    assert (
        asked.cost(usage(first)).microusd > held.microusd >= asked.cost(usage(first - 1)).microusd
    )


def test_a_new_price_is_looked_at_at_once() -> None:
    held = spending(request())
    held.grant(10**6, 0)
    assert not held.is_beyond(usage(10, 10))
    assert held.is_beyond(usage(10, 100_000)), "the answer tells of more input than was sent"


def test_only_what_is_short_is_asked_for() -> None:
    held = spending(request())
    held.grant(10**6, 0)
    assert held.is_beyond(usage(1_000))
    tokens, microusd = held.wanted()
    assert tokens == 0
    assert microusd >= 1_000 * 10 - held.microusd + STEP_TOKENS * 10


def test_a_step_grows_with_what_it_came_to() -> None:
    held = spending(request())
    held.is_beyond(usage(80_000))
    assert held.wanted()[0] == 80_000 - held.tokens + 80_000 // STEP_PART


# What is granted, by the real decider


@pytest.fixture
def running(tmp_path: Path) -> Any:
    def start(*ceilings: str) -> AbstractAsyncContextManager[Controlled]:
        return controlled(tmp_path, policy(*ceilings))

    return start


async def streaming(running: Controlled, kind: str = EVENTS, **asked: Any) -> Live:
    live = await running.gate.ask(request(**asked), Credentials("r1", "acme"), running)
    assert isinstance(live, Live)
    assert running.gate.sent(live) is None
    running.gate.answering(live, kind)
    return live


def words(tokens: int) -> bytes:
    """A chunk that is taken for so many tokens."""
    told = {"choices": [{"delta": {"content": "abc" * tokens}}]}
    return b"data: %b\n\n" % json.dumps(told).encode()


async def row(running: Controlled, live: Live, **how: Any) -> dict[str, Any]:
    await running.gate.settle(live, status=200, **{"complete": True, **how})
    while True:
        await running.service.decider.act(lambda store: None)
        with closing(open_reader(running.data)) as reader:
            found = queries.call(reader, live.call_id)
        if found and found["state"] != "pending":
            return found


async def spent_microusd(running: Controlled) -> int:
    """What is left of 20 USD for the life of a run, which is shipped, tells what it used."""
    who = Ask("", running.clock.us, Identity("r1", "acme"), NOTHING_HEARD, UNREAD)
    state = await running.service.decider.own_state(who)
    assert isinstance(state, OwnState)
    (limit,) = [one for one in state.limits if one.at_most == 20_000_000]
    return limit.at_most - limit.remaining


async def test_a_stream_that_fits_asks_for_nothing(running: Any, monkeypatch: Any) -> None:
    async with running() as proxy:
        live = await streaming(proxy)
        monkeypatch.setattr(Decider, "draw", None)
        assert [proxy.gate.body(live, words(10)) for _ in range(10)] == [False] * 10


async def test_a_stream_that_outgrows_its_reservation_is_granted_more_and_settled(
    running: Any,
) -> None:
    async with running() as proxy:
        live = await streaming(proxy)
        for _ in range(100):
            if proxy.gate.body(live, words(10)):
                assert await proxy.gate.draw(live) == ""
        found = await row(proxy, live)
        # Nothing was told: it used what was granted, 1,000 tokens of output and the input among it.
        taken = -(-len(request().body) // 3)
        assert live.asked is not None
        assert live.asked.input_tokens == taken
        assert (found["output_tokens"], found["cost_usd"]) == (None, None)
        assert live.spending is not None
        used = await spent_microusd(proxy)
        assert used == live.spending.microusd >= 10_000 + -(-taken * 125 // 100)


async def test_a_stream_is_denied_when_its_ceiling_has_nothing_left(running: Any) -> None:
    async with running("per: run, count: tokens, at_most: 400") as proxy:
        live = await streaming(proxy)
        flowed = 0
        with capture_logs() as logs:
            while not proxy.gate.body(live, words(10)) or not await proxy.gate.draw(live):
                flowed += 10
        taken = live.asked.input_tokens if live.asked else 0
        assert flowed + taken <= 400 < flowed + taken + 10, "all that is granted is used"
        assert live.stopped is Reason.OVER_CEILING
        (line,) = [each for each in logs if each["event"] == "call.exhausted"]
        assert line["rule"].startswith("ceiling:")
        found = await row(proxy, live, complete=False, rule=line["rule"], error=line["rule"])
        assert (found["state"], found["reason"]) == ("unknown", "over_ceiling")


async def test_two_streams_share_what_is_left(running: Any) -> None:
    async with running("per: run, count: tokens, at_most: 2000") as proxy:
        lives = [await streaming(proxy), await streaming(proxy)]
        flowed = 0
        while lives:
            for live in list(lives):
                if proxy.gate.body(live, words(10)) and await proxy.gate.draw(live):
                    lives.remove(live)
                else:
                    flowed += 10
        taken = 2 * -(-len(request().body) // 3)
        assert 2000 - STEP_TOKENS * 2 <= flowed + taken <= 2000


async def test_whoever_cannot_be_asked_denies(running: Any, monkeypatch: Any) -> None:
    def lost(*_: Any) -> None:
        raise NotJudged(Reason.DECIDER_UNREACHABLE)

    async with running() as proxy:
        live = await streaming(proxy)
        monkeypatch.setattr(Decider, "draw", lost)
        assert proxy.gate.body(live, words(200))
        assert await proxy.gate.draw(live) == Reason.DECIDER_UNREACHABLE
        assert live.stopped is Reason.DECIDER_UNREACHABLE


async def test_a_call_that_ended_is_granted_nothing(running: Any) -> None:
    async with running() as proxy:
        live = await streaming(proxy)
        assert proxy.gate.body(live, words(200))
        await row(proxy, live)
        assert await proxy.gate.draw(live) == "pullcord"


async def test_a_whole_answer_is_not_held_to_its_reservation(running: Any) -> None:
    async with running("per: run, count: tokens, at_most: 400") as proxy:
        live = await streaming(proxy, "application/json", stream=False)
        assert not proxy.gate.body(live, words(1_000)[6:])
        live = await streaming(proxy, EVENTS, stream=False)
        assert proxy.gate.body(live, words(1_000)), "it streams though it was not asked to"


async def test_an_answer_that_cannot_be_read_counts_by_its_bytes(running: Any) -> None:
    async with running("per: run, count: tokens, at_most: 400") as proxy:
        live = await streaming(proxy)
        proxy.gate.answering(live, EVENTS, "gzip")
        assert not proxy.gate.body(live, b"x" * 300)
        assert proxy.gate.body(live, b"x" * 3_000)
        assert await proxy.gate.draw(live)
