"""Ceilings: what is counted, for whom, over sliding windows of packed sub-buckets.

A window of W is cut into 60 buckets and counted over 61 (the running one and 60 whole ones), so
no span of W ever holds more than the limit; the price is that up to 1/60 is refused early
(notes/store.md, section 5). Pure: the caller brings the time.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import StrEnum
from typing import NamedTuple

from policies.verdict import Level, Limit, Scope

BUCKETS = 60
MICRO = 1_000_000  # micro-dollars in a dollar


class Count(StrEnum):
    """What is counted. `spend_usd` counts micro-dollars."""

    CALLS = "calls"
    WRITES = "writes"
    STEPS = "steps"
    TOKENS = "tokens"
    SPEND = "spend_usd"
    IN_FLIGHT = "in_flight"
    DESTINATIONS = "destinations"
    SPAWNED = "spawned"
    BYTES_UP = "bytes_up"


class Per(StrEnum):
    """Whose count it is. A run's holds its descendants' too; a tree's is that of its root alone."""

    GLOBAL = "global"
    TENANT = "tenant"
    RUN = "run"
    TREE = "tree"
    AGENT = "agent"
    RELEASE = "release"
    TOOL = "tool"
    DESTINATION = "destination"


class Then(StrEnum):
    """What a ceiling does with a call that it has no room for, beside refusing it.

    `alert` lets it pass and tells; `hold` asks a person; the cords stop what comes after, too.
    """

    ALERT = "alert"
    HOLD = "hold"
    THROTTLE = "throttle"
    FREEZE = "freeze"
    HALT = "halt"


CORDS: Mapping[Then, Level] = {Then.FREEZE: Level.FREEZE, Then.HALT: Level.HALT}
SEVERITY: Mapping[Then, int] = {then: place for place, then in enumerate(Then)}

RESERVED = frozenset({Count.TOKENS, Count.SPEND})
"""Estimated before a call and settled after it."""

_WIDE = frozenset({Count.TOKENS, Count.SPEND, Count.BYTES_UP})
_COUNT_MAX, _WIDE_MAX = 2**32 - 1, 2**64 - 1  # of one bucket
_UNITS: Mapping[Count, str] = {
    Count.CALLS: "requests",
    Count.WRITES: "requests",
    Count.IN_FLIGHT: "concurrent-requests",
    Count.BYTES_UP: "content-bytes",
    Count.SPEND: "micro-usd",
}
_WORDS: Mapping[Count, tuple[str, str]] = {
    Count.CALLS: ("call", "calls"),
    Count.WRITES: ("write", "writes"),
    Count.STEPS: ("step", "steps"),
    Count.TOKENS: ("token", "tokens"),
    Count.IN_FLIGHT: ("call in flight", "calls in flight"),
    Count.DESTINATIONS: ("new destination", "new destinations"),
    Count.SPAWNED: ("started run", "started runs"),
    Count.BYTES_UP: ("byte up", "bytes up"),
}


@dataclass(frozen=True, slots=True)
class Ceiling:
    """One bound. `at_most` is micro-dollars for `spend_usd`. `within_us` None means for life.

    `window` names what is counted: ceilings of one name share it, so that another limit for the
    same thing starts no count anew. `wait_seconds` is how long a call may wait for room.
    """

    id: str
    per: Per
    count: Count
    at_most: int
    within_us: int | None = None
    then: Then = Then.THROTTLE
    tools: tuple[str, ...] = ("*",)
    wait_seconds: int = 0
    window: str = ""
    shipped: bool = False
    line: int = field(default=0, compare=False)
    """Where the policy file has it; 0 for one that stands in no file."""
    bucket_us: int = field(init=False, repr=False, compare=False)
    """Width of one bucket, rounded up so that 60 of them never fall short of the window; 0 where
    the one bucket is a whole life."""

    def __post_init__(self) -> None:
        width_us = 0 if self.within_us is None else -(-self.within_us // BUCKETS)
        object.__setattr__(self, "bucket_us", width_us)

    @property
    def size(self) -> int:
        return BUCKETS + 1 if self.bucket_us else 1

    def bucket(self, now_us: int) -> int:
        return now_us // self.bucket_us if self.bucket_us else 0

    def told(self, amount: int) -> str:
        """An amount of what is counted, for people: `60 calls`, `1.50 USD`."""
        if self.count is Count.SPEND:
            return f"{usd(amount)} USD"
        one, several = _WORDS[self.count]
        return f"{amount} {one if amount == 1 else several}"

    def __str__(self) -> str:
        """For people: `at most 60 calls of stripe.* per run within 60 s`."""
        tools = "" if self.tools == ("*",) else f" of {', '.join(self.tools)}"
        span = "" if self.within_us is None else f" within {spelled(self.within_us)}"
        whose = "in all" if self.per is Per.GLOBAL else f"per {self.per}"
        return f"at most {self.told(self.at_most)}{tools} {whose}{span}"


def spelled(time_us: int) -> str:
    """A time for people, in the largest unit that leaves no rest: `60 s`, `5 min`, `1 d`."""
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if time_us % (seconds * 1_000_000) == 0 and time_us != 60_000_000:
            return f"{time_us // (seconds * 1_000_000)} {unit}"
    return f"{time_us / 1e6:g} s"


def usd(microusd: int) -> str:
    """Dollars of micro-dollars, exactly, with at least two decimals: `1.50`, `0.000012`."""
    whole = Decimal(microusd) / MICRO
    return f"{whole:.2f}" if microusd % 10_000 == 0 else f"{whole.normalize():f}"


class Window(NamedTuple):
    """Amounts per bucket, oldest first; the last one is bucket number `newest`."""

    newest: int = 0
    counts: tuple[int, ...] = ()


EMPTY = Window()


def pack(ceiling: Ceiling, window: Window) -> bytes:
    """Counts take four bytes, amounts (money, tokens, bytes) eight: one bucket may hold much."""
    code = "Q" if ceiling.count in _WIDE else "I"
    return struct.pack(f"<q{len(window.counts)}{code}", window.newest, *window.counts)


def unpack(ceiling: Ceiling, packed: bytes) -> Window:
    """Raises struct.error when the bytes are not a packed window of this ceiling."""
    code, width = ("Q", 8) if ceiling.count in _WIDE else ("I", 4)
    newest, *counts = struct.unpack(f"<q{(len(packed) - 8) // width}{code}", packed)
    return Window(newest, tuple(counts))


def _moved(ceiling: Ceiling, window: Window, now_us: int) -> Window:
    """The window as of now: old buckets dropped, never a count lost when the clock steps back."""
    size = ceiling.size
    if not window.counts:
        return Window(ceiling.bucket(now_us), (0,) * size)
    step = ceiling.bucket(now_us) - window.newest
    if step <= 0:
        return window
    if step >= size:
        return Window(window.newest + step, (0,) * size)
    return Window(window.newest + step, window.counts[step:] + (0,) * step)


def used(ceiling: Ceiling, window: Window, now_us: int) -> int:
    newest, counts = window
    width_us = ceiling.bucket_us
    passed = now_us // width_us - newest if width_us else 0
    return sum(counts[passed:] if passed > 0 else counts)


def charge(ceiling: Ceiling, window: Window, now_us: int, amount: int = 1) -> Window:
    """The window with so much more in its newest bucket, whose number is then `newest`.

    A bucket that is full stays full: what only tells bounds nothing, and must not fail one day.
    """
    moved = _moved(ceiling, window, now_us)
    full = _WIDE_MAX if ceiling.count in _WIDE else _COUNT_MAX
    return Window(moved.newest, (*moved.counts[:-1], min(moved.counts[-1] + amount, full)))


def settle(
    ceiling: Ceiling, window: Window, now_us: int, bucket: int, reserved: int, actual: int
) -> Window:
    """What was reserved in a bucket becomes what it came to.

    More is charged now. Less is taken off where it was charged and, what is not found there, off
    what came later; nothing is taken off if that bucket has passed already.
    """
    if actual >= reserved:
        return charge(ceiling, window, now_us, actual - reserved) if actual > reserved else window
    moved = _moved(ceiling, window, now_us)
    place = bucket - moved.newest + ceiling.size - 1
    if not 0 <= place < ceiling.size:
        return moved
    counts, left = list(moved.counts), reserved - actual
    for at in range(place, ceiling.size):
        taken = min(counts[at], left)
        counts[at] -= taken
        left -= taken
    return Window(moved.newest, tuple(counts))


def oldest(ceiling: Ceiling, window: Window) -> int:
    """The number of the window's oldest bucket."""
    return window.newest - ceiling.size + 1


def wait_seconds(ceiling: Ceiling, window: Window, now_us: int, amount: int = 1) -> int | None:
    """Whole seconds until so much more fits, at least 1; None when time alone brings no room.

    Room in flight comes when a call ends, whenever that is: 1.
    """
    if amount > ceiling.at_most:
        return None
    if ceiling.count is Count.IN_FLIGHT:
        return 1
    if ceiling.within_us is None:
        return None
    moved = _moved(ceiling, window, now_us)
    left = sum(moved.counts)
    for position, count in enumerate(moved.counts):
        left -= count
        if left + amount <= ceiling.at_most:
            # Bucket newest - BUCKETS + position drops out BUCKETS + 1 buckets after its own.
            free_at_us = (moved.newest + position + 1) * ceiling.bucket_us
            return max(1, -(-(free_at_us - now_us) // 1_000_000))
    return None


def limit(ceiling: Ceiling, window: Window, now_us: int, amount: int = 1) -> Limit:
    """The ceiling's state in the terms of the RateLimit header fields."""
    return Limit(
        name=ceiling.id,
        at_most=ceiling.at_most,
        remaining=max(0, ceiling.at_most - used(ceiling, window, now_us)),
        reset_seconds=wait_seconds(ceiling, window, now_us, amount) or 0,
        window_seconds=(ceiling.within_us or 0) // 1_000_000,
        unit=_UNITS.get(ceiling.count, ceiling.count.value),
    )


SCOPES: Mapping[Per, Scope] = {
    Per.GLOBAL: Scope.GLOBAL,
    Per.TENANT: Scope.TENANT,
    Per.RUN: Scope.RUN,
    Per.TREE: Scope.RUN,
    Per.RELEASE: Scope.RELEASE,
    Per.TOOL: Scope.TOOL,
}
"""Where the cord of a ceiling is. There is none for an agent or a destination."""
