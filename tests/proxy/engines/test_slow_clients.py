"""Clients and upstreams that do not take what they are sent, and clients that send next to nothing
for long: what that costs has an end, and nobody else waits for them."""

import asyncio
import socket
from dataclasses import replace

import pytest

from proxy.engines.engine import Engine
from proxy.engines.http1 import Http1Engine
from tests.proxy.engines.uploading import PART, answer_of, put, settled

ANSWER = PART[:60_000]
ASKED = 600
"""More answers than the kernel's buffers hold."""
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(ANSWER) + ANSWER

HTTP1 = pytest.mark.http1("its own connections")


@pytest.fixture
def engines(monkeypatch):
    """Those that were made."""
    made, make = [], Engine.__init__

    def making(engine, *needs):
        make(engine, *needs)
        made.append(engine)

    monkeypatch.setattr(Engine, "__init__", making)
    return made


async def at_length(reader, writer):
    """An upstream that answers each request with many bytes."""
    while True:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await writer.drain()


def get(proxy, *, last=False):
    more = b"Connection: close\r\n" if last else b""
    asked = b"GET http://api.test/a HTTP/1.1\r\nHost: api.test\r\n"
    return asked + proxy.credentials() + more + b"\r\n"


def deaf(proxy):
    """A connection whose client takes next to nothing."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", proxy.port))
    return client


async def still(count):
    """What it comes to, once it does not grow for half a second."""
    before = -1
    while before != count():
        before = count()
        await asyncio.sleep(0.5)
    return before


async def test_who_takes_no_answers_gets_no_more_of_them(serving, upstream):
    server = await upstream(at_length)
    async with serving(server.port, within_seconds=60) as proxy:
        reader, writer = await proxy.connect()
        writer.transport.pause_reading()
        writer.write(get(proxy) * ASKED)
        made = await still(lambda: len(proxy.calls()))
        assert 0 < made < ASKED
        writer.transport.resume_reading()
        for _ in range(ASKED):
            _, body = await answer_of(reader)
            assert body == ANSWER
        assert len(await settled(proxy, ASKED)) == ASKED


@HTTP1
@pytest.mark.parametrize("last", [True, False], ids=["his last", "one of many"])
async def test_who_never_takes_his_answers_loses_his_place(serving, upstream, engines, last):
    server = await upstream(at_length)
    async with serving(server.port, within_seconds=60) as proxy:
        (engine,) = [one for one in engines if isinstance(one, Http1Engine)]
        engine.timeouts = replace(engine.timeouts, idle_seconds=1.0, client_idle_seconds=1.0)
        with deaf(proxy) as client:
            client.sendall(get(proxy) * 100 + (get(proxy, last=True) if last else b""))
            while not engine.taken:
                await asyncio.sleep(0.01)
            while engine.taken:  # it does not have to be read for that
                await asyncio.sleep(0.01)


@HTTP1
async def test_line_ends_ahead_of_a_request_in_a_tunnel_are_not_kept(serving, upstream, engines):
    server = await upstream(at_length)
    async with serving(server.port) as proxy:
        (engine,) = [one for one in engines if isinstance(one, Http1Engine)]
        reader, writer = await proxy.connect()
        connect = b"CONNECT api.test:80 HTTP/1.1\r\nHost: api.test:80\r\n"
        writer.write(connect + proxy.credentials() + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        (client,) = engine.clients
        for _ in range(64):
            writer.write(b"\r\n" * 32_768)
            await writer.drain()
            assert len(client.pending) < 1024 * 1024
        writer.write(b"GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert (await answer_of(reader))[1] == ANSWER


@HTTP1
async def test_an_upstream_that_has_answered_is_not_sent_what_it_does_not_take(serving, upstream):
    answered, rest = asyncio.Event(), []

    async def early(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.transport.pause_reading()
        await answered.wait()
        try:
            writer.transport.resume_reading()
            rest.append(len(await reader.read()))
        except ConnectionResetError:
            rest.append(0)

    server = await upstream(early)
    async with serving(server.port) as proxy:
        reader, writer = await proxy.connect()
        size_bytes = 192 * len(PART)
        writer.write(put(proxy, size_bytes) + PART * 192)
        assert (await answer_of(reader))[1] == b"ok"
        (call,) = await settled(proxy)
        assert (call["state"], call["status"]) == ("done", 200)
        answered.set()
        while not rest:
            await asyncio.sleep(0.01)
        assert rest[0] < size_bytes - len(PART)
