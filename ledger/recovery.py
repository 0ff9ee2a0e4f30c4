"""What the store does when it is opened: remember what stands, settle what a crash left open."""

from collections.abc import Callable

from ledger import chain, cords, holds, steps, workers
from ledger.batch import Batch, Held, Memory
from ledger.events import PROGRAM
from ledger.records import Recovered, Worker
from ledger.sqlite import sqlite3
from ledger.states import EventType
from ledger.windows import occupied, unpacked
from policies.verdict import Reason

CRASHED = "the proxy ended before the outcome was recorded"
WAITED = "the proxy ended while it waited for a person"

Alive = Callable[[Worker], bool]
"""Whether the process of a worker still runs: the same one, by its start time."""


def nobody(worker: Worker) -> bool:
    """`Alive` where no other process holds calls."""
    return False


def load(conn: sqlite3.Connection) -> Memory:
    """The store's memory, from the database. Calls in it are open until `recover` has looked."""
    found = conn.execute("SELECT id, pid, started, seen_us FROM worker").fetchall()
    open_calls = conn.execute("SELECT call_id, claim, worker, leases FROM open_call").fetchall()
    known = steps.of_open(conn)
    held = {
        call_id: Held(claim, worker, unpacked(leases), known.get(call_id))
        for call_id, claim, worker, leases in open_calls
    }
    return Memory(
        pulls=cords.load(conn),
        open_calls=held,
        in_flight=occupied(one.leases for one in held.values()),
        policies=dict(conn.execute("SELECT digest, id FROM policy").fetchall()),
        workers={row[0]: Worker(*row) for row in found},
        head=chain.head(conn),
    )


def newest_us(conn: sqlite3.Connection) -> int:
    """When the newest row of the record was written; 0 when there is none."""
    row = conn.execute("SELECT at_us FROM event ORDER BY seq DESC LIMIT 1").fetchone()
    return 0 if row is None else int(row[0])


def recover(batch: Batch, memory: Memory, at_us: int, alive: Alive) -> Recovered:
    """What a living worker holds stays open. All else may have happened: it is `unknown` from now
    on, and workers that are gone are struck off.

    Writes in any case, which proves that this ledger can be written.
    """
    batch.conn.execute("UPDATE durable SET count = count + 1")
    dead = [worker for worker in memory.workers.values() if not alive(worker)]
    for worker in dead:
        batch.drop_worker(worker.id)
        batch.journal.noted(
            EventType.LOST,
            at_us=at_us,
            actor=PROGRAM,
            detail=f"worker {worker.id} (pid {worker.pid}): it was gone when the ledger was opened",
        )
    found = [call for call, held in memory.open_calls.items() if held.worker not in batch.workers]
    claimed = workers.end_unknown(batch, found, at_us, CRASHED)
    if not batch.workers:  # else it may be one of theirs that waits
        for call_id in holds.left_held(batch.conn):
            batch.journal.ended(holds.unsent(call_id, at_us, Reason.NOT_SENT, WAITED))
    if found:
        batch.journal.noted(
            EventType.RECOVERED,
            at_us=at_us,
            actor=PROGRAM,
            detail=workers.counted(len(found), claimed),
        )
    return Recovered(len(found), claimed)
