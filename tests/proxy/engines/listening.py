"""Who waits for answers of upstreams in the tests of the HTTP/1.1 engine's parts."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import Any

from proxy.dial import Dialer
from proxy.engines.http1_pool import Pool
from proxy.engines.http1_upstream import Upstream, Where

HERE = (ip_network("127.0.0.0/8"),)
GET = b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n"
WAIT_SECONDS = 10.0


@dataclass(eq=False)
class Heard:
    """A listener that keeps what it is told."""

    status: int = 0
    fields: Any = ()
    to_its_end: bool = False
    body: bytearray = field(default_factory=bytearray)
    trailers: Any = None
    rest: bytes | None = None
    why: str = ""
    unprocessed: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)
    after: list[str] = field(default_factory=list)

    def _told(self, what: str) -> None:
        if self.over.is_set():
            self.after.append(what)

    def headed(self, status: int, fields: Any, *, to_its_end: bool) -> None:
        self._told("headed")
        self.status, self.fields, self.to_its_end = status, fields, to_its_end

    def chunk(self, data: bytes) -> None:
        self._told("chunk")
        self.body += data

    def ended(self, trailers: Any) -> None:
        self._told("ended")
        self.trailers = trailers
        self.over.set()

    def upgraded(self, fields: Any, rest: bytes) -> None:
        self._told("upgraded")
        self.fields, self.rest = fields, rest
        self.over.set()

    def failed(self, why: str, *, unprocessed: bool = False) -> None:
        self._told("failed")
        self.why, self.unprocessed = why, unprocessed
        self.over.set()

    @property
    def is_whole(self) -> bool:
        return self.over.is_set() and not self.why


async def asked(
    upstream: Upstream, request: bytes = GET, *, method: str = "GET", websocket: bool = False
) -> Heard:
    """One exchange, whatever becomes of it."""
    heard = Heard()
    upstream.begin(heard, method, websocket=websocket)
    upstream.write(request)
    async with asyncio.timeout(WAIT_SECONDS):
        await heard.over.wait()
    return heard


def where(port: int, *, is_tls: bool = False, host: str = "api.test") -> Where:
    return Where(host, port, is_tls)


async def _here(host: str, port: int) -> Any:
    return [(2, 1, 6, "", ("127.0.0.1", port))]


def dialer(connect_timeout_seconds: float = 5.0) -> Dialer:
    return Dialer(frozenset(), connect_timeout_seconds, _here)


def pool(tls: Any = None, room: int = 100, connect_timeout_seconds: float = 5.0) -> Pool:
    return Pool(dialer(connect_timeout_seconds), tls, room)


@asynccontextmanager
async def taken(port: int) -> AsyncIterator[Upstream]:
    connection = await pool().take(where(port), HERE, fresh=True)
    try:
        yield connection
    finally:
        connection.abort()
