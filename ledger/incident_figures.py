"""What the calls of an incident did, in few reads of the record; for scope and report."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from ledger.compensation import DECLINED
from ledger.errors import unavailable
from ledger.filters import Filter, parse
from ledger.incident_calls import DECISIONS
from ledger.incident_scope import from_us, terms
from ledger.open_incidents import Incident
from ledger.queries import Row, calls, database, rows, within
from ledger.sqlite import sqlite3
from ledger.states import CallState
from policies.call import Effect
from policies.verdict import Action

NAMED = ("tenant", "tool", "host", "release", "agent", "run")
MAY_HAVE_HAPPENED = (CallState.DONE, CallState.UNKNOWN)
UNDONE, DECLINING = "undone", "declined"
"""What became of a write that was done: it was undone, or the tool had declined to do it."""


class Moved(NamedTuple):
    """Writes of a tool that were done or may have been. `arguments` is what the record keeps of
    theirs (seen.py reads it); `is_left`: they were neither undone nor declined."""

    tool: str
    arguments: str
    is_left: bool


@dataclass(slots=True)
class Figures:
    """Counts of calls. `named` are those by name of each of `NAMED`, `unnamed` those without one,
    `named_writes` the writes that were let through; `writes` are all by tool and state, `fates`
    those that were let through by tool and what became of them, `prevented` refusals and replays by
    reason, `reached` writes that were let through and may have been made, by tenant, without those
    that were declined. `moved` are writes of the tools that were asked for."""

    effects: Counter[str] = field(default_factory=Counter)
    named: dict[str, Counter[str]] = field(default_factory=lambda: {n: Counter() for n in NAMED})
    unnamed: Counter[str] = field(default_factory=Counter)
    named_writes: dict[str, Counter[str]] = field(
        default_factory=lambda: {n: Counter() for n in NAMED}
    )
    writes: Counter[tuple[str, str]] = field(default_factory=Counter)
    fates: Counter[tuple[str, str]] = field(default_factory=Counter)
    prevented: Counter[str] = field(default_factory=Counter)
    reached: Counter[str] = field(default_factory=Counter)
    moved: Counter[Moved] = field(default_factory=Counter)
    microusd: int = 0

    def names(self, column: str) -> list[str]:
        """Those with most writes first."""
        found, writes = self.named[column], self.named_writes[column]
        return sorted(found, key=lambda name: (-writes[name], -found[name], name))


# As the view `calls` has it, in few looks at the record: a call's outcome is behind its decision,
# and what people said of calls is little. A filter of outcomes cannot be asked here.
_CALLS = f"""
SELECT c.id, c.run, c.tenant, c.tool, c.host, c.release, c.agent, c.effect, c.decision, c.seen,
    coalesce(o.reason, c.reason) AS reason, coalesce(r.state, o.state, c.state) AS state,
    coalesce(o.status, c.status) AS status, o.cost_microusd,
    c.effect = '{Effect.WRITE}' AND c.decision = '{Action.ALLOW}' AS is_made
FROM (SELECT * FROM ({DECISIONS}) WHERE %s AND seq BETWEEN ? AND ?) c
LEFT JOIN event o INDEXED BY event_call
    ON o.call_id = c.id AND o.call_id IS NOT NULL AND o.seq > c.seq AND +o.type = 'call.outcome'
LEFT JOIN resolved r ON r.call_id = c.id
"""  # noqa: S608 - words of ours
_FATE = f"""
CASE WHEN is_made THEN
    CASE WHEN id IN (SELECT value FROM json_each(?)) THEN '{UNDONE}'
    WHEN {DECLINED} THEN '{DECLINING}' END
END
"""  # noqa: S608
# Of a million calls it takes longer to hand over each than to read it. So many come as one text:
# a line for each call with what may be alike in many of them, and the lines are counted. Lines of
# JSON have no line breaks and no tabs in them.
_LINES = f"""
WITH resolved AS MATERIALIZED (
    SELECT call_id, state FROM event WHERE actor IS NOT NULL AND type = 'call.resolved'
)
SELECT group_concat(json_array(tenant, tool, host, release, agent, effect, decision,
        CASE WHEN decision IN ('{Action.REFUSE}', '{Action.REPLAY}') THEN reason END,
        CASE effect WHEN '{Effect.WRITE}' THEN state END,
        {_FATE}), char(10)),
    group_concat(json_quote(run), char(10)),
    group_concat(json_quote(run), char(10)) FILTER (WHERE is_made),
    group_concat(json_array(tool, {_FATE}) || char(9)
        || coalesce(json_extract(seen, '$.arguments'), '{{}}'), char(10))
        FILTER (WHERE is_made AND state IN ({", ".join(f"'{one}'" for one in MAY_HAVE_HAPPENED)})
        AND tool IN (SELECT value FROM json_each(?)) AND json_extract(seen, '$.own') IS NULL),
    coalesce(sum(cost_microusd), 0)
FROM ({_CALLS})
"""  # noqa: S608
_ROWS_AT_ONCE = 200_000  # of the record: some tens of megabytes
_ENDS = "SELECT (SELECT min(seq) FROM event), (SELECT max(seq) FROM event)"


def figures(
    reader: sqlite3.Connection,
    chosen: Filter,
    moving: Iterable[str] = (),
    undone: Iterable[str] = (),
) -> Figures:
    """Of the calls that a filter lets through; `moving` are the tools of `Figures.moved`, `undone`
    the writes that are known to have been undone. Raises LedgerUnavailable."""
    found, kinds, moved = Figures(), Counter[str](), Counter[str]()
    runs, writers = Counter[str](), Counter[str]()
    where, values = within(reader, chosen)
    undone, moving = json.dumps(list(undone)), json.dumps(list(moving))
    try:
        first, last = reader.execute(_ENDS).fetchone()
        for seq in range(first or 0, (last or 0) + 1, _ROWS_AT_ONCE):
            given = (undone, undone, moving, *values, seq, seq + _ROWS_AT_ONCE - 1)
            *lines, microusd = reader.execute(_LINES % where, given).fetchone()
            found.microusd += microusd
            for counts, text in zip((kinds, runs, writers, moved), lines, strict=True):
                counts.update(text.split("\n") if text else ())
    except sqlite3.Error as error:
        raise unavailable(error, database(reader)) from error
    for kind, count in kinds.items():
        _add(found, orjson.loads(kind), count)
    for run, count in runs.items():
        _add_name(found, "run", orjson.loads(run), count, writers[run])
    for line, count in moved.items():
        whose, _, arguments = line.partition("\t")
        tool, fate = orjson.loads(whose)
        found.moved[Moved(tool, arguments, fate is None)] += count
    return found


def _add(found: Figures, kind: list[Any], count: int) -> None:
    *names, effect, decision, reason, state, fate = kind
    is_made = effect == Effect.WRITE and decision == Action.ALLOW
    for column, name in zip(NAMED, names, strict=False):
        _add_name(found, column, name, count, count if is_made else 0)
    tenant, tool, *_ = names
    found.effects[str(effect)] += count
    if effect == Effect.WRITE:
        found.writes[str(tool), str(state)] += count
    if fate is not None:
        found.fates[str(tool), fate] += count
    if is_made and tenant is not None and state in _ON_THE_WAY and fate != DECLINING:
        found.reached[tenant] += count
    if decision in (Action.REFUSE, Action.REPLAY):
        found.prevented[str(reason)] += count


_ON_THE_WAY = (*MAY_HAVE_HAPPENED, CallState.PENDING)


def _add_name(found: Figures, column: str, name: str | None, count: int, writes: int) -> None:
    if name is None:
        found.unnamed[column] += count
        return
    found.named[column][name] += count
    found.named_writes[column][name] += writes


class FirstBad(NamedTuple):
    """A call, and when it was decided, UTC microseconds."""

    call_id: str
    at_us: int


def first_bad(reader: sqlite3.Connection, incident: Incident) -> FirstBad | None:
    """The oldest call that belongs to the incident, where it is known since when it went wrong;
    else the first that convinced a detector, also where that was pruned. None where no call of it
    is known."""
    if incident.first_call and incident.since_us is None:
        row = next(rows(reader, _DECIDED, (incident.first_call,)), None)
        at_us = from_us(incident) if row is None else int(row["at_us"])
        return FirstBad(incident.first_call, at_us)
    where, values = within(reader, parse(terms(incident), 0))
    query = f"SELECT id, at_us FROM calls WHERE {where} ORDER BY seq LIMIT 1"  # noqa: S608
    return next((FirstBad(row["id"], row["at_us"]) for row in rows(reader, query, values)), None)


_DECIDED = "SELECT at_us FROM event WHERE call_id = ? AND decision IS NOT NULL ORDER BY seq LIMIT 1"


def first_bad_call(reader: sqlite3.Connection, incident: Incident) -> Row | None:
    """All of that call; None where it was pruned."""
    found = first_bad(reader, incident)
    return found and next(calls(reader, Filter("id = ?", (found.call_id,)), 1), None)
