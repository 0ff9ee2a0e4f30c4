"""A ledger that an older version made is brought up to date at the start. A long one takes minutes:
so people, and whoever waits for the start, are told how far it is, and it can be stopped.
"""

from collections.abc import Callable

import structlog

from ledger.errors import LedgerError
from proxy.clock import Clock

log = structlog.get_logger()

TOLD_SECONDS = 2.0


class Stopped(LedgerError):
    """Somebody ended the work. Nothing is lost: it goes on there at the next start."""


class Upgrading:
    """What the ledger tells its progress to, in any thread. `sign` goes wherever else somebody
    waits; `stop` ends the work."""

    def __init__(self, clock: Clock, sign: Callable[[], None] | None = None) -> None:
        self.stopped = False
        self._clock = clock
        self._sign = sign
        self._told_seconds = clock.monotonic_seconds()  # what takes no longer is no news

    def stop(self) -> None:
        self.stopped = True

    def __call__(self, done: int, total: int, what: str) -> None:
        """Raises Stopped."""
        if self.stopped:
            raise Stopped("the ledger is not up to date yet; the next start goes on there")
        now_seconds = self._clock.monotonic_seconds()
        if now_seconds - self._told_seconds < TOLD_SECONDS:
            return
        self._told_seconds = now_seconds
        far = f"{done:,} of {total:,} {what}"
        log.info("ledger.upgrading", told=f"bringing the ledger up to date: {far}")
        if self._sign is not None:
            self._sign()
