"""Engine processes: registered, heard of, gone; and what becomes of the calls they hold.

Called inside transactions. Whether a process is alive is for others to find out.
"""

from collections.abc import Iterable
from dataclasses import replace

from ledger import claims, following
from ledger.batch import Batch
from ledger.errors import LedgerError
from ledger.events import PROGRAM
from ledger.records import Outcome, Worker
from ledger.states import CallState, ClaimAfter, EventType

LEFT_OPEN = "its process ended before the outcome was recorded"


def register(batch: Batch, worker: Worker) -> None:
    """Note a worker; the same process again (after the decider's restart, say) is no news.

    Raises LedgerError when its id is another process's: `forsake` that one first.
    """
    if not worker.id:
        raise LedgerError("a worker registers under an id")
    known = batch.workers.get(worker.id)
    if known is not None and (known.pid, known.started) != (worker.pid, worker.started):
        raise LedgerError(f"worker {worker.id} is another process (pid {known.pid})")
    batch.put_worker(worker)
    if known is None:
        batch.journal.noted(
            EventType.JOINED,
            at_us=worker.seen_us,
            actor=PROGRAM,
            detail=f"worker {worker.id} (pid {worker.pid})",
        )


def seen(batch: Batch, ids: Iterable[str], at_us: int) -> None:
    """Heartbeats. Those of workers that are not registered say nothing."""
    for worker_id in ids:
        known = batch.workers.get(worker_id)
        if known is not None:
            batch.put_worker(replace(known, seen_us=at_us))


def forsake(batch: Batch, worker_id: str, at_us: int, why: str) -> int:
    """A worker that will not come back: its open calls become `unknown`. How many there were.

    A call of it that is still queued is refused, because its worker is not registered.
    """
    worker = batch.workers.get(worker_id)
    held = batch.held_by(worker_id)
    if worker is None and not held:
        return 0
    claimed = end_unknown(batch, held, at_us, why)
    batch.drop_worker(worker_id)
    pid = f" (pid {worker.pid})" if worker else ""
    batch.journal.noted(
        EventType.LOST,
        at_us=at_us,
        actor=PROGRAM,
        detail=f"worker {worker_id}{pid}: {why}; {counted(len(held), claimed)}",
    )
    batch.must_last = True
    return len(held)


def leave(batch: Batch, worker_id: str, at_us: int) -> None:
    """An orderly end. A call that it left open all the same is as after a crash."""
    if batch.held_by(worker_id):
        forsake(batch, worker_id, at_us, LEFT_OPEN)
    else:
        batch.drop_worker(worker_id)


def end_unknown(batch: Batch, call_ids: list[str], at_us: int, why: str) -> int:
    """These open calls may have happened, and their claims with them. How many claims.

    What they reserved stays reserved; their places in flight are free.
    """
    held = [batch.closed(call_id) for call_id in call_ids]
    for one in held:
        batch.windows.settle(one.leases, at_us, {})
    rows = [one.claim for one in held if one.claim is not None]
    claims.forsake(batch.conn, rows)
    for call_id, one in zip(call_ids, held, strict=True):
        outcome = Outcome(
            call_id=call_id,
            at_us=at_us,
            state=CallState.UNKNOWN,
            claim_after=ClaimAfter.UNKNOWN,
            error=why,
        )
        batch.journal.ended(outcome)
        batch.tally.ended(one.step, outcome)
        following.settled(batch, one.step, outcome)
    return len(rows)


def counted(calls: int, claimed: int) -> str:
    return f"{calls} calls, {claimed} of them claimed writes, became unknown"
