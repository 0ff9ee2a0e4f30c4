"""Both engines behind one listener: the one for HTTP/1.1 serves, and hands a tunnel in which its
client speaks HTTP/2 alone to mitmproxy's. Who calls and what may pass is the gate's with either.
"""

import asyncio
import socket
from dataclasses import replace

from proxy.engines import handles
from proxy.engines.engine import Needs
from proxy.engines.http1 import Http1Engine
from proxy.engines.mitm import MitmEngine


class AutoEngine:
    """Each engine has half of the room for connections."""

    def __init__(self, needs: Needs) -> None:
        whole = handles.room()
        room = replace(whole, clients=-(-whole.clients // 2), upstreams=-(-whole.upstreams // 2))
        self._http2 = MitmEngine(needs, room)
        self._http1 = Http1Engine(needs, room, hand_over=self._http2.adopt)

    async def start(self, listener: socket.socket) -> None:
        """Serve on a bound socket, which must carry IPPROTO_TCP (notes/performance.md)."""
        await self._http2.start(None)
        await self._http1.start(listener)

    async def stop(self, drain_seconds: float) -> None:
        """Stop listening, let what is in flight end, then cut the rest."""
        await asyncio.gather(self._http1.stop(drain_seconds), self._http2.stop(drain_seconds))
