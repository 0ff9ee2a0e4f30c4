"""Both engines behind one listener: the one for HTTP/1.1 serves, and hands a tunnel in which its
client speaks HTTP/2 alone to mitmproxy's. Who calls and what may pass is the gate's with either.
"""

import asyncio
import socket
from dataclasses import replace

from proxy.authority import Authority
from proxy.dial import Dialer
from proxy.engines import handles
from proxy.engines.http1 import Http1Engine
from proxy.engines.mitm import MitmEngine
from proxy.engines.waits import Timeouts
from proxy.gate import Gate


class AutoEngine:
    """Each engine has half of the room for connections."""

    def __init__(
        self,
        gate: Gate,
        dialer: Dialer,
        authority: Authority,
        *,
        body_bytes_max: int,
        timeouts: Timeouts,
    ) -> None:
        whole = handles.room()
        room = replace(whole, clients=-(-whole.clients // 2), upstreams=-(-whole.upstreams // 2))
        parts = (gate, dialer, authority)
        self._http2 = MitmEngine(
            *parts, body_bytes_max=body_bytes_max, timeouts=timeouts, room=room
        )
        self._http1 = Http1Engine(
            *parts,
            body_bytes_max=body_bytes_max,
            timeouts=timeouts,
            room=room,
            hand_over=self._http2.adopt,
        )

    async def start(self, listener: socket.socket) -> None:
        """Serve on a bound socket, which must carry IPPROTO_TCP (notes/performance.md)."""
        await self._http2.start(None)
        await self._http1.start(listener)

    async def stop(self, drain_seconds: float) -> None:
        """Stop listening, let what is in flight end, then cut the rest."""
        await asyncio.gather(self._http1.stop(drain_seconds), self._http2.stop(drain_seconds))
