"""Ways of a call into a running proxy: plain HTTP, TLS in a tunnel, HTTP/2 in a tunnel."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import h2.config
import h2.connection
import h2.events

from ledger.connection import open_reader

OWN = "pullcord.invalid"


@dataclass(frozen=True, slots=True)
class Call:
    """What a run does; `body` makes it a POST."""

    run: str = "r1"
    body: str = ""
    host: str = "api.test"
    path: str = "/things"

    @property
    def method(self) -> str:
        return "POST" if self.body else "GET"


@dataclass(frozen=True, slots=True)
class Told:
    status: int
    reason: str
    headers: dict[str, str]


@dataclass(slots=True)
class World:
    """A proxy under one ceiling, an upstream, and a way in."""

    proxy: Any
    way: "Way"
    secrets: dict[str, str]
    arrived: list[str]
    gate: asyncio.Event
    held: asyncio.Event

    async def ask(self, call: Call) -> Told:
        async with asyncio.timeout(10):
            told = await self.way(self, call)
        words = dict(
            word.strip().partition("=")[::2]
            for word in told.headers.get("pullcord-decision", "").split(";")
        )
        return Told(told.status, words.get("reason", ""), told.headers)

    async def passes(self, *calls: Call) -> None:
        for call in calls:
            count = len(self.arrived)
            told = await self.ask(call)
            assert (told.status // 100, told.reason) == (2, "allowed"), (call, told)
            own = call.host == OWN
            assert len(self.arrived) == count + (not own), call

    async def bites(self, call: Call, reason: str = "over_ceiling") -> Told:
        count = len(self.arrived)
        told = await self.ask(call)
        status = 429 if reason == "over_ceiling" else 403
        assert (told.status, told.reason) == (status, reason), (call, told)
        assert len(self.arrived) == count, f"{call} reached the upstream"
        return told

    def events(self, kind: str) -> list[tuple[Any, ...]]:
        with closing(open_reader(self.proxy.data)) as reader:
            found = reader.execute("SELECT detail FROM event WHERE type = ?", (kind,))
            return found.fetchall()

    def head(self, call: Call, target: str, *more: bytes) -> bytes:
        fields = [
            f"{call.method} {target} HTTP/1.1".encode(),
            f"Host: {call.host}".encode(),
            b"Content-Type: application/json",
            *more,
        ]
        if call.body:
            fields.append(b"Content-Length: %d" % len(call.body))
        return b"\r\n".join(fields) + b"\r\n\r\n" + call.body.encode()

    def credentials(self, run: str) -> bytes:
        return bytes(self.proxy.credentials(run, self.secrets[run])).strip()

    async def tunnel(self, call: Call, alpn: str) -> tuple[Any, Any]:
        """CONNECT and TLS."""
        reader, writer = await self.proxy.connect()
        authority = f"{call.host}:443".encode()
        writer.write(
            b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n%b\r\n\r\n"
            % (authority, authority, self.credentials(call.run))
        )
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in answer.split(b"\r\n")[0], answer
        context = ssl.create_default_context(cafile=str(self.proxy.data / "ca" / "ca.pem"))
        context.set_alpn_protocols([alpn])
        await writer.start_tls(context, server_hostname=call.host)
        return reader, writer


# Ways in

Way = Callable[[World, Call], Awaitable[Told]]


def heard(head: str) -> dict[str, str]:
    """The fields of a head. Names are lower case."""
    lines = head.strip().split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)}


async def answered(reader: asyncio.StreamReader) -> Told:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    fields = heard(head)
    await reader.readexactly(int(fields.get("content-length", 0)))
    return Told(int(head.split()[1]), "", fields)


async def plain(world: World, call: Call) -> Told:
    reader, writer = await world.proxy.connect()
    target = f"http://{call.host}{call.path}"
    writer.write(world.head(call, target, world.credentials(call.run)))
    try:
        return await answered(reader)
    finally:
        writer.close()


async def tls(world: World, call: Call) -> Told:
    reader, writer = await world.tunnel(call, "http/1.1")
    writer.write(world.head(call, call.path))
    try:
        return await answered(reader)
    finally:
        writer.close()


async def http2(world: World, call: Call) -> Told:
    reader, writer = await world.tunnel(call, "h2")
    conn = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    conn.initiate_connection()
    fields = [
        (":method", call.method),
        (":scheme", "https"),
        (":authority", call.host),
        (":path", call.path),
        ("content-type", "application/json"),
    ]
    conn.send_headers(1, fields, end_stream=not call.body)
    if call.body:
        conn.send_data(1, call.body.encode(), end_stream=True)
    writer.write(conn.data_to_send())
    try:
        while data := await reader.read(65536):
            for event in conn.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    fields_heard = {str(name): str(value) for name, value in event.headers}
                    return Told(int(fields_heard.pop(":status")), "", fields_heard)
            writer.write(conn.data_to_send())
        raise EOFError("no answer")
    finally:
        writer.close()


WAYS: dict[str, Way] = {"plain HTTP": plain, "TLS": tls, "HTTP/2": http2}
