"""Requests whose bodies are still on their way here: until when, and how much of them is held.

Of a long one what has come waits on the disk.
"""

import asyncio
from dataclasses import dataclass, field
from math import inf
from typing import Protocol

from policies.verdict import Reason
from proxy.head import Fault
from proxy.spool import PART_BYTES, Spool, Spooled

RPC_PAUSE_SECONDS = 3.0  # between two parts of an RPC's request; unary ones make no pause
RPC_REQUEST_SECONDS = 30.0  # all of it: one that never pauses must not collect for ever
UNKNOWN_BODY_BYTES_MAX = 64 * 1024  # a longer body is taken from known callers alone
BODIES_BYTES_MAX = 512 * 1024 * 1024  # all request bodies that this process holds in memory
SLOW_SECONDS = 30.0  # a body that takes longer to come makes room for others where there is none
HELD_BYTES_MAX = 1024 * 1024  # of one body, in memory; a longer one waits on the disk

BEHIND_BYTES_MAX = 2 * PART_BYTES  # of one body, for the disk; then its client is not read

_STREAMING = ("application/grpc", "application/connect+")
"""Media types of RPCs that may wait for an answer before their request ends."""


class Reading(Protocol):
    """Of what a client sends: the kernel holds it, then the client, until each pause was ended."""

    def pause(self) -> None: ...
    def resume(self) -> None: ...


@dataclass(eq=False, slots=True)
class Bodies:
    """The request bodies that this process holds, of all clients together: so many bytes of them
    in memory, and the rest of the long ones in `spool`."""

    spool: Spool
    held_bytes: int = 0
    coming: "dict[Arriving, None]" = field(default_factory=dict)
    """Those of which more is to come, the one that began first first."""

    def make_room(self, size_bytes: int, newcomer: "Arriving") -> bool:
        """Whether so much more fits in memory, if need be in place of bodies that have been on
        their way for long: who sends slowly must not keep everybody else out."""
        while self.held_bytes + size_bytes > BODIES_BYTES_MAX:
            first = next((one for one in self.coming if one.is_held), newcomer)
            if first is newcomer or not first.is_slow:
                return False
            first.give_way()
        return True


@dataclass(eq=False, slots=True)
class Arriving:
    """A request that is not judged yet, since its body has not ended. Seconds are the loop's.

    `caller_known` is whether somebody has looked already at who sends it, `told` its
    `Content-Length`, empty where there is none; `reading` is what waits for a disk that is slower
    than its client.
    """

    bodies: Bodies
    told: str
    pause_seconds: float
    caller_known: bool
    reading: Reading | None = None
    end_seconds: float = inf
    deadline_seconds: float = inf
    body_bytes: int = 0
    no_room: bool = False
    _since_seconds: float = 0.0
    _parts: list[bytes] = field(default_factory=list)
    _held_bytes: int = 0
    _spooled: Spooled | None = None
    _not_kept: str = ""
    _is_paused: bool = False

    def begin(self, content_type: str) -> None:
        """Its head came."""
        if content_type.strip().lower().startswith(_STREAMING):
            self.pause_seconds = RPC_PAUSE_SECONDS
            self.end_seconds = asyncio.get_running_loop().time() + RPC_REQUEST_SECONDS
        self._since_seconds = asyncio.get_running_loop().time()
        self.touch()

    def touch(self) -> None:
        """A part of it came."""
        now_seconds = asyncio.get_running_loop().time()
        self.deadline_seconds = min(now_seconds + self.pause_seconds, self.end_seconds)

    @property
    def is_spooled(self) -> bool:
        """Whether a part of its body is on the disk."""
        return self._spooled is not None

    def take(self, part: bytes) -> bool:
        """Hold one more part of its body, if there is room. Once there was none, there is none for
        the rest either."""
        self.touch()
        if not self._has_room(len(part)):
            return False
        if not self.body_bytes:
            self.bodies.coming[self] = None
        self.body_bytes += len(part)
        self._hold(len(part))
        if self._spooled is None and self.body_bytes > HELD_BYTES_MAX:
            self._spool()
        if self._spooled is None:
            self._parts.append(part)
        else:
            self._spooled.add(part)
            self._pace()
        return True

    def _has_room(self, size_bytes: int) -> bool:
        if self._spooled is not None:
            self._not_kept = self._not_kept or self._spooled.why
        self.no_room = self.no_room or self._not_kept != ""
        self.no_room = self.no_room or not self.bodies.make_room(size_bytes, self)
        return not self.no_room

    @property
    def is_slow(self) -> bool:
        """Whether it should be here by now."""
        return asyncio.get_running_loop().time() - self._since_seconds > SLOW_SECONDS

    @property
    def is_held(self) -> bool:
        """Whether any of it is in memory."""
        return self._held_bytes > 0

    def give_way(self) -> None:
        """Another one needs the room that it has."""
        self.no_room = True
        self.release()

    def _hold(self, size_bytes: int) -> None:
        self._held_bytes += size_bytes
        self.bodies.held_bytes += size_bytes

    def _freed(self, size_bytes: int) -> None:
        self._hold(-size_bytes)
        self._pace()

    def _pace(self) -> None:
        """While the disk is behind nothing more is read; whether it failed is told by the next."""
        spooled, reading = self._spooled, self.reading
        is_behind = spooled is not None and not spooled.why and self._held_bytes > BEHIND_BYTES_MAX
        if reading is None or is_behind is self._is_paused:
            return
        self._is_paused = is_behind
        if is_behind:
            reading.pause()
        else:
            self.touch()
            reading.resume()

    def _spool(self) -> None:
        """From here on it waits on the disk; where there is no room, in memory as before."""
        self._spooled = self.bodies.spool.begin(self._freed)
        if self._spooled is not None:
            for held in self._parts:
                self._spooled.add(held)
            self._parts.clear()

    def body(self) -> bytes:
        """All of it, where nothing of it is spooled. This holds it no longer, but counts it."""
        self.bodies.coming.pop(self, None)
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def whole(self) -> bytes:
        """All of it; nothing where it was too much, or could not be kept (see `too_much`)."""
        if self._spooled is None:
            return self.body()
        self.bodies.coming.pop(self, None)
        spooled = self._spooled
        await spooled.rest()
        if self._spooled is not spooled:  # nobody wants it any more
            return b""
        if not self._has_room(self.body_bytes - self._held_bytes):
            self.release()
            return b""
        self._hold(self.body_bytes - self._held_bytes)
        content = await spooled.read()
        self._not_kept = self._not_kept or spooled.why
        self.no_room = self.no_room or self._not_kept != ""
        if self._spooled is spooled:
            self._close()
        return content

    def release(self) -> None:
        """Its body is held no more."""
        self.bodies.coming.pop(self, None)
        self._close()
        self._parts.clear()
        self._hold(-self._held_bytes)
        self.body_bytes = 0

    def _close(self) -> None:
        spooled, self._spooled = self._spooled, None
        if spooled is not None:
            spooled.close()
            self._pace()

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
        if self._not_kept:
            return Fault(Reason.BODY_TOO_LARGE, f"the proxy could not keep it: {self._not_kept}")
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
