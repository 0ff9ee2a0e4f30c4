"""How fast a connection to an upstream goes: by whoever takes less, and at a cut nothing more."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from proxy.engines import http1_answer
from tests.proxy.engines.listening import GET, WAIT_SECONDS, Heard, taken
from tests.proxy.engines.test_mitm_upstream import OK, reset

Start = Callable[..., Awaitable[Any]]


async def test_what_waits_to_be_sent_does_not_leave_once_it_was_aborted(upstream: Start) -> None:
    begun, goes_on, rest = asyncio.Event(), asyncio.Event(), bytearray()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        begun.set()
        await goes_on.wait()
        try:
            while data := await reader.read(65536):
                rest.extend(data)
        finally:
            rest.extend(b"" if reader.at_eof() else b"reset")

    made = await upstream(script)
    async with taken(made.port) as connection:
        heard = Heard()
        connection.begin(heard, "POST", websocket=False)
        connection.write(b"POST / HTTP/1.1\r\nContent-Length: 50000000\r\n\r\n")
        connection.write(b"x" * 50_000_000)
        await begun.wait()
        connection.abort()
        goes_on.set()
        while not rest.endswith(b"reset"):
            await asyncio.sleep(0.01)
    assert len(rest) < 25_000_000
    assert not heard.over.is_set()


async def test_an_upload_waits_for_an_upstream_that_does_not_read(upstream: Start) -> None:
    goes_on = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await goes_on.wait()
        await reader.readexactly(30_000_000)
        writer.write(OK)

    made = await upstream(script)
    async with taken(made.port) as connection:
        heard = Heard()
        connection.begin(heard, "POST", websocket=False)
        connection.write(b"POST / HTTP/1.1\r\nContent-Length: 30000000\r\n\r\n")
        waiting = 0
        for sent in range(1, 31):
            connection.write(b"x" * 1_000_000)
            drained = asyncio.ensure_future(connection.drained())
            done, _ = await asyncio.wait({drained}, timeout=0.2 if not waiting else None)
            if not done:
                waiting = sent
                goes_on.set()
                await drained
        await heard.over.wait()
        assert 0 < waiting < 30
        assert heard.status == 200


async def test_waiting_for_an_upstream_ends_with_it(upstream: Start) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reset(writer)

    made = await upstream(script)
    async with taken(made.port) as connection, asyncio.timeout(WAIT_SECONDS):
        heard = Heard()
        connection.begin(heard, "POST", websocket=False)
        connection.write(b"POST / HTTP/1.1\r\nContent-Length: 30000000\r\n\r\n")
        connection.write(b"x" * 30_000_000)
        await connection.drained()
        await heard.over.wait()
        assert heard.why == http1_answer.NO_ANSWER


async def test_while_it_is_paused_little_is_read(upstream: Start) -> None:
    size_bytes = 50_000_000
    sent = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size_bytes)
        for _ in range(size_bytes // 100_000):
            writer.write(b"x" * 100_000)
            await writer.drain()
            sent += 100_000

    class Slow(Heard):
        def headed(self, status: int, fields: Any, *, to_its_end: bool) -> None:
            super().headed(status, fields, to_its_end=to_its_end)
            connection.pause()
            connection.pause()

    made = await upstream(script)
    async with taken(made.port) as connection, asyncio.timeout(WAIT_SECONDS):
        heard = Slow()
        connection.begin(heard, "GET", websocket=False)
        connection.write(GET)
        seen = -1
        while seen != sent:  # until nothing moves any more
            seen = sent
            await asyncio.sleep(0.2)
        assert len(heard.body) < 1_000_000
        assert sent < size_bytes // 2
        connection.resume()
        connection.resume()
        await heard.over.wait()
        assert len(heard.body) == size_bytes
