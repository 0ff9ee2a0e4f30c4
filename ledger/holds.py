"""Tickets: calls that wait for a person, what the person is shown, and what the person said.

The only home of their SQL. Every function is called inside a transaction. A ticket is bound to one
exact request of one run, by a keyed digest, since the request holds credentials. Each step of its
life is a row of the record; what the person is shown is sealed: it holds bodies and query strings.
"""

import json
from collections.abc import Callable
from dataclasses import replace

from ledger.batch import Batch
from ledger.claims import digest
from ledger.errors import LedgerError
from ledger.events import PROGRAM
from ledger.queries import rows
from ledger.records import Arguments, Ask, Hold, Outcome
from ledger.sqlite import sqlite3
from ledger.states import HOLD_NEXT, CallState, ClaimAfter, EventType, HoldState
from ledger.vault import Vault
from policies.call import Identity
from policies.verdict import Action, Reason, Verdict

HOLDS_PER_RUN_MAX = 16  # open tickets: more of one run is nothing that a person reads
HOLDS_PER_TREE_MAX = 32  # of a run and all that it started: else its children would have as many
HOLDS_PER_TENANT_MAX = 64  # so that no tenant keeps the others from asking a person
HOLDS_MAX = 256  # of all together
HOLD_BODY_BYTES_MAX = 256 * 1024  # a person must see all of what is approved
HOLD_APPROVAL_SECONDS = 600  # how long an approval waits for the call that it is for
HOLD_KEPT_SECONDS = 86_400  # how long a ticket that is closed can still be looked at

RETRY_SECONDS = 30  # when a call that found no room may try again

_EVENTS = {
    HoldState.APPROVED: EventType.HOLD_APPROVED,
    HoldState.REJECTED: EventType.HOLD_REJECTED,
    HoldState.EXPIRED: EventType.HOLD_EXPIRED,
    HoldState.USED: EventType.HOLD_USED,
}

_COLUMNS = (
    "ticket, run, tenant, agent, tool, rule, summary, state, at_us, until_us, decided_us, actor, "
    "reason, used_by, fingerprint"
)
_OPEN = "state IN ('waiting', 'approved')"


# ---------------------------------------------------------------------------------- looking


def named(conn: sqlite3.Connection, ticket: str) -> Hold | None:
    return _one(conn, "ticket = ?", ticket)


def open_for(conn: sqlite3.Connection, vault: Vault, ask: Ask, who: Identity) -> Hold | None:
    """The ticket that is open for this very request, if one is."""
    return _one(
        conn, f"run = ? AND tool = ? AND fingerprint = ? AND {_OPEN}",
        who.run, ask.call.tool, bound(vault, ask, who),
    )  # fmt: skip


def new_ticket(conn: sqlite3.Connection, call_id: str) -> str:
    """The id of the call that opens it; with a number, when that call has opened one before."""
    ticket, number = call_id, 1
    while named(conn, ticket) is not None:
        number += 1
        ticket = f"{call_id}-{number}"
    return ticket


def bound(vault: Vault, ask: Ask, who: Identity) -> bytes:
    """What a ticket is for. In `open` mode two tenants may use one name for a run. Keyed: nobody
    who reads the ledger can try a guess at a credential."""
    return vault.keyed(digest(who.tenant.encode("utf-8", "surrogatepass"), ask.bound_to))


def listed(conn: sqlite3.Connection, limit: int) -> list[Hold]:
    """Open ones first, of these the one that has waited longest; then the newest."""
    found = conn.execute(
        f"SELECT {_COLUMNS} FROM hold ORDER BY NOT {_OPEN}, "  # noqa: S608 - our own columns
        f"CASE WHEN {_OPEN} THEN at_us ELSE -at_us END LIMIT ?",
        (limit,),
    )
    return [_hold(row) for row in found]


def waiting(reader: sqlite3.Connection, now_us: int) -> int:
    """How many tickets wait for a person; on any connection. Raises LedgerUnavailable."""
    (row,) = rows(
        reader,
        "SELECT count(*) AS tickets FROM hold WHERE state = 'waiting' AND until_us > ?",
        (now_us,),
    )
    return int(row["tickets"])


def arguments(conn: sqlite3.Connection, vault: Vault, ticket: str) -> Arguments | None:
    """What the person is shown; None when another vault key sealed it."""
    row = conn.execute("SELECT arguments FROM hold WHERE ticket = ?", (ticket,)).fetchone()
    clear = vault.unlock(_seal_name(ticket), row[0]) if row else None
    if clear is None:
        return None
    end = 4 + int.from_bytes(clear[:4])
    method, url, headers = json.loads(clear[4:end])
    return Arguments(method, url, tuple((name, value) for name, value in headers), clear[end:])


def _one(conn: sqlite3.Connection, where: str, *values: str | bytes) -> Hold | None:
    row = conn.execute(
        f"SELECT {_COLUMNS} FROM hold WHERE {where}",  # noqa: S608 - our own words
        values,
    ).fetchone()
    return None if row is None else _hold(row)


def _hold(row: tuple[object, ...]) -> Hold:
    values = list(row)
    values[7] = HoldState(str(values[7]))
    return Hold(*values)  # type: ignore[arg-type]  # the columns stand in the order of its fields


# ---------------------------------------------------------------------------------- judging


_ROOMS = (
    # A run's root is the last of the runs above it; one that no token was minted for has none.
    "SELECT count(*), coalesce(sum(h.tenant = ?1), 0), "  # noqa: S608 - our own words
    "coalesce(sum(h.tenant = ?1 "
    "AND coalesce(json_extract(r.ancestors, '$[#-1]'), h.run) = ?2), 0), "
    "coalesce(sum(h.tenant = ?1 AND h.run = ?3), 0) "
    f"FROM hold h LEFT JOIN run r ON r.name = h.run WHERE {_OPEN}"
)


def has_room(conn: sqlite3.Connection, who: Identity) -> bool:
    """Whether one more ticket may be open: of this run, its tree, its tenant, and in all."""
    found = conn.execute(_ROOMS, (who.tenant, who.root, who.run)).fetchone()
    most = (HOLDS_MAX, HOLDS_PER_TENANT_MAX, HOLDS_PER_TREE_MAX, HOLDS_PER_RUN_MAX)
    return all(count < limit for count, limit in zip(found, most, strict=True))


def answer(
    batch: Batch,
    vault: Vault,
    ask: Ask,
    who: Identity,
    held: Verdict,
    approved: Callable[[], Verdict],
) -> tuple[Verdict, Hold | None]:
    """What a call that is held is told, and the ticket by which it passes, if it does.

    `approved` judges it once more as one that a person approved: whatever else stops it stops it.
    """
    size_bytes = ask.call.worth.bytes_up
    if size_bytes > HOLD_BODY_BYTES_MAX:
        most = f"a person has to see all of it: at most {HOLD_BODY_BYTES_MAX:,} bytes"
        return Verdict(Action.REFUSE, Reason.BODY_TOO_LARGE, held.rule, most), None
    if not ask.bound_to:
        return held, None
    hold = named(batch.conn, ask.approval)
    wanted = (who.run, ask.call.tool, bound(vault, ask, who))
    if hold is None or (hold.run, hold.tool, hold.bound_to) != wanted:
        return _unless_full(batch, vault, ask, who, held), None
    if hold.state is HoldState.REJECTED:
        why = f"by {hold.actor}" + (f": {hold.reason}" if hold.reason else "")
        return Verdict(Action.REFUSE, Reason.HOLD_REJECTED, held.rule, why), None
    if hold.state is HoldState.EXPIRED or hold.until_us <= ask.at_us:
        return Verdict(Action.REFUSE, Reason.HOLD_EXPIRED, held.rule, held.detail), None
    if hold.state is not HoldState.APPROVED:
        return held, None
    verdict = approved()
    if verdict.action is Action.HOLD:  # nobody could ever let it through
        wrong = "held in spite of an approval"
        return Verdict(Action.REFUSE, Reason.POLICY_FAILURE, "policy", wrong), None
    return verdict, hold


def _unless_full(batch: Batch, vault: Vault, ask: Ask, who: Identity, held: Verdict) -> Verdict:
    if open_for(batch.conn, vault, ask, who) is not None or has_room(batch.conn, who):
        return held
    full = (
        f"too many calls wait for a person: at most {HOLDS_PER_RUN_MAX} of a run, "
        f"{HOLDS_PER_TREE_MAX} of a tree of runs, {HOLDS_PER_TENANT_MAX} of a tenant and "
        f"{HOLDS_MAX} in all"
    )
    return Verdict(
        Action.REFUSE, Reason.OVER_CEILING, held.rule, full, retry_after_seconds=RETRY_SECONDS
    )


# ---------------------------------------------------------------------------------- changing


def start(batch: Batch, hold: Hold, shown: Arguments, vault: Vault) -> None:
    """Write down a new ticket that waits."""
    head = json.dumps([shown.method, shown.url, shown.headers]).encode()
    clear = len(head).to_bytes(4) + head + shown.body
    batch.conn.execute(
        f"INSERT INTO hold ({_COLUMNS}, arguments) "  # noqa: S608 - our own columns
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, NULL, '', '', '', ?, ?)",
        (
            hold.ticket, hold.run, hold.tenant, hold.agent, hold.tool, hold.rule, hold.summary,
            hold.state.value, hold.at_us, hold.until_us, hold.bound_to,
            vault.lock(_seal_name(hold.ticket), clear),
        ),
    )  # fmt: skip
    _note(batch, EventType.HOLD_OPENED, hold, hold.at_us, f"run:{hold.run}", hold.summary)


def _seal_name(ticket: str) -> str:
    return f"hold {ticket}"


def decide(batch: Batch, hold: Hold, to: HoldState, *, actor: str, reason: str, at_us: int) -> Hold:
    """What a person said. Raises LedgerError when the ticket is past that."""
    if hold.state not in (HoldState.WAITING, HoldState.APPROVED):
        raise LedgerError(f"ticket {hold.ticket} is {hold.state} already")
    until_us = hold.until_us
    if to is HoldState.APPROVED:
        until_us = at_us + HOLD_APPROVAL_SECONDS * 1_000_000
    decided = replace(
        hold, state=to, until_us=until_us, decided_us=at_us, actor=actor, reason=reason
    )
    _move(batch, hold, decided, at_us, actor, reason)
    return decided


def use(batch: Batch, hold: Hold, call_id: str, at_us: int) -> None:
    """The call passes by it. No other call ever does."""
    used = replace(hold, state=HoldState.USED, used_by=call_id)
    _move(batch, hold, used, at_us, f"run:{hold.run}", f"by call {call_id}")


def let_pass(conn: sqlite3.Connection, call_id: str) -> bool:
    """Whether a person let this call through."""
    return _one(conn, "used_by = ? AND state = 'used'", call_id) is not None


def give_back(batch: Batch, call_id: str, at_us: int) -> None:
    """A call was not sent after all: the approval that it used stands again, if it still may."""
    hold = _one(batch.conn, "used_by = ? AND state = 'used'", call_id)
    if hold is None or hold.until_us <= at_us:
        return
    moved = batch.conn.execute(
        "UPDATE OR IGNORE hold SET state = 'approved', used_by = '' WHERE ticket = ?",
        (hold.ticket,),
    ).rowcount
    if moved:  # else a newer ticket is open for the same request
        batch.must_last = True
        _note(batch, EventType.HOLD_KEPT, hold, at_us, PROGRAM, f"call {call_id} was not sent")


def expire(batch: Batch, at_us: int) -> None:
    """End the tickets whose time is up."""
    due = batch.conn.execute(
        f"SELECT {_COLUMNS} FROM hold "  # noqa: S608 - our own columns
        f"WHERE {_OPEN} AND until_us <= ? ORDER BY at_us",
        (at_us,),
    ).fetchall()
    for hold in map(_hold, due):
        nobody = "decided" if hold.state is HoldState.WAITING else "used the approval"
        _move(
            batch, hold, replace(hold, state=HoldState.EXPIRED), at_us, PROGRAM,
            f"nobody {nobody} in time",
        )  # fmt: skip


# Calls that share a ticket stand in the record after the one that opened it.
_LEFT_HELD = """
SELECT DISTINCT d.call_id
FROM (
    SELECT h.run AS run, min(o.seq) AS seq
    FROM hold h CROSS JOIN event o ON o.call_id = h.ticket GROUP BY h.run
) s CROSS JOIN event d ON d.run = s.run AND d.seq >= s.seq
WHERE d.type = 'call.held' AND NOT EXISTS (
    SELECT 1 FROM event e WHERE e.call_id = d.call_id
    AND e.type IN ('call.intent', 'call.refused', 'call.replayed', 'call.outcome')
)
"""


def left_held(conn: sqlite3.Connection) -> list[str]:
    """The calls that wait for a person, as far as the record tells."""
    return [call_id for (call_id,) in conn.execute(_LEFT_HELD)]


def unsent(call_id: str, at_us: int, reason: Reason, why: str) -> Outcome:
    """How a call ends that waits for a person no longer."""
    return Outcome(
        call_id=call_id,
        at_us=at_us,
        state=CallState.NOT_SENT,
        claim_after=ClaimAfter.KEPT,
        error=why,
        reason=reason.value,
    )


def reap(batch: Batch, at_us: int, limit: int) -> int:
    """End what is due, and drop up to `limit` tickets that were closed a day ago. How many went."""
    expire(batch, at_us)
    return batch.conn.execute(
        "DELETE FROM hold WHERE ticket IN (SELECT ticket FROM hold "
        "WHERE state NOT IN ('waiting', 'approved') AND until_us <= ? LIMIT ?)",
        (at_us - HOLD_KEPT_SECONDS * 1_000_000, limit),
    ).rowcount


def _move(batch: Batch, hold: Hold, to: Hold, at_us: int, actor: str, detail: str) -> None:
    if to.state not in HOLD_NEXT[hold.state]:
        raise LedgerError(f"ticket {hold.ticket} is {hold.state} already")
    moved = batch.conn.execute(
        "UPDATE hold SET state = ?, until_us = ?, decided_us = ?, actor = ?, reason = ?, "
        "used_by = ? WHERE ticket = ? AND state = ?",
        (
            to.state.value, to.until_us, to.decided_us, to.actor, to.reason, to.used_by,
            hold.ticket, hold.state.value,
        ),
    ).rowcount  # fmt: skip
    if not moved:
        raise LedgerError(f"ticket {hold.ticket} was decided meanwhile")
    batch.must_last = True
    _note(batch, _EVENTS[to.state], hold, at_us, actor, detail)


def _note(batch: Batch, kind: EventType, hold: Hold, at_us: int, actor: str, detail: str) -> None:
    batch.journal.noted(
        kind,
        at_us=at_us,
        actor=actor,
        detail=detail,
        run=hold.run,
        tenant=hold.tenant,
        tool=hold.tool,
        call_id=hold.ticket,
        rule=hold.rule,
    )
