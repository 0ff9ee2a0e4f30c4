"""Calls and acts of the record as the detectors see them, live and from its rows: the same steps in
the same order either way.

A call is a step once it is settled; one that was never sent is none, and one that a crash left
unknown is a failed one. A replay is a step, and so are a run's start, the progress it marks and its
end. Refusals are none, and neither is what a drill or an operator does. When a cord that a detector
pulled is released, or an incident closed, that is in the order, too: what it was about begins anew.

What an agent sent and was told comes in as digests, and is kept keyed and short, so that nobody who
reads the record can guess what it was. Where there is none, the record's own digests stand in.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import orjson

from ledger.records import Ask, Outcome
from ledger.redact import redact_host
from ledger.sqlite import sqlite3
from ledger.states import CallState, EventType
from policies.call import Effect, Identity, Traits
from policies.detectors.step import Kind, Step
from policies.policy import CANARY, DRILL_TENANT, UNDO_RUN
from policies.verdict import Scope

KEYED_BYTES = 8
OPEN_MAX = 20_000  # calls in flight that are remembered while rows are read
COLUMNS_OF_ANCESTORS = 2


class Forgotten(NamedTuple):
    """What the detectors know of this begins anew."""

    scope: Scope
    subject: str


Told = Step | Forgotten


@lru_cache(maxsize=4)
def keyed(digest: bytes, key: bytes) -> bytes:
    """A digest as the record has it; empty stays empty. Its row and its step both ask for it."""
    if not digest:
        return b""
    return hashlib.blake2b(digest, key=key, digest_size=KEYED_BYTES).digest()


def counts(run: str, tenant: str, tool: str) -> bool:
    """Whether what happens there is a step of a run at all."""
    return run not in ("", UNDO_RUN) and tool != CANARY and tenant != DRILL_TENANT


# ---------------------------------------------------------------------------------- what is kept


def traits_told(step: Step, traits: Traits) -> dict[str, Any]:
    """For the column `seen` of a call that was let through or replayed."""
    return {
        "action": traits.action and step.action.hex(),
        "recipient": step.recipient.hex(),
        "human": step.human.hex(),
        "mark": step.mark,
    }


def outcome_told(outcome: Outcome, key: bytes) -> dict[str, Any]:
    """For the column `seen` of an outcome: what `end` reads and no other column tells; and what
    its reservations became, for a simulation (replaying.py)."""
    cost = outcome.cost_microusd
    return {
        "result": keyed(outcome.result, key).hex(),
        "failed": outcome.failed,
        "used_microusd": 0 if outcome.used_microusd == cost else outcome.used_microusd or 0,
        "used_tokens": outcome.used_tokens or 0,
        "unused": (outcome.used_tokens == 0) + 2 * (outcome.used_microusd == 0),
    }


def act_told(who: Identity, mark: int) -> dict[str, Any]:
    """For the column `seen` of what a run does beside its calls."""
    return {
        "ancestors": who.ancestors if len(who.ancestors) > COLUMNS_OF_ANCESTORS else (),
        "mark": mark,
    }


def forgotten_told(scope: Scope, subject: str) -> dict[str, Any]:
    """For the column `seen` of a row after which the detectors begin anew with something."""
    return {"forget": [scope.value, subject]}


# ---------------------------------------------------------------------------------- live


def asked(ask: Ask, who: Identity, key: bytes, *, replayed: bool = False) -> Step:
    """A call that was let through, before its answer; or one that was answered from the record."""
    call, traits = ask.call, ask.traits
    return Step(
        ask.at_us,
        Kind.MODEL if call.effect is Effect.MODEL else Kind.TOOL,
        ask.call_id,
        who.run,
        who.root,
        who.tenant,
        who.agent,
        who.release,
        len(who.ancestors),
        call.tool,
        redact_host(ask.request.host, key),
        keyed(traits.recipient, key),
        keyed(traits.action, key) or call.fingerprint[:KEYED_BYTES],
        call.effect is Effect.WRITE,
        replayed,
        keyed(traits.human, key),
        traits.mark,
    )


def end(step: Step, outcome: Outcome, key: bytes) -> bool:
    """Tell the step what came of the call, also another time if that could not be recorded; False
    of one that was never sent, and so is none."""
    if outcome.state is CallState.NOT_SENT:
        return False
    status = outcome.status
    is_ok = outcome.state is CallState.DONE and status is not None and status < 400
    step.end(
        keyed(outcome.result, key) or (outcome.response_digest or b"")[:KEYED_BYTES],
        is_ok=is_ok and not outcome.failed,
        spend_microusd=outcome.cost_microusd or outcome.used_microusd or 0,
        tokens=outcome.used_tokens or (outcome.input_tokens or 0) + (outcome.output_tokens or 0),
        ended_us=outcome.at_us,
    )
    return True


def acted(kind: Kind, who: Identity, at_us: int, mark: int = 0) -> Step:
    """What a run does beside its calls: it was started, it marks progress, it ends."""
    return Step(
        at_us,
        kind,
        "",
        who.run,
        who.root,
        who.tenant,
        who.agent,
        who.release,
        len(who.ancestors),
        mark=mark,
    )


# ---------------------------------------------------------------------------------- from rows

COLUMNS = (
    *("type", "at_us", "call_id", "run", "tenant", "parent", "root", "agent", "release"),
    *("tool", "host", "effect", "state", "status", "request_digest", "response_digest"),
    *("input_tokens", "output_tokens", "cost_microusd", "seen"),
)
"""What `of_rows` reads of a row of `event`, in this order."""

Row = tuple[Any, ...]
Earlier = Callable[[str], Row | None]
"""The row of a call's intent, by its id, from before those that are read."""

_ACTS: Mapping[str, Kind] = {
    EventType.SPAWNED: Kind.SPAWN,
    EventType.PROGRESSED: Kind.MARK,
    EventType.ENDED: Kind.END,
}
TYPES: tuple[str, ...] = (
    *(EventType.INTENT.value, EventType.OUTCOME.value, EventType.REPLAYED.value),
    *(str(kind) for kind in _ACTS),
    *(EventType.RELEASED.value, EventType.NARROWED.value, EventType.INCIDENT_CLOSED.value),
)
"""The rows that tell the detectors something; `of_rows` passes over all others."""

_INTENT, _OUTCOME = EventType.INTENT.value, EventType.OUTCOME.value
_NOT_SENT, _DONE = CallState.NOT_SENT.value, CallState.DONE.value


class Reader:
    """Reads rows one by one, in the order of the record. What it remembers of calls in flight is
    bounded; one that was forgotten, or that was let through before the first row, is asked of
    `earlier`, and is no step where that does not know it."""

    def __init__(self, earlier: Earlier | None = None) -> None:
        self._open: dict[str, Row] = {}
        self._earlier = earlier

    def read(self, row: Row) -> Told | None:
        """What the row, of COLUMNS, tells the detectors. Raises ValueError for one that is not as
        it was recorded."""
        kind = row[0]
        if kind == _INTENT:
            self._open[row[2]] = row
            if len(self._open) > OPEN_MAX:
                del self._open[next(iter(self._open))]
            return None
        if kind == _OUTCOME:
            return self._ended(row)
        if kind in _OTHERS:
            return _told(row)
        return None

    def _ended(self, row: Row) -> Step | None:
        asking = self._open.pop(row[2], None)
        if row[12] == _NOT_SENT:
            return None
        if asking is None and self._earlier is not None:
            asking = self._earlier(row[2])
        if asking is None or not counts(asking[3] or "", asking[4] or "", asking[9] or ""):
            return None
        return _of_call(asking, row)


def of_rows(rows: Iterable[Row], earlier: Earlier | None = None) -> Iterator[Told]:
    """What was fed live, from the rows in the order of their numbers. Raises ValueError for a row
    that is not as it was recorded."""
    read = Reader(earlier).read
    for row in rows:
        told = read(row)
        if told is not None:
            yield told


def of_decision(row: Row) -> Step:
    """As `asked`, from the row of a decision."""
    return _of_call(row, None)


def of_open(conn: sqlite3.Connection) -> dict[str, Step]:
    """The calls in flight, by their ids."""
    return {row[2]: of_decision(row) for row in conn.execute(_OPEN)}


def intent_of(conn: sqlite3.Connection) -> Earlier:
    """Looks calls up one by one."""
    return lambda call_id: conn.execute(_ONE, (call_id,)).fetchone()


_OPEN = (
    f"SELECT {', '.join('d.' + name for name in COLUMNS)} FROM open_call o "  # noqa: S608 - ours
    "CROSS JOIN event d INDEXED BY event_call "
    "ON d.call_id = o.call_id AND d.call_id IS NOT NULL AND d.type = 'call.intent'"
)
_ONE = (
    f"SELECT {', '.join(COLUMNS)} FROM event "  # noqa: S608 - ours
    "WHERE call_id = ? AND type = 'call.intent'"
)
_OTHERS = frozenset(TYPES) - {_INTENT, _OUTCOME}


def _told(row: Row) -> Told | None:
    """Of a row that is no part of a call in flight."""
    kind = row[0]
    act = _ACTS.get(kind)
    if act is None and kind != EventType.REPLAYED:
        forget = _seen(row).get("forget")
        return None if forget is None else Forgotten(Scope(forget[0]), str(forget[1]))
    if not counts(row[3] or "", row[4] or "", row[9] or ""):
        return None
    if act is None:
        return _of_call(row, None)
    run, root, told = row[3] or "", row[6] or "", _seen(row)
    depth = _depth(run, row[5], root, told)
    who = (row[4] or "", row[7] or "", row[8] or "")
    return Step(row[1], act, "", run, root, *who, depth, mark=told.get("mark", 0))


def _of_call(asking: Row, ending: Row | None) -> Step:
    kind, at_us, call_id, run, tenant, parent, root, agent, release, tool, host, effect = asking[
        :12
    ]
    told = _seen(asking)
    action = told.get("action")
    run, root = run or "", root or ""
    return Step(
        at_us,
        Kind.MODEL if effect == _MODEL else Kind.TOOL,
        call_id,
        run,
        root,
        tenant or "",
        agent or "",
        release or "",
        _depth(run, parent, root, told),
        tool or "",
        host or "",
        bytes.fromhex(told.get("recipient", "")),
        bytes.fromhex(action) if action else (asking[14] or b"")[:KEYED_BYTES],
        effect == _WRITE,
        kind == _REPLAYED,
        bytes.fromhex(told.get("human", "")),
        told.get("mark", 0),
        *(_NO_OUTCOME if ending is None else _outcome(ending)),
    )


_NO_OUTCOME = b"", True, 0, 0, 0
_MODEL, _WRITE, _REPLAYED = Effect.MODEL.value, Effect.WRITE.value, EventType.REPLAYED.value


def _outcome(row: Row) -> tuple[bytes, bool, int, int, int]:
    """As `end`: the result, whether it is good, micro-dollars, tokens, when."""
    state, status, _, digest, input_tokens, output_tokens, cost, _ = row[12:]
    told = _seen(row)
    result = told.get("result")
    return (
        bytes.fromhex(result) if result else (digest or b"")[:KEYED_BYTES],
        state == _DONE and status is not None and status < 400 and not told.get("failed"),
        cost or told.get("used_microusd", 0),
        told.get("used_tokens", 0) or (input_tokens or 0) + (output_tokens or 0),
        row[1],
    )


def _seen(row: Row) -> dict[str, Any]:
    text = row[19]
    if not text:
        return {}
    told = orjson.loads(text)
    if not isinstance(told, dict):
        raise ValueError("a row of the record tells of a call what nobody writes")
    return told


def _depth(run: str, parent: str | None, root: str, told: Mapping[str, Any]) -> int:
    """How many runs stand above; two have columns, more are told beside."""
    above = told.get("ancestors")
    if above:
        return len(above)
    return 0 if not root or root == run else 1 if not parent or parent == root else 2
