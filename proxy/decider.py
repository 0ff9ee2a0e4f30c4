"""The one place that judges. It owns the store; whoever holds its lock may write.

What must be durable is queued for a thread that takes all that waits as one batch, so that many
callers share one sync (group commit, notes/store.md section 1). A read needs no sync: while
nothing is queued it is judged at once in the loop's own thread, which saves two switches of thread
(sharing.py). The policy is read once a batch, so no batch mixes two. When the store fails, every
caller of the batch is told so, and what has happened already waits here, in order, until it takes
it.
"""

import asyncio
import queue
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Self

import structlog

from ledger.errors import Kind
from ledger.store import Ask, Decision, LedgerUnavailable, Outcome, Store
from policies.policy import Policy
from policies.verdict import Pull, Pulls, Reason
from proxy.judging import UNHEARD, NotJudged, unheard, unsent
from proxy.questions import Questions
from proxy.sharing import LATE_SECONDS, Sharing
from proxy.sitting import Sitting
from proxy.tickets import LocalTickets
from proxy.upkeep import Upkeep
from proxy.waiting_room import WAITS, Told, WaitingRoom
from proxy.work import Act, Admit, Item, Settle, Turn, Work, is_durable, is_owed, is_proof

log = structlog.get_logger()

BATCH_MAX = 256  # notes/store.md: beyond this the commit grows as fast as the batch
QUEUED_MAX = 8192  # half a second of batches on a slow disk; what settles is always taken
PROBE_SECONDS = 1.0  # an idle store is tried this often, and what it is owed offered again
CHECKPOINT_WORKS = 1000  # so much work makes a write-ahead log of some 16 MB
REAP_BATCHES = 60  # expired claims are dropped this often: about once a minute when idle

_Stop = None


def _unheard() -> None:
    return None


def _not_kept(posted: list[Pull]) -> None:
    return None


class Decider(Questions):
    """Owns the store and the policy in force. Made by `start`; every method is for the loop thread.

    `epoch` moves with every cord and policy; what was admitted before looks once more at its start.
    """

    def __init__(
        self,
        store: Store,
        policy: Policy,
        posted: Callable[[], list[Pull]],
        latched: Callable[[list[Pull]], None],
        stepped_seconds: Callable[[], float],
    ) -> None:
        self.policy = policy
        self.epoch = 0
        self.canary_port = 0
        self.tickets = LocalTickets(self)
        self.moved: Callable[[], None] = _unheard
        self._posted = posted
        self._latched = latched
        self._stepped_seconds = stepped_seconds
        self._store = store
        self._upkeep = Upkeep(store)
        self._queue: queue.SimpleQueue[Item | None] = queue.SimpleQueue()
        self._owed: deque[Work] = deque()
        self._writing = threading.Lock()
        self._sharing = Sharing(self, store, self._writing)
        self._queued = self._taken = 0  # ever; the thread counts what it has taken
        self._wants = False  # the thread, the lock
        self._follows_late = False
        self._works = 0
        self._waiting_pulls: Pulls = {}
        self._loop = asyncio.get_running_loop()
        self._room = WaitingRoom(self._loop.time)
        self._thread = threading.Thread(target=self._run, name="decider", daemon=True)

    @classmethod
    def start(
        cls,
        store: Store,
        policy: Policy,
        *,
        posted: Callable[[], list[Pull]] = list,
        latched: Callable[[list[Pull]], None] = _not_kept,
        stepped_seconds: Callable[[], float] = float,
    ) -> Self:
        """`posted` gives the cords that somebody pulled by a file and that are not stored yet; it
        is asked in every transaction, so it must be cheap; `latched` tells that they are stored.
        `stepped_seconds` tells how far the system's clock was moved: while it was, no call is
        judged.
        """
        decider = cls(store, policy, posted, latched, stepped_seconds)
        decider._thread.start()
        return decider

    @property
    def pulls(self) -> Pulls:
        """The cords that stand: the stored ones, and those that wait for a store that fails."""
        stored, waiting = self._store.pulls, self._waiting_pulls
        if not waiting:
            return stored
        plain = {name: c for name, c in stored.items() if not (c.lets_some_pass or c.until_us)}
        return {**stored, **waiting, **plain}  # the stricter of two

    @property
    def latched(self) -> Pulls:
        """The stored cords alone."""
        return self._store.pulls

    def stand(self, cords: list[Pull]) -> None:
        """Cords that somebody pulled by a file stand before they are stored: calls in flight are
        cut though the store fails. Those that are stored stand by that."""
        waiting = {(cord.level, cord.scope, cord.subject): cord for cord in cords}
        if waiting != self._waiting_pulls:
            self._waiting_pulls = waiting
            self._move()

    @property
    def failure(self) -> LedgerUnavailable | None:
        """Why the ledger could not be written, when that was last tried."""
        return self._upkeep.failure

    @property
    def owed(self) -> int:
        """What has happened and the store has not taken yet."""
        return len(self._owed)

    @property
    def waiting(self) -> int:
        """Calls that wait for room under a ceiling."""
        return len(self._room)

    @property
    def queued(self) -> int:
        """Pieces of work that wait for a batch."""
        return self._queue.qsize() + len(self._sharing)

    alone = True  # every call in flight is of this process: nobody else settles one
    lost = False

    def admit(self, ask: Ask, policy: Policy, *, whole: bool = True) -> "asyncio.Future[Decision]":
        """Raises LedgerUnavailable when too many calls wait already. The future fails with that,
        with NotJudged, or, when the request is not `whole`, with PolicyMoved."""
        waiting = self._check_room()
        work = Admit(ask, policy, whole)
        future: asyncio.Future[Decision]
        if waiting or is_durable(work):
            future = self._put(work)
        else:
            future = self._loop.create_future()
            self._sharing.soon((work, future))
        future.add_done_callback(partial(self._left, ask, self._loop.time()))
        return future

    def admit_in_turn(
        self, ask: Ask, policy: Policy, wait_seconds: float, *, whole: bool = True
    ) -> "asyncio.Future[Decision]":
        """Like `admit`, for a call that a ceiling has no room for now: answered when its turn has
        come, or when it has waited so long. Raises and fails like it."""
        self._check_room()
        future: asyncio.Future[Decision] = self._loop.create_future()
        now_seconds = self._loop.time()
        turn = Turn(Admit(ask, policy, whole), now_seconds, now_seconds + wait_seconds, future)
        future.add_done_callback(lambda _: self._room.ended(turn))
        future.add_done_callback(partial(self._left, ask, now_seconds))
        self._sharing.flush()
        self.queue((turn, future))
        return future

    def _left(self, ask: Ask, since_seconds: float, answer: "asyncio.Future[Decision]") -> None:
        """Whoever has left may have been let through just before."""
        if answer.cancelled():
            at_us = ask.at_us + round((self._loop.time() - since_seconds) * 1e6)
            outcome = unsent(ask, at_us, Reason.NOT_SENT, UNHEARD)
            self.settle(outcome, durable=True).add_done_callback(unheard)

    def settle(self, outcome: Outcome, *, durable: bool) -> "asyncio.Future[bool]":
        """Done when committed. Fails with LedgerUnavailable, and is then kept and tried again."""
        work = Settle(outcome, durable)
        if durable:
            return self._put(work)
        future = self._loop.create_future()
        self._sharing.late((work, future))
        return future

    def act[T](self, act: Callable[[Store], T], *, durable: bool = True) -> "asyncio.Future[T]":
        """Run a function on the store, inside the batch's transaction."""
        return self._put(Act(act, durable))

    def adopt(self, policy: Policy) -> None:
        """From the next batch on, this policy is in force."""
        self.policy = policy
        self._move()

    def _move(self) -> None:
        self.epoch += 1
        self.moved()

    def flush(self) -> None:
        """What was answered until now is in the record at once, unless the store fails."""
        self._sharing.flush()

    async def stop(self) -> None:
        self.flush()
        self.queue(_Stop)
        await asyncio.to_thread(self._thread.join)

    def _put(self, work: Work) -> "asyncio.Future[Any]":
        self._sharing.flush()
        future = self._loop.create_future()
        self.queue((work, future))
        return future

    def _check_room(self) -> int:
        waiting = self._queue.qsize()
        if waiting >= QUEUED_MAX:
            raise LedgerUnavailable(Kind.OTHER, f"{QUEUED_MAX} calls wait for it")
        return waiting

    # For what is judged in the loop's own thread

    def sits(self) -> Sitting:
        """Of either thread, with the lock."""
        stepped = self._stepped_seconds()
        return Sitting(self._store, self.policy, self._room, self.canary_port, stepped)

    def is_wanted(self) -> bool:
        return self._wants or self._queued != self._taken

    def writes_first(self) -> bool:
        """Looked at with the lock: before, the thread may be about to let somebody wait."""
        return bool(self._room or self._owed or self.failure is not None or self._posted())

    def deliver(self, told: list[Told], moved: bool) -> None:
        """Tell them, each his own; `moved`: a cord has."""
        if moved:
            self._move()
        for future, answer in told:
            if future.done() or answer is WAITS:
                continue  # the caller has gone, or waits for its turn
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer)
        if self._store.is_behind:
            self._loop.call_soon(self._follow_here)  # once those who wait have gone on

    def committed(self, works: int) -> None:
        """So many pieces of work; with the lock."""
        self._works += works
        if self._works >= CHECKPOINT_WORKS:
            self._put(Act(_nothing, durable=False))  # so that the thread wakes and does it

    def queue(self, item: Item | None) -> None:
        """For the thread, which wants the lock from now on."""
        self._queued += 1
        self._queue.put(item)

    # The decider thread from here on.

    def _run(self) -> None:
        batches = 0
        while True:
            batch, stop = self._take()
            batches += 1
            self._wants = True
            with self._writing:
                self._wants = False
                self._taken += len(batch) + stop
                if batch or self._owed or self._posted() or not self._idle_seconds():
                    self._answer(batch)
                else:
                    self._upkeep.probe()
                if (stop or not batch) and self._upkeep.follow(patient=True):
                    self._loop.call_soon_threadsafe(self._move)
                due = self._works >= CHECKPOINT_WORKS
                if due or batches % REAP_BATCHES == 0:
                    self._upkeep.reap()
                if due or stop:
                    self._works = 0
                    self._upkeep.checkpoint()
            if stop:
                over = self._room.fail(NotJudged(Reason.SHUTTING_DOWN))
                self._loop.call_soon_threadsafe(self.deliver, over, False)
                return

    def _idle_seconds(self) -> float:
        return min(PROBE_SECONDS, self._room.idle_seconds(self._store.pulls, self.policy))

    def _take(self) -> tuple[list[Item], bool]:
        """Wait for one piece of work, then take all that has queued behind it."""
        batch: list[Item] = []
        try:
            item = self._queue.get(timeout=self._idle_seconds())
            while item is not _Stop:
                batch.append(item)
                if len(batch) >= BATCH_MAX:
                    return batch, False
                item = self._queue.get_nowait()
        except queue.Empty:
            return batch, False
        return batch, True

    def _answer(self, batch: list[Item]) -> None:
        pulls = self._store.pulls
        try:
            # A lock that was waited for once in vain is not waited for by every batch after.
            told = self._commit(batch, patient=self.failure is None)
            if any(map(is_proof, batch)):
                self._upkeep.failure = None
        except LedgerUnavailable as failure:
            self._upkeep.failure = failure
            told = self._owe(batch, failure)
        except Exception as failure:
            # A bug of ours must refuse the batch, not end the thread: nothing passes either way.
            log.exception("decider.failed")
            told = self._owe(batch, failure)
        moved = self._store.pulls is not pulls
        self._loop.call_soon_threadsafe(self.deliver, told, moved)

    def _owe(self, batch: list[Item], failure: Exception) -> list[Told]:
        self._owed += [work for work, _ in batch if is_owed(work)]
        return [(future, failure) for _, future in batch] + self._room.fail(failure)

    def _commit(self, batch: list[Item], *, patient: bool = True) -> list[Told]:
        self._works += len(batch)
        owed = list(self._owed)
        posted = self._posted()
        durable = bool(owed or posted) or any(is_durable(work) for work, _ in batch)
        self._store.follow(patient=patient)  # what is judged now meets what was found before
        with self._store.transaction(durable=durable, patient=patient):
            sitting = self.sits()
            for cord in posted:
                self._store.pull(cord)
            for work in owed:
                sitting.do(work)
                sitting.stir()
            told = [(future, sitting.do(work)) for work, future in batch]
            told += sitting.close()
        self._owed.clear()
        if posted:
            self._latched(posted)
        return told

    # The loop thread again.

    def _follow_here(self) -> None:
        """While nobody writes. The next one who does does it first, and nothing is left here."""
        if not self._store.is_behind:
            return
        if not self._sharing.holds():
            if not self._follows_late:  # one is enough, however many calls meanwhile end
                self._follows_late = True
                self._loop.call_later(LATE_SECONDS, self._follow_late)
            return
        try:
            moved = self._upkeep.follow(patient=False)
        finally:
            self._sharing.let_go()
        if moved:
            self._move()

    def _follow_late(self) -> None:
        self._follows_late = False
        self._follow_here()


def _nothing(store: Store) -> None:
    return None
