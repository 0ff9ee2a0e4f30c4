"""The clock and the call ids, injected everywhere so that tests can move time."""

import os
import time
from collections.abc import Callable
from typing import Protocol
from uuid import UUID

STEP_SECONDS_MAX = 2.0  # more at once is a step: NTP slews by less than a millisecond a second


class Clock(Protocol):
    def now_us(self) -> int:
        """UTC, microseconds since 1970: for records."""

    def monotonic_seconds(self) -> float:
        """For waits and latencies; never goes back."""

    def stepped_seconds(self) -> float:
        """How far the system's clock was moved under us; 0.0 while it can be trusted."""

    def start_after(self, newest_us: int) -> None:
        """A clock before this time, at which the record ends, cannot be trusted."""


# Linux's monotonic clock stands still while the machine sleeps; this one does not.
_EVEN_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _since_boot_ns() -> int:
    return time.clock_gettime_ns(_EVEN_CLOCK)


class SystemClock:
    """UTC that never jumps: the system's clock as it was at first, moved on evenly.

    Windows, protected keys and `--for` count by it, so a clock that is set forward ends none of
    them early. What NTP corrects little by little is followed. A step is not: `now_us` goes on as
    if it had not been, and `stepped_seconds` tells of it until the clock is set right again, or
    until a restart takes it as it is.
    """

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        even_ns: Callable[[], int] = _since_boot_ns,
    ) -> None:
        self._wall_ns = wall_ns
        self._even_ns = even_ns
        self._ahead_ns = wall_ns() - even_ns()  # of the even clock, as followed
        self._stepped_ns = 0
        self._floor_ns = 0

    def start_after(self, newest_us: int) -> None:
        """The record reaches to `newest_us`: a clock that is before it was set back meanwhile."""
        self._floor_ns = newest_us * 1_000

    def now_us(self) -> int:
        return (self._even_ns() + self._ahead_ns) // 1_000

    def monotonic_seconds(self) -> float:
        return time.monotonic()

    def stepped_seconds(self) -> float:
        """Asked often: what moved since the last time is a step or a correction."""
        if self._floor_ns:
            behind_ns = self._wall_ns() - self._floor_ns
            if behind_ns < -STEP_SECONDS_MAX * 1e9:
                return behind_ns / 1e9
            self._floor_ns = 0
            self._ahead_ns = self._wall_ns() - self._even_ns()
        moved_ns = self._wall_ns() - self._even_ns() - self._ahead_ns - self._stepped_ns
        if abs(moved_ns) > STEP_SECONDS_MAX * 1e9:
            self._stepped_ns += moved_ns
            if abs(self._stepped_ns) <= STEP_SECONDS_MAX * 1e9:  # set right again
                self._stepped_ns = 0
        elif not self._stepped_ns:
            self._ahead_ns += moved_ns
        return self._stepped_ns / 1e9


def new_id(now_us: int) -> str:
    """A UUIDv7 (RFC 9562, section 5.7): sorts by time, so that indexes grow at one end.

    The 12 bits after the milliseconds hold their fraction, the method of section 6.2.
    """
    milliseconds, micros = divmod(now_us, 1_000)
    fraction = micros * 4096 // 1_000
    tail = int.from_bytes(os.urandom(8)) & (1 << 62) - 1
    return str(UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | tail))
