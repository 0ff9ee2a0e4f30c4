"""Incidents as rows, and what the store remembers of those that are open. Called in transactions.

A finding comes again with each further call of a run that goes on: the memory answers that without
a look at the database. It holds nothing that the database has not: after a transaction that failed
it is empty, and is read anew.
"""

import secrets
from collections import OrderedDict, deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple
from uuid import UUID

import orjson

from ledger.sqlite import sqlite3
from policies.verdict import Scope

EVIDENCE_MAX = 32  # calls of an incident that are named; the newest say most
REMEMBERED_MAX = 10_000  # of each: open incidents, what belongs to which, what was observed
TOLD_MAX = 64  # rows of findings of one incident; what is pulled for it is told in any case
ALERTS_SECONDS = 3_600  # in which so many that pull nothing may open incidents of their own:
ALERTS_OF_TENANT_MAX = 60
ALERTS_MAX = 200
TRIPS_SECONDS = 60  # and so many that pull a cord, in this time
TRIPS_OF_TENANT_MAX = 10
TRIPS_MAX = 30
MANY_RUNS = "*"  # in `runs`: anybody's; no run has such a name
EVERYBODY = "all tenants"  # the name of an incident over everything
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
    `rule` is the cord that was last pulled for it, empty where none was. `raised_us` is when it was
    last worth telling again: an alert became a trip, another cord was pulled. `opened_by` is empty
    where the detectors opened it; `since_us` is from when on calls belong to it where a person said
    so, else that is the time of `first_call`, which first convinced a detector. `proof` is the
    digest of its regression test, `waived` why it was closed without one."""

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
    opened_by: str = ""
    owner: str = ""
    acked_us: int | None = None
    acked_by: str = ""
    since_us: int | None = None
    first_call: str = ""
    runs: tuple[str, ...] = ()
    proof: str = ""
    waived: str = ""

    @property
    def key(self) -> Key:
        return Key(self.kind, self.tenant, self.name)

    @property
    def told_since_us(self) -> int:
        """Since when there is something to tell of it as it is."""
        return self.opened_us if self.raised_us is None else self.raised_us

    @property
    def is_wide(self) -> bool:
        """What was too much to have an incident each goes to it."""
        return self.kind in (Scope.TENANT, Scope.GLOBAL)

    @property
    def is_many(self) -> bool:
        """It holds that, and nothing else: no person has opened it over a tenant."""
        return self.is_wide and not self.opened_by

    @property
    def mixed(self) -> str:
        """Why healthy runs are in it as well, since nobody has said of whom it is; else empty."""
        if self.is_many:
            return "only counts what was too much to have an incident each"
        return "is over everything" if self.kind == Scope.GLOBAL else ""


COLUMNS = tuple(column.name for column in fields(Incident))
SELECT = f"SELECT {', '.join(COLUMNS)} FROM incident"  # noqa: S608 - names of ours

Told = tuple[str, str, str]
"""What one row of a finding tells: its type, its actor, its cord."""


@dataclass(slots=True)
class Standing:
    """An open incident, and what the record tells of it already."""

    incident: Incident
    told: set[Told] = field(default_factory=set)


class _Opened(NamedTuple):
    at_us: int
    pulls: bool
    tenant: str


_BOUNDS = {
    False: (ALERTS_SECONDS, ALERTS_OF_TENANT_MAX, ALERTS_MAX),
    True: (TRIPS_SECONDS, TRIPS_OF_TENANT_MAX, TRIPS_MAX),
}


@dataclass(slots=True)
class OpenIncidents:
    """The memory. What was not asked for longest is forgotten first, and read again."""

    _standing: OrderedDict[str, Standing] = field(default_factory=OrderedDict)
    _ids: OrderedDict[Key, str] = field(default_factory=OrderedDict)
    _observed: OrderedDict[Hashable, int] = field(default_factory=OrderedDict)
    _opened: deque[_Opened] | None = None

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

    def changed(self, incident: Incident) -> None:
        """A person has; findings join it as it is now."""
        standing = self._standing.get(incident.id)
        if standing is not None:
            standing.incident = incident

    def drop(self, incident_id: str) -> None:
        self._standing.pop(incident_id, None)

    def is_news(self, what: Hashable, at_us: int, within_us: int) -> bool:
        """Whether this was not observed within that time; from now on it was."""
        last_us = self._observed.get(what)
        if last_us is not None and 0 <= at_us - last_us < within_us:
            return False
        _put(self._observed, what, at_us)
        return True

    def instead(
        self, conn: sqlite3.Connection, tenant: str, at_us: int, *, pulls: bool
    ) -> Key | None:
        """What a new incident would be one too many of; None when there is room for it. One that
        pulls a cord has a room of its own, so that none that only alerts fills it."""
        seconds, of_tenant_max, all_max = _BOUNDS[pulls]
        lately = [
            one.tenant
            for one in self._opened_since(conn, at_us)
            if one.pulls == pulls and 0 <= at_us - one.at_us < seconds * 1_000_000
        ]
        if lately.count(tenant) >= of_tenant_max:
            return Key(Scope.TENANT, tenant, tenant)
        return Key(Scope.GLOBAL, "", EVERYBODY) if len(lately) >= all_max else None

    def opened(self, conn: sqlite3.Connection, one: Incident, tenant: str, *, pulls: bool) -> None:
        """`tenant` is whose call opened it."""
        self._opened_since(conn, one.opened_us).append(_Opened(one.opened_us, pulls, tenant))

    def _opened_since(self, conn: sqlite3.Connection, at_us: int) -> deque[_Opened]:
        """Those of the last hour, and not many before."""
        oldest_us = at_us - ALERTS_SECONDS * 1_000_000
        if self._opened is None:
            found = conn.execute(_LATELY, (str(UUID(int=_moment(oldest_us))),))
            self._opened = deque(_Opened(*row) for row in found)
        while self._opened and self._opened[0].at_us < oldest_us:
            self._opened.popleft()
        return self._opened

    def clear(self) -> None:
        self._opened = None
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
    made = _moment(at_us) | 7 << 76 | secrets.randbits(12) << 64
    return str(UUID(int=made | 2 << 62 | secrets.randbits(62)))


def _moment(at_us: int) -> int:
    return max(at_us, 0) // 1_000 << 80


_LATELY = (
    "SELECT opened_us, rule <> '', tenant FROM incident "
    "WHERE id >= ? AND kind NOT IN ('tenant', 'global') AND opened_by = '' ORDER BY id"
)


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


_LISTS = ("evidence", "runs")


def from_row(row: Mapping[str, Any]) -> Incident:
    lists = {name: tuple(orjson.loads(row[name])) for name in _LISTS if name in row}
    return Incident(**{**row, **lists})


def open_of(conn: sqlite3.Connection, key: Key) -> Incident | None:
    """The one that is open about just this."""
    query = f"{SELECT} WHERE state = 'open' AND kind = ? AND tenant = ? AND name = ?"
    return next(iter(found_by(conn, query, key)), None)


def by_id(conn: sqlite3.Connection, incident_id: str) -> Incident | None:
    return next(iter(found_by(conn, f"{SELECT} WHERE id = ?", (incident_id,))), None)


# An incident that the same tree of runs began; one whose cord stands over the call; one of the
# call's tool or release, where the same kind of detector opened it. Each by an index of its own.
PART_OF = f"""
{SELECT} WHERE updated_us >= :since AND kind IN ('run', 'tool', 'release') AND id IN (
    SELECT id FROM incident WHERE state = 'open' AND tenant = :tenant AND root = :root AND :of_run
    UNION SELECT id FROM incident WHERE state = 'open' AND rule <> ''
        AND rule IN (SELECT value FROM json_each(:cords))
    UNION SELECT id FROM incident
        WHERE state = 'open' AND kind = 'tool' AND tenant = :tenant AND name = :tool
        AND detector IN (SELECT value FROM json_each(:detectors))
    UNION SELECT id FROM incident
        WHERE state = 'open' AND kind = 'release' AND tenant = '' AND name = :release
        AND detector IN (SELECT value FROM json_each(:detectors))
) ORDER BY kind = 'run', opened_us LIMIT 1
"""  # noqa: S608 - names of ours
LED_TO_IT = f"""
{SELECT} WHERE state = 'open' AND severity IN ('alert', 'trip') AND updated_us >= :since
AND kind = 'run' AND detector = :detector AND (release = :release OR tool = :tool)
ORDER BY opened_us LIMIT :limit
"""
QUIET = f"""
{SELECT} WHERE state = 'open' AND severity = 'alert' AND updated_us < ? AND opened_by = ''
ORDER BY updated_us LIMIT ?
"""


def found_by(conn: sqlite3.Connection, query: str, values: Any) -> list[Incident]:
    """By one of the queries above."""
    rows = conn.execute(query, values)
    return [from_row(dict(zip(COLUMNS, row, strict=True))) for row in rows]


def told_of(conn: sqlite3.Connection, incident_id: str) -> set[Told]:
    """What rows of findings tell of it."""
    found = conn.execute(
        "SELECT DISTINCT type, actor, coalesce(rule, '') FROM event "
        "WHERE incident = ? AND type LIKE 'detector.%'",
        (incident_id,),
    )
    return {(kind, actor, rule) for kind, actor, rule in found}
