"""Calls that wait for their turn under a ceiling, over real sockets."""

import asyncio

import pytest

from ledger.records import Ask
from policies.call import Identity, Request
from policies.match import identify
from policies.verdict import Level, Pull, Scope
from tests.engine import HTTP2
from tests.proxy.engines.conftest import POLICY, whole_answer
from tests.proxy.engines.test_mitm_floods import Flood, until
from tests.proxy.engines.test_mitm_upstream import get, post
from tests.proxy.test_decider import done

CEILING = "ceilings: [{{per: tenant, count: in_flight, at_most: 2, wait_seconds: {}}}]\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


class Slow:
    """An upstream that answers when it is let, and counts how many wait in it."""

    def __init__(self):
        self.now, self.most, self.all = 0, 0, 0
        self.free = asyncio.Semaphore(0)

    async def __call__(self, reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        self.now, self.all = self.now + 1, self.all + 1
        self.most = max(self.most, self.now)
        await self.free.acquire()
        self.now -= 1
        writer.write(ANSWER)


def turns(proxy):
    return [turn for turn, _ in proxy.service.decider._room._waiting.values()]


def waiting(proxy):
    return len(turns(proxy))


async def asked(proxy, request):
    reader, writer = await proxy.connect()
    writer.write(request)
    return reader, writer


async def answers(lines):
    return [await whole_answer(reader) for reader, _ in lines]


@pytest.mark.parametrize("request_of", [get, post])
async def test_of_six_slow_calls_all_succeed_and_never_more_than_two_at_once(
    upstream, serving, request_of
):
    slow = Slow()
    made = await upstream(slow)
    async with serving(made.port, POLICY + CEILING.format(20)) as proxy:
        requests = [get(proxy, b"/%d" % n) for n in range(6)]
        if request_of is post:
            requests = [post(proxy, b'{"a": %d}' % n) for n in range(6)]
        lines = [await asked(proxy, request) for request in requests]
        await until(lambda: slow.now == 2 and waiting(proxy) == 4)
        for called in (3, 4, 5, 6, 6, 6):
            slow.free.release()
            await until(lambda called=called: slow.all == called)
        assert {answer[:12] for answer in await answers(lines)} == {b"HTTP/1.1 200"}
        assert slow.most == 2
        await until(lambda: [row["state"] for row in proxy.calls()] == ["done"] * 6)


async def test_without_a_wait_all_but_two_are_told_429_and_when_to_come_again(upstream, serving):
    slow = Slow()
    made = await upstream(slow)
    async with serving(made.port, POLICY + CEILING.format(0)) as proxy:
        running = [await asked(proxy, get(proxy)) for _ in range(2)]
        await until(lambda: slow.now == 2)
        refused = await answers([await asked(proxy, get(proxy)) for _ in range(4)])
        for answer in refused:
            head = answer.partition(b"\r\n\r\n")[0].lower()
            assert head.startswith(b"http/1.1 429 ")
            for name in (b"retry-after: 1", b"ratelimit: ", b"ratelimit-policy: "):
                assert b"\r\n" + name in head
            assert b"x-should-retry: true" in head
        slow.free.release()
        slow.free.release()
        assert {answer[:12] for answer in await answers(running)} == {b"HTTP/1.1 200"}


@pytest.mark.parametrize("request_of", [get, post])
async def test_a_client_that_leaves_frees_its_place_and_nothing_is_sent(
    upstream, serving, request_of
):
    slow = Slow()
    made = await upstream(slow)
    async with serving(made.port, POLICY + CEILING.format(20)) as proxy:
        running = [await asked(proxy, get(proxy)) for _ in range(2)]
        await until(lambda: slow.now == 2)
        _, leaving = await asked(proxy, request_of(proxy))
        await until(lambda: waiting(proxy) == 1)
        leaving.close()
        await until(lambda: waiting(proxy) == 0)
        slow.free.release()
        slow.free.release()
        await answers(running)
        await until(lambda: [row["state"] for row in proxy.calls()] == ["done"] * 2)
        assert slow.all == 2


@HTTP2
async def test_a_stream_of_http2_that_is_reset_frees_its_place(tls_upstream, serving):
    policy = POLICY + CEILING.format(20)
    async with serving(tls_upstream.port, policy, upstream_ca=tls_upstream.ca) as proxy:
        decider = proxy.service.decider
        request = Request("GET", "https", "api.test", 443, "/", (), b"")
        call = identify(decider.policy, request)
        asks = [Ask(name, 1, Identity(name, "acme"), request, call) for name in ("one", "two")]
        for ask in asks:
            await decider.admit(ask, decider.policy)
        flood = Flood(*await proxy.tunnel("api.test", alpn=["h2"]))
        flood.open("/left")
        flood.flush()
        await until(lambda: waiting(proxy) == 1)
        flood.conn.reset_stream(1)
        flood.open("/stays")
        flood.flush()
        await until(lambda: waiting(proxy) == 1 and tls_upstream.connections == 0)
        await until(lambda: {turn.admit.ask.request.path for turn in turns(proxy)} == {"/stays"})
        await decider.settle(done(asks[0]), durable=True)
        while not flood.seen["ended"]:
            assert await flood.read()
        assert b"/stays" in tls_upstream.received
        assert b"/left" not in tls_upstream.received


async def test_a_halt_answers_whoever_waits_at_once(upstream, serving):
    slow = Slow()
    made = await upstream(slow)
    async with serving(made.port, POLICY + CEILING.format(20)) as proxy:
        running = [await asked(proxy, get(proxy)) for _ in range(2)]
        await until(lambda: slow.now == 2)
        lines = [await asked(proxy, post(proxy, b'{"a": %d}' % n)) for n in range(3)]
        await until(lambda: waiting(proxy) == 3)
        cord = Pull(Level.FREEZE, Scope.TENANT, "acme", "", "ann", 0)
        await proxy.service.decider.act(lambda store: store.pull(cord))
        assert all(b"reason=frozen" in answer for answer in await answers(lines))
        assert slow.all == 2
        slow.free.release()
        slow.free.release()
        await answers(running)


async def test_at_the_end_of_the_wait_it_is_refused(upstream, serving):
    """One second."""
    slow = Slow()
    made = await upstream(slow)
    async with serving(made.port, POLICY + CEILING.format(1)) as proxy:
        for _ in range(2):
            await asked(proxy, get(proxy))
        await until(lambda: slow.now == 2)
        (answer,) = await answers([await asked(proxy, get(proxy))])
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b"\r\nretry-after: 1" in answer.lower()
        (row,) = [row for row in proxy.calls() if row["status"] == 429]
        assert (row["state"], row["reason"]) == ("refused", "over_ceiling")
