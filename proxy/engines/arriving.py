"""Requests whose bodies are still on their way here: until when, and how much of them is held."""

import asyncio
from dataclasses import dataclass
from math import inf

from policies.verdict import Reason
from proxy.head import Fault

RPC_PAUSE_SECONDS = 3.0  # between two parts of an RPC's request; unary ones make no pause
RPC_REQUEST_SECONDS = 30.0  # all of it: one that never pauses must not collect for ever
UNKNOWN_BODY_BYTES_MAX = 64 * 1024  # a longer body is taken from known callers alone
BODIES_BYTES_MAX = 512 * 1024 * 1024  # all request bodies that this process holds

_STREAMING = ("application/grpc", "application/connect+")
"""Media types of RPCs that may wait for an answer before their request ends."""


@dataclass(eq=False, slots=True)
class Bodies:
    """How many bytes of request bodies this process holds, of all clients together."""

    held_bytes: int = 0


@dataclass(eq=False, slots=True)
class Arriving:
    """A request that is not judged yet, since its body has not ended. Seconds are the loop's.

    `caller_known` is whether somebody has looked already at who sends it, `told` its
    `Content-Length`, empty where there is none.
    """

    bodies: Bodies
    told: str
    pause_seconds: float
    caller_known: bool
    end_seconds: float = inf
    deadline_seconds: float = inf
    body_bytes: int = 0
    no_room: bool = False

    def begin(self, content_type: str) -> None:
        """Its head came."""
        if content_type.strip().lower().startswith(_STREAMING):
            self.pause_seconds = RPC_PAUSE_SECONDS
            self.end_seconds = asyncio.get_running_loop().time() + RPC_REQUEST_SECONDS
        self.touch()

    def touch(self) -> None:
        """A part of it came."""
        now_seconds = asyncio.get_running_loop().time()
        self.deadline_seconds = min(now_seconds + self.pause_seconds, self.end_seconds)

    def take(self, size_bytes: int) -> bool:
        """Whether there is room for one more part of its body. Once there was none, there is none
        for the rest either."""
        self.touch()
        self.no_room = self.no_room or self.bodies.held_bytes + size_bytes > BODIES_BYTES_MAX
        if self.no_room:
            return False
        self.body_bytes += size_bytes
        self.bodies.held_bytes += size_bytes
        return True

    def release(self) -> None:
        """Its body is held no more."""
        self.bodies.held_bytes -= self.body_bytes
        self.body_bytes = 0

    def announces_too_much(self) -> bool:
        """Whether its head tells of a body that is not taken from just anybody."""
        told = self.told
        return not self.caller_known and told.isdecimal() and int(told) > UNKNOWN_BODY_BYTES_MAX

    def is_beyond(self, body_bytes: int) -> bool:
        """Whether so much of it is more than is taken from just anybody."""
        return not self.caller_known and body_bytes > UNKNOWN_BODY_BYTES_MAX

    def too_much(self, body_bytes_max: int, *, is_too_large: bool) -> Fault | None:
        """Why not all of its body was kept; None where it was."""
        if is_too_large:
            return Fault(Reason.BODY_TOO_LARGE, f"more than {body_bytes_max} bytes")
        if self.no_room:
            full = "so many requests are held here that there is no room for it now; send it again"
            return Fault(Reason.BODY_TOO_LARGE, full)
        return None

    def fault(self) -> Fault:
        """Why it is refused once its deadline has passed."""
        pause = f"nothing of it came for {self.pause_seconds:g} s"
        if self.end_seconds == inf:
            return Fault(Reason.MALFORMED_REQUEST, f"its body did not end: {pause}")
        why = f"the request did not end: {pause}, or {RPC_REQUEST_SECONDS:g} s went by"
        cure = "a call that streams both ways cannot pass, since requests are judged whole"
        return Fault(Reason.PROTOCOL_UNSUPPORTED, f"{why}; {cure}")
