"""The mitmproxy engine: HTTP/1.1, HTTP/2, gRPC and WebSocket, in the clear and inside TLS.

mitmproxy is a library here: its layers, its TLS and nothing else. No addon runs; every hook comes
to `Handler.handle_hook`, which is the one boundary where an exception becomes a refusal. The
engine holds no policy: `proxy.gate` is its only tie (design, section 2).
"""

import asyncio
import contextlib
import socket
from collections.abc import Coroutine, Iterable
from typing import Any

import structlog
from mitmproxy import http, options

from proxy.authority import Authority
from proxy.dial import Dialer
from proxy.engines import handles, mitm_answers
from proxy.engines.arriving import Bodies
from proxy.engines.heard import Tunnel
from proxy.engines.mitm_addons import Master, proxyserver, tlsconfig
from proxy.engines.mitm_client import Handler
from proxy.engines.mitm_events import CutFlow, Unended
from proxy.engines.mitm_exchange import Arriving, Exchange
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


class MitmEngine:
    """Listens, and turns what mitmproxy reads into the gate's protocol and back."""

    def __init__(
        self,
        gate: Gate,
        dialer: Dialer,
        authority: Authority,
        *,
        body_bytes_max: int,
        timeouts: Timeouts,
        room: handles.Room | None = None,
    ) -> None:
        self.gate = gate
        self.dialer = dialer
        self.body_bytes_max = body_bytes_max
        self.timeouts = timeouts
        self.exchanges: dict[str, Exchange] = {}
        self.arriving: dict[str, Arriving] = {}  # by the flow's id
        self.bodies = Bodies()
        self.room = room or handles.room()
        self.upstreams = 0  # connections to upstreams, those being dialled too
        self._handlers: dict[Handler, None] = {}  # the one that came first is first
        self._clients = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listener: socket.socket | None = None
        self._options = _options(authority)
        self.master = Master(self._options, asyncio.get_running_loop(), with_termlog=False)
        self.master._legacy_log_events.uninstall()  # it formats every log record of the process
        self.tls = tlsconfig.TlsConfig()
        self.master.addons.add(proxyserver.Proxyserver(), self.tls)
        self._options.update(**_settings(authority))

    async def start(self, listener: socket.socket | None) -> None:
        """Serve on a bound socket, which must carry IPPROTO_TCP (notes/performance.md); without
        one only those clients that it is to `adopt`."""
        if listener is not None:
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
        await _all_set([item.ended for item in self.exchanges.values()], drain_seconds)
        await self.cut([item.live for item in self.exchanges.values()], "shutdown")
        handlers = list(self._handlers)
        for handler in handlers:
            handler.hang_up()
        await _all_set([handler.ended for handler in handlers], CUT_SECONDS)
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
                exchange.cut_by = reason
                exchange.cutting = self.spawn(self._cut(exchange, reason))
            cuts.append(asyncio.shield(exchange.cutting))  # whoever gives up, the cut goes on
        return asyncio.gather(*cuts, return_exceptions=True)

    async def _cut(self, exchange: Exchange, reason: str) -> None:
        """The hook that follows settles it; one that does not come in time is gone without."""
        exchange.stop_sending()
        if exchange.drawing is not None:
            exchange.drawing.cancel()
        await exchange.handler.server_event(CutFlow(exchange.flow, reason))
        await _all_set([exchange.ended], CUT_SECONDS)
        if not exchange.ended.is_set():
            log.error("engine.cut_late", call=exchange.live.call_id)
            exchange.handler.abort()
            await mitm_answers.settle(exchange, exchange.flow, complete=False, error=reason)

    def forget(self, flow: http.HTTPFlow) -> None:
        """A request will not be judged, or was refused: nothing of it is held."""
        self.arriving.pop(flow.id, None)
        awaited: Arriving | None = flow.metadata.get("arriving")
        if awaited is not None:
            awaited.release()

    def has_room_upstream(self) -> bool:
        """Whether one more connection may be dialled, if need be in place of an idle one."""
        if self.upstreams <= self.room.upstreams:  # the one that asks is counted already
            return True
        return any(handler.close_idle() for handler in self._handlers)

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
        try:
            reader, writer = await asyncio.open_connection(sock=connected)
        except OSError:  # it left already
            connected.close()
            self._clients -= 1
            return
        await self._handled(Handler(self, reader, writer, self._options), writer)

    def adopt(self, transport: asyncio.Transport, tunnel: Tunnel, start: bytes) -> None:
        """Serve a client of another engine's from here on. Its CONNECT was answered; `start` is
        what it has sent since."""
        if self._clients >= self.room.clients and not self._makes_room():
            transport.abort()
            return
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        reader.feed_data(start)
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        handler = Handler(self, reader, writer, self._options, tunnel)
        self._clients += 1
        self.spawn(self._handled(handler, writer))

    async def _handled(self, handler: Handler, writer: asyncio.StreamWriter) -> None:
        self._handlers[handler] = None
        try:
            await handler.handle_client()
        finally:
            self._clients -= 1
            self._handlers.pop(handler, None)
            handler.ended.set()
            writer.close()

    async def _sweep(self) -> None:
        """Cut what waits longer than its deadline, refuse requests that do not end in time, and
        hang up on silent clients."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now_seconds = asyncio.get_running_loop().time()
            late = [
                exchange.live
                for exchange in self.exchanges.values()
                if exchange.deadline_seconds < now_seconds and exchange.cutting is None
            ]
            self.cut(late, "timeout")
            for awaited in list(self.arriving.values()):
                if awaited.deadline_seconds < now_seconds:
                    del self.arriving[awaited.flow.id]
                    self.spawn(awaited.handler.server_event(Unended(awaited.flow)))
            busy = {awaited.handler for awaited in self.arriving.values()}
            for handler in self._handlers:
                if handler.is_overdue(now_seconds, busy=handler in busy):
                    handler.hang_up()

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


def _options(authority: Authority) -> options.Options:
    return options.Options(confdir=str(authority.confdir))


def _settings(authority: Authority) -> dict[str, Any]:
    """mitmproxy's options, set after the addons that define them were added."""
    return {
        "confdir": str(authority.confdir),
        "ssl_verify_upstream_trusted_ca": str(authority.upstream_file),
        "ssl_insecure": False,
        "connection_strategy": "lazy",
        "upstream_cert": False,
        "rawtcp": False,
        "http3": False,
        "tcp_timeout": 86_400,  # its own watchdog cuts held calls; ours is `_sweep`
        "validate_inbound_headers": True,
    }
