"""What would undo the writes of an incident: for each the call filled in, or why there is none.

From the record, the trace, the kept answers and the policy alone, on connections that cannot write:
it works with the proxy dead. compensating.py makes the calls.
"""

import contextlib
import functools
import hashlib
import hmac
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import NamedTuple

from ledger import compensation, incident_scope, queries
from ledger.compensation import is_declined, undid
from ledger.decoding import decoded
from ledger.filters import parse
from ledger.open_incidents import OPEN, Incident
from ledger.queries import Row
from ledger.redact import redact_key
from ledger.sqlite import sqlite3
from ledger.states import CallState
from ledger.trace import open_trace
from ledger.traced import Side
from ledger.vault import Vault
from policies.call import Dialect, ToolCall
from policies.detectors import answers
from policies.policy import UNDO_RUN, Policy, Reversibility, Undo
from policies.verdict import Pulls, Scope
from proxy import credentials, operations, recorded, runbook, secret_keys
from proxy.credentials import Credential
from proxy.operations import OperationError
from proxy.operator_calls import Plan
from proxy.operator_plans import Known, planned_undo
from proxy.recorded import Document, Untold

LISTED_MAX = 30_000  # the newest; of more writes those that can be undone, and the others' numbers
READY_MAX = 10_000  # of a plan: those that can be undone; when they are, it has older ones
WRITES = ("effect:write", "decision:allow", f"-run:{UNDO_RUN}")
"""Of the calls of an incident those that changed something, and that nobody made to undo it."""

MADE = "made"
"""The place by which a person says of a write whose answer leaves it in doubt that it was made."""
_YES = "yes"
_TOGETHER = 500  # writes whose earlier tries are looked up at once
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
    VERIFY = "verify"  # whether the write itself was made is not known, or in doubt
    IN_FLIGHT = "in_flight"
    DECLINED = "declined"  # the tool did not do it


@dataclass(frozen=True, slots=True)
class Step:
    """One write. `number` counts from the oldest write of the incident, None of one that was named
    by its id; `by` is the call that undid it, or tried to; `why` says what stands in the way, or
    what came of the last try."""

    number: int | None
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
    vault_key = secret_keys.vault_key(data)
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


def check_whose(incident: Incident) -> None:
    """Raises OperationError for an incident that healthy runs are in, too."""
    if incident.mixed:
        raise OperationError(
            f"incident {incident.id} {incident.mixed}, so healthy runs are in it, too; undo by the "
            "run: pullcord incident open --run RUN"
        )


class Uncontained(NamedTuple):
    """Why an incident may go on, and the command that stops it."""

    why: str
    command: str


def uncontained(incident: Incident, policy: Policy, pulls: Pulls) -> Uncontained | None:
    """None where all of it is stopped, or somebody has closed it."""
    if incident.state != OPEN or runbook.covering(incident, pulls.values(), policy):
        return None
    kind = Scope(incident.kind)
    return Uncontained(
        f"incident {incident.id} is not contained: what stands does not stop "
        f"{operations.named(kind, incident.name)}, so what is undone may be done again",
        operations.halt_command(kind, "" if kind is Scope.GLOBAL else incident.name),
    )


def check_contained(incident: Incident, policy: Policy, pulls: Pulls) -> None:
    """Raises OperationError while the incident may go on: what is undone might be done again. And
    for one that healthy runs are in, too."""
    check_whose(incident)
    found = uncontained(incident, policy, pulls)
    if found is not None:
        raise OperationError(f"{found.why}; first type: {found.command}")


# ---------------------------------------------------------------------------------- the steps


@dataclass(slots=True)
class Steps:
    """The writes of an incident, the newest first. `totals` count also those that are not `listed`;
    `is_cut`: older ones were not looked at, since so many can be undone first."""

    listed: list[Step] = field(default_factory=list)
    totals: dict[State, int] = field(default_factory=lambda: dict.fromkeys(State, 0))
    is_cut: bool = False


def steps(ground: Ground, incident: Incident) -> Steps:
    """Every write of the incident. However many of them did nothing, or cannot be undone: they hide
    none of those that can be."""
    chosen = parse((*incident_scope.terms(incident), *WRITES), 0)
    number = sum(row["calls"] for row in queries.totals(ground.reader, chosen))
    made = Steps()
    writes = queries.calls(ground.reader, chosen, _ALL)
    for some in itertools.batched(writes, _TOGETHER):
        tried = compensation.attempts(ground.reader, [row["id"] for row in some])
        for row in some:
            if made.totals[State.READY] == READY_MAX:
                made.is_cut = True
                return made
            one = step(ground, row, number, tried.get(row["id"], []))
            number -= 1
            made.totals[one.state] += 1
            if one.state is State.READY or len(made.listed) < LISTED_MAX:
                made.listed.append(one)
    return made


_ALL = -1  # as a LIMIT


def named_step(
    ground: Ground, incident: Incident, name: str, given: Mapping[str, str] = _NOTHING
) -> Step:
    """One write of the incident by its id or the start of it, wherever it stands in the plan.
    Raises NotFound, OperationError for one that is not the incident's, and QueryError where several
    calls begin so."""
    found = queries.call(ground.reader, name)
    if found is None:
        raise operations.NotFound(f"the ledger has no call {name!r}")
    terms = (*incident_scope.terms(incident), *WRITES, f"id:{found['id']}")
    row = next(queries.calls(ground.reader, parse(terms, 0), 1), None)
    if row is None:
        raise OperationError(
            f"call {found['id']} is no write of incident {incident.id}; its writes: "
            f"pullcord incident compensate {incident.id} --plan"
        )
    tried = compensation.attempts(ground.reader, [row["id"]]).get(row["id"], [])
    return step(ground, row, None, tried, given)


def step(
    ground: Ground,
    call: Row,
    number: int | None,
    tried: list[Row],
    given: Mapping[str, str] = _NOTHING,
) -> Step:
    """What would undo this write, whose earlier tries are these, the oldest first. `given` are
    values that a person knows."""
    tool = ground.policy.tool(call["tool"])
    told, doubt = _told(call, tried), ""
    if told is None:
        doubt, told = _doubted(ground, call, given)
    if told is not None:
        state, why, by = told
        return Step(number, call, state, tool.reversibility, why=why, by=by)
    last, undo = tried[-1] if tried else None, tool.undo
    if not isinstance(undo, Undo):
        state, why = _WITHOUT[tool.reversibility]
        return Step(number, call, state, tool.reversibility, why=why.format(tool=tool.name))
    if doubt:
        given = {place: text for place, text in given.items() if place != MADE}
    try:
        plan, taken = _planned(ground, call, undo, given, doubt, tried)
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


_Said = tuple[State, str, Row | None]


def _told(call: Row, tried: list[Row]) -> _Said | None:
    """What there is to say of a write without a look at its answer."""
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


def _doubted(ground: Ground, call: Row, given: Mapping[str, str]) -> tuple[str, _Said | None]:
    """Why the answer of a write that is done does not tell that it was made, so that it may name
    what another call made; and what is to be said of it, unless a person has said that it was."""
    told = compensation.told_of(ground.reader, call["id"])
    if told.failed or _fails(ground, call, told.dialect):
        doubt = "under a status of success the tool answered with an error"
    elif not 200 <= (call["status"] or 0) < 300:
        doubt = f"the tool answered {call['status']}"
    else:
        return "", None
    if told.is_resolved or given.get(MADE) == _YES:
        return doubt, None
    why = f"{doubt}: look whether it was made; if it was: --do STEP --set {MADE}={_YES}"
    return doubt, (State.VERIFY, why, None)


def _fails(ground: Ground, call: Row, dialect: Dialect) -> bool:
    """Whether all of an answer tells of a failure; the record knows it by its beginning."""
    if dialect is Dialect.HTTP:
        return False
    kept = compensation.answer_of(ground.reader, ground.vault, call)
    if kept.answer is None:
        return False
    headers = {name.lower(): text for name, text in kept.answer.headers}
    body = decoded(kept.answer.body, headers.get("content-encoding", ""))
    return body is not None and answers.read(body.body, dialect)[1]


def _that_counts(tried: list[Row]) -> Row | None:
    """The try that undid it, or that may have; one that was declined or not sent is none."""
    open_states = (CallState.PENDING, CallState.UNKNOWN)
    return next((row for row in tried if row["state"] in open_states or undid(row)), None)


def _tried(last: Row | None) -> str:
    if last is None:
        return ""
    if last["state"] == CallState.NOT_SENT:
        return "the last try was not sent; it may be made again"
    return f"at the last try the tool answered {last['status']}; it may be made again"


# ---------------------------------------------------------------------------------- filled in


def _planned(
    ground: Ground,
    call: Row,
    undo: Undo,
    given: Mapping[str, str],
    doubt: str,
    tried: list[Row],
) -> tuple[Plan, ToolCall]:
    response = _once(partial(_response, ground, call, doubt))
    request = _once(partial(recorded.in_trace, ground.trace, call["id"], Side.REQUEST))
    known = Known(
        call,
        given,
        partial(_value, request, "request"),
        partial(_value, response, "response"),
    )
    # No agent can have sent this key before. A service may answer one that it has declined by the
    # same refusal again; a try of which nobody knows what became keeps its key.
    declined = sum(map(is_declined, tried))
    name = hmac.digest(ground.key, f"undo {call['id']} {declined}".encode(), hashlib.sha256)
    key = f"pullcord-undo-{name.hex()[:32]}"
    return planned_undo(ground.policy, undo, known, ground.credentials, ground.entries, key)


def _response(ground: Ground, call: Row, doubt: str) -> object:
    """The answer that is kept for repeats says all; the trace, without secrets, is kept longer."""
    if doubt:
        raise Untold(f"{doubt}, which may speak of what another call made")
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
