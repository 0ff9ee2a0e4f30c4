"""Writes that are undone: the claim of the call that undoes one, and what the record tells of such
calls and of the answers that they are made from.

A write is undone at most once. The claim of the call that undoes it is the write's own, whoever
asks, for whatever incident and by whatever policy, and it outlives the claims of agents.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from ledger import claims, queries, steps
from ledger.batch import Batch, Held
from ledger.claims import Slot
from ledger.errors import LedgerError
from ledger.queries import Row
from ledger.records import Answer, Ask, Decision
from ledger.sqlite import sqlite3
from ledger.states import CONFLICT, CallState, EventType
from ledger.vault import Vault
from policies.call import Dialect, Effect, Facts, Identity
from policies.ceilings import Per
from policies.policy import UNDO_RUN, Policy
from policies.verdict import MEANING, Action, Reason, Verdict

if TYPE_CHECKING:
    from ledger.admission import Judge

RULE = "undo:"  # how the rule begins that a call is let through by which undoes a write
KEEP_US = 100 * 366 * 86_400 * 1_000_000  # a write that was undone is never undone again


@dataclass(frozen=True, slots=True)
class Undoing:
    """Which write is undone, for which incident, by whom and why."""

    call_id: str
    incident: str
    actor: str
    reason: str = ""


def slot(call_id: str) -> Slot:
    """The claim by which this write is undone. No agent's call can have it."""
    return Slot(claims.digest(b"undo", call_id.encode()), None, None, KEEP_US, 0)


def admit(batch: Batch, ask: Ask, undoing: Undoing, policy: Policy, judge: "Judge") -> Decision:
    """One call of an operator in the admission transaction. It draws on the ceilings over
    everybody alone. Raises LedgerError where the write is not there, or not done."""
    identity = Identity(UNDO_RUN, _tenant_of(batch, undoing.call_id))
    own = slot(undoing.call_id)
    met = claims.find(batch.conn, own, ask.at_us)
    over = batch.windows.draws(policy, ask.call, identity)
    drawn = tuple(draw for draw in over if draw.ceiling.per is Per.GLOBAL)
    claim = None if met is None else met.claim
    facts = Facts(ask.at_us, identity, None, batch.pulls, claim, drawn)
    verdict, step = judge(policy, ask.call, facts), None
    if verdict.action is Action.ALLOW:
        if met is not None or batch.is_open(ask.call_id) or ask.call.effect is not Effect.WRITE:
            wrong = "allowed what the record contradicts"
            verdict = Verdict(Action.REFUSE, Reason.POLICY_FAILURE, "policy", wrong)
        else:
            verdict = replace(verdict, rule=RULE + undoing.call_id, detail=undoing.reason)
            row = claims.take(batch.conn, own, ask.call, ask.call_id, ask.at_us)
            leases = batch.windows.charge(drawn, ask.at_us, ask.call.host)
            step = steps.asked(ask, identity, batch.key)  # of no run's, so no detector counts it
            batch.opened(ask.call_id, Held(row, ask.worker, leases, step))
            batch.must_last = True
    batch.tally.decided(ask.call.tool, ask.call.effect, verdict)
    batch.journal.decided(
        ask,
        identity,
        verdict,
        step,
        status=MEANING[verdict.reason].status if verdict.action is Action.REFUSE else None,
        claim_key=own.key,
        policy=policy,
        policy_id=batch.policy_id(policy, ask.at_us),
        actor=undoing.actor,
        incident=undoing.incident,
    )
    if verdict.pull is not None:
        batch.trip(verdict.pull, ask.call_id, undoing.incident)
    return Decision(verdict, identity)


def _tenant_of(batch: Batch, call_id: str) -> str:
    """Whose write it is, if it is one that was made."""
    batch.journal.write(batch.conn)  # what this transaction has told already is looked at, too
    call = queries.call(batch.conn, call_id)
    if call is None or call["id"] != call_id or call["effect"] != Effect.WRITE:
        raise LedgerError(f"the ledger has no write {call_id}")
    if call["state"] != CallState.DONE:
        raise LedgerError(
            f"call {call_id} is {call['state']}, and only what is done is undone; look: "
            f"pullcord ledger show {call_id}"
        )
    return str(call["tenant"] or "")


# ---------------------------------------------------------------------------------- reads


def attempts(reader: sqlite3.Connection, calls: Iterable[str]) -> Mapping[str, list[Row]]:
    """The calls that were let through to undo one of these writes, by the id of that write; each
    with a call's columns, the oldest first."""
    found: dict[str, list[Row]] = {}
    for row in queries.rows(reader, _ATTEMPTS, (json.dumps([RULE + one for one in calls]),)):
        found.setdefault(row["rule"].removeprefix(RULE), []).append(row)
    return found


# event_act leads to them: what operators did is little, and one rule is one write.
_ATTEMPTS = f"""
SELECT {", ".join(queries.CALL_COLUMNS)} FROM calls WHERE id IN (
    SELECT call_id FROM event INDEXED BY event_act
    WHERE actor IS NOT NULL AND type = '{EventType.INTENT}'
    AND rule IN (SELECT value FROM json_each(?))
) ORDER BY seq
"""  # noqa: S608 - words of ours


# By these a tool says that it did nothing. A conflict is none: it may speak of an earlier call.
_DECLINING = frozenset(range(400, 500)) - {CONFLICT}
DECLINED = "state = '{}' AND status IN ({})".format(
    CallState.DONE.value, ", ".join(map(str, sorted(_DECLINING)))
)
"""What `is_declined` says, as a condition on what has a call's columns."""


def is_declined(call: Row) -> bool:
    """Whether a call that is done was answered by a refusal: nothing was done. Asks for `state` and
    `status`, and nowhere else is it said."""
    return call["state"] == CallState.DONE and call["status"] in _DECLINING


def undid(attempt: Row) -> bool:
    """Whether this try undid its write."""
    return attempt["state"] == CallState.DONE and not is_declined(attempt)


def undone_calls(reader: sqlite3.Connection, since_us: int) -> set[str]:
    """The ids of the writes that were undone since then, for whatever incident."""
    first = queries.first_decided(reader, since_us - queries.DISORDER_US)
    found = queries.rows(reader, _UNDOING, (RULE, RULE, first))
    return {row["rule"].removeprefix(RULE) for row in found if undid(row)}


_UNDOING = f"""
SELECT e.rule, c.state, c.status FROM event e INDEXED BY event_act
CROSS JOIN calls c ON c.id = e.call_id
WHERE e.actor IS NOT NULL AND e.type = '{EventType.INTENT}'
AND e.rule >= ? AND e.rule < ? || char(1114111) AND e.seq >= ?
"""  # noqa: S608 - words of ours


class Told(NamedTuple):
    """What the rows of a call tell beside its columns: whether a person has said how it ended, and
    whether its answer told of a failure under a status of success."""

    is_resolved: bool
    failed: bool
    dialect: Dialect


def told_of(reader: sqlite3.Connection, call_id: str) -> Told:
    found = list(queries.rows(reader, _TOLD, (call_id,)))
    dialect = next((row["dialect"] for row in found if row["dialect"]), Dialect.HTTP)
    return Told(
        any(row["type"] == EventType.RESOLVED for row in found),
        any(row["failed"] for row in found),
        Dialect(dialect),
    )


_TOLD = (
    "SELECT type, json_extract(seen, '$.dialect') AS dialect, "
    "json_extract(seen, '$.failed') AS failed FROM event WHERE call_id = ?"
)


class Kept(NamedTuple):
    """What is there of the answer to a claimed write. `too_long`: one that lies in a file."""

    answer: Answer | None
    too_long: bool = False


def answer_of(reader: sqlite3.Connection, vault: Vault, call: Row) -> Kept:
    """The answer that is kept for repeats of a write, while its claim protects."""
    claim = claims.of_call(reader, call["id"], bytes.fromhex(call["key"])) if call["key"] else None
    if claim is None:
        return Kept(None)
    row, _ = claim
    found = reader.execute("SELECT file FROM answer WHERE claim = ?", (row,)).fetchone()
    if found is not None and found[0] is not None:
        return Kept(None, too_long=True)
    return Kept(vault.get(reader, row, call["id"]))
