"""An exception anywhere between a request read and its verdict: the upstream sees nothing.

Each hook of the engine and each step of the gate is made to raise in turn, through each ingress.
"""

import asyncio

import pytest
from mitmproxy.proxy import layer, server_hooks
from mitmproxy.proxy.layers import http as mhttp
from mitmproxy.proxy.layers import tls as mtls
from mitmproxy.proxy.layers import websocket as mwebsocket

from ledger.store import Store
from policies.verdict import Level, Pull, Scope
from proxy import gate as gate_module
from proxy import head
from proxy.decider import Decider
from proxy.engines import mitm_hooks
from proxy.engines.mitm_layers import DialledHook, SettleHook

GET = b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n"
INNER = b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n"

# Hooks after the verdict, and those that only tell: they cannot let anything through.
LATER = {
    mhttp.HttpResponseHeadersHook,
    mhttp.HttpResponseHook,
    mhttp.HttpErrorHook,
    SettleHook,
    mwebsocket.WebsocketStartHook,
    mwebsocket.WebsocketMessageHook,
    mwebsocket.WebsocketEndHook,
    server_hooks.ServerConnectedHook,
    server_hooks.ServerConnectErrorHook,
    server_hooks.ServerDisconnectedHook,
    server_hooks.ClientDisconnectedHook,
    mtls.TlsEstablishedServerHook,
    mtls.TlsFailedServerHook,
    mtls.TlsFailedClientHook,
    mhttp.HttpConnectErrorHook,
}
PLAIN = [
    server_hooks.ClientConnectedHook,
    layer.NextLayerHook,
    mhttp.HttpRequestHeadersHook,
    mhttp.HttpRequestHook,
    server_hooks.ServerConnectHook,
    DialledHook,
]
TUNNEL = [
    *PLAIN,
    mhttp.HttpConnectHook,
    mhttp.HttpConnectedHook,
    mtls.TlsClienthelloHook,
    mtls.TlsStartClientHook,
    mtls.TlsEstablishedClientHook,
    mtls.TlsStartServerHook,
]


def failing(*_args, **_kwargs):
    raise RuntimeError("injected")


async def plain(proxy, _upstream):
    """What the client is told: the status, or nothing when it is hung up on."""
    try:
        return (await proxy.exchange(GET + proxy.credentials() + b"\r\n", 5.0))[9:12]
    except (OSError, asyncio.IncompleteReadError):
        return b"closed"


async def through_a_tunnel(proxy, _upstream, alpn=()):
    try:
        reader, writer = await proxy.tunnel("api.test", alpn=alpn)
        writer.write(INNER)
        answer = await reader.readuntil(b"\r\n\r\n")
        writer.close()
        return answer[9:12]
    except (OSError, AssertionError, asyncio.IncompleteReadError):
        return b"closed"


def test_every_hook_is_either_injected_here_or_comes_after_the_verdict():
    assert set(mitm_hooks.HOOKS) == LATER | set(TUNNEL)


@pytest.mark.parametrize("hook", PLAIN, ids=lambda hook: hook.__name__)
async def test_a_hook_that_raises_refuses_a_plain_call(tls_upstream, serving, monkeypatch, hook):
    async with serving(tls_upstream.port) as proxy:
        monkeypatch.setitem(mitm_hooks.HOOKS, hook, failing)
        assert await plain(proxy, tls_upstream) in (b"503", b"502", b"closed")
    assert tls_upstream.received == b""


@pytest.mark.parametrize("hook", TUNNEL, ids=lambda hook: hook.__name__)
async def test_a_hook_that_raises_refuses_a_call_in_a_tunnel(
    tls_upstream, serving, monkeypatch, hook
):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        monkeypatch.setitem(mitm_hooks.HOOKS, hook, failing)
        assert await through_a_tunnel(proxy, tls_upstream) in (b"503", b"502", b"closed")
    assert tls_upstream.received == b""


async def test_a_hook_that_is_not_in_the_table_refuses(tls_upstream, serving, monkeypatch):
    async with serving(tls_upstream.port) as proxy:
        monkeypatch.delitem(mitm_hooks.HOOKS, mhttp.HttpRequestHook)
        assert await plain(proxy, tls_upstream) == b"503"
    assert tls_upstream.received == b""


STEPS = {
    "reading the head": (head, "read"),
    "identifying the call": (gate_module, "identify"),
    "reading the claimant": (gate_module, "claimant"),
    "making the id": (gate_module, "new_id"),
    "logging the decision": (gate_module, "_log_decided"),
    "queueing": (Decider, "admit"),
    "opening the transaction": (Store, "transaction"),
    "admitting": (Store, "admit"),
    "committing": (Decider, "_commit"),
    "the last look": (gate_module.Gate, "sent"),
    "choosing the headers": (head, "upstream_headers"),
}


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("ingress", [plain, through_a_tunnel], ids=["plain", "tunnel"])
async def test_a_step_that_raises_refuses_the_call(
    tls_upstream, serving, monkeypatch, step, ingress
):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        with monkeypatch.context() as patch:
            patch.setattr(*step, failing)
            assert await ingress(proxy, tls_upstream) in (b"503", b"closed")
        assert tls_upstream.received == b""
        # And nothing is broken for good: the next call is judged.
        if ingress is through_a_tunnel:
            assert await ingress(proxy, tls_upstream) == b"200"


async def test_a_judge_that_raises_refuses_and_is_recorded(tls_upstream, serving, monkeypatch):
    async with serving(tls_upstream.port) as proxy:
        monkeypatch.setattr("proxy.decider.decide", failing)
        assert await plain(proxy, tls_upstream) == b"503"
    assert [call["reason"] for call in proxy.calls()] == ["policy_failure"]
    assert tls_upstream.received == b""


@pytest.mark.parametrize("hook", [mhttp.HttpResponseHeadersHook, mhttp.HttpResponseHook])
async def test_a_hook_that_raises_on_the_answer_hangs_nobody(
    tls_upstream, serving, monkeypatch, hook
):
    """The effect has happened; the agent is cut off and the outcome is not called done."""
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        monkeypatch.setitem(mitm_hooks.HOOKS, hook, failing)
        reader, writer = await proxy.tunnel("api.test")
        writer.write(b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(asyncio.IncompleteReadError):
            await reader.readuntil(b"ok")
        writer.close()
    assert [call["state"] for call in proxy.calls()] == ["unknown"]
    assert tls_upstream.received.count(b"POST ") == 1


# Cords pulled while a call is on its way


def halt(run="r1"):
    return Pull(Level.HALT, Scope.RUN, run, "test", "test", 0)


async def pull(proxy, cord):
    await proxy.service.decider.act(lambda store: store.pull(cord))
    return proxy.service.sweep()


async def test_a_halt_between_verdict_and_first_byte_stops_the_call(
    tls_upstream, serving, monkeypatch
):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        dial = mitm_hooks.HOOKS[server_hooks.ServerConnectHook]

        async def pulled_meanwhile(handler, data):
            dial(handler, data)
            await pull(proxy, halt())

        monkeypatch.setitem(mitm_hooks.HOOKS, server_hooks.ServerConnectHook, pulled_meanwhile)
        assert await through_a_tunnel(proxy, tls_upstream) == b"403"
    assert tls_upstream.received == b""
    assert [call["state"] for call in proxy.calls()] == ["not_sent"]


async def test_a_halt_cuts_a_stream_of_its_run_and_of_no_other(upstream, serving):
    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await reader.read()

    made = await upstream(script)
    async with serving(made.port) as proxy:
        streams = []
        for run in ("r1", "r2"):
            reader, writer = await proxy.connect()
            writer.write(GET + proxy.credentials(run) + b"\r\n")
            await reader.readuntil(b"data: 1\n\n")
            streams.append((reader, writer))
        assert await pull(proxy, halt("r1")) == 1
        assert await streams[0][0].read() == b""
        assert next(iter(proxy.service.gate.live.values())).identity.run == "r2"
        for _, writer in streams:
            writer.close()


async def test_a_halt_cuts_the_rest_of_a_long_answer_to_a_write(upstream, serving):
    """Its outcome is recorded before it streams; the stream is still a call in flight."""

    async def script(reader, writer):
        await reader.read(65536)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 2_000_000)
        await reader.read()

    made = await upstream(script)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        body = b"Content-Length: 2\r\n\r\n{}"
        writer.write(b"POST" + GET[3:] + proxy.credentials() + body)
        await reader.readexactly(1_000_000)
        assert await pull(proxy, halt()) == 1
        assert len(await reader.read()) < 8_000_000
        assert not proxy.service.gate.live
    assert [call["state"] for call in proxy.calls()] == ["done"]


async def test_a_halt_before_the_answer_is_told_in_words(upstream, serving):
    arrived = asyncio.Event()

    async def script(reader, writer):
        await reader.read(65536)
        arrived.set()
        await reader.read()

    made = await upstream(script)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        body = b"Content-Length: 2\r\n\r\n{}"
        writer.write(b"POST" + GET[3:] + proxy.credentials() + body)
        await arrived.wait()
        await pull(proxy, halt())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"reason=cut" in answer
        assert b"run r1 is halted" in await reader.readuntil(b"}")
        writer.close()
    assert [call["state"] for call in proxy.calls()] == ["unknown"]


# WebSocket: one write, each message looked at


def frame(text, opcode=0x81):
    mask = b"\x01\x02\x03\x04"
    body = bytes(byte ^ mask[place % 4] for place, byte in enumerate(text))
    return bytes((opcode, 0x80 | len(text))) + mask + body


HANDSHAKE = (
    b"GET http://ws.test/ HTTP/1.1\r\nHost: ws.test\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


async def websocket_upstream(upstream):
    async def script(reader, writer):
        await made.head(reader)
        writer.write(SWITCH)
        while data := await reader.read(65536):
            made.received += data
            writer.write(b"\x81\x02ok")

    made = await upstream(script)
    return made


async def test_a_websocket_passes_and_is_one_write(upstream, serving):
    made = await websocket_upstream(upstream)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(HANDSHAKE + proxy.credentials() + b"\r\n")
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        for _ in range(2):
            writer.write(frame(b"hello"))
            assert await reader.readexactly(4) == b"\x81\x02ok"
        writer.write(frame(b"\x03\xe8", 0x88))
        await reader.read()
        writer.close()
    seen = proxy.calls()
    assert [(call["effect"], call["state"], call["status"]) for call in seen] == [
        ("write", "done", 101)
    ]


async def test_a_second_websocket_to_the_same_url_is_not_a_replay(upstream, serving):
    made = await websocket_upstream(upstream)
    async with serving(made.port) as proxy:
        for _ in range(2):
            reader, writer = await proxy.connect()
            writer.write(HANDSHAKE + proxy.credentials() + b"\r\n")
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            writer.close()
    assert made.connections == 2


@pytest.mark.parametrize("level", list(Level))
async def test_a_websocket_message_after_a_cord_was_pulled_never_leaves(upstream, serving, level):
    made = await websocket_upstream(upstream)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(HANDSHAKE + proxy.credentials() + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        cord = Pull(level, Scope.RUN, "r1", "test", "test", 0)
        await proxy.service.decider.act(lambda store: store.pull(cord))
        writer.write(frame(b"hello"))
        rest = await reader.read()
        assert rest[:1] in (b"", b"\x88")  # closed, or a close frame first
        writer.close()
    head_end = bytes(made.received).index(b"\r\n\r\n") + 4
    assert b"hello" not in made.received[head_end:]
    assert made.received[head_end : head_end + 1] in (b"", b"\x88")


async def test_a_websocket_message_that_cannot_be_judged_never_leaves(
    upstream, serving, monkeypatch
):
    made = await websocket_upstream(upstream)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(HANDSHAKE + proxy.credentials() + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        monkeypatch.setitem(mitm_hooks.HOOKS, mwebsocket.WebsocketMessageHook, failing)
        writer.write(frame(b"hello"))
        await reader.read()
        writer.close()
    assert b"\x81" not in made.received
