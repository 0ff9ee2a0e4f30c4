"""What would undo the writes of an incident: for each the call filled in, or why there is none.

From the record, the trace, the kept answers and the policy alone, on connections that cannot write:
it works with the proxy dead. compensating.py makes the calls.
"""

import contextlib
import functools
import hashlib
import hmac
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

from ledger import compensation, incident_reads, incident_scope, queries
from ledger.filters import parse
from ledger.open_incidents import OPEN, Incident
from ledger.queries import Row
from ledger.redact import mask, redact_key
from ledger.sqlite import sqlite3
from ledger.states import CONFLICT, CallState
from ledger.trace import open_trace
from ledger.traced import Side
from ledger.vault import Vault
from policies.call import ToolCall
from policies.policy import UNDO_RUN, Policy, Reversibility, Tool, Undo
from policies.verdict import Pulls, Scope
from proxy import credentials, incidents, operations, recorded, runbook
from proxy.credentials import Credential
from proxy.operations import OperationError
from proxy.operator_calls import Plan
from proxy.operator_plans import Known, planned_undo
from proxy.recorded import Document, Untold

WRITES_MAX = 30_000  # of an incident, the newest
LEFT_MAX = 10_000  # of those that are not undone yet; each takes a look at its answer
BODY_SHOWN_MAX = 2_000  # characters of a body, for people
WRITES = ("effect:write", "decision:allow", f"-run:{UNDO_RUN}")
"""Of the calls of an incident those that changed something, and that nobody made to undo it."""

Answer = dict[str, Any]
_BY = ("id", "at", "tool", "state", "status")
_NOTHING: Mapping[str, str] = {}


class State(StrEnum):
    """How far the undoing of one write is."""

    READY = "ready"
    COMPENSATED = "compensated"
    PENDING = "pending"  # the call that undoes it is on its way
    UNKNOWN = "unknown"  # whether that call was made
    UNNEEDED = "unneeded"
    IMPOSSIBLE = "impossible"
    BLOCKED = "blocked"  # it could be undone, and something lacks
    VERIFY = "verify"  # whether the write itself was made is not known
    IN_FLIGHT = "in_flight"
    DECLINED = "declined"  # the tool did not do it


@dataclass(frozen=True, slots=True)
class Step:
    """One write. `number` counts from the oldest write of the incident; `by` is the call that
    undid it, or tried to; `why` says what stands in the way, or what came of the last try."""

    number: int
    call: Row
    state: State
    reversibility: Reversibility
    plan: Plan | None = None
    taken: ToolCall | None = None
    why: str = ""
    by: Row | None = None


@dataclass(frozen=True, slots=True)
class Ground:
    """What a plan is made from. Opened by `on`."""

    reader: sqlite3.Connection
    trace: sqlite3.Connection | None
    vault: Vault
    key: bytes = field(repr=False)
    policy: Policy
    credentials: Mapping[str, Credential]
    entries: Path


@contextlib.contextmanager
def on(data: Path, reader: sqlite3.Connection, policy: Policy) -> Iterator[Ground]:
    """Raises CredentialsError, and LedgerError where the trace cannot be read."""
    vault_key = operations.vault_key(data)
    trace = open_trace(data)
    with contextlib.closing(trace) if trace else contextlib.nullcontext():
        yield Ground(
            reader,
            trace,
            Vault(vault_key),
            redact_key(vault_key),
            policy,
            credentials.load(data),
            data / credentials.FILE,
        )


# ---------------------------------------------------------------------------------- contained


def check_contained(
    reader: sqlite3.Connection, incident: Incident, policy: Policy, pulls: Pulls
) -> None:
    """Raises OperationError while the incident may go on: what is undone might be done again."""
    cords = [*pulls.values(), *policy.pulls.values()]
    pulled_for_it = incident_reads.cords_of(reader, incident)
    if incident.state != OPEN or runbook.covering(incident, cords, pulled_for_it):
        return
    kind = Scope(incident.kind)
    words = [kind.value, *([] if kind is Scope.GLOBAL else [incident.name])]
    raise OperationError(
        f"incident {incident.id} is not contained: nothing stands over "
        f"{operations.named(kind, incident.name)}, so what is undone may be done again; "
        f"first type: pullcord {shlex.join(['halt', *words])}"
    )


# ---------------------------------------------------------------------------------- the steps


def steps(ground: Ground, incident: Incident) -> tuple[list[Step], bool]:
    """Every write of the incident, the newest first; and whether there are more than are looked
    at."""
    terms = (*incident_scope.terms(incident), *WRITES)
    found = list(queries.calls(ground.reader, parse(terms, 0), WRITES_MAX + 1))
    tried = compensation.attempts(ground.reader)
    made, left = list[Step](), 0
    for place, row in enumerate(found[:WRITES_MAX]):
        one = step(ground, row, len(found) - place, tried.get(row["id"], []))
        made.append(one)
        left += one.state is not State.COMPENSATED
        if left == LEFT_MAX:
            break
    return made, len(made) < len(found)


def step(
    ground: Ground, call: Row, number: int, tried: list[Row], given: Mapping[str, str] = _NOTHING
) -> Step:
    """What would undo this write, whose earlier tries are these, the oldest first. `given` are
    values that a person knows."""
    tool = ground.policy.tool(call["tool"])
    told = _told(call, tool, tried)
    if told is not None:
        state, why, by = told
        return Step(number, call, state, tool.reversibility, why=why, by=by)
    last, undo = tried[-1] if tried else None, tool.undo
    if not isinstance(undo, Undo):
        state, why = _WITHOUT[tool.reversibility]
        return Step(number, call, state, tool.reversibility, why=why.format(tool=tool.name))
    try:
        plan, taken = _planned(ground, call, undo, given)
    except OperationError as error:
        return Step(number, call, State.BLOCKED, tool.reversibility, why=str(error), by=last)
    return Step(
        number,
        call,
        State.BLOCKED if plan.lacks else State.READY,
        tool.reversibility,
        plan,
        taken,
        plan.lacks or _tried(last),
        last,
    )


_WITHOUT: Mapping[Reversibility, tuple[State, str]] = {
    Reversibility.REVERSIBLE: (State.UNNEEDED, "by the policy nothing has to be undone"),
    Reversibility.IRREVERSIBLE: (State.IMPOSSIBLE, "by the policy nothing undoes it"),
    Reversibility.UNKNOWN: (
        State.IMPOSSIBLE,
        "the policy does not say how {tool} is undone: give the tool an `undo`",
    ),
}


def _told(call: Row, tool: Tool, tried: list[Row]) -> tuple[State, str, Row | None] | None:
    """What there is to say of a write without a look at how it would be undone."""
    by = _that_counts(tried)
    if by is not None and by["state"] == CallState.PENDING:
        return State.PENDING, "the call that undoes it is on its way", by
    if by is not None and by["state"] == CallState.UNKNOWN:
        return State.UNKNOWN, "whether the call that undoes it was made is unknown", by
    if by is not None:
        return State.COMPENSATED, "", by
    if call["state"] == CallState.PENDING:
        return State.IN_FLIGHT, "it is in flight", None
    if call["state"] == CallState.UNKNOWN:
        return State.VERIFY, "whether it was made is unknown", None
    if call["state"] != CallState.DONE:
        return State.DECLINED, "it was not sent", None
    if is_declined(call):
        return State.DECLINED, f"the tool answered {call['status']}: it did nothing", None
    return None


def _that_counts(tried: list[Row]) -> Row | None:
    """The try that undid it, or that may have; one that was declined or not sent is none."""
    for row in tried:
        if row["state"] in (CallState.PENDING, CallState.UNKNOWN):
            return row
        if row["state"] == CallState.DONE and not is_declined(row):
            return row
    return None


def is_declined(call: Row) -> bool:
    """Whether a write that is done was answered by a refusal: nothing was done. A conflict is
    none: it may speak of an earlier one."""
    status = call["status"] or 0
    return 400 <= status < 500 and status != CONFLICT


def _tried(last: Row | None) -> str:
    if last is None:
        return ""
    if last["state"] == CallState.NOT_SENT:
        return "the last try was not sent; it may be made again"
    return f"at the last try the tool answered {last['status']}; it may be made again"


# ---------------------------------------------------------------------------------- filled in


def _planned(
    ground: Ground, call: Row, undo: Undo, given: Mapping[str, str]
) -> tuple[Plan, ToolCall]:
    response = _once(partial(_response, ground, call))
    request = _once(partial(recorded.in_trace, ground.trace, call["id"], Side.REQUEST))
    known = Known(
        call,
        given,
        partial(_value, request, "request"),
        partial(_value, response, "response"),
    )
    name = hmac.digest(ground.key, b"undo " + call["id"].encode(), hashlib.sha256)
    key = f"pullcord-undo-{name.hex()[:32]}"  # that no agent can have sent before
    return planned_undo(ground.policy, undo, known, ground.credentials, ground.entries, key)


def _response(ground: Ground, call: Row) -> object:
    """The answer that is kept for repeats says all; the trace, without secrets, is kept longer."""
    kept = compensation.answer_of(ground.reader, ground.vault, call)
    if kept.answer is not None:
        return recorded.in_answer(kept.answer)
    try:
        return recorded.in_trace(ground.trace, call["id"], Side.RESPONSE)
    except Untold as untold:
        if kept.too_long:
            raise Untold("the response is too long to be read") from None
        raise Untold(f"its answer is kept no more, and {untold}") from None


def _once(read: Document) -> Document:
    """Reads when it is first asked; and once, also where it fails."""
    return functools.cache(lambda: _or_untold(read))


def _value(document: Document, side: str, path: str) -> str:
    try:
        found = document()
        if isinstance(found, Untold):
            raise found
        return recorded.value(found, path, f"the {side}")
    except Untold as untold:
        place = f"{side}.{path}"
        raise OperationError(
            f"{{{place}}} is not known: {untold}; if you know it: --do STEP --set {place}=VALUE"
        ) from None


def _or_untold(read: Document) -> object:
    try:
        return read()
    except Untold as untold:
        return untold


# ---------------------------------------------------------------------------------- as JSON


def as_json(ground: Ground, incident: Incident, found: list[Step], *, is_cut: bool) -> Answer:
    totals = {state.value: 0 for state in State}
    for one in found:
        totals[one.state] += 1
    told = [step_as_json(ground, one) for one in found]
    return {
        "incident": incidents.as_json(incident),
        "steps": told,
        "totals": totals,
        "is_cut": is_cut,
        "next": _next(incident, told),
    }


def step_as_json(ground: Ground, one: Step) -> Answer:
    return {
        "step": one.number,
        "call": {name: one.call[name] for name in queries.CALL_COLUMNS},
        "state": one.state.value,
        "reversibility": one.reversibility.value,
        "why": mask(one.why, ground.key) or None,
        "undo": None if one.plan is None else _plan_as_json(one.plan, ground.key),
        "by": one.by and {name: one.by[name] for name in _BY},
        "next": _next_of(ground, one),
    }


def _plan_as_json(plan: Plan, key: bytes) -> Answer:
    body = mask(plan.body.decode(), key)
    return {
        "tool": plan.tool,
        "method": plan.method,
        "url": mask(plan.url, key),
        "headers": [[name, mask(value, key)] for name, value in plan.headers],
        "body": body[:BODY_SHOWN_MAX] or None,
        "auth": plan.auth or None,
    }


def _next_of(ground: Ground, one: Step) -> str | None:
    """How to find out what nobody knows: by the read that the policy names, if it does."""
    call = one.call if one.state is State.VERIFY else one.by if one.state is State.UNKNOWN else None
    if call is None:
        return None
    if ground.policy.tool(call["tool"]).verify is None:
        return f"pullcord ledger show {call['id']}"
    return f"pullcord ledger resolve {call['id']} --verify"


def _next(incident: Incident, told: list[Answer]) -> str:
    """What to type now."""
    if any(one["state"] == State.READY for one in told):
        return f"pullcord incident compensate {incident.id} --do all"
    first = next((str(one["next"]) for one in told if one["next"]), None)
    return first or f"pullcord incident show {incident.id}"
