"""What the decider does with its store while nobody waits: whether it can be written, what has
expired, and what the detectors find that may wait a moment.

Whatever one of these raises is told by `failure`; it must not end the thread, without which nobody
is answered.
"""

from collections.abc import Callable
from functools import partial

import structlog

from ledger.errors import Kind
from ledger.store import LedgerUnavailable, Store

log = structlog.get_logger()


class Upkeep:
    """Whoever asks holds the decider's lock."""

    def __init__(self, store: Store) -> None:
        self.failure: LedgerUnavailable | None = None
        self._store = store

    def probe(self) -> None:
        """So that `readyz` tells the truth also when nobody calls."""
        if self._is_done(self._store.probe):
            self.failure = None

    def checkpoint(self) -> None:
        self._is_done(self._store.checkpoint)

    def reap(self) -> None:
        def reap() -> None:
            self._store.inspect()  # a probe does it, too, but only while nobody calls
            with self._store.transaction(durable=False):
                self._store.reap()

        self._is_done(reap)

    def follow(self, *, patient: bool) -> bool:
        """Have the detectors that may wait know the last call; whether a cord moved by that."""
        pulls = self._store.pulls
        self._is_done(partial(self._store.follow, patient=patient))
        return self._store.pulls is not pulls

    def _is_done(self, work: Callable[[], None]) -> bool:
        try:
            work()
        except LedgerUnavailable as failure:
            self.failure = failure
        except Exception as failure:
            log.exception("decider.failed")
            self.failure = LedgerUnavailable(Kind.OTHER, type(failure).__name__)
        else:
            return True
        return False
