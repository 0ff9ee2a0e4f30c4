"""Incidents as rows, and what the store remembers of those that are open. Called in transactions.

A finding comes again with each further call of a run that goes on: the memory answers that without
a look at the database. It holds nothing that the database has not: after a transaction that failed
it is empty, and is read anew.
"""

import secrets
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from ledger.sqlite import sqlite3

EVIDENCE_MAX = 32  # calls of an incident that are named; the newest say most
REMEMBERED_MAX = 10_000  # of each: open incidents, what belongs to which, what was observed
TOLD_MAX = 64  # rows of findings of one incident; what is pulled for it is told in any case
OPEN = "open"
CLOSED = "closed"


class Key(NamedTuple):
    """What an incident is about. `tenant` is empty for what concerns all of them."""

    kind: str
    tenant: str
    name: str


@dataclass(frozen=True, slots=True)
class Incident:
    """A row. `run`, `tool`, `release` and `agent` are those of the call over which it was opened;
    `rule` is the cord that was last pulled for it, empty where none was. `raised_us` is when an
    alert became a trip."""

    id: str
    kind: str
    name: str
    tenant: str
    state: str
    severity: str
    detector: str
    why: str
    rule: str
    run: str
    root: str
    tool: str
    release: str
    agent: str
    findings: int
    evidence: tuple[str, ...]
    opened_us: int
    updated_us: int
    raised_us: int | None = None
    closed_us: int | None = None
    closed_by: str = ""
    closed_because: str = ""

    @property
    def key(self) -> Key:
        return Key(self.kind, self.tenant, self.name)


COLUMNS = tuple(column.name for column in fields(Incident))
SELECT = f"SELECT {', '.join(COLUMNS)} FROM incident"  # noqa: S608 - names of ours

Told = tuple[str, str, str]
"""What one row of a finding tells: its type, its actor, its cord."""


@dataclass(slots=True)
class Standing:
    """An open incident, and what the record tells of it already."""

    incident: Incident
    told: set[Told] = field(default_factory=set)


@dataclass(slots=True)
class OpenIncidents:
    """The memory. What was not asked for longest is forgotten first, and read again."""

    _standing: OrderedDict[str, Standing] = field(default_factory=OrderedDict)
    _ids: OrderedDict[Key, str] = field(default_factory=OrderedDict)
    _observed: OrderedDict[Hashable, int] = field(default_factory=OrderedDict)

    def of(self, key: Key) -> Standing | None:
        """Where findings about this go, as far as it is remembered."""
        found = self._ids.get(key)
        return None if found is None else self._standing.get(found)

    def keep(self, key: Key, standing: Standing) -> Standing:
        """Findings about this go there from now on: what is known of that incident already, or
        this."""
        incident_id = standing.incident.id
        standing = self._standing.get(incident_id, standing)
        _put(self._ids, key, incident_id)
        _put(self._standing, incident_id, standing)
        return standing

    def drop(self, incident_id: str) -> None:
        self._standing.pop(incident_id, None)

    def is_news(self, what: Hashable, at_us: int, within_us: int) -> bool:
        """Whether this was not observed within that time; from now on it was."""
        last_us = self._observed.get(what)
        if last_us is not None and 0 <= at_us - last_us < within_us:
            return False
        _put(self._observed, what, at_us)
        return True

    def clear(self) -> None:
        for known in (self._standing, self._ids, self._observed):
            known.clear()


def _put[K, V](known: OrderedDict[K, V], key: K, value: V) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > REMEMBERED_MAX:
        known.popitem(last=False)


# ---------------------------------------------------------------------------------- rows


def new_id(at_us: int) -> str:
    """A UUIDv7 (RFC 9562, section 5.7) of that time."""
    made = at_us // 1_000 << 80 | 7 << 76 | secrets.randbits(12) << 64
    return str(UUID(int=made | 2 << 62 | secrets.randbits(62)))


def write(conn: sqlite3.Connection, incident: Incident) -> None:
    conn.execute(
        f"INSERT OR REPLACE INTO incident ({', '.join(COLUMNS)}) "  # noqa: S608 - names of ours
        f"VALUES ({', '.join('?' * len(COLUMNS))})",
        [_stored(getattr(incident, column)) for column in COLUMNS],
    )


def _stored(value: Any) -> Any:
    return as_list(value) if isinstance(value, tuple) else value


def as_list(values: Sequence[str]) -> str:
    """As a column or a value of a statement holds several."""
    return orjson.dumps(values).decode()


def from_row(row: Mapping[str, Any]) -> Incident:
    return Incident(**{**row, "evidence": tuple(orjson.loads(row["evidence"]))})


def _incidents(conn: sqlite3.Connection, rest: str, values: Any = ()) -> list[Incident]:
    found = conn.execute(f"{SELECT} {rest}", values)
    return [from_row(dict(zip(COLUMNS, row, strict=True))) for row in found]


def open_of(conn: sqlite3.Connection, key: Key) -> Incident | None:
    """The one that is open about just this."""
    where = "WHERE state = 'open' AND kind = ? AND tenant = ? AND name = ?"
    return next(iter(_incidents(conn, where, key)), None)


def by_id(conn: sqlite3.Connection, incident_id: str) -> Incident | None:
    return next(iter(_incidents(conn, "WHERE id = ?", (incident_id,))), None)


def matching(
    conn: sqlite3.Connection, where: str, values: dict[str, Any], limit: int
) -> list[Incident]:
    """Open ones for which the condition holds, the widest and oldest first."""
    order = "ORDER BY kind = 'run', opened_us LIMIT :limit"
    return _incidents(conn, f"WHERE state = 'open' AND {where} {order}", {**values, "limit": limit})


def told_of(conn: sqlite3.Connection, incident_id: str) -> set[Told]:
    """What rows of findings tell of it."""
    found = conn.execute(
        "SELECT DISTINCT type, actor, coalesce(rule, '') FROM event "
        "WHERE incident = ? AND type LIKE 'detector.%'",
        (incident_id,),
    )
    return {(kind, actor, rule) for kind, actor, rule in found}
