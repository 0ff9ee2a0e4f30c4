"""One connection to an upstream over a real socket: what is sent, what is heard, how it ends."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from proxy.engines import faults, http1_answer, http1_upstream
from proxy.engines.http1_pool import Pool
from proxy.engines.http1_upstream import CLOSED_BEFORE_REQUEST, Upstream
from tests.proxy.engines.conftest import TlsUpstream, tls_context
from tests.proxy.engines.listening import (
    GET,
    HERE,
    WAIT_SECONDS,
    Heard,
    asked,
    pool,
    taken,
    where,
)
from tests.proxy.engines.test_mitm_upstream import OK, answering, reset

Start = Callable[..., Awaitable[Any]]


@asynccontextmanager
async def secured(folder: Path, script: Any) -> AsyncIterator[Upstream]:
    """A connection inside TLS to an upstream that runs this script."""
    ca = folder / "upstream.pem"
    context = tls_context(ca)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await script(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    trusting = ssl.create_default_context(cafile=str(ca))
    port = server.sockets[0].getsockname()[1]
    connection = await pool(trusting).take(where(port, is_tls=True), HERE, fresh=True)
    try:
        yield connection
    finally:
        connection.abort()
        server.close()


async def closed(connection: Upstream) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while connection.is_open:
            await asyncio.sleep(0.005)


async def keep_alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(OK)


async def test_exchanges_follow_each_other_on_one_connection(upstream: Start) -> None:
    made = await upstream(keep_alive)
    async with taken(made.port) as connection:
        for number in range(3):
            heard = await asked(connection)
            assert (heard.status, bytes(heard.body), heard.trailers) == (200, b"ok", ())
            assert (connection.is_reusable, connection.was_pooled) == (True, number > 0)
    assert made.connections == 1


async def test_exchanges_inside_tls(tmp_path: Path) -> None:
    async with secured(tmp_path, keep_alive) as connection:
        for _ in range(3):
            heard = await asked(connection)
            assert (heard.status, bytes(heard.body), connection.is_reusable) == (200, b"ok", True)


@pytest.mark.parametrize("size_bytes", [1, 16_384, 100_000, 3_000_000])
async def test_long_messages_inside_tls_come_whole(tmp_path: Path, size_bytes: int) -> None:
    body = bytes(place % 251 for place in range(size_bytes))

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        sent = await reader.readexactly(size_bytes)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size_bytes + sent)

    request = b"POST / HTTP/1.1\r\nHost: api.test\r\nContent-Length: %d\r\n\r\n" % size_bytes + body
    async with secured(tmp_path, echo) as connection:
        heard = await asked(connection, request, method="POST")
        assert heard.body == body


BROKEN_OFF = {
    "closed without an answer": (b"", http1_answer.NO_ANSWER),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-Le", http1_answer.NO_ANSWER),
    "half an answer": (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", http1_answer.BROKE_OFF),
    "no last chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        http1_answer.BROKE_OFF,
    ),
    "garbage": (b"garbage\r\n\r\n", http1_answer.NONSENSE),
}


@pytest.mark.parametrize("said, why", BROKEN_OFF.values(), ids=BROKEN_OFF)
async def test_an_answer_that_breaks_off_fails_once(upstream: Start, said: bytes, why: str) -> None:
    made = await upstream(answering(said))
    async with taken(made.port) as connection:
        heard = await asked(connection)
        assert (heard.why, heard.unprocessed) == (why, False)
        assert (connection.is_open, connection.is_reusable) == (False, False)
        await asyncio.sleep(0.01)
        assert not heard.after


async def test_a_reset_fails_the_exchange(upstream: Start) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        reset(writer)

    made = await upstream(script)
    async with taken(made.port) as connection:
        assert (await asked(connection)).why == http1_answer.NO_ANSWER


async def test_an_answer_without_a_length_is_whole_when_the_connection_ends(
    upstream: Start,
) -> None:
    made = await upstream(answering(b"HTTP/1.1 200 OK\r\n\r\nwhole"))
    async with taken(made.port) as connection:
        heard = await asked(connection)
        assert (heard.is_whole, heard.to_its_end, bytes(heard.body)) == (True, True, b"whole")
        assert (connection.is_open, connection.is_reusable) == (False, False)


async def test_an_answer_without_a_length_is_broken_by_a_reset(upstream: Start) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        await writer.drain()
        reset(writer)

    made = await upstream(script)
    async with taken(made.port) as connection:
        assert not (await asked(connection)).is_whole


@pytest.mark.parametrize("goodbye", [True, False])
async def test_inside_tls_an_answer_without_a_length_needs_a_goodbye(
    tmp_path: Path, goodbye: bool
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nwhole")
        await writer.drain()
        if not goodbye:
            writer.transport.abort()

    async with secured(tmp_path, script) as connection:
        heard = await asked(connection)
        assert (heard.is_whole, bytes(heard.body)) == (goodbye, b"whole")


@pytest.mark.parametrize("first", [OK, b"\r\n", b"x"])
async def test_an_upstream_that_speaks_first_loses_its_connection(
    upstream: Start, first: bytes
) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(first)
        await reader.read()

    made = await upstream(script)
    async with taken(made.port) as connection:
        await closed(connection)
        heard = await asked(connection)
        assert (heard.why, heard.unprocessed) == (CLOSED_BEFORE_REQUEST, True)


async def test_a_connection_that_ended_before_the_request_has_not_sent_it(upstream: Start) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    made = await upstream(script)
    async with taken(made.port) as connection:
        await closed(connection)
        heard = await asked(connection)
        assert (heard.why, heard.unprocessed) == (CLOSED_BEFORE_REQUEST, True)


async def test_what_comes_behind_an_answer_is_of_no_other_request(upstream: Start) -> None:
    made = await upstream(answering(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"))
    async with taken(made.port) as connection:
        heard = await asked(connection)
        assert (bytes(heard.body), connection.is_reusable) == (b"ok", False)
        assert not heard.after


@pytest.mark.parametrize(
    "request_fields, answer_fields, keeps",
    [
        (b"", b"", True),
        (b"Authorization: Bearer negotiate\r\n", b"WWW-Authenticate: Basic realm=ntlm\r\n", True),
        (b"authorization:Negotiate abc\r\n", b"", False),
        (b"Authorization: NTLM abc\r\n", b"", False),
        (b"", b"WWW-Authenticate: Negotiate\r\n", False),
        (b"", b"www-authenticate: Basic\r\nwww-authenticate: NTLM abc\r\n", False),
    ],
)
async def test_a_connection_that_is_authenticated_as_a_whole_is_not_used_again(
    upstream: Start, request_fields: bytes, answer_fields: bytes, keeps: bool
) -> None:
    made = await upstream(answering(OK.replace(b"Content", answer_fields + b"Content")))
    async with taken(made.port) as connection:
        await asked(connection, GET.replace(b"\r\n\r\n", b"\r\n" + request_fields + b"\r\n"))
        assert connection.is_reusable is keeps


async def test_nothing_is_told_of_what_was_given_up(upstream: Start) -> None:
    class Leaving(Heard):
        def headed(self, status: int, fields: Any, *, to_its_end: bool) -> None:
            connection.abort()
            self.over.set()

    made = await upstream(answering(OK))
    async with taken(made.port) as connection:
        heard = Leaving()
        connection.begin(heard, "GET", websocket=False)
        connection.write(GET)
        await heard.over.wait()
        await asyncio.sleep(0.01)
        assert (heard.after, bytes(heard.body)) == ([], b"")


async def test_a_closed_connection_sends_what_was_written_first(upstream: Start) -> None:
    ended = asyncio.Event()
    received = bytearray()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.read())
        ended.set()

    made = await upstream(script)
    async with taken(made.port) as connection:
        connection.begin(Heard(), "GET", websocket=False)
        connection.write(GET)
        connection.close()
        connection.close()
        await ended.wait()
    assert received == GET


async def test_a_handshake_that_is_good_hands_the_connection_over(upstream: Start) -> None:
    switch = b"HTTP/1.1 101 S\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(switch + b"first")
        await writer.drain()
        writer.write(await reader.readexactly(4))

    class Taking:
        taken = bytearray()
        ended = asyncio.Event()

        def received(self, data: bytes) -> None:
            self.taken += data

        def upstream_ended(self) -> None:
            self.ended.set()

    made = await upstream(script)
    async with taken(made.port) as connection, asyncio.timeout(WAIT_SECONDS):
        heard = await asked(connection, websocket=True)
        assert heard.rest == b"first"
        await asyncio.sleep(0.02)  # nothing is lost, however late it is said who takes it
        taking = Taking()
        connection.divert(taking)
        connection.write(b"raw!")
        await taking.ended.wait()
        assert taking.taken == b"raw!"


async def test_a_mistake_of_ours_ends_the_exchange(
    upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    class Log:
        def exception(self, event: str) -> None:
            told.append(event)

    class Failing(Heard):
        def chunk(self, data: bytes) -> None:
            raise KeyError("ours")

    monkeypatch.setattr(http1_upstream, "log", Log())
    made = await upstream(answering(OK))
    async with taken(made.port) as connection:
        heard = Failing()
        connection.begin(heard, "GET", websocket=False)
        connection.write(GET)
        await heard.over.wait()
        assert (heard.why, connection.is_open) == (faults.OWN_FAILURE, False)
    assert told == ["engine.crashed"]


async def test_an_upstream_inside_tls_that_answers(tls_upstream: TlsUpstream) -> None:
    context = ssl.create_default_context(cafile=str(tls_upstream.ca))
    made: Pool = pool(context)
    connection = await made.take(where(tls_upstream.port, is_tls=True), HERE, fresh=True)
    assert (await asked(connection)).body == b"ok"
    connection.close()
    assert tls_upstream.received == GET
