"""The engine for HTTP/1.1 and WebSocket, in the clear and inside TLS: a parser, this loop and
OpenSSL. HTTP/2 is never offered.
"""

import asyncio
import socket
from collections.abc import Callable

from proxy.engines import handles
from proxy.engines.engine import Engine, Needs
from proxy.engines.heard import Tunnel
from proxy.engines.http1_certificates import Certificates, upstream_context
from proxy.engines.http1_client import Client
from proxy.engines.http1_exchange import Exchange
from proxy.engines.http1_pool import Pool

HandOver = Callable[[asyncio.Transport, Tunnel, bytes], None]
"""Takes a client with its tunnel, and what it has sent in it."""


class Http1Engine(Engine[Client, Exchange]):
    """Its connections to upstreams are pooled: they are nobody's."""

    def __init__(
        self, needs: Needs, room: handles.Room | None = None, hand_over: HandOver | None = None
    ) -> None:
        """`hand_over` takes clients that speak HTTP/2 alone."""
        super().__init__(needs, room)
        self.hand_over = hand_over
        self.certificates = Certificates(needs.authority)
        self.pool = Pool(self.dialer, upstream_context(needs.authority), self.room.upstreams)

    async def stop(self, drain_seconds: float) -> None:
        await super().stop(drain_seconds)
        self.pool.close()

    async def serve(self, connected: socket.socket) -> None:
        client = Client(self)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: client, connected)
        except OSError:  # it left already
            connected.close()
            if client not in self.clients and not client.ended.is_set():
                self.taken -= 1

    def came(self, client: Client) -> None:
        """A client's connection is here."""
        self.clients[client] = None

    def gone(self, client: Client) -> None:
        """It is no more. What it wrote may still be on its way."""
        self.clients.pop(client, None)
        self.taken -= 1

    def break_off(self, exchange: Exchange) -> None:
        exchange.cut()

    async def close(self, exchange: Exchange) -> None:
        """It is closed already."""

    async def abandon(self, exchange: Exchange) -> None:
        await exchange.abandon()

    def sweep(self, now_seconds: float) -> None:
        for client in list(self.clients):
            client.swept(now_seconds)
