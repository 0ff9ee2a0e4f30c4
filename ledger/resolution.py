"""A person's word on a call of unknown outcome: the only way out of `unknown`.

Called inside transactions. Nothing here asks the world; who resolves has looked.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from ledger import claims, holds, queries
from ledger.batch import Batch
from ledger.errors import LedgerError
from ledger.queries import Row
from ledger.states import CLAIM_NEXT, NEXT, CallState, ClaimAfter, EventType
from policies.call import ClaimState


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a person said of a call, now or before; `call` is its row before that, with its events.

    `claim` is what became of the claim that it took; None where there is none (any more).
    `protected_until_us` is until when a repeat of a write that was done is refused.
    """

    call: Row
    state: CallState
    changed: bool
    actor: str
    reason: str
    at: str
    claim: ClaimAfter | None = None
    protected_until_us: int | None = None


def resolve(
    batch: Batch,
    name: str,
    state: CallState,
    *,
    reason: str,
    actor: str,
    at_us: int,
    dry_run: bool = False,
) -> Resolution | None:
    """Settle the call of this id, or the start of it. None when there is no such call.

    The same word again changes nothing. Raises LedgerError when the call is not unknown, when
    somebody said otherwise before, and QueryError when several calls begin so.
    """
    if state not in NEXT[CallState.UNKNOWN]:
        raise LedgerError(f"a call is resolved as done or not_sent, not as {state}")
    batch.journal.write(batch.conn)  # what this transaction has told already is looked at, too
    call = queries.call(batch.conn, name)
    if call is None:
        return None
    word = next((row for row in call["events"] if row["type"] == EventType.RESOLVED), None)
    if word is not None and word["state"] == state:
        said = (word["actor"], word["detail"] or "", word["at"])
        return Resolution(call, state, False, *said)
    if call["state"] != CallState.UNKNOWN:
        raise LedgerError(_refused(call, word))
    if dry_run:
        return Resolution(call, state, False, "", "", "")
    batch.journal.resolved(
        call["id"],
        state,
        at_us=at_us,
        actor=actor,
        reason=reason,
        run=call["run"],
        tenant=call["tenant"],
        tool=call["tool"],
    )
    batch.must_last = True
    claim, until_us = _settled(batch, call, state, at_us)
    if state is CallState.NOT_SENT:
        holds.give_back(batch, call["id"], at_us)
    return Resolution(call, state, True, actor, reason, _moment(at_us), claim, until_us)


def _moment(at_us: int) -> str:
    """As the record shows times."""
    at = datetime(1970, 1, 1) + timedelta(microseconds=at_us)  # noqa: DTZ001 - UTC, as written
    return f"{at.isoformat(timespec='milliseconds')}Z"


def _settled(
    batch: Batch, call: Row, state: CallState, at_us: int
) -> tuple[ClaimAfter | None, int | None]:
    """The claim that the call has taken follows it. One that is not unknown stays as it is."""
    if not call["key"]:
        return None, None
    found = claims.of_call(batch.conn, call["id"], bytes.fromhex(call["key"]))
    if found is None:
        return None, None
    row, now = found
    done = state is CallState.DONE
    if (ClaimState.DONE if done else None) not in CLAIM_NEXT[ClaimState(now)]:
        return None, None
    after = ClaimAfter.DONE if done else ClaimAfter.RELEASED
    return after, claims.resolve(batch.conn, row, at_us, after)


_WHY = {
    CallState.PENDING: "is still in flight; wait for its outcome, or cut it: "
    "pullcord halt run {run}",
    CallState.HELD: "waits for a person: pullcord hold show {id}",
    CallState.REFUSED: "was refused and never sent",
    CallState.REPLAYED: "was answered from the record and not sent",
    CallState.NOT_SENT: "was not sent: the same write may be made again",
    CallState.DONE: "is done",
}


def _refused(call: Row, word: Row | None) -> str:
    """Why there is nothing to resolve, and what to type instead."""
    call_id, state = call["id"], CallState(call["state"])
    if word is not None:
        return (
            f"call {call_id} was resolved as {word['state']} before, by {word['actor']} at "
            f"{word['at']} ({word['detail']}); such a word is not taken back: "
            f"pullcord ledger show {call_id}"
        )
    why = _WHY[state].format(id=call_id, run=call["run"] or "R")
    if state in (CallState.REFUSED, CallState.REPLAYED) and call["replay_of"]:
        why += f"; the call it speaks of: pullcord ledger show {call['replay_of']}"
    return (
        f"call {call_id} is {state}, and only an unknown outcome is resolved: it {why}. "
        "All that can be: pullcord ledger query state:unknown"
    )
