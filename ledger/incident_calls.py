"""The calls of an incident as its report needs them: in slots of time, one by one, and what a model
said before one. On connections that cannot write.

Which calls belong to an incident is said in incident_scope.py alone.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ledger.compensation import RULE
from ledger.filters import Filter
from ledger.queries import CALL_COLUMNS, Row, rows, within
from ledger.sqlite import sqlite3
from ledger.states import EventType
from policies.call import Effect
from policies.verdict import Action

LOOKED_BACK = 5_000  # rows of a run that are looked through for what its model said last

_NAMES = ", ".join(CALL_COLUMNS)
# Decisions alone, by the names that a filter knows, and what the record holds of what was seen: as
# the view `calls` has them, without what only an outcome tells. Of a call that was held and then
# decided, how it was decided.
DECISIONS = f"""
SELECT call_id AS id, at_us, seq, tenant, run, parent, root, agent, release, tool, method, host,
    path, effect, decision, reason, rule, state, status, key, replay_of, NULL AS policy, seen
FROM event d
WHERE type IN ('{EventType.INTENT}', '{EventType.REFUSED}', '{EventType.REPLAYED}',
    '{EventType.HELD}')
AND (type <> '{EventType.HELD}' OR NOT EXISTS (
    SELECT 1 FROM event later WHERE later.call_id = d.call_id
    AND later.type IN ('{EventType.INTENT}', '{EventType.REFUSED}', '{EventType.REPLAYED}')
))
"""  # noqa: S608 - words of ours


@dataclass(frozen=True, slots=True)
class Span:
    """When the first and the last call of some were decided, and the last that was let through."""

    first_us: int
    last_us: int
    last_allowed_us: int | None


def span(reader: sqlite3.Connection, chosen: Filter) -> Span | None:
    """None when there is no such call. Raises LedgerUnavailable."""
    where, values = within(reader, chosen)

    def at_us(more: str, order: str) -> int | None:
        statement = (
            f"SELECT at_us FROM ({DECISIONS}) WHERE {where} {more} "  # noqa: S608 - bound
            f"ORDER BY seq {order} LIMIT 1"
        )
        found = next(rows(reader, statement, values), None)
        return None if found is None else int(found["at_us"])

    first_us, last_us = at_us("", ""), at_us("", "DESC")
    if first_us is None or last_us is None:
        return None
    allowed_us = at_us(f"AND decision = '{Action.ALLOW}'", "DESC")
    return Span(min(first_us, last_us), max(first_us, last_us), allowed_us)


def slots(
    reader: sqlite3.Connection, chosen: Filter, start_us: int, width_us: int, slots_max: int
) -> list[Row]:
    """What was decided in each slot of time from `start_us` on: `slot effect decision release calls
    cost_microusd`. What came later is in the slot `slots_max`, what came before in the slot -1.
    Raises LedgerUnavailable."""
    where, values = within(reader, chosen)
    statement = (
        "SELECT CASE WHEN at_us < ? THEN -1 ELSE min((at_us - ?) / ?, ?) END AS slot, "  # noqa: S608
        "effect, decision, release, count(*) AS calls, "
        f"coalesce(sum(CASE WHEN decision = '{Action.ALLOW}' THEN (SELECT o.cost_microusd "
        f"FROM event o WHERE o.call_id = id AND o.type = '{EventType.OUTCOME}') END), 0) "
        f"AS cost_microusd FROM ({DECISIONS}) WHERE {where} "
        "GROUP BY 1, effect, decision, release ORDER BY 1"
    )
    return list(rows(reader, statement, [start_us, start_us, width_us, slots_max, *values]))


def count(reader: sqlite3.Connection, chosen: Filter) -> int:
    """How many calls a filter of decisions lets through. Raises LedgerUnavailable."""
    where, values = within(reader, chosen)
    statement = f"SELECT count(*) AS calls FROM ({DECISIONS}) WHERE {where}"  # noqa: S608 - bound
    (row,) = rows(reader, statement, values)
    return int(row["calls"])


def by_id(reader: sqlite3.Connection, ids: Sequence[str]) -> dict[str, Row]:
    """Those of these calls that the ledger still has, with CALL_COLUMNS, oldest first."""
    statement = (
        f"SELECT {_NAMES} FROM calls WHERE id IN (SELECT value FROM json_each(?)) "  # noqa: S608
        "ORDER BY seq"
    )
    return {row["id"]: row for row in rows(reader, statement, [json.dumps(list(ids))])}


def first_writes(reader: sqlite3.Connection, chosen: Filter, limit: int) -> list[str]:
    """The ids of the first writes that were let through."""
    where, values = within(reader, chosen)
    statement = (
        f"SELECT id FROM ({DECISIONS}) WHERE {where} "  # noqa: S608 - values are bound
        f"AND effect = '{Effect.WRITE}' AND decision = '{Action.ALLOW}' ORDER BY seq LIMIT ?"
    )
    return [str(row["id"]) for row in rows(reader, statement, [*values, limit])]


def newest(reader: sqlite3.Connection, chosen: Filter, limit: int) -> list[str]:
    """The ids of the newest calls, the newest first."""
    where, values = within(reader, chosen)
    statement = (
        f"SELECT id FROM ({DECISIONS}) WHERE {where} "  # noqa: S608 - values are bound
        "ORDER BY seq DESC LIMIT ?"
    )
    return [str(row["id"]) for row in rows(reader, statement, [*values, limit])]


_BEFORE = f"""
SELECT call_id AS id FROM (
    SELECT call_id, type, effect, seq FROM event
    WHERE run = ? AND seq < (SELECT min(seq) FROM event WHERE call_id = ?)
    ORDER BY seq DESC LIMIT {LOOKED_BACK}
) WHERE type = '{EventType.INTENT}' AND effect = '{Effect.MODEL}' ORDER BY seq DESC LIMIT 1
"""  # noqa: S608 - words of ours


def model_before(reader: sqlite3.Connection, call: Row) -> str | None:
    """The id of the call to a model that the same run made last before this call; None where it
    made none within LOOKED_BACK rows, or its model is not asked through pullcord."""
    if not call["run"]:
        return None
    found = next(rows(reader, _BEFORE, (call["run"], call["id"])), None)
    return None if found is None else str(found["id"])


_UNDOING = "SELECT call_id AS id, actor FROM event WHERE incident = ? AND decision IS NOT NULL"


def undoing(reader: sqlite3.Connection, incident_id: str) -> list[Row]:
    """The calls by which people undid writes of an incident, oldest first: CALL_COLUMNS, `actor`,
    and under `undoes` the id of the write, None where the call was refused."""
    actors = {row["id"]: row["actor"] for row in rows(reader, _UNDOING, (incident_id,))}
    found = by_id(reader, list(actors))
    return [
        {**row, "actor": actors[one], "undoes": _undone(row["rule"])} for one, row in found.items()
    ]


def _undone(rule: str | None) -> str | None:
    return rule.removeprefix(RULE) if rule and rule.startswith(RULE) else None
