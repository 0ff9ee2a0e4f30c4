"""Ceilings: sliding windows of packed sub-buckets, and the arithmetic on them.

A window of W is cut into 60 buckets and counted over 61 (the running one and 60 whole ones), so
no span of W ever holds more than the limit; the price is that up to 1/60 is refused early
(notes/store.md, section 5). Pure: the caller brings the time.
"""

import struct
from dataclasses import dataclass
from enum import StrEnum

from policies.verdict import Level, Limit, Scope

BUCKETS = 60


class Count(StrEnum):
    CALLS = "calls"
    WRITES = "writes"


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One bound. `within_us` None means for life. `then` None means throttle (429)."""

    id: str
    per: Scope
    count: Count
    at_most: int
    within_us: int | None
    then: Level | None = None
    tools: tuple[str, ...] = ("*",)

    @property
    def bucket_us(self) -> int:
        """Width of one bucket, rounded up so that 60 of them never fall short of the window."""
        return 0 if self.within_us is None else -(-self.within_us // BUCKETS)

    def bucket(self, now_us: int) -> int:
        return 0 if self.within_us is None else now_us // self.bucket_us

    def __str__(self) -> str:
        """For people: `at most 60 calls per run within 60 s`."""
        span = "" if self.within_us is None else f" within {self.within_us / 1e6:g} s"
        return f"at most {self.at_most} {self.count} per {self.per}{span}"


@dataclass(frozen=True, slots=True)
class Window:
    """Counts per bucket, oldest first; the last one is bucket number `newest`."""

    newest: int = 0
    counts: tuple[int, ...] = ()

    def pack(self) -> bytes:
        return struct.pack(f"<q{len(self.counts)}I", self.newest, *self.counts)


EMPTY = Window()


def unpack(packed: bytes) -> Window:
    """Raises struct.error when the bytes are not a packed window."""
    newest, *counts = struct.unpack(f"<q{(len(packed) - 8) // 4}I", packed)
    return Window(newest, tuple(counts))


def _moved(ceiling: Ceiling, window: Window, now_us: int) -> Window:
    """The window as of now: old buckets dropped, never a count lost when the clock steps back."""
    size = 1 if ceiling.within_us is None else BUCKETS + 1
    if not window.counts:
        return Window(ceiling.bucket(now_us), (0,) * size)
    step = ceiling.bucket(now_us) - window.newest
    if step <= 0:
        return window
    if step >= size:
        return Window(window.newest + step, (0,) * size)
    return Window(window.newest + step, window.counts[step:] + (0,) * step)


def used(ceiling: Ceiling, window: Window, now_us: int) -> int:
    return sum(_moved(ceiling, window, now_us).counts)


def charge(ceiling: Ceiling, window: Window, now_us: int, amount: int = 1) -> Window:
    moved = _moved(ceiling, window, now_us)
    return Window(moved.newest, (*moved.counts[:-1], moved.counts[-1] + amount))


def wait_seconds(ceiling: Ceiling, window: Window, now_us: int) -> int | None:
    """Whole seconds until one more fits, at least 1; None when it never will (a life limit)."""
    if ceiling.within_us is None or ceiling.at_most < 1:
        return None
    moved = _moved(ceiling, window, now_us)
    left = sum(moved.counts)
    for position, count in enumerate(moved.counts):
        left -= count
        if left < ceiling.at_most:
            # Bucket newest - BUCKETS + position drops out BUCKETS + 1 buckets after its own.
            free_at_us = (moved.newest + position + 1) * ceiling.bucket_us
            return max(1, -(-(free_at_us - now_us) // 1_000_000))
    return None


def limit(ceiling: Ceiling, window: Window, now_us: int) -> Limit:
    """The ceiling's state in the terms of the RateLimit header fields."""
    return Limit(
        name=ceiling.id,
        at_most=ceiling.at_most,
        remaining=max(0, ceiling.at_most - used(ceiling, window, now_us)),
        reset_seconds=wait_seconds(ceiling, window, now_us) or 0,
        window_seconds=(ceiling.within_us or 0) // 1_000_000,
    )
