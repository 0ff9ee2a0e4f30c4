"""Upstreams that misbehave on command: HTTP/1.1 in the clear and inside TLS, HTTP/2 inside TLS.

A fault is a coroutine over one connection (misdeeds.py). The first connection of an upstream meets
its fault, all others are served well: so a call that is made again shows whether it was forwarded.
"""

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from socket import (
    AF_INET,
    EAI_NONAME,
    SHUT_WR,
    SO_LINGER,
    SOCK_STREAM,
    SOL_SOCKET,
    gaierror,
    socket,
)
from typing import Any

import h2.config
import h2.connection
import h2.events
from h2.errors import ErrorCodes

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Script = Callable[[Any], Awaitable[None]]


@dataclass(eq=False, slots=True)
class One:
    """One connection of HTTP/1."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    upstream: "Upstream"

    async def begin(self) -> None:
        """Nothing is said before a request."""

    async def head(self) -> int:
        """The next request's head; gives the length of its body."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        self.upstream.arrived.append(head.split(b" ")[1].decode())
        _, found, rest = head.lower().partition(b"content-length: ")
        return int(rest.split(b"\r\n")[0]) if found else 0

    async def request(self) -> None:
        await self.reader.readexactly(await self.head())

    async def half(self) -> None:
        """A request's head, and half of its body."""
        await self.reader.readexactly(await self.head() // 2)

    async def say(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    async def answer(self) -> None:
        await self.say(OK)

    async def until_left(self) -> None:
        await self.reader.read()

    async def well(self) -> None:
        while True:
            await self.request()
            await self.answer()

    def reset(self) -> None:
        reset(self.writer)


@dataclass(eq=False, slots=True)
class Two:
    """One connection of HTTP/2. `stream` is that of the last request."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    upstream: "Upstream"
    conn: h2.connection.H2Connection = field(init=False)
    stream: int = 0
    body_bytes: int = 0
    ended: bool = False
    grants: bool = True

    def __post_init__(self) -> None:
        config = h2.config.H2Configuration(
            client_side=False,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.conn = h2.connection.H2Connection(config)

    async def begin(self) -> None:
        self.conn.initiate_connection()
        await self.flush()

    async def flush(self) -> None:
        self.writer.write(self.conn.data_to_send())
        await self.writer.drain()

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            data = await self.reader.read(65536)
            if not data:
                raise ConnectionResetError
            for event in self.conn.receive_data(data):
                self._heard(event)
            await self.flush()

    def _heard(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self.stream, self.ended, self.body_bytes = event.stream_id, False, 0
            fields: Mapping[Any, Any] = dict(event.headers)
            self.upstream.arrived.append(fields[":path"])
        elif isinstance(event, h2.events.DataReceived):
            self.body_bytes += len(event.data)
            if self.grants:
                self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded):
            self.ended = True
        elif isinstance(event, h2.events.StreamReset):
            self.upstream.cancelled.set()

    async def head(self) -> None:
        before = self.stream
        await self._until(lambda: self.stream != before)

    async def request(self) -> None:
        before = self.stream
        await self._until(lambda: self.stream != before and self.ended)

    async def half(self) -> None:
        await self.head()
        await self._until(lambda: self.body_bytes >= 50_000)

    async def fields(self, status: int, *more: tuple[str, str], end: bool = False) -> None:
        self.conn.send_headers(self.stream, [(":status", str(status)), *more], end_stream=end)
        await self.flush()

    async def data(self, data: bytes, *, end: bool = True) -> None:
        self.conn.send_data(self.stream, data, end_stream=end)
        await self.flush()

    async def refuse(self, code: ErrorCodes) -> None:
        self.conn.reset_stream(self.stream, code)
        await self.flush()

    async def go_away(self, last: int) -> None:
        """As servers do that shut down gently; this connection stays open (RFC 9113, 6.8)."""
        payload = struct.pack(">II", last, ErrorCodes.NO_ERROR)
        await self.say(len(payload).to_bytes(3) + b"\x07\x00" + bytes(4) + payload)

    async def say(self, *parts: bytes) -> None:
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()

    async def answer(self) -> None:
        await self.fields(200)
        await self.data(b"ok")

    async def until_left(self) -> None:
        await self._until(self.upstream.cancelled.is_set)

    async def well(self) -> None:
        while True:
            await self.request()
            await self.answer()

    def reset(self) -> None:
        reset(self.writer)


@dataclass(eq=False, slots=True)
class Upstream:
    """The first connection meets the script, later ones are served well."""

    script: Script | None
    port: int = 0
    connections: int = 0
    arrived: list[str] = field(default_factory=list)
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    go: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        script = self.script if self.connections == 1 else None
        tls: ssl.SSLObject | None = writer.get_extra_info("ssl_object")
        kind = Two if tls is not None and tls.selected_alpn_protocol() == "h2" else One
        one = kind(reader, writer, self)
        try:
            await one.begin()
            await (script(one) if script else one.well())
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.closed.set()


@asynccontextmanager
async def misbehaving(
    script: Script | None, context: ssl.SSLContext | None
) -> AsyncIterator[Upstream]:
    made = Upstream(script)
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        made.go.set()
        server.close()


@asynccontextmanager
async def accepting(fault: str) -> AsyncIterator[int | OSError]:
    """A port that treats connections like this, before TLS; or how its name fails to resolve."""
    if fault == "does not resolve":
        yield gaierror(EAI_NONAME, "nobody knows it")
        return
    with socket(AF_INET, SOCK_STREAM) as listener, ExitStack() as opened:
        listener.setblocking(False)
        listener.bind(("127.0.0.1", 0))
        place = listener.getsockname()
        if fault == "refuses connections":
            yield place[1]  # bound, and nobody listens
            return
        listener.listen(0)
        if fault == "accepts no connection":
            for _ in range(4):  # its queue is full, so the kernel answers no more
                one = opened.enter_context(socket(AF_INET, SOCK_STREAM))
                one.setblocking(False)
                one.connect_ex(place)
            yield place[1]
            return
        task = asyncio.create_task(_accept(listener, fault, opened))
        yield place[1]
        task.cancel()


async def _accept(listener: socket, fault: str, opened: ExitStack) -> None:
    loop = asyncio.get_running_loop()
    one, _ = await loop.sock_accept(listener)
    opened.enter_context(one)
    readable = asyncio.Event()
    loop.add_reader(one, readable.set)
    await readable.wait()
    loop.remove_reader(one)  # nothing of it was read
    if fault == "resets at accept":
        one.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
        one.close()
    elif fault == "closes at accept":
        one.shutdown(SHUT_WR)
    elif fault == "speaks no TLS":
        one.send(b"SSH-2.0-OpenSSH\r\n")
    elif fault != "is silent at accept":
        raise KeyError(fault)


def reset(writer: asyncio.StreamWriter) -> None:
    """What was not read, and what waits to be sent, is gone (socket(7), SO_LINGER)."""
    writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
