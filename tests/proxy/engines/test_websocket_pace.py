"""WebSockets of which one side floods the other with pings, and somebody never reads: what waits to
be sent stays little, whoever it waits for, and a halt ends it at once."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.engine import ENGINE
from tests.proxy.engines import inside
from tests.proxy.engines.test_mitm_cords import HANDSHAKE, SWITCH, frame, halt, pull

WAITING_BYTES_MAX = 200_000  # what one read brings, and 64 KiB at which a transport is full
FLOOD_BYTES = 1_500_000
KERNEL_BYTES = 65_536  # what the kernel may hold between each two, or about that
STALLED_TURNS = 30

SHORT, LONG = frame(b"", 0x89), frame(b"p" * 125, 0x89)
LONG_OF_UPSTREAM = b"\x89\x7d" + b"p" * 125

Start = Callable[..., Awaitable[Any]]


@dataclass
class World:
    """An open WebSocket. Whoever `reads` does not name takes nothing; `sent` of the flood."""

    proxy: Any
    client: socket.socket
    reads: str
    upstream: asyncio.StreamWriter | None = None
    taken: bytearray = field(default_factory=bytearray)  # by the upstream, after the handshake
    sent: int = 0

    def waiting(self) -> list[int]:
        """Bytes to the client, and to the upstream."""
        return [side.get_write_buffer_size() for side in inside.transports(self.proxy)]

    async def flood(self, by: str, ping: bytes) -> None:
        """All that it takes, until it takes no more. Little waits at any time."""
        stalled, rest = 0, b""
        while self.sent < FLOOD_BYTES and stalled < STALLED_TURNS:
            rest = rest or ping * (32_768 // len(ping))
            went = self._send(by, rest)
            self.sent, rest = self.sent + went, rest[went:]
            stalled = 0 if went else stalled + 1
            await asyncio.sleep(0.01 if stalled else 0)
            if self.reads == "client":
                while self._read():
                    pass
            assert max(self.waiting()) < WAITING_BYTES_MAX

    def _send(self, by: str, data: bytes) -> int:
        if by == "client":
            try:
                return self.client.send(data)
            except BlockingIOError:
                return 0
        assert self.upstream is not None
        if self.upstream.transport.get_write_buffer_size():
            return 0
        self.upstream.write(data)
        return len(data)

    async def ended(self) -> None:
        """Once it listens, the client is told."""
        with suppress(ConnectionResetError):
            while await asyncio.get_running_loop().sock_recv(self.client, 65_536):
                pass

    def _read(self) -> bytes:
        try:
            return self.client.recv(65_536)
        except BlockingIOError:
            return b""


def holding_little(connected: Any) -> None:
    """In the kernel, both ways."""
    for way in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        connected.setsockopt(socket.SOL_SOCKET, way, KERNEL_BYTES)


@asynccontextmanager
async def opened(
    upstream: Start, serving: Any, reads: str, **settings: Any
) -> AsyncIterator[World]:
    over = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        world.upstream = writer
        holding_little(writer.get_extra_info("socket"))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCH)
        if world.reads != "upstream":
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            await over.wait()
        while data := await reader.read(65_536):
            world.taken += data

    made = await upstream(script)
    loop = asyncio.get_running_loop()
    async with serving(made.port, within_seconds=60, **settings) as proxy:
        with socket.socket() as client:
            holding_little(client)
            client.setblocking(False)
            world = World(proxy, client, reads)
            await loop.sock_connect(client, ("127.0.0.1", proxy.port))
            await loop.sock_sendall(client, HANDSHAKE + proxy.credentials() + b"\r\n")
            told = b""
            while not told.endswith(b"\r\n\r\n"):
                told += await loop.sock_recv(client, 1)
            assert b" 101 " in told
            for side in inside.transports(proxy):
                holding_little(side.get_extra_info("socket"))
            try:
                yield world
            finally:
                over.set()
                if world.upstream is not None:
                    world.upstream.transport.abort()


@pytest.mark.parametrize(
    "by, ping, reads",
    [
        ("client", LONG, "upstream"),
        ("client", SHORT, "client"),
        ("client", LONG, ""),
        ("upstream", LONG_OF_UPSTREAM, "client"),
        ("upstream", LONG_OF_UPSTREAM, ""),
    ],
    ids=[
        "pongs-that-the-client-does-not-take",
        "pings-passed-on-to-an-upstream-that-takes-none",
        "of-a-client-while-nobody-reads",
        "pongs-that-the-upstream-does-not-take",
        "of-an-upstream-while-nobody-reads",
    ],
)
async def test_pings_that_nobody_takes_fill_no_memory_and_a_halt_cuts_them(
    upstream: Start, serving: Any, by: str, ping: bytes, reads: str
) -> None:
    async with opened(upstream, serving, reads) as world:
        await world.flood(by, ping)
        assert world.sent < FLOOD_BYTES  # more was not taken
        assert await pull(world.proxy, halt()) == 1
        assert not world.proxy.gate.live
        await world.proxy.service.decider.act(lambda store: None)  # it is written by then
        (call,) = world.proxy.calls()
        assert (call["state"], call["reason"]) == ("unknown", "cut")
        await world.ended()


@pytest.mark.parametrize("by, ping", [("client", LONG), ("upstream", LONG_OF_UPSTREAM)])
async def test_a_websocket_that_waits_for_whoever_takes_nothing_is_as_idle_as_any(
    upstream: Start, serving: Any, by: str, ping: bytes
) -> None:
    with inside.sweeping_often(ENGINE):
        async with opened(upstream, serving, "", idle_seconds=2.0) as world:
            await world.flood(by, ping)
            while world.proxy.gate.live:
                await asyncio.sleep(0.02)
            await world.proxy.service.decider.act(lambda store: None)
            (call,) = world.proxy.calls()
            assert (call["state"], call["reason"]) == ("unknown", "outcome_unknown")
            await world.ended()
