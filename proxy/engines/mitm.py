"""The mitmproxy engine: HTTP/1.1, HTTP/2, gRPC and WebSocket, in the clear and inside TLS.

mitmproxy is a library here: its layers, its TLS and nothing else. No addon runs; every hook comes
to `Handler.handle_hook`, which is the one boundary where an exception becomes a refusal.
"""

import asyncio
import socket
from typing import Any

from mitmproxy import http, options

from proxy.authority import Authority
from proxy.engines import handles, mitm_answers
from proxy.engines.engine import Engine, Needs
from proxy.engines.heard import Tunnel
from proxy.engines.mitm_addons import Master, proxyserver, tlsconfig
from proxy.engines.mitm_client import Handler
from proxy.engines.mitm_events import CutFlow, Unended
from proxy.engines.mitm_exchange import Arriving, Exchange


class MitmEngine(Engine[Handler, Exchange]):
    """Its connections to upstreams are each of one client's."""

    def __init__(self, needs: Needs, room: handles.Room | None = None) -> None:
        super().__init__(needs, room)
        self.arriving: dict[str, Arriving] = {}  # by the flow's id
        self.upstreams = 0  # connections to upstreams, those being dialled too
        self._options = _options(needs.authority)
        self.master = Master(self._options, asyncio.get_running_loop(), with_termlog=False)
        self.master._legacy_log_events.uninstall()  # it formats every log record of the process
        self.tls = tlsconfig.TlsConfig()
        self.master.addons.add(proxyserver.Proxyserver(), self.tls)
        self._options.update(**_settings(needs.authority))

    def break_off(self, exchange: Exchange) -> None:
        exchange.stop_sending()
        if exchange.drawing is not None:
            exchange.drawing.cancel()

    async def close(self, exchange: Exchange) -> None:
        """The hook that follows settles it."""
        await exchange.handler.server_event(CutFlow(exchange.flow, exchange.cut_by))

    async def abandon(self, exchange: Exchange) -> None:
        exchange.handler.abort()
        await mitm_answers.settle(exchange, exchange.flow, complete=False, error=exchange.cut_by)

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
        return any(handler.close_idle() for handler in self.clients)

    async def serve(self, connected: socket.socket) -> None:
        try:
            reader, writer = await asyncio.open_connection(sock=connected)
        except OSError:  # it left already
            connected.close()
            self.taken -= 1
            return
        await self._handled(Handler(self, reader, writer, self._options), writer)

    def adopt(self, transport: asyncio.Transport, tunnel: Tunnel, start: bytes) -> None:
        """Serve a client of another engine's from here on. Its CONNECT was answered; `start` is
        what it has sent since."""
        if not self.takes_one_more():
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
        self.taken += 1
        self.spawn(self._handled(handler, writer))

    async def _handled(self, handler: Handler, writer: asyncio.StreamWriter) -> None:
        self.clients[handler] = None
        try:
            await handler.handle_client()
        finally:
            self.taken -= 1
            self.clients.pop(handler, None)
            handler.ended.set()
            writer.close()

    def sweep(self, now_seconds: float) -> None:
        for awaited in list(self.arriving.values()):
            if awaited.deadline_seconds < now_seconds:
                del self.arriving[awaited.flow.id]
                self.spawn(awaited.handler.server_event(Unended(awaited.flow)))
        busy = {awaited.handler for awaited in self.arriving.values()}
        for handler in self.clients:
            if handler.is_overdue(now_seconds, busy=handler in busy):
                handler.hang_up()


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
