"""Floods of streams, and long bodies of nobody: each is bounded, and others are still answered."""

import asyncio
from collections import Counter

import h2.config
import h2.connection
import h2.errors
import h2.events
import pytest
from mitmproxy.proxy.layers import http as mhttp

from proxy import gate
from proxy.engines import mitm_hooks, mitm_http2
from tests.engine import HTTP2
from tests.proxy.engines import inside
from tests.proxy.engines.conftest import whole_answer
from tests.proxy.engines.test_fail_closed import failing
from tests.proxy.engines.test_mitm_cords import halt, pull
from tests.proxy.engines.test_mitm_http2 import h2_get
from tests.proxy.engines.test_mitm_upstream import OK, answering, get

HEAD = b"POST http://api.test/w HTTP/1.1\r\nHost: api.test\r\n"
LONG = 200_000


class Flood:
    """An HTTP/2 client that opens streams and reads only what it is made to."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(validate_outbound_headers=False)
        self.conn = h2.connection.H2Connection(config)
        self.conn.initiate_connection()
        self.seen: Counter[object] = Counter()

    def open(self, path="/", *, reset=False):
        stream = self.conn.get_next_available_stream_id()
        self.conn.send_headers(stream, h2_get(path), end_stream=True)
        if reset:
            self.conn.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)

    def flush(self):
        self.writer.write(self.conn.data_to_send())

    async def read(self):
        """What came next; False once the connection is closed."""
        data = await self.reader.read(65536)
        if not data:
            return False
        for event in self.conn.receive_data(data):
            if isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated):
                self.seen[event.error_code] += 1
            elif isinstance(event, h2.events.StreamEnded):
                self.seen["ended"] += 1
        self.flush()
        return True


async def awaited(work):
    """What a hook gives back, which may be nothing."""
    if work is not None:
        await work


async def until(condition):
    while not condition():
        await asyncio.sleep(0.01)


@HTTP2
async def test_streams_that_are_opened_and_reset_close_the_connection(tls_upstream, serving):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        flood = Flood(*await proxy.tunnel("api.test", alpn=["h2"]))
        for _ in range(3000):
            flood.open(reset=True)
        flood.flush()
        while await flood.read():
            pass
        assert flood.seen == {h2.errors.ErrorCodes.ENHANCE_YOUR_CALM: 1}
        await until(lambda: not proxy.gate.live)
        assert await pull(proxy, halt()) == 0
    assert tls_upstream.received == b""
    assert not [call for call in proxy.calls() if call["state"] != "not_sent"]


@HTTP2
async def test_a_frame_longer_than_was_agreed_is_refused_by_its_length(tls_upstream, serving):
    """Before it has come: nobody's megabytes are held for it."""
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        flood = Flood(*await proxy.tunnel("api.test", alpn=["h2"]))
        flood.flush()
        flood.writer.write((16_000_000).to_bytes(3) + b"\0\0\0\0\0\1")
        while await flood.read():
            pass
        assert flood.seen == {h2.errors.ErrorCodes.PROTOCOL_ERROR: 1}


@HTTP2
async def test_a_stream_that_is_reset_in_the_same_breath_is_not_called(tls_upstream, serving):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        flood = Flood(*await proxy.tunnel("api.test", alpn=["h2"]))
        for _ in range(20):
            flood.open("/gone", reset=True)
        flood.open("/here")
        flood.flush()
        while not flood.seen["ended"]:
            assert await flood.read()
    assert [call["path"] for call in proxy.calls()] == ["/here"]
    assert b"/gone" not in tls_upstream.received


@HTTP2
async def test_streams_count_until_their_calls_are_over(tls_upstream, serving, monkeypatch):
    """Reset or not: what a stream started may still be at work here."""
    held, waiting = asyncio.Event(), []
    request = mitm_hooks.HOOKS[mhttp.HttpRequestHook]

    async def slowly(handler, flow):
        waiting.append(flow)
        await held.wait()
        await awaited(request(handler, flow))

    monkeypatch.setitem(mitm_hooks.HOOKS, mhttp.HttpRequestHook, slowly)
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        flood = Flood(*await proxy.tunnel("api.test", alpn=["h2"]))
        for _ in range(mitm_http2.STREAMS_MAX):
            flood.open("/gone")
        flood.flush()
        await until(lambda: len(waiting) == mitm_http2.STREAMS_MAX)
        for stream in range(1, 2 * mitm_http2.STREAMS_MAX, 2):
            flood.conn.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        flood.open("/early")
        flood.flush()
        while not flood.seen[h2.errors.ErrorCodes.REFUSED_STREAM]:
            assert await flood.read()
        held.set()
        while not flood.seen["ended"]:
            flood.open("/late")
            flood.flush()
            assert await flood.read()
    assert b"/gone" not in tls_upstream.received
    assert "/early" not in [call["path"] for call in proxy.calls()]


async def test_a_cut_asked_for_again_is_the_same_cut(upstream, serving, monkeypatch):
    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await reader.read()

    cuts = []
    made = await upstream(script)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(get(proxy))
        await reader.readuntil(b"data: 1\n\n")
        (live,) = proxy.gate.live.values()
        real = type(live.engine)._cut

        async def counted(engine, exchange):
            cuts.append(exchange.cut_by)
            await real(engine, exchange)

        monkeypatch.setattr(type(live.engine), "_cut", counted)
        first = live.engine.cut([live], "halt:run:r1")
        await asyncio.gather(first, live.engine.cut([live], "timeout"))
    assert cuts == ["halt:run:r1"]


# Bodies


async def unknown(proxy, credentials, framing=b"Content-Length: %d\r\n" % (10 * LONG)):
    """What a client is told that sends the begin of a long body."""
    reader, writer = await proxy.connect()
    writer.write(HEAD + credentials + framing + b"\r\n")
    try:
        for _ in range(50):
            writer.write(b"%x\r\n%b\r\n" % (LONG, b"x" * LONG))
            await writer.drain()
            if reader._buffer:
                break
            await asyncio.sleep(0.01)
        return await whole_answer(reader)
    finally:
        writer.close()


@pytest.mark.parametrize(
    "framing",
    [b"Content-Length: %d\r\n" % (10 * LONG), b"Transfer-Encoding: chunked\r\n"],
    ids=["by length", "chunked"],
)
async def test_a_long_body_of_nobody_is_refused_at_its_beginning(upstream, serving, framing):
    made = await upstream(answering(OK))
    async with serving(made.port, identity="token") as proxy:
        answer = await unknown(proxy, b"", framing)
        assert answer.startswith(b"HTTP/1.1 407")
        assert b"connection: close" in answer.lower()
        assert b"proxy-authenticate" in answer.lower()
        answer = await unknown(proxy, proxy.credentials(), framing)
        assert b"reason=credentials_invalid" in answer
    reasons = [call["reason"] for call in proxy.calls()]
    assert reasons == ["credentials_required", "credentials_invalid"]


async def test_a_long_body_of_nobody_is_refused_before_it_begins(upstream, serving):
    made = await upstream(answering(OK))
    async with serving(made.port) as proxy:
        head = HEAD + b"Content-Length: 999999\r\nExpect: 100-continue\r\n\r\n"
        assert (await proxy.exchange(head)).startswith(b"HTTP/1.1 407")
    assert [call["reason"] for call in proxy.calls()] == ["credentials_required"]


async def test_a_long_body_of_a_known_caller_passes(upstream, serving):
    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(LONG)
        writer.write(OK)

    made = await upstream(script)
    async with serving(made.port) as proxy:
        length = b"Content-Length: %d\r\n\r\n" % LONG
        answer = await proxy.exchange(HEAD + proxy.credentials() + length + b"x" * LONG)
        assert answer.startswith(b"HTTP/1.1 200")


async def test_a_caller_who_cannot_be_looked_up_is_refused(upstream, serving, monkeypatch):
    made = await upstream(answering(OK))
    monkeypatch.setattr(gate.Gate, "greet", failing)
    async with serving(made.port) as proxy:
        chunked = b"Transfer-Encoding: chunked\r\n"
        assert (await unknown(proxy, proxy.credentials(), chunked)).startswith(b"HTTP/1.1 503")
    assert made.connections == 0


async def test_nobodys_body_is_not_parsed(upstream, serving, monkeypatch):
    made = await upstream(answering(OK))
    monkeypatch.setattr(gate, "identified", failing)
    async with serving(made.port) as proxy:
        answer = await proxy.exchange(HEAD + b"Content-Length: 2\r\n\r\n{}")
        assert b"reason=credentials_required" in answer
    assert [call["reason"] for call in proxy.calls()] == ["credentials_required"]


async def test_all_bodies_together_have_a_bound_and_give_it_back(upstream, serving, monkeypatch):
    inside.set_constant(monkeypatch, "BODIES_BYTES_MAX", 3 * LONG // 2)

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(LONG)
        writer.write(OK)

    made = await upstream(script)
    length = b"Content-Length: %d\r\n\r\n" % LONG
    async with serving(made.port) as proxy:
        whole = HEAD + proxy.credentials() + length + b"x" * LONG
        begun, writer = await proxy.connect()
        writer.write(whole[:-1])
        answer = await proxy.exchange(whole.replace(b"/w", b"/x"))
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"no room for it now" in answer
        writer.write(whole[-1:])
        assert (await whole_answer(begun)).startswith(b"HTTP/1.1 200")
        for path in (b"/y", b"/z"):
            answer = await proxy.exchange(whole.replace(b"/w", path))
            assert answer.startswith(b"HTTP/1.1 200")
