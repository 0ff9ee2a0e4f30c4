"""Calls that wait for a person, over real sockets: approved, rejected, halted, and left alone."""

import asyncio
import functools
import re

import pytest

from ledger.records import Hold
from ledger.states import HoldState
from policies.verdict import Level, Pull, Scope
from proxy import serve
from proxy.dial import Dialer
from proxy.engines.waits import Timeouts
from tests.proxy.engines import inside
from tests.proxy.engines.test_mitm_floods import until

POLICY = """
version: 1
tools:
  api.read: {match: {host: "*.test", method: [GET, HEAD]}, allow_addresses: [127.0.0.0/8]}
  api.write:
    match: {host: "*.test", method: [POST, PUT]}
    allow_addresses: [127.0.0.0/8]
    hold: true
    hold_seconds: 60
"""
MARK = r"\[redacted:[0-9a-f]{8}\]"
CEILING = """
version: 1
tools:
  api.read: {match: {host: "*.test", method: [GET, HEAD]}, allow_addresses: [127.0.0.0/8]}
ceilings:
  - {per: run, count: calls, at_most: 1, then: hold}
"""


async def answering(reader, writer):
    """Answers each request with `ok`, on as many connections as come."""
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        for line in head.split(b"\r\n"):
            if line.lower().startswith(b"content-length:"):
                await reader.readexactly(int(line.partition(b":")[2]))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def post(proxy, body=b"pay", path=b"/orders"):
    return (
        b"POST http://api.test%b HTTP/1.1\r\nHost: api.test\r\n" % path
        + proxy.credentials()
        + b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
    )


def get(proxy, path=b"/orders?of=ann"):
    head = b"GET http://api.test%b HTTP/1.1\r\nHost: api.test\r\n" % path
    return head + proxy.credentials() + b"\r\n"


async def tickets(proxy) -> list[Hold]:
    now_us = proxy.service.clock.now_us()
    return await proxy.service.decider.act(lambda store: store.holds(now_us))


async def waiting(proxy, count=1) -> list[Hold]:
    found: list[Hold] = []
    while len(found) < count:
        await asyncio.sleep(0.02)
        found = [hold for hold in await tickets(proxy) if hold.state is HoldState.WAITING]
    return found


async def decide(proxy, hold, to=HoldState.APPROVED):
    now_us = proxy.service.clock.now_us()
    await proxy.service.decider.act(
        lambda store: store.decide_hold(hold.ticket, to, actor="ann", reason="seen", at_us=now_us)
    )


async def state(proxy, hold) -> HoldState:
    return {each.ticket: each.state for each in await tickets(proxy)}[hold.ticket]


def states(proxy):
    return [row["state"] for row in proxy.calls()]


async def test_an_approval_lets_that_request_pass_once(upstream, serving):
    made = await upstream(answering)
    async with serving(made.port, POLICY) as proxy:
        asking = asyncio.ensure_future(proxy.exchange(post(proxy)))
        (hold,) = await waiting(proxy)
        assert made.connections == 0
        assert (hold.run, hold.tool) == ("r1", "api.write")
        await decide(proxy, hold)
        assert (await asking).startswith(b"HTTP/1.1 200 OK")
        assert made.connections == 1
        again = await proxy.exchange(post(proxy))
        assert b"Idempotent-Replayed: true" in again  # it met its claim, no person was asked
        asking = asyncio.ensure_future(proxy.exchange(post(proxy, b"pay twice")))
        (other,) = await waiting(proxy)
        assert other.ticket != hold.ticket
        await decide(proxy, other, HoldState.REJECTED)
        told = await asking
        assert b" 403 " in told.split(b"\r\n")[0]
        assert b"hold_rejected" in told
        assert made.connections == 1
        assert states(proxy) == ["done", "replayed", "refused"]


async def test_the_person_sees_all_of_it(upstream, serving):
    made = await upstream(answering)
    async with serving(made.port, POLICY) as proxy:
        request = post(proxy, b"amount=5", b"/orders?of=ann&api_key=hush")
        extra = b"\r\nAuthorization: Bearer hush\r\nX-Dry-Run: true\r\nX-Run-Id: r9\r\n\r\n"
        request = request.replace(b"\r\n\r\n", extra, 1)
        asking = asyncio.ensure_future(proxy.exchange(request))
        (hold,) = await waiting(proxy)
        found = await proxy.service.decider.act(lambda store: store.shown(hold.ticket, 0))
        assert found is not None
        shown = found[1]
        assert shown is not None
        assert shown.method == "POST"
        assert re.sub(MARK, "MASKED", shown.url) == "http://api.test/orders?of=ann&api_key=MASKED"
        assert [(name, re.sub(MARK, "MASKED", value)) for name, value in shown.headers] == [
            ("host", "api.test"),
            ("content-type", "text/plain"),
            ("content-length", "8"),
            ("authorization", "Bearer MASKED"),
            ("x-dry-run", "true"),
        ]
        assert shown.body == b"amount=5"
        await decide(proxy, hold, HoldState.REJECTED)
        await asking


async def test_a_read_is_held_and_let_through_once(upstream, serving):
    made = await upstream(answering)
    async with serving(made.port, CEILING) as proxy:
        assert b" 200 " in await proxy.exchange(get(proxy))
        asking = [asyncio.ensure_future(proxy.exchange(get(proxy))) for _ in range(2)]
        (hold,) = await waiting(proxy)
        await decide(proxy, hold)
        done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        (second,) = await waiting(proxy)
        assert second.ticket != hold.ticket
        await decide(proxy, second)
        assert all(b" 200 " in told for told in await asyncio.gather(*asking))
        other = asyncio.ensure_future(proxy.exchange(get(proxy, b"/orders?of=bob")))
        (third,) = await waiting(proxy)
        await decide(proxy, third, HoldState.REJECTED)
        assert b"hold_rejected" in await other


async def test_two_identical_writes_are_one_effect(upstream, serving):
    made = await upstream(answering)
    async with serving(made.port, POLICY) as proxy:
        asking = [asyncio.ensure_future(proxy.exchange(post(proxy))) for _ in range(2)]
        (hold,) = await waiting(proxy)
        await asyncio.sleep(0.1)
        assert len(await tickets(proxy)) == 1
        await decide(proxy, hold)
        told = await asyncio.gather(*asking)
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in told)
        assert sum(b"Idempotent-Replayed" in answer for answer in told) == 1
        assert made.connections == 1


async def test_nobody_decides(upstream, serving):
    made = await upstream(answering)
    short = POLICY.replace("hold_seconds: 60", "hold_seconds: 1")
    async with serving(made.port, short) as proxy:
        told = await proxy.exchange(post(proxy))
        assert b"hold_expired" in told
        assert b" 403 " in told.split(b"\r\n")[0]
        assert made.connections == 0
        (hold,) = await tickets(proxy)
        assert hold.state is HoldState.EXPIRED


async def test_a_halt_is_told_before_anybody_decides(upstream, serving):
    made = await upstream(answering)
    async with serving(made.port, POLICY) as proxy:
        asking = asyncio.ensure_future(proxy.exchange(post(proxy)))
        (hold,) = await waiting(proxy)
        cord = Pull(Level.HALT, Scope.RUN, "r1", "loops", "ann", 1)
        await proxy.service.decider.act(lambda store: store.pull(cord))
        assert b"reason=halted" in await asking
        assert made.connections == 0
        assert states(proxy) == ["refused"]
        await decide(proxy, hold)
        assert b"reason=halted" in await proxy.exchange(post(proxy))
        assert await state(proxy, hold) is HoldState.APPROVED


@pytest.mark.parametrize("ended", ["closed", "half-closed", "reset"])
async def test_a_client_that_left_gets_the_approval_when_it_comes_back(upstream, serving, ended):
    made = await upstream(answering)
    async with serving(made.port, POLICY) as proxy:
        _, writer = await proxy.connect()
        writer.write(post(proxy))
        (hold,) = await waiting(proxy)
        if ended == "half-closed":
            writer.write_eof()
        elif ended == "closed":
            writer.close()
        else:
            writer.transport.abort()
        await until(lambda: states(proxy) == ["not_sent"])
        assert await state(proxy, hold) is HoldState.WAITING
        await decide(proxy, hold)
        assert made.connections == 0
        assert (await proxy.exchange(post(proxy))).startswith(b"HTTP/1.1 200")
        assert made.connections == 1
        assert await state(proxy, hold) is HoldState.USED
        assert states(proxy) == ["not_sent", "done"]


async def test_a_client_that_left_at_the_last_moment_keeps_its_approval(
    upstream, serving, monkeypatch
):
    """It goes while its connection is dialled: the approval is used already, and given back."""
    made = await upstream(answering)
    async with serving(made.port, POLICY) as proxy:
        _, writer = await proxy.connect()
        dial = Dialer.dial

        async def leaving(dialer, *rest):
            (live,) = proxy.gate.live.values()
            writer.write_eof()
            await until(live.gone)
            return await dial(dialer, *rest)

        monkeypatch.setattr(Dialer, "dial", leaving)
        writer.write(post(proxy))
        (hold,) = await waiting(proxy)
        await decide(proxy, hold)
        await until(lambda: states(proxy) == ["not_sent"])
        assert not made.received
        assert await state(proxy, hold) is HoldState.APPROVED
        monkeypatch.undo()
        assert (await proxy.exchange(post(proxy))).startswith(b"HTTP/1.1 200")


async def test_a_tunnel_that_closes(tls_upstream, serving):
    async with serving(tls_upstream.port, POLICY, upstream_ca=tls_upstream.ca) as proxy:
        _, writer = await proxy.tunnel("api.test")
        writer.write(b"POST /o HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1\r\n\r\nx")
        (hold,) = await waiting(proxy)
        writer.close()
        await until(lambda: states(proxy) == ["not_sent"])
        await decide(proxy, hold)
        reader, writer = await proxy.tunnel("api.test")
        writer.write(b"POST /o HTTP/1.1\r\nHost: api.test\r\nContent-Length: 1\r\n\r\nx")
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        writer.close()


async def test_a_held_call_is_no_idle_client(upstream, serving, monkeypatch):
    """No deadline ends its connection: not that of strangers, of silent clients, or of answers.
    Whom they are for is hung up on, though he came after it."""
    inside.set_constant(monkeypatch, "FIRST_CALL_SECONDS", 0.2)
    inside.set_constant(monkeypatch, "SWEEP_SECONDS", 0.05)
    short = functools.partial(Timeouts, client_idle_seconds=0.2)
    monkeypatch.setattr(serve, "Timeouts", short)

    async def script(reader, writer):
        if made.connections == 1:
            await reader.read()  # until it is cut
            return
        await answering(reader, writer)

    made = await upstream(script)
    async with serving(made.port, POLICY, first_byte_seconds=1, idle_seconds=1) as proxy:
        asking = asyncio.ensure_future(proxy.exchange(post(proxy)))
        (hold,) = await waiting(proxy)
        stranger, _ = await proxy.connect()
        assert await stranger.read() == b""
        assert (await proxy.exchange(get(proxy))).startswith(b"HTTP/1.1 502")
        known, writer = await proxy.connect()
        writer.write(get(proxy))
        assert (await known.read()).endswith(b"ok")
        assert not asking.done()
        await decide(proxy, hold)
        assert (await asking).startswith(b"HTTP/1.1 200")


async def test_a_body_that_nobody_could_read_is_refused_at_once(upstream, serving):
    made = await upstream(answering)
    async with serving(made.port, POLICY) as proxy:
        told = await proxy.exchange(post(proxy, bytes(256 * 1024 + 1)))
        assert told.startswith(b"HTTP/1.1 413")
        assert b"a person has to see all of it" in told
        assert states(proxy) == ["refused"]


async def test_the_program_ends_while_a_call_waits(upstream, serving):
    made = await upstream(answering)
    async with serving(made.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(post(proxy))
        await waiting(proxy)
    assert made.connections == 0
    assert b" 200 " not in await reader.read()
    async with serving(made.port, POLICY) as proxy:
        assert states(proxy) == ["not_sent"]


async def test_at_the_end_of_the_program_it_is_refused(upstream, serving):
    made = await upstream(answering)
    async with serving(made.port, POLICY) as proxy:
        asking = asyncio.ensure_future(proxy.exchange(post(proxy)))
        await waiting(proxy)
        proxy.gate.draining = True
        assert b"reason=shutting_down" in await asking
        assert states(proxy) == ["not_sent"]
        assert made.connections == 0
