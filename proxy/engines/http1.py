"""The engine for HTTP/1.1 and WebSocket, in the clear and inside TLS: a parser, this loop and
OpenSSL. HTTP/2 is never offered.

The engine holds no policy: `proxy.gate` is its only tie (design, section 2).
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

import structlog

from proxy.authority import Authority
from proxy.dial import Dialer
from proxy.engines import handles
from proxy.engines.arriving import Bodies
from proxy.engines.heard import Tunnel
from proxy.engines.http1_certificates import Certificates, upstream_context
from proxy.engines.http1_client import Client
from proxy.engines.http1_exchange import Exchange
from proxy.engines.http1_pool import Pool
from proxy.engines.waits import (
    ACCEPT_PAUSE_SECONDS,
    ACCEPTS_AT_ONCE,
    CUT_SECONDS,
    SWEEP_SECONDS,
    Timeouts,
)
from proxy.gate import Gate
from proxy.live import Live

log = structlog.get_logger()

HandOver = Callable[[asyncio.Transport, Tunnel, bytes], None]
"""Takes a client with its tunnel, and what it has sent in it."""


class Http1Engine:
    """Listens, and turns what clients and upstreams say into the gate's protocol and back."""

    def __init__(
        self,
        gate: Gate,
        dialer: Dialer,
        authority: Authority,
        *,
        body_bytes_max: int,
        timeouts: Timeouts,
        room: handles.Room | None = None,
        hand_over: HandOver | None = None,
    ) -> None:
        """`hand_over` takes clients that speak HTTP/2 alone."""
        self.gate = gate
        self.body_bytes_max = body_bytes_max
        self.timeouts = timeouts
        self.exchanges: dict[str, Exchange] = {}
        self.bodies = Bodies()
        self.hand_over = hand_over
        self.room = room or handles.room()
        self.certificates = Certificates(authority)
        self.pool = Pool(dialer, upstream_context(authority), self.room.upstreams)
        self._handlers: dict[Client, None] = {}  # the one that came first is first
        self._clients = 0  # those that are being taken over, too
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listener: socket.socket | None = None

    async def start(self, listener: socket.socket) -> None:
        """Serve on a bound socket, which must carry IPPROTO_TCP (notes/performance.md)."""
        listener.setblocking(False)
        self._listener = listener
        self._listen()
        self.spawn(self._sweep())

    async def stop(self, drain_seconds: float) -> None:
        """Stop listening, let what is in flight end, then cut the rest."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        await _all_set([item.ended_mark for item in self.exchanges.values()], drain_seconds)
        await self.cut([item.live for item in self.exchanges.values()], "shutdown")
        clients = list(self._handlers)
        for client in clients:
            client.hang_up()
        await _all_set([client.ended for client in clients], CUT_SECONDS)
        self.pool.close()
        for task in self._tasks:
            task.cancel()

    def cut(self, calls: Iterable[Live], reason: str) -> "asyncio.Future[Any]":
        """Close these calls at once, on both sides. Done when each is closed and settled."""
        cuts = []
        for live in calls:
            exchange = self.exchanges.get(live.call_id)
            if exchange is None:
                continue
            if exchange.cutting is None:
                exchange.cutting = self.spawn(self._cut(exchange, reason))
            cuts.append(asyncio.shield(exchange.cutting))  # whoever gives up, the cut goes on
        return asyncio.gather(*cuts, return_exceptions=True)

    async def _cut(self, exchange: Exchange, reason: str) -> None:
        """The exchange settles it; one that does not in time is gone without."""
        exchange.cut(reason)
        await _all_set([exchange.ended_mark], CUT_SECONDS)
        if not exchange.ended_mark.is_set():
            log.error("engine.cut_late", call=exchange.live.call_id)
            await exchange.abandon()

    # Clients

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        """asyncio's own would try again a hundred times over when there is no room left."""
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connected, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("engine.cannot_accept", error=error.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(ACCEPT_PAUSE_SECONDS, self._listen)
                return
            if self._clients >= self.room.clients and not self._makes_room():
                connected.close()  # no words: writing them would take what there is no more of
                continue
            connected.setblocking(False)
            self._clients += 1
            self.spawn(self._serve(connected))

    def _makes_room(self) -> bool:
        """Whether the client that has been silent about itself for longest was hung up on."""
        stranger = next((one for one in self._handlers if one.is_stranger), None)
        if stranger is not None:
            stranger.is_stranger = False
            stranger.abort()
        return stranger is not None

    async def _serve(self, connected: socket.socket) -> None:
        client = Client(self)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: client, connected)
        except OSError:  # it left already
            connected.close()
            if client not in self._handlers and not client.ended.is_set():
                self._clients -= 1

    def came(self, client: Client) -> None:
        """A client's connection is here."""
        self._handlers[client] = None

    def gone(self, client: Client) -> None:
        """It is no more. What it wrote may still be on its way."""
        self._handlers.pop(client, None)
        self._clients -= 1

    async def _sweep(self) -> None:
        """Cut what waits longer than its deadline, refuse requests that do not end in time, and
        hang up on silent clients."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now_seconds = asyncio.get_running_loop().time()
            late = [item.live for item in self.exchanges.values() if item.is_late(now_seconds)]
            self.cut(late, "timeout")
            for client in list(self._handlers):
                client.swept(now_seconds)

    def begun(self, call: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """As `spawn`, for what tells itself that it has `ended`: a call has no turn to lose."""
        task = asyncio.get_running_loop().create_task(call)
        self._tasks.add(task)
        return task

    def ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run beside the connection that asked; cancelled when the engine stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


async def _all_set(marks: list[asyncio.Event], wait_seconds: float) -> None:
    """Wait until each is set, no longer than that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_seconds):
            for mark in marks:
                await mark.wait()
