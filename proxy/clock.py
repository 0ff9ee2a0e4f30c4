"""The clock and the call ids, injected everywhere so that tests can move time."""

import os
import time
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID


class Clock(Protocol):
    def now_us(self) -> int:
        """UTC, microseconds since 1970: for records."""

    def monotonic_seconds(self) -> float:
        """For waits and latencies; never goes back."""


@dataclass(frozen=True, slots=True)
class SystemClock:
    def now_us(self) -> int:
        return time.time_ns() // 1_000

    def monotonic_seconds(self) -> float:
        return time.monotonic()


def new_id(now_us: int) -> str:
    """A UUIDv7 (RFC 9562, section 5.7): sorts by time, so that indexes grow at one end.

    The 12 bits after the milliseconds hold their fraction, the method of section 6.2.
    """
    milliseconds, micros = divmod(now_us, 1_000)
    fraction = micros * 4096 // 1_000
    tail = int.from_bytes(os.urandom(8)) & (1 << 62) - 1
    return str(UUID(int=milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | tail))
