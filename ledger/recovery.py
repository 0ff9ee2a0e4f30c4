"""What the store does when it is opened: remember what stands, settle what a crash left open."""

from ledger import claims
from ledger.batch import Batch, Memory
from ledger.records import Outcome, Recovered
from ledger.sqlite import sqlite3
from ledger.states import CallState, ClaimAfter, EventType
from policies.verdict import Level, Pull, Scope

CRASHED = "the proxy ended before the outcome was recorded"


def load(conn: sqlite3.Connection) -> Memory:
    """The store's memory, from the database. Calls that are open there are not: `recover` them."""
    pulls = {}
    for level, scope, subject, reason, actor, at_us in conn.execute(
        "SELECT level, scope, subject, reason, actor, at_us FROM pull"
    ):
        pull = Pull(Level(level), Scope(scope), subject, reason, actor, at_us)
        pulls[pull.level, pull.scope, pull.subject] = pull
    policies = dict(conn.execute("SELECT digest, id FROM policy").fetchall())
    return Memory(pulls=pulls, policies=policies)


def recover(batch: Batch, memory: Memory, at_us: int) -> Recovered:
    """Whatever was open may have happened: it is `unknown` from now on.

    Writes in any case, which proves that this ledger can be written.
    """
    conn = batch.conn
    conn.execute("UPDATE durable SET count = count + 1")
    claims_open = claims.forsake(conn)
    found = [call_id for (call_id,) in conn.execute("SELECT call_id FROM open_call").fetchall()]
    for call_id in found:
        memory.open_calls[call_id] = None
        batch.closed(call_id)
        batch.journal.ended(_lost(call_id, at_us))
    if found:
        detail = f"{len(found)} calls, {claims_open} of them claimed writes, became unknown"
        batch.journal.noted(EventType.RECOVERED, at_us=at_us, actor="pullcord", detail=detail)
    return Recovered(len(found), claims_open)


def _lost(call_id: str, at_us: int) -> Outcome:
    return Outcome(
        call_id=call_id,
        at_us=at_us,
        state=CallState.UNKNOWN,
        claim_after=ClaimAfter.UNKNOWN,
        status=None,
        latency_us=0,
        response_digest=None,
        response_bytes=0,
        answer=None,
        error=CRASHED,
    )
