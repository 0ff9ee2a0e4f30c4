"""What needs no sync, judged in the thread of the loop: free reads, and how calls ended that nobody
waits for. Those of some milliseconds share one transaction.

A read that may go goes on before its row is committed (design, section 3.4), if another commit was
just before: a store that fails is found out before anything passes, unless it fails between two
calls that follow each other closely. Whoever is told anything else is told it after. A crash of
ours takes the rows that are not committed with it. If the commit fails, what has happened is
written anew, as it was told, by whoever has the patience.
"""

import asyncio
import sys
import threading
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from math import inf
from typing import Any, Protocol

from ledger.store import Decision, Store
from policies.verdict import Action
from proxy.sitting import Sitting
from proxy.waiting_room import Told
from proxy.work import Admit, Item, Work

LATE_SECONDS = 0.02  # a read and its outcome wait this long for a commit to share
PROVED_SECONDS = 0.002  # so long a commit tells that the store takes rows


class Host(Protocol):
    """The decider, as it is seen from here."""

    def sits(self) -> Sitting:
        """Inside the transaction."""

    def is_wanted(self) -> bool:
        """Whether its thread waits for the lock, or is about to."""

    def writes_first(self) -> bool:
        """Whether its thread has something to write before; asked with the lock."""

    def deliver(self, told: list[Told], moved: bool) -> None: ...

    def committed(self, works: int) -> None: ...

    def queue(self, item: Item) -> None:
        """For its thread."""


class Sharing:
    """For the loop's thread only. While it `is_open` it holds the lock of those who write, but
    never longer than LATE_SECONDS, nor past a `flush`."""

    def __init__(self, host: Host, store: Store, writing: threading.Lock) -> None:
        self._host = host
        self._store = store
        self._writing = writing
        self._loop = asyncio.get_running_loop()
        self._late: list[Item] = []
        self._soon: list[Item] = []
        self._is_due = False  # that it is closed
        self._proved_seconds = -inf  # when it was known last that the store takes rows
        self._transaction: AbstractContextManager[None] | None = None
        self._items: list[Item] = []  # of that transaction
        self._told: list[Told] = []  # once it is committed
        self._is_waited_for = False  # by one of them

    def __len__(self) -> int:
        """Pieces of work that nobody has looked at yet."""
        return len(self._late) + len(self._soon)

    @property
    def is_open(self) -> bool:
        return self._transaction is not None

    # What comes

    def soon(self, item: Item) -> None:
        """In this turn of the loop, with all that comes in it."""
        if not self._soon:
            self._loop.call_soon(self._write)
        self._soon.append(item)

    def late(self, item: Item) -> None:
        """With the next, or when it has waited long enough."""
        self._late.append(item)
        self._close_later()

    def flush(self) -> None:
        """All that is written here is committed, and what waits goes with the thread's next
        batch."""
        self._close()
        for item in self._waiting():
            self._host.queue(item)

    def _waiting(self) -> list[Item]:
        batch = [*self._late, *self._soon]
        self._late, self._soon = [], []
        return batch

    # The lock

    def holds(self) -> bool:
        """Whether this thread has the lock; it is taken, if it is free. Then `let_go`."""
        return self.is_open or self._writing.acquire(blocking=False)

    def let_go(self) -> None:
        """Of the lock, unless what is open needs it; that is committed where it may not wait."""
        if not self.is_open:
            self._writing.release()
        elif self._must_close():
            self._close()

    # The transaction

    def _write(self) -> None:
        if not len(self):
            return
        if self._host.is_wanted() or not self.holds():
            self.flush()
            return
        if self._theirs():
            self.let_go()
            self.flush()
            return
        pulls = self._store.pulls
        try:
            told = self._judged(self._waiting())
        except Exception:
            self._redo()
            told = []
        self._host.deliver(told, self._store.pulls is not pulls)
        if self._must_close():
            self._close()
        elif self.is_open:
            self._close_later()

    def _theirs(self) -> bool:
        try:
            return self._host.writes_first()
        except Exception:  # the thread meets it again, and tells the callers
            return True

    def _judged(self, batch: list[Item]) -> list[Told]:
        """Who is told of it now. Raises; then nothing is open."""
        self._items += batch
        try:
            self._store.follow(patient=False)  # what is judged now meets what was found before
            if self._transaction is None:
                transaction = self._store.transaction(durable=False, patient=False)
                transaction.__enter__()
                self._transaction = transaction
            sitting = self._host.sits()
            told = [(future, sitting.do(work)) for work, future in batch]
            told += sitting.close()
        except BaseException:
            broken, self._transaction = self._transaction, None
            if broken is not None:
                with suppress(Exception):  # it is raised already
                    broken.__exit__(*sys.exc_info())
            raise
        is_proved = self._loop.time() - self._proved_seconds <= PROVED_SECONDS
        early = [each for each in told if is_proved and _goes_on(each[1])]
        later = [each for each in told if not (is_proved and _goes_on(each[1]))]
        self._told += later
        self._is_waited_for = self._is_waited_for or any(answer is not True for _, answer in later)
        return early

    def _must_close(self) -> bool:
        """Whether somebody waits for the commit, or what was found may not."""
        return self.is_open and (self._is_waited_for or self._store.must_last)

    def _close_later(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_later(LATE_SECONDS, self._close_in_time)

    def _close_in_time(self) -> None:
        self._is_due = False
        self._write()
        self._close()

    def _close(self) -> None:
        transaction, self._transaction = self._transaction, None
        if transaction is None:
            return
        pulls = self._store.pulls
        try:
            transaction.__exit__(None, None, None)
        except Exception:
            self._redo()
            return
        self._proved_seconds = self._loop.time()
        self._host.committed(len(self._items))
        self._writing.release()
        told, self._told, self._items, self._is_waited_for = self._told, [], [], False
        self._host.deliver(told, self._store.pulls is not pulls)

    def _redo(self) -> None:
        """Whatever it is, the thread meets it again, waits for a lock where there is one, and tells
        the callers: nothing was written, and nothing more passes."""
        self._writing.release()
        items, self._items, self._told, self._is_waited_for = self._items, [], [], False
        for work, future in items:
            self._host.queue((_as_told(work, future), future))


def _goes_on(answer: Any) -> bool:
    return isinstance(answer, Decision) and answer.verdict.action is Action.ALLOW


def _as_told(work: Work, future: "asyncio.Future[Any]") -> Work:
    if not isinstance(work, Admit) or not future.done() or future.cancelled():
        return work
    return replace(work, told=future.result().verdict)
