"""Rows of the record: how a decision, an outcome, an operator's act becomes a row of `event`.

Rows wait in a journal until their transaction ends and are written in order. What an agent sent
is recorded redacted or as a digest only; query strings, header values and bodies never.
"""

from itertools import groupby
from typing import Any

import orjson

from ledger import seen, steps
from ledger.chain import Head, Value, link
from ledger.claims import KEY_SHOWN_BYTES
from ledger.errors import LedgerError
from ledger.records import Ask, Outcome
from ledger.redact import redact, redact_host
from ledger.sqlite import sqlite3
from ledger.states import NEXT, CallState, EventType
from policies.call import Identity
from policies.detectors.step import Step
from policies.policy import Policy
from policies.verdict import Action, Pull, Scope, Verdict

PROGRAM = "pullcord"  # the actor of what nobody asked for
DETECTOR = "detector:"  # how the actor of a cord that a detector pulled begins

Row = tuple[Value, ...]
Columns = tuple[str, ...]


def _insert(columns: Columns) -> str:
    names, marks = ", ".join(columns), ", ".join("?" * (len(columns) + 2))
    return f"INSERT INTO event ({names}, seq, hash) VALUES ({marks})"  # noqa: S608 - ours


# fmt: off
_DECISION: Columns = (
    "type", "at_us", "call_id", "run", "tenant", "parent", "root", "agent", "release",
    "tool", "operation", "method", "host", "path", "effect",
    "decision", "reason", "rule", "detail", "state", "status", "key", "replay_of",
    "request_digest", "seen", "policy",
)
# fmt: on
_OUTCOME: Columns = (
    "type",
    "at_us",
    "call_id",
    "reason",
    "state",
    "status",
    "latency_us",
    "request_digest",
    "response_digest",
    "response_bytes",
    "detail",
    "input_tokens",
    "output_tokens",
    "cost_microusd",
    "seen",
)
_RESOLVED: Columns = (
    *("type", "at_us", "call_id", "run", "tenant", "tool", "state", "actor", "detail"),
)
_ACT: Columns = (
    *("type", "at_us", "call_id", "run", "tenant", "release", "tool", "rule", "actor", "detail"),
)
_UNDO: Columns = (*_DECISION, "actor", "incident")
_OF_INCIDENT: Columns = (*_ACT, "incident")
_FORGET: Columns = (*_ACT, "incident", "seen")
_OWN: Columns = (
    *("type", "at_us", "run", "tenant", "parent", "root", "agent", "release"),
    *("actor", "detail", "seen"),
)
_INSERTS = {
    columns: _insert(columns)
    for columns in (*(_DECISION, _UNDO, _OUTCOME, _RESOLVED, _ACT, _OF_INCIDENT, _FORGET, _OWN),)
}

_TYPE_AND_STATE: dict[Action, tuple[str, str]] = {
    Action.ALLOW: (EventType.INTENT.value, CallState.PENDING.value),
    Action.REPLAY: (EventType.REPLAYED.value, CallState.REPLAYED.value),
    Action.REFUSE: (EventType.REFUSED.value, CallState.REFUSED.value),
    Action.HOLD: (EventType.HELD.value, CallState.HELD.value),
}

_NOBODY = Identity(run="", tenant="")


class Journal:
    """The rows of one transaction, in order. `head` is where the record ends with those that are
    written."""

    def __init__(self, redact_key: bytes, head: Head) -> None:
        self.head = head
        self._rows: list[tuple[Columns, Row, str | None]] = []
        self._redact_key = redact_key

    def decided(
        self,
        ask: Ask,
        identity: Identity | None,
        verdict: Verdict,
        step: Step | None,
        *,
        status: int | None,
        claim_key: bytes | None,
        policy: Policy,
        policy_id: int,
        actor: str = "",
        incident: str = "",
    ) -> None:
        """One judged call. `status` is what the caller is told unless it is let through; `step` is
        the call as the detectors see it, if they do. `actor` undoes a write of `incident` by it."""
        who = identity or _NOBODY
        call, request, key = ask.call, ask.request, self._redact_key
        kind, state = _TYPE_AND_STATE[verdict.action]
        row: Row = (
            kind,
            ask.at_us,
            ask.call_id,
            who.run or None,
            who.tenant or None,
            who.parent or None,
            who.root or None,
            who.agent or None,
            who.release or None,
            call.tool,
            redact(call.operation, key) or None,
            redact(request.method, key),
            step.destination if step else redact_host(request.host, key),
            redact(request.path, key),
            call.effect.value,
            verdict.action.value,
            verdict.reason.value,
            verdict.rule,
            redact(verdict.detail, key) or None,
            state,
            status,
            None if claim_key is None else claim_key[:KEY_SHOWN_BYTES].hex(),
            verdict.earlier_call or None,
            call.fingerprint,
            seen.told(call, who, key, steps.traits_told(step, ask.traits) if step else None),
            policy_id,
        )
        if incident:
            self._rows.append((_UNDO, (*row, actor, incident), policy.digest))
        else:
            self._rows.append((_DECISION, row, policy.digest))

    def ended(self, outcome: Outcome, *, by_cord: bool = False) -> None:
        """How an admitted call ended. Raises LedgerError for a state that cannot follow.

        With `by_cord` the error is the name of a cord, and no part of it can be a secret.
        """
        if outcome.state not in NEXT[CallState.PENDING]:
            raise LedgerError(f"an admitted call cannot become {outcome.state}")
        row: Row = (
            EventType.OUTCOME.value,
            outcome.at_us,
            outcome.call_id,
            outcome.reason or None,
            outcome.state.value,
            outcome.status,
            outcome.latency_us,
            outcome.request_digest,
            outcome.response_digest,
            outcome.response_bytes,
            (outcome.error if by_cord else redact(outcome.error, self._redact_key)) or None,
            outcome.input_tokens,
            outcome.output_tokens,
            outcome.cost_microusd,
            _json(steps.outcome_told(outcome, self._redact_key)),
        )
        self._rows.append((_OUTCOME, row, None))

    def resolved(
        self,
        call_id: str,
        state: CallState,
        *,
        at_us: int,
        actor: str,
        reason: str,
        run: str | None,
        tenant: str | None,
        tool: str | None,
    ) -> None:
        """What a person says became of a call of unknown outcome. Raises LedgerError for a state
        that cannot follow."""
        if state not in NEXT[CallState.UNKNOWN]:
            raise LedgerError(f"a call of unknown outcome cannot become {state}")
        detail = redact(reason, self._redact_key)
        row = (
            *(EventType.RESOLVED.value, at_us, call_id, run, tenant, tool),
            *(state.value, actor, detail),
        )
        self._rows.append((_RESOLVED, row, None))

    def moved(
        self,
        kind: EventType,
        pull: Pull,
        *,
        actor: str,
        reason: str,
        at_us: int,
        call_id: str = "",
        incident: str = "",
        anew: bool = False,
    ) -> None:
        """A cord pulled, narrowed or released. `call_id`: over which call a ceiling pulled it. One
        that a detector pulled is released with a word to the detectors, and so it is when a person
        narrows it (`anew`)."""
        subject = pull.names
        row: Row = (
            kind.value,
            at_us,
            call_id or None,
            subject.get(Scope.RUN),
            subject.get(Scope.TENANT),
            subject.get(Scope.RELEASE),
            subject.get(Scope.TOOL),
            pull.rule,
            actor,
            reason or None,
        )
        if (anew or kind is EventType.RELEASED) and is_detectors(pull):
            told = _json(steps.forgotten_told(pull.scope, pull.subject))
            self._rows.append((_FORGET, (*row, incident or None, told), None))
        else:
            self._rows.append(_act(row, incident))

    def acted(
        self,
        kind: EventType,
        who: Identity,
        *,
        at_us: int,
        actor: str,
        detail: str = "",
        mark: int = 0,
    ) -> None:
        """What a run does beside its calls: it was started, it marks progress, it ends."""
        row: Row = (
            kind.value,
            at_us,
            who.run,
            who.tenant,
            who.parent or None,
            who.root,
            who.agent or None,
            who.release or None,
            actor,
            redact(detail, self._redact_key) or None,
            _json(steps.act_told(who, mark)),
        )
        self._rows.append((_OWN, row, None))

    def noted(
        self,
        kind: EventType,
        *,
        at_us: int,
        actor: str,
        detail: str,
        run: str = "",
        tenant: str = "",
        tool: str = "",
        call_id: str = "",
        rule: str = "",
        release: str = "",
        incident: str = "",
        forget: steps.Forgotten | None = None,
    ) -> None:
        """Any other act: a token minted, a policy accepted, a recovery, a finding; the end of an
        incident, with a word to the detectors."""
        row: Row = (
            kind.value,
            at_us,
            call_id or None,
            run or None,
            tenant or None,
            release or None,
            tool or None,
            rule or None,
            actor,
            detail or None,
        )
        if forget is None:
            self._rows.append(_act(row, incident))
        else:
            told = _json(steps.forgotten_told(*forget))
            self._rows.append((_FORGET, (*row, incident or None, told), None))

    def write(self, conn: sqlite3.Connection) -> None:
        """Write what waits. Early, where a read of the same transaction has to see it."""
        for columns, rows in groupby(self._rows, key=lambda entry: entry[0]):
            linked = [self._linked(columns, row, policy) for _, row, policy in rows]
            conn.executemany(_INSERTS[columns], linked)
        self._rows.clear()

    def _linked(self, columns: Columns, row: Row, policy: str | None) -> Row:
        """The row with its number and its place in the chain."""
        seq = self.head.seq + 1
        told = dict(zip(columns, row, strict=True))
        told["seq"], told["policy"] = seq, policy
        self.head = Head(seq, link(self.head.hash, told))
        return (*row, seq, self.head.hash)


def _act(row: Row, incident: str) -> tuple[Columns, Row, None]:
    return (_OF_INCIDENT, (*row, incident), None) if incident else (_ACT, row, None)


def is_detectors(pull: Pull) -> bool:
    """Whether it was pulled by a detector, and not by a person, a program or the policy."""
    return pull.actor.startswith(DETECTOR)


def _json(told: dict[str, Any]) -> str | None:
    found = {name: value for name, value in told.items() if value}
    return orjson.dumps(found).decode() if found else None
