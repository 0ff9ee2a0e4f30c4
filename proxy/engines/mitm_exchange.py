"""A call on its way through mitmproxy: what is awaited, until when, and what may flow of it."""

import asyncio
import contextlib
import socket
import struct
from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from mitmproxy import http

from policies.verdict import Reason
from proxy.engines.mitm_pace import PacedReader, reader_of
from proxy.head import Fault
from proxy.held import HeldResult, OneBehind
from proxy.live import Live
from proxy.usage_asked import WithoutUsage

if TYPE_CHECKING:
    from proxy.engines.mitm_client import Handler

CUT_SECONDS = 2.0  # what a cut may take before we go on without it
RPC_PAUSE_SECONDS = 3.0  # between two parts of an RPC's request; unary ones make no pause
UNKNOWN_BODY_BYTES_MAX = 64 * 1024  # a longer body is taken from known callers alone
BODIES_BYTES_MAX = 512 * 1024 * 1024  # all request bodies that this process holds
RPC_REQUEST_SECONDS = 30.0  # all of it: one that never pauses must not collect for ever

_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: on, for no time (socket(7))

_STREAMING = ("application/grpc", "application/connect+")
"""Media types of RPCs that may wait for an answer before their request ends."""


@dataclass(eq=False, slots=True)
class Bodies:
    """How many bytes of request bodies this process holds, of all clients together."""

    held_bytes: int = 0


@dataclass(eq=False, slots=True)
class Arriving:
    """A request that is not judged yet, since its body has not ended. Seconds are the loop's.

    `caller_known` is whether somebody has looked already at who sends it.
    """

    flow: http.HTTPFlow
    handler: "Handler"
    pause_seconds: float
    caller_known: bool
    end_seconds: float = inf
    deadline_seconds: float = inf
    body_bytes: int = 0
    no_room: bool = False

    def touch(self) -> None:
        """A part of it came."""
        now_seconds = asyncio.get_running_loop().time()
        self.deadline_seconds = min(now_seconds + self.pause_seconds, self.end_seconds)

    def take(self, size_bytes: int) -> bool:
        """Whether there is room for one more part of its body. Once there was none, there is none
        for the rest either."""
        self.touch()
        bodies = self.handler.engine.bodies
        self.no_room = self.no_room or bodies.held_bytes + size_bytes > BODIES_BYTES_MAX
        if self.no_room:
            return False
        self.body_bytes += size_bytes
        bodies.held_bytes += size_bytes
        return True

    def release(self) -> None:
        """Its body is held no more."""
        self.handler.engine.bodies.held_bytes -= self.body_bytes
        self.body_bytes = 0

    def announces_too_much(self) -> bool:
        """Whether its head tells of a body that is not taken from just anybody."""
        told = self.flow.request.headers.get("content-length", "")
        return not self.caller_known and told.isdecimal() and int(told) > UNKNOWN_BODY_BYTES_MAX

    def fault(self) -> Fault:
        """Why it is refused once its deadline has passed."""
        pause = f"nothing of it came for {self.pause_seconds:g} s"
        if self.end_seconds == inf:
            return Fault(Reason.MALFORMED_REQUEST, f"its body did not end: {pause}")
        why = f"the request did not end: {pause}, or {RPC_REQUEST_SECONDS:g} s went by"
        cure = "a call that streams both ways cannot pass, since requests are judged whole"
        return Fault(Reason.PROTOCOL_UNSUPPORTED, f"{why}; {cure}")


def arriving(flow: http.HTTPFlow, handler: "Handler", *, caller_known: bool) -> Arriving:
    made = Arriving(flow, handler, handler.engine.timeouts.idle_seconds, caller_known)
    if flow.request.headers.get("content-type", "").strip().lower().startswith(_STREAMING):
        made.pause_seconds = RPC_PAUSE_SECONDS
        made.end_seconds = asyncio.get_running_loop().time() + RPC_REQUEST_SECONDS
    made.touch()
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
    held: HeldResult | WithoutUsage | OneBehind | None = None
    drawing: asyncio.Task[str] | None = None
    paused: PacedReader | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

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
        while not self.ended.is_set():
            left = self.deadline_seconds + CUT_SECONDS - asyncio.get_running_loop().time()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), left)

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
                self.paused.hold()
        return True

    def release(self) -> None:
        """Read on."""
        paused, self.paused = self.paused, None
        if paused is not None:
            paused.release()

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
