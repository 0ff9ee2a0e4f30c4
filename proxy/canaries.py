"""The two ends of a drill's path: the canary that calls, and the upstream that it is to reach.

Neither knows what is drilled. The upstream counts a write by its secret path alone, so that nobody
else's connection to its port can pass for a canary.
"""

import asyncio
import base64
import contextlib
import re
import secrets
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Self

from policies.policy import CANARY_HOST
from proxy.clock import Clock
from proxy.settings import host_and_port

ANSWER_SECONDS = 5.0  # a canary that hears nothing for so long calls anew
DELAY_SECONDS = 0.003  # the upstream's, so that there is always something in flight
TOLD_MAX = 1000  # answers that a canary remembers; a level takes some dozens
LOST = "connection_lost"
SILENT = "nothing"

_REASON = re.compile(
    rb"^pullcord-decision:[^\r\n]*\breason=([a-z_]+)", re.IGNORECASE | re.MULTILINE
)
_LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)
_ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what a listener may call itself
_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Type: application/json\r\n\r\n{}"
_NOT_HERE = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(slots=True)
class Upstream:
    """`arrivals` are the moments, in monotonic seconds, at which each write was first read."""

    clock: Clock
    path: str = field(default_factory=lambda: f"/{secrets.token_hex(16)}", repr=False)
    port: int = 0
    arrivals: list[float] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://{CANARY_HOST}:{self.port}{self.path}"

    @classmethod
    @contextlib.asynccontextmanager
    async def serving(cls, clock: Clock) -> AsyncIterator[Self]:
        """On a free port of loopback."""
        upstream = cls(clock)
        server = await asyncio.start_server(upstream._serve, "127.0.0.1", 0)
        upstream.port = server.sockets[0].getsockname()[1]
        try:
            yield upstream
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while first := await reader.read(1):
                at = self.clock.monotonic_seconds()
                head = first + await reader.readuntil(b"\r\n\r\n")
                method, path, _ = head.split(b" ", 2)
                if path != self.path.encode():
                    writer.write(_NOT_HERE)
                    return
                if method == b"POST":
                    self.arrivals.append(at)
                length = _LENGTH.search(head)
                await reader.readexactly(int(length[1]) if length else 0)
                await asyncio.sleep(DELAY_SECONDS)
                writer.write(_ANSWER)
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        finally:
            writer.close()


@dataclass(frozen=True, slots=True)
class Told:
    """What a call was told: the reason code of its answer, and when it was asked (monotonic)."""

    asked: float
    reason: str


class Canary:
    """One connection to the proxy, kept for call after call as a client would."""

    def __init__(self, clock: Clock, listening: str, run: str, secret: str, url: str) -> None:
        self.told: deque[Told] = deque(maxlen=TOLD_MAX)
        self._clock = clock
        host, port = host_and_port(listening)
        self._proxy = _ANYWHERE.get(host, host), port
        credentials = base64.b64encode(f"{run}:{secret}".encode()).decode()
        authority = url.split("/")[2]
        self._rest = (
            f" {url} HTTP/1.1\r\nHost: {authority}\r\nProxy-Authorization: Basic {credentials}\r\n"
        )
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    def last(self, since: float) -> str:
        """What the newest call that was asked since then was told."""
        newest = self.told[-1] if self.told else None
        return newest.reason if newest and newest.asked >= since else SILENT

    async def call(self, method: str) -> Told:
        asked = self._clock.monotonic_seconds()
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                reason = await self._called(method)
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            reason = LOST
        if reason == LOST:
            await self.aclose()
        told = Told(asked, reason)
        self.told.append(told)
        return told

    async def _called(self, method: str) -> str:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._proxy)
        reader, writer = self._streams
        body = "{}" if method == "POST" else ""
        writer.write(f"{method}{self._rest}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length, reason = _LENGTH.search(head), _REASON.search(head)
        if length is None or reason is None:
            return LOST
        await reader.readexactly(int(length[1]))
        if b"\r\nconnection: close" in head.lower():
            await self.aclose()
        return reason[1].decode()

    async def aclose(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()
