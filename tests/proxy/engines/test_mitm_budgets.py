"""Streams of model calls against a budget: what outgrows it is cut within one chunk, through plain
HTTP, TLS and HTTP/2, and whoever pushes faster than is granted waits in the kernel.
"""

import asyncio

import pytest

from policies.verdict import Level, Reason, Scope
from proxy.decider import Decider
from proxy.gate import Gate
from proxy.judging import NotJudged
from tests.engine import HTTP2, each
from tests.proxy.engines.conftest import tls_context
from tests.proxy.engines.streams import (
    BUDGET_MICROUSD,
    CHUNK_MICROUSD,
    CHUNK_TOKENS,
    DONE,
    ESTIMATE_TOKENS,
    HEAD,
    INPUT_MICROUSD,
    POLICY,
    WORD,
    asked,
    http1,
    http2,
    pushing,
    pushing_http2,
    request_of,
    secured,
    spent,
    used_microusd,
)


class Ways:
    """Through each ingress: an upstream that pushes so many chunks, and what an agent had of it."""

    def __init__(self, serving, upstream, tmp_path):
        self._serving, self._upstream, self._ca = serving, upstream, tmp_path / "upstream.pem"

    async def plain(self, words):
        made = await self._upstream(pushing(words))
        async with self._serving(made.port, POLICY) as proxy:
            reader, writer = await proxy.connect()
            answer = await http1(proxy, reader, writer, asked(proxy))
            return answer, await spent(proxy)

    async def tls(self, words):
        return await self._secured(words, (), upstream_speaks=None)

    async def http2_to_http1(self, words):
        return await self._secured(words, ["h2"], upstream_speaks=None)

    async def http2(self, words):
        return await self._secured(words, ["h2"], upstream_speaks="h2")

    async def _secured(self, words, alpn, *, upstream_speaks):
        context = tls_context(self._ca)
        script = pushing(words)
        if upstream_speaks:
            context.set_alpn_protocols([upstream_speaks])

            async def script(reader, writer):
                await pushing_http2(reader, writer, words)

        async with (
            secured(context, script) as port,
            self._serving(port, POLICY, upstream_ca=self._ca) as proxy,
        ):
            reader, writer = await proxy.tunnel("api.test", alpn=alpn)
            if alpn:
                (answer,) = await http2(reader, writer)
            else:
                answer = await http1(proxy, reader, writer, asked(proxy, authority=b""))
            return answer, await spent(proxy)


WAYS = each(["plain", "tls", "http2_to_http1", "http2"])


@pytest.fixture
def through(request, serving, upstream, tmp_path):
    return getattr(Ways(serving, upstream, tmp_path), request.param)


@pytest.mark.parametrize("through", WAYS, indirect=True)
async def test_a_stream_of_ten_times_its_estimate_is_cut_within_one_chunk(through):
    (given, ended), (row, used) = await through(ESTIMATE_TOKENS)  # chunks of ten tokens each
    assert not ended
    assert BUDGET_MICROUSD < used <= BUDGET_MICROUSD + CHUNK_MICROUSD
    # What was not paid for did not reach the agent.
    words = (BUDGET_MICROUSD - INPUT_MICROUSD) // CHUNK_MICROUSD
    assert given == WORD * words
    assert (row["state"], row["reason"]) == ("unknown", "over_ceiling")
    assert (row["output_tokens"], row["cost_usd"]) == (None, None), "nothing was told"


@pytest.mark.parametrize("through", WAYS, indirect=True)
async def test_a_stream_that_fits_and_tells_nothing_keeps_what_it_drew(through):
    words = ESTIMATE_TOKENS // CHUNK_TOKENS * 4  # four times the estimate, and the budget has it
    (given, ended), (row, used) = await through(words)
    assert ended
    assert given == WORD * words + DONE
    assert words * CHUNK_MICROUSD + INPUT_MICROUSD <= used <= BUDGET_MICROUSD
    assert (row["state"], row["reason"]) == ("done", "allowed")


@HTTP2
async def test_streams_of_one_connection_share_the_budget_and_none_hangs(serving, tmp_path):
    """What one draws, the others have not; while one waits the connection is not read."""
    ca, streams = tmp_path / "upstream.pem", 8
    context = tls_context(ca)
    context.set_alpn_protocols(["h2"])

    async def script(reader, writer):
        await pushing_http2(reader, writer, 30)

    policy = POLICY.replace("0.008", "0.02")
    async with secured(context, script) as port, serving(port, policy, upstream_ca=ca) as proxy:
        reader, writer = await proxy.tunnel("api.test", alpn=["h2"])
        answers = await asyncio.wait_for(http2(reader, writer, streams=streams), 15)
        while proxy.gate.live:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)
        used = await used_microusd(proxy)
    whole = [answer for answer in answers if answer == (WORD * 30 + DONE, True)]
    assert 4 <= len(whole) < streams, "six fit, if nothing else were held meanwhile"
    assert used <= 20_000 + streams * CHUNK_MICROUSD


async def test_an_upstream_that_pushes_is_not_read_while_a_draw_is_awaited(
    upstream, serving, monkeypatch
):
    sent, deciding = 0, asyncio.Event()
    draw = Decider.draw

    async def script(reader, writer):
        nonlocal sent
        await request_of(reader)
        writer.write(HEAD + b"\r\n")
        while sent < 64 * 2**20:
            writer.write(WORD * 300)
            await writer.drain()
            sent += len(WORD) * 300

    async def late(*args):
        await deciding.wait()
        return await draw(*args)

    monkeypatch.setattr(Decider, "draw", late)
    made = await upstream(script)
    async with serving(made.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(asked(proxy))
        await reader.readuntil(b"\r\n\r\n")
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.2)
        assert sent < 32 * 2**20, "the rest would be in memory"
        (live,) = proxy.gate.live.values()
        assert live.answer_bytes <= 65_535
        deciding.set()
        assert await reader.read() == b""
        row, used = await spent(proxy)
    assert row["reason"] == "over_ceiling"
    assert used <= BUDGET_MICROUSD + 65_535 // 3 * 10


async def test_a_ceiling_that_halts_does_so_when_a_stream_has_used_it_up_and_not_before(
    upstream, serving
):
    made = await upstream(pushing(ESTIMATE_TOKENS))
    policy = POLICY.replace("at_most: 0.008", "at_most: 0.008, then: halt")
    async with serving(made.port, policy) as proxy:
        reader, writer = await proxy.connect()
        fits, _ = await http1(proxy, reader, writer, asked(proxy))
        row, used = await spent(proxy)
        (pull,) = proxy.service.decider.pulls.values()
    assert len(fits) > len(WORD) * ESTIMATE_TOKENS // CHUNK_TOKENS
    assert (pull.level, pull.scope, pull.subject) == (Level.HALT, Scope.RUN, "r1")
    assert row["reason"] == "over_ceiling", "not that a halt cut it: it is what pulled the cord"
    assert BUDGET_MICROUSD < used <= BUDGET_MICROUSD + CHUNK_MICROUSD


async def test_a_ceiling_that_halts_lets_pass_what_uses_all_that_it_reserved(upstream, serving):
    made = await upstream(pushing(ESTIMATE_TOKENS // CHUNK_TOKENS))
    exact = f"at_most: {(ESTIMATE_TOKENS * 10 + INPUT_MICROUSD + 1) / 1e6:.6f}, then: halt"
    async with serving(made.port, POLICY.replace("at_most: 0.008", exact)) as proxy:
        reader, writer = await proxy.connect()
        given = await http1(proxy, reader, writer, asked(proxy))
        await spent(proxy)
        assert not proxy.service.decider.pulls
    assert given == (WORD * (ESTIMATE_TOKENS // CHUNK_TOKENS) + DONE, True)


@pytest.mark.parametrize("status", [429, 500])
async def test_a_refusal_of_the_provider_gives_all_back(upstream, serving, status):
    async def script(reader, writer):
        await request_of(reader)
        writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\n{}" % status)

    made = await upstream(script)
    async with serving(made.port, POLICY) as proxy:
        await proxy.exchange(asked(proxy))
        _, used = await spent(proxy)
    assert used == 0


async def test_a_call_of_which_nothing_is_known_keeps_what_was_reserved(upstream, serving):
    async def script(reader, writer):
        await request_of(reader)

    made = await upstream(script)
    async with serving(made.port, POLICY) as proxy:
        await proxy.exchange(asked(proxy))
        row, used = await spent(proxy)
    assert row["state"] == "unknown"
    assert used == pytest.approx(ESTIMATE_TOKENS * 10 + INPUT_MICROUSD, abs=1)


@pytest.mark.parametrize("fails", ["the decider", "the hook"])
async def test_whatever_fails_while_more_is_asked_for_ends_the_stream(
    upstream, serving, monkeypatch, fails
):
    def failing(*_):
        raise RuntimeError("injected")

    def lost(*_):
        raise NotJudged(Reason.DECIDER_UNREACHABLE)

    if fails == "the hook":
        monkeypatch.setattr(Gate, "draw", failing)
    else:
        monkeypatch.setattr(Decider, "draw", lost)
    made = await upstream(pushing(100))
    async with serving(made.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        given, ended = await http1(proxy, reader, writer, asked(proxy))
        row, _ = await spent(proxy)
    assert not ended
    assert len(given) <= len(WORD) * ESTIMATE_TOKENS // CHUNK_TOKENS
    told = {"the hook": "policy_failure", "the decider": "decider_unreachable"}
    assert row["reason"] == told[fails]


async def test_a_halt_ends_a_stream_that_waits_for_more(upstream, serving, monkeypatch):
    asking = asyncio.Event()

    async def never(*_):
        asking.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Decider, "draw", never)
    made = await upstream(pushing(100))
    async with serving(made.port, POLICY) as proxy:
        _, writer = await proxy.connect()
        writer.write(asked(proxy))
        await asking.wait()
        await asyncio.wait_for(proxy.gate.cut_all("halt:run:r1"), 1)
        assert not proxy.gate.live
        row, _ = await spent(proxy)
    assert row["reason"] == "cut"
