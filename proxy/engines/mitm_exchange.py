"""A call on its way through mitmproxy: what is awaited, until when, and what may flow of it."""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mitmproxy import http

from proxy.engines import arriving
from proxy.engines.flowing import Held
from proxy.engines.mitm_pace import PacedReader, reader_of
from proxy.engines.waits import CUT_SECONDS
from proxy.live import Live

if TYPE_CHECKING:
    from proxy.engines.mitm_client import Handler

_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: on, for no time (socket(7))


@dataclass(eq=False, slots=True, kw_only=True)
class Arriving(arriving.Arriving):
    """Of one flow."""

    flow: http.HTTPFlow
    handler: "Handler"


def arriving_of(flow: http.HTTPFlow, handler: "Handler", *, caller_known: bool) -> Arriving:
    made = Arriving(
        handler.engine.bodies,
        flow.request.headers.get("content-length", ""),
        handler.engine.timeouts.idle_seconds,
        caller_known,
        reader_of(handler.transports.get(handler.client)),
        flow=flow,
        handler=handler,
    )
    made.begin(flow.request.headers.get("content-type", ""))
    return made


@dataclass(eq=False, slots=True)
class Exchange:
    """An admitted call on its way through mitmproxy. `deadline_seconds` is the loop's time."""

    live: Live
    flow: http.HTTPFlow
    handler: "Handler"
    deadline_seconds: float
    cut_by: str = ""
    cutting: asyncio.Task[None] | None = None
    status: int | None = None
    held: Held | None = None
    drawing: asyncio.Task[str] | None = None
    paused: PacedReader | None = None
    ended_mark: asyncio.Event = field(default_factory=asyncio.Event)

    def touch(self, wait_seconds: float) -> None:
        self.deadline_seconds = asyncio.get_running_loop().time() + wait_seconds

    def stop_sending(self) -> None:
        """What waits to be sent upstream must not leave any more: closing would flush it first.

        Where the connection carries a call that is not cut, the stream alone is reset.
        """
        upstream = self.flow.server_conn
        side = self.handler.transports.get(upstream)
        if not side or not isinstance(side.writer, asyncio.StreamWriter):
            return
        others = upstream.alpn == b"h2" and any(
            other.flow.server_conn is upstream and not other.cut_by
            for other in self.handler.engine.exchanges.values()
        )
        if not others:
            connected = side.writer.get_extra_info("socket")
            with contextlib.suppress(OSError):  # else the kernel would send what it has taken
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            side.writer.transport.abort()

    async def over(self) -> None:
        """Wait until it ended or, whatever became of it, its deadline is well past."""
        while not self.ended_mark.is_set():
            left = self.deadline_seconds + CUT_SECONDS - asyncio.get_running_loop().time()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended_mark.wait(), left)

    def take(self, chunk: bytes) -> bool:
        """Count one chunk of the answer. True if more has to be granted before it flows on; until
        `release` nothing more is read from its upstream."""
        self.touch(self.handler.engine.timeouts.idle_seconds)
        if not self.handler.engine.gate.body(self.live, chunk):
            return False
        self.flow.metadata["denied"] = True  # whatever fails before more is granted
        if self.paused is None:
            self.paused = reader_of(self.handler.transports.get(self.flow.server_conn))
            if self.paused is not None:
                self.paused.pause()
        return True

    def release(self) -> None:
        """Read on."""
        paused, self.paused = self.paused, None
        if paused is not None:
            paused.resume()

    def tee(self, chunk: bytes) -> bytes | list[bytes]:
        """Each chunk of a streamed answer, and at its end an empty one; gives what may flow.

        Nothing must be a list: an empty chunk would end a chunked body.
        """
        flows = chunk
        if chunk and self.live.spending is None:  # else the layer has asked
            self.take(chunk)
        if self.held is not None:
            flows = self.held.feed(chunk) if chunk else self.held.rest()
        return flows or []
