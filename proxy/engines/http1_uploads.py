"""Uploads that flow on as they come (`stream: true`): judged by their heads, then counted and
hashed on the way.

Little of them is held: while one waits for a verdict, a connection or a count, its client is not
read.
"""

import asyncio
import hashlib
from collections import deque
from typing import TYPE_CHECKING

from policies.call import Request
from policies.verdict import Reason
from proxy import head
from proxy.engines import http1_wire as wire
from proxy.engines.http1_request import Incoming
from proxy.engines.http1_upstream import Upstream
from proxy.gate import Gate

if TYPE_CHECKING:
    from proxy.engines.http1_client import Client
    from proxy.engines.http1_exchange import Exchange

AHEAD_BYTES_MAX = 128 * 1024  # of an upload that waits; more stays with its client


def is_judged_by_head(gate: Gate, request: Incoming) -> bool:
    if request.fault is not None or not gate.may_stream(head.plain_host(request.host)):
        return False
    read = head.read(request.head, streamed=True)
    return isinstance(read, Request) and gate.streams(read)


class Upload:
    """One request whose body is not read before its verdict. `is_over` once all of it has gone
    upstream."""

    def __init__(self, client: "Client", *, is_chunked: bool) -> None:
        self.body_bytes = 0
        self.is_over = False
        self._client = client
        self._is_chunked = is_chunked
        self._exchange: Exchange | None = None
        self._digest = hashlib.sha256()
        self._parts: deque[bytes] = deque()
        self._ahead_bytes = 0
        self._counts = False
        self._holds = False
        self._came = asyncio.Event()
        self._has_ended = False
        self._is_stopped = False
        self._flowing: asyncio.Task[None] | None = None

    # The client's side

    def add(self, part: bytes) -> None:
        if self._is_stopped or not part:
            return
        self._parts.append(part)
        self._ahead_bytes += len(part)
        self._came.set()
        if self._ahead_bytes > AHEAD_BYTES_MAX and not self._holds:
            self._holds = True
            self._client.pause()

    def end(self) -> None:
        """All of it came."""
        self._has_ended = True
        self._came.set()

    def stop(self) -> None:
        """Nothing more of it goes anywhere."""
        self._is_stopped = True
        self._parts.clear()
        if self._flowing is not None and self._flowing is not asyncio.current_task():
            self._flowing.cancel()
        self._release()

    def _release(self) -> None:
        if self._holds:
            self._holds = False
            self._client.resume()

    # The upstream's side

    def begin(self, exchange: "Exchange") -> None:
        """It was let through."""
        self._exchange = exchange
        self._counts = exchange.engine.gate.counts_parts(exchange.live)
        if exchange.request.expects and not self._parts:
            self._client.write(wire.CONTINUE)

    def flow(self, upstream: Upstream) -> None:
        """Its head has gone."""
        if self._exchange is not None and not self._is_stopped:
            self._flowing = self._exchange.engine.spawn(self._flow(self._exchange, upstream))

    async def _flow(self, exchange: "Exchange", upstream: Upstream) -> None:
        try:
            await self._flow_on(exchange, upstream)
        except Exception as failure:
            exchange.upload_failed(failure)

    async def _flow_on(self, exchange: "Exchange", upstream: Upstream) -> None:
        while True:
            while not self._parts:
                if self._has_ended:
                    self._end(exchange, upstream)
                    return
                self._came.clear()
                await self._came.wait()
            part = self._parts.popleft()
            rule = await self._denied(exchange, part)
            if rule is not None:
                exchange.engine.cut([exchange.live], rule)
                return
            if self._is_stopped:
                return
            upstream.write(wire.chunk(part) if self._is_chunked else part)
            self._ahead_bytes -= len(part)
            await upstream.drained()
            if self._ahead_bytes <= AHEAD_BYTES_MAX:
                self._release()

    async def _denied(self, exchange: "Exchange", part: bytes) -> str | None:
        """The rule that stops this part; it is counted before it flows on."""
        live = exchange.live
        self._digest.update(part)
        self.body_bytes += len(part)
        exchange.touch(exchange.engine.timeouts.idle_seconds)
        if live.catch is not None:
            live.catch.sent(part)
        limit = live.tool.body_bytes_max
        if limit is not None and self.body_bytes > limit:
            live.stopped = Reason.BODY_TOO_LARGE
            return f"tool:{live.tool.name}"
        if not self._counts:
            return None
        return await exchange.engine.gate.uploaded(live, len(part))

    def _end(self, exchange: "Exchange", upstream: Upstream) -> None:
        self.is_over = True
        exchange.live.body_digest = self._digest.digest()
        exchange.touch(exchange.engine.timeouts.first_byte_seconds)
        if self._is_chunked:
            upstream.write(wire.LAST_CHUNK)
