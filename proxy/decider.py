"""The one place that judges. It owns the store; whoever holds its lock may write.

What must be durable is queued for a thread that takes all that waits as one batch, so that many
callers share one sync (group commit, notes/store.md section 1). A read needs no sync: while
nothing is queued it is judged and written at once in the loop's own thread, which saves two
switches of thread. The policy is read once a batch, so no batch mixes two. When the store fails,
every caller of the batch is told so, and settlements wait here, in order, until it takes them.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import structlog

from ledger.errors import Kind
from ledger.store import Ask, Decision, LedgerError, LedgerUnavailable, Outcome, Store
from policies.call import Effect
from policies.decide import decide
from policies.match import identify
from policies.policy import Policy
from policies.verdict import Pulls

log = structlog.get_logger()

BATCH_MAX = 256  # notes/store.md: beyond this the commit grows as fast as the batch
QUEUED_MAX = 8192  # half a second of batches on a slow disk; what settles is always taken
PROBE_SECONDS = 1.0  # an idle store is tried this often, and what it is owed offered again
LATE_SECONDS = 0.02  # a read's outcome waits this long for a commit to share
CHECKPOINT_WORKS = 1000  # so much work makes a write-ahead log of some 16 MB
REAP_BATCHES = 60  # expired claims are dropped this often: about once a minute when idle


@dataclass(frozen=True, slots=True)
class _Admit:
    ask: Ask
    policy: Policy  # the one that identified the call


@dataclass(frozen=True, slots=True)
class _Settle:
    outcome: Outcome
    durable: bool


@dataclass(frozen=True, slots=True)
class _Act:
    act: Callable[[Store], Any]
    durable: bool


_Work = _Admit | _Settle | _Act
_Item = tuple[_Work, "asyncio.Future[Any]"]
_Stop = None


class Decider:
    """Owns the store and the policy in force. Made by `start`; every method is for the loop thread.

    `epoch` moves whenever a cord or the policy changed: whoever admitted a call before that looks
    once more before its first byte leaves.
    """

    def __init__(self, store: Store, policy: Policy) -> None:
        self.policy = policy
        self.epoch = 0
        self.failure: LedgerUnavailable | None = None
        self._store = store
        self._queue: queue.SimpleQueue[_Item | None] = queue.SimpleQueue()
        self._owed: deque[Outcome] = deque()
        self._late: list[_Item] = []
        self._soon: list[_Item] = []
        self._writing = threading.Lock()
        self._works = 0
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="decider", daemon=True)

    @classmethod
    def start(cls, store: Store, policy: Policy) -> Self:
        decider = cls(store, policy)
        decider._thread.start()
        return decider

    @property
    def pulls(self) -> Pulls:
        return self._store.pulls

    @property
    def owed(self) -> int:
        """Settlements that the store has not taken yet."""
        return len(self._owed)

    def admit(self, ask: Ask, policy: Policy) -> "asyncio.Future[Decision]":
        """Raises LedgerUnavailable when too many calls wait already."""
        waiting = self._queue.qsize()
        if waiting >= QUEUED_MAX:
            raise LedgerUnavailable(Kind.OTHER, f"{QUEUED_MAX} calls wait for it")
        work = _Admit(ask, policy)
        if waiting or _is_durable(work):
            return self._put(work)
        future = self._loop.create_future()
        if not self._soon:
            self._loop.call_soon(self._write_here)
        self._soon.append((work, future))
        return future

    def settle(self, outcome: Outcome, *, durable: bool) -> "asyncio.Future[bool]":
        """Done when committed. Fails with LedgerUnavailable, and is then kept and tried again."""
        work = _Settle(outcome, durable)
        if durable:
            return self._put(work)
        future = self._loop.create_future()
        self._late.append((work, future))
        if len(self._late) == 1:
            self._loop.call_later(LATE_SECONDS, self._write_here)
        return future

    def act[T](self, act: Callable[[Store], T], *, durable: bool = True) -> "asyncio.Future[T]":
        """Run a function on the store, inside the batch's transaction."""
        return self._put(_Act(act, durable))

    def adopt(self, policy: Policy) -> None:
        """From the next batch on, this policy is in force."""
        self.policy = policy
        self.epoch += 1

    async def stop(self) -> None:
        self._flush()
        self._queue.put(_Stop)
        await asyncio.to_thread(self._thread.join)

    def _put(self, work: _Work) -> "asyncio.Future[Any]":
        self._flush()
        future = self._loop.create_future()
        self._queue.put((work, future))
        return future

    def _flush(self) -> None:
        """What waits here goes with the next batch of the thread."""
        for item in self._waiting_here():
            self._queue.put(item)

    def _waiting_here(self) -> list[_Item]:
        batch = [*self._late, *self._soon]
        self._late, self._soon = [], []
        return batch

    def _write_here(self) -> None:
        """Judge and write, in this turn of the loop, what needs no sync and came in it."""
        healthy = not self._owed and self.failure is None
        if not healthy or not self._writing.acquire(blocking=False):
            self._flush()
            return
        batch = self._waiting_here()
        pulls = self._store.pulls
        try:
            answers = self._commit([work for work, _ in batch], patient=False) if batch else []
        except Exception:
            # Whatever it is, the thread meets it again, waits for a lock where there is one, and
            # tells the callers: nothing was written, and nothing passes.
            for item in batch:
                self._queue.put(item)
        else:
            self._deliver(batch, answers, self._store.pulls is not pulls)
        finally:
            self._writing.release()
        if self._works >= CHECKPOINT_WORKS:
            self._put(_Act(_nothing, durable=False))  # so that the thread wakes and does it

    # The decider thread from here on.

    def _run(self) -> None:
        batches = 0
        while True:
            batch, stop = self._take()
            batches += 1
            with self._writing:
                if batch or self._owed:
                    self._answer(batch)
                else:
                    self._probe()
                due = self._works >= CHECKPOINT_WORKS
                if due or batches % REAP_BATCHES == 0:
                    self._reap()
                if due or stop:
                    self._checkpoint()
            if stop:
                return

    def _take(self) -> tuple[list[_Item], bool]:
        """Wait for one piece of work, then take all that has queued behind it."""
        batch: list[_Item] = []
        try:
            item = self._queue.get(timeout=PROBE_SECONDS)
            while item is not _Stop:
                batch.append(item)
                if len(batch) >= BATCH_MAX:
                    return batch, False
                item = self._queue.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _answer(self, batch: list[_Item]) -> None:
        pulls = self._store.pulls
        try:
            # A lock that was waited for once in vain is not waited for by every batch after.
            answers = self._commit([work for work, _ in batch], patient=self.failure is None)
            if any(map(_is_proof, batch)):
                self.failure = None
        except LedgerUnavailable as failure:
            self.failure = failure
            answers = self._owe(batch, failure)
        except Exception as failure:
            # A bug of ours must refuse the batch, not end the thread: nothing passes either way.
            log.exception("decider.failed")
            answers = self._owe(batch, failure)
        moved = self._store.pulls is not pulls
        self._loop.call_soon_threadsafe(self._deliver, batch, answers, moved)

    def _owe(self, batch: list[_Item], failure: Exception) -> list[Any]:
        self._owed += [work.outcome for work, _ in batch if isinstance(work, _Settle)]
        return [failure] * len(batch)

    def _commit(self, works: list[_Work], *, patient: bool = True) -> list[Any]:
        policy = self.policy
        self._works += len(works)
        owed = list(self._owed)
        durable = bool(owed) or any(map(_is_durable, works))
        with self._store.transaction(durable=durable, patient=patient):
            for outcome in owed:
                self._store.settle(outcome)
            answers = [self._do(work, policy) for work in works]
        self._owed.clear()
        return answers

    def _do(self, work: _Work, policy: Policy) -> Any:
        if isinstance(work, _Admit):
            ask = work.ask
            if work.policy is not policy and ask.call.fault is None:
                ask = replace(ask, call=identify(policy, ask.request))
            return self._store.admit(ask, policy, decide)
        if isinstance(work, _Settle):
            return self._store.settle(work.outcome)
        try:
            return work.act(self._store)
        except LedgerUnavailable:
            raise
        except LedgerError as error:
            return error  # a wrong request: nothing was written, and only its caller is told

    def _probe(self) -> None:
        """So that `readyz` tells the truth also when nobody calls."""
        try:
            self._store.probe()
            self.failure = None
        except LedgerUnavailable as failure:
            self.failure = failure

    def _checkpoint(self) -> None:
        self._works = 0
        try:
            self._store.checkpoint()
        except LedgerUnavailable as failure:
            self.failure = failure

    def _reap(self) -> None:
        try:
            with self._store.transaction(durable=False):
                self._store.reap()
        except LedgerUnavailable as failure:
            self.failure = failure

    # The loop thread again.

    def _deliver(self, batch: list[_Item], answers: list[Any], moved: bool) -> None:
        if moved:
            self.epoch += 1
        for (_, future), answer in zip(batch, answers, strict=True):
            if future.done():
                continue  # the caller has gone
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)


def _is_durable(work: _Work) -> bool:
    """Whether a power cut may not lose it: claims, their outcomes, and operators' acts."""
    if isinstance(work, _Admit):
        return work.ask.call.effect is not Effect.READ
    return work.durable


def _is_proof(item: _Item) -> bool:
    """Whether its commit shows that the ledger can be written: a look at it does not."""
    work, _ = item
    return not isinstance(work, _Act) or work.durable


def _nothing(store: Store) -> None:
    return None
