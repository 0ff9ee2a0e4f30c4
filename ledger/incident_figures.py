"""What the calls of an incident did, in few reads of the record; for scope and report."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from ledger import incident_reads
from ledger.errors import unavailable
from ledger.filters import Filter, parse
from ledger.incident_scope import from_us, terms
from ledger.open_incidents import Incident
from ledger.queries import Row, calls, database, rows, within
from ledger.sqlite import sqlite3
from ledger.states import CallState
from policies.call import Effect
from policies.verdict import Action, Level, Pull, Scope

NAMED = ("run", "tenant", "tool", "host", "release", "agent")
MAY_HAVE_HAPPENED = (CallState.DONE, CallState.UNKNOWN)


@dataclass(slots=True)
class Figures:
    """Counts of calls. `named` are those by name of each of `NAMED`, `named_writes` of those the
    writes that were let through; `writes` are all by tool and state, `prevented` refusals and
    replays by reason. `moved` are the writes of tools that were asked for that were done or may
    have been, by tool and by what the record keeps of their arguments (seen.py reads it)."""

    effects: Counter[str] = field(default_factory=Counter)
    named: dict[str, Counter[str]] = field(default_factory=lambda: {n: Counter() for n in NAMED})
    named_writes: dict[str, Counter[str]] = field(
        default_factory=lambda: {n: Counter() for n in NAMED}
    )
    writes: Counter[tuple[str, str]] = field(default_factory=Counter)
    prevented: Counter[str] = field(default_factory=Counter)
    moved: Counter[tuple[str, str]] = field(default_factory=Counter)
    microusd: int = 0

    def names(self, column: str) -> list[str]:
        """Those with most writes first."""
        found, writes = self.named[column], self.named_writes[column]
        return sorted(found, key=lambda name: (-writes[name], -found[name], name))


# As the view `calls` has it, in few looks at the record: a call's outcome is behind its decision,
# and what people said of calls is little. A filter of outcomes cannot be asked here.
_DECISIONS = """
SELECT call_id AS id, at_us, seq, tenant, run, parent, root, agent, release, tool, method, host,
    path, effect, decision, reason, rule, state, key, replay_of, seen
FROM event d WHERE type IN ('call.intent', 'call.refused', 'call.replayed', 'call.held')
AND (type <> 'call.held' OR NOT EXISTS (
    SELECT 1 FROM event later WHERE later.call_id = d.call_id
    AND later.type IN ('call.intent', 'call.refused', 'call.replayed')
))
"""
_CALLS = f"""
WITH resolved AS MATERIALIZED (
    SELECT call_id, state FROM event WHERE actor IS NOT NULL AND type = 'call.resolved'
)
SELECT c.run, c.tenant, c.tool, c.host, c.release, c.agent, c.effect, c.decision,
    coalesce(o.reason, c.reason), coalesce(r.state, o.state, c.state), o.cost_microusd,
    CASE WHEN c.effect = 'write' AND c.decision = 'allow'
        AND c.tool IN (SELECT value FROM json_each(?)) AND json_extract(c.seen, '$.own') IS NULL
        THEN coalesce(json_extract(c.seen, '$.arguments'), '{{}}') END
FROM (SELECT * FROM ({_DECISIONS}) WHERE %s) c
LEFT JOIN event o INDEXED BY event_call
    ON o.call_id = c.id AND o.call_id IS NOT NULL AND o.seq > c.seq AND +o.type = 'call.outcome'
LEFT JOIN resolved r ON r.call_id = c.id
"""  # noqa: S608 - words of ours

_Kind = tuple[str | None, ...]  # names, then effect, decision, reason and state


def figures(reader: sqlite3.Connection, chosen: Filter, moving: Iterable[str] = ()) -> Figures:
    """Of the calls that a filter lets through; `moving` are the tools of `Figures.moved`. Raises
    LedgerUnavailable."""
    found, kinds = Figures(), Counter[_Kind]()
    where, values = within(reader, chosen)
    try:
        calls_found = reader.execute(_CALLS % where, [json.dumps(list(moving)), *values])
        for *kind, microusd, arguments in calls_found:
            kinds[tuple(kind)] += 1
            if microusd is not None:
                found.microusd += microusd
            if arguments is not None and kind[-1] in MAY_HAVE_HAPPENED:
                found.moved[kind[2], arguments] += 1
    except sqlite3.Error as error:
        raise unavailable(error, database(reader)) from error
    for each, count in kinds.items():
        _add(found, each, count)
    return found


def _add(found: Figures, kind: _Kind, count: int) -> None:
    effect, decision, reason, state = kind[len(NAMED) :]
    found.effects[str(effect)] += count
    is_made = effect == Effect.WRITE and decision == Action.ALLOW
    names = dict(zip(NAMED, kind, strict=False))
    for column, name in names.items():
        if name is not None:
            found.named[column][name] += count
            found.named_writes[column][name] += count if is_made else 0
    if effect == Effect.WRITE:
        found.writes[str(names["tool"]), str(state)] += count
    if decision in (Action.REFUSE, Action.REPLAY):
        found.prevented[str(reason)] += count


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


class FirstCord(NamedTuple):
    """The cord that was pulled first over an incident, whoever pulled it, and between which rows of
    the record it stood as it was; `until_seq` is None while it does."""

    pull: Pull
    seq: int
    until_seq: int | None


def first_cord(reader: sqlite3.Connection, incident: Incident) -> FirstCord | None:
    """A throttle only where nothing else was pulled: it lets some pass."""
    cords = incident_reads.pulled_over(reader, incident)
    stopping = [one for one in cords if not one.rule.startswith(f"{Level.THROTTLE}:")]
    found = next(iter(stopping or cords), None)
    if found is None:
        return None
    level, scope, *subject = found.rule.split(":", 2)
    pull = Pull(Level(level), Scope(scope), "".join(subject), "", found.actor, found.at_us)
    return FirstCord(pull, found.seq, found.until_seq)
