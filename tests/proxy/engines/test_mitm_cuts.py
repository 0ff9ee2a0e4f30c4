"""A halt ends a call wherever it is on its way: when the cut is reported done it is closed, settled
and, by the record, cut by that very cord."""

import asyncio
import socket
from contextlib import closing

import pytest
from mitmproxy.proxy.layers import http as mhttp

from ledger import containment
from ledger.connection import open_reader
from policies.verdict import Level, Scope
from proxy.dial import Dialer
from proxy.engines import mitm_hooks
from tests.engine import HTTP2
from tests.proxy.engines import inside
from tests.proxy.engines.test_mitm_cords import HANDSHAKE, halt, pull, websocket_upstream
from tests.proxy.engines.test_mitm_floods import Flood, awaited, until
from tests.proxy.engines.test_mitm_upstream import get, post

EVENTS = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n"


def proof(proxy):
    with closing(open_reader(proxy.data)) as reader:
        return containment.proof(reader, Level.HALT, Scope.RUN, "r1")


async def contained(proxy, *, calls=1, pulling=True):
    """Pull the cord; by the time that returns nothing is left, and the record can prove it."""
    if pulling:
        await asyncio.wait_for(pull(proxy, halt()), 5)
    assert not proxy.gate.live
    await until(lambda: not proof(proxy).still_open)  # a read's row comes with the next commit
    found = proof(proxy)
    assert found.admitted_after == 0
    assert len(found.cut) == calls
    return [row["state"] for row in found.cut]


async def mute(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    await reader.read()


@pytest.mark.parametrize("request_of", [get, post])
async def test_while_the_answer_is_awaited(upstream, serving, request_of):
    made = await upstream(mute)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(request_of(proxy))
        await until(lambda: [live for live in proxy.gate.live.values() if live.sent])
        assert await contained(proxy) == ["unknown"]
        assert b"reason=cut" in await reader.readuntil(b"\r\n\r\n")
        writer.close()


async def test_while_events_stream(upstream, serving):
    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(EVENTS)
        await reader.read()

    made = await upstream(script)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(get(proxy))
        await reader.readuntil(b"data: 1\n\n\r\n")  # with the end of its chunk
        assert await contained(proxy) == ["unknown"]
        assert await reader.read() == b""


async def test_a_websocket(upstream, serving):
    made = await websocket_upstream(upstream)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(HANDSHAKE + proxy.credentials() + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        assert await contained(proxy) == ["unknown"]
        assert (await reader.read())[:1] in (b"", b"\x88")


async def test_plain_http_inside_a_tunnel(upstream, serving):
    made = await upstream(mute)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        connect = b"CONNECT api.test:80 HTTP/1.1\r\nHost: api.test:80\r\n"
        writer.write(connect + proxy.credentials() + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        await until(lambda: [live for live in proxy.gate.live.values() if live.sent])
        assert await contained(proxy) == ["unknown"]
        writer.close()


@HTTP2
async def test_many_streams_of_one_connection(upstream, serving, monkeypatch):
    """All of them wait for the same dial."""
    made = await upstream(mute)
    monkeypatch.setattr(Dialer, "dial", never)
    async with serving(made.port) as proxy:
        flood = Flood(*await proxy.tunnel("api.test", alpn=["h2"]))
        for number in range(50):
            flood.open(f"/{number}")
        flood.flush()
        await until(lambda: len(proxy.gate.live) == 50)
        assert await contained(proxy, calls=50) == ["not_sent"] * 50
        while flood.seen["ended"] < 50:
            assert await flood.read()


async def never(*_args):
    await asyncio.Event().wait()


@pytest.mark.parametrize("request_of", [get, post])
async def test_in_the_middle_of_its_dial(upstream, serving, monkeypatch, request_of):
    made = await upstream(mute)
    monkeypatch.setattr(Dialer, "dial", never)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(request_of(proxy))
        await until(lambda: proxy.gate.live)
        assert await contained(proxy) == ["not_sent"]
        assert b" 403 " in await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert made.connections == 0


@pytest.mark.parametrize("request_of", [get, post])
async def test_by_its_own_last_look(upstream, serving, monkeypatch, request_of):
    """Before the sweep came to it."""
    made = await upstream(mute)
    dial = Dialer.dial

    async def pulled_meanwhile(*where):
        await proxy.service.decider.act(lambda store: store.pull(halt()))
        return await dial(*where)

    monkeypatch.setattr(Dialer, "dial", pulled_meanwhile)
    async with serving(made.port) as proxy:
        assert b" 403 " in await proxy.exchange(request_of(proxy))
        assert await contained(proxy, pulling=False) == ["not_sent"]
    assert made.received == b""


@pytest.mark.parametrize("rule", ["halt:run:r1", "shutdown", "timeout"])
async def test_in_a_dial_that_is_done_in_the_same_moment(upstream, serving, monkeypatch, rule):
    """The cut comes, and then the connection stands: nothing is sent on it."""
    made = await upstream(mute)
    entered, leave = asyncio.Event(), asyncio.Event()
    dial = Dialer.dial

    async def slowly(*where):
        connected = await dial(*where)
        entered.set()
        await leave.wait()
        return connected

    monkeypatch.setattr(Dialer, "dial", slowly)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(post(proxy))
        await entered.wait()
        (live,) = proxy.gate.live.values()
        leave.set()
        await live.engine.cut([live], rule)
        assert not proxy.gate.live
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert made.received == b""
    assert [call["state"] for call in proxy.calls()] == ["not_sent"]


@pytest.mark.mitmproxy("the hook is mitmproxy's")
@pytest.mark.parametrize("rule", ["halt:run:r1", "shutdown", "timeout"])
async def test_in_a_hook_before_its_first_byte(upstream, serving, monkeypatch, rule):
    """The cut comes while something of ours still works on the call: nothing is sent after it."""
    made = await upstream(mute)
    entered, leave = asyncio.Event(), asyncio.Event()
    request = mitm_hooks.HOOKS[mhttp.HttpRequestHook]

    async def slowly(handler, flow):
        await awaited(request(handler, flow))
        entered.set()
        await leave.wait()

    monkeypatch.setitem(mitm_hooks.HOOKS, mhttp.HttpRequestHook, slowly)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(post(proxy))
        await entered.wait()
        (live,) = proxy.gate.live.values()
        cut = live.engine.cut([live], rule)
        await asyncio.sleep(0)
        leave.set()
        await cut
        assert not proxy.gate.live
        await reader.readuntil(b"\r\n\r\n")
        writer.close()
    assert made.received == b""
    assert [call["state"] for call in proxy.calls()] == ["not_sent"]


@pytest.mark.mitmproxy("the hook is mitmproxy's")
async def test_in_a_hook_that_does_not_return(upstream, serving, monkeypatch):
    """It is not waited for: its client's connections are gone, and its call is settled."""
    inside.set_constant(monkeypatch, "CUT_SECONDS", 0.1)
    made = await upstream(mute)
    request = mitm_hooks.HOOKS[mhttp.HttpRequestHook]

    async def stuck(handler, flow):
        await awaited(request(handler, flow))
        await asyncio.Event().wait()

    monkeypatch.setitem(mitm_hooks.HOOKS, mhttp.HttpRequestHook, stuck)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(post(proxy))
        await until(lambda: proxy.gate.live)
        assert await contained(proxy) == ["not_sent"]
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readuntil(b"\r\n\r\n")
    assert made.connections == 0


async def test_in_the_middle_of_a_large_upload(upstream, serving):
    """What had not left yet never does, wherever it waited to be sent."""
    body, resume = b"x" * 15_000_000, asyncio.Event()

    async def script(reader, writer):
        peer = writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        await made.head(reader)
        await resume.wait()
        while data := await reader.read(1_000_000):
            made.received += data

    made = await upstream(script)
    async with serving(made.port) as proxy:
        _, writer = await proxy.connect()
        writer.write(post(proxy, body))
        await until(lambda: made.received)
        assert await contained(proxy) == ["unknown"]
        so_far = len(made.received)
        resume.set()
        await asyncio.sleep(0.3)
        assert len(made.received) < len(body) // 2
        assert so_far < len(body) // 2
        writer.close()
