"""Reads of incidents for people, on connections that cannot write: also of a ledger that an older
version made, which knows less of them, or has none.
"""

from dataclasses import dataclass

from ledger import open_incidents
from ledger.cords import IS_WHOLE
from ledger.filters import Filter
from ledger.incident_scope import from_us
from ledger.open_incidents import COLUMNS, EVERYBODY, Incident, Key
from ledger.pieces import has
from ledger.queries import CALL_COLUMNS, QueryError, Row, calls, rows
from ledger.sqlite import sqlite3
from policies.verdict import Level, Scope

LISTED_MAX = 500
ROWS_MAX = 500  # of each type that the record has of one incident

DRILL = "drill"  # the actor of cords that prove something, and contain nothing
_USERS_ROWS = 10_000  # newest calls of a tool among which its tenants are looked for

_NEWEST_FIRST = "ORDER BY id DESC LIMIT ?"  # ids begin with the time
_ROWS = """
SELECT seq, type, strftime('%Y-%m-%dT%H:%M:%S', at_us / 1000000, 'unixepoch')
    || printf('.%03dZ', at_us / 1000 % 1000) AS at,
    call_id AS id, run, tenant, release, tool, rule, actor, detail
FROM (
    SELECT *, row_number() OVER alike AS place, lead(seq) OVER alike IS NULL AS is_first
    FROM event WHERE incident = ? AND type NOT LIKE 'call.%'
    WINDOW alike AS (PARTITION BY type ORDER BY seq DESC)
) WHERE place <= ? OR is_first ORDER BY seq
"""  # the calls that undo it may be thousands, and hide what people did; compensation.py has them


def listed(reader: sqlite3.Connection, limit: int, *, closed: bool = False) -> list[Incident]:
    """The open ones, the newest first; all of them with `closed`. Raises LedgerUnavailable."""
    where = "" if closed else "WHERE state = 'open' "
    return _read(reader, f"{where}{_NEWEST_FIRST}", limit)


def count_open(reader: sqlite3.Connection) -> int:
    if not has(reader, "incident"):
        return 0
    (row,) = rows(reader, "SELECT count(*) AS open FROM incident WHERE state = 'open'", ())
    return int(row["open"])


def named(reader: sqlite3.Connection, start: str) -> Incident | None:
    """The one whose id begins so. Raises QueryError when several do."""
    least = start.lower()
    if not least:
        return None
    found = _read(
        reader, "WHERE id >= ? AND id < ? ORDER BY id LIMIT 2", least, least + "\U0010ffff"
    )
    if len(found) > 1 and found[0].id != least:
        raise QueryError(f"several incidents begin with {start}; write more of the id")
    return found[0] if found else None


def rows_of(reader: sqlite3.Connection, incident: Incident) -> list[Row]:
    """What the record tells of it, in order. Of each type the first and the newest, so that many
    rows of one, such as a message to each tenant, hide no other."""
    return list(rows(reader, _ROWS, (incident.id, ROWS_MAX)))


def calls_of(reader: sqlite3.Connection, incident: Incident) -> list[Row]:
    """The calls that convinced the detectors, the newest last; those that were pruned are left
    out."""
    found = [next(calls(reader, Filter("id = ?", (one,)), 1), None) for one in incident.evidence]
    return [{name: row[name] for name in CALL_COLUMNS} for row in found if row is not None]


def _read(reader: sqlite3.Connection, rest: str, *values: str | int) -> list[Incident]:
    there = {row["name"] for row in rows(reader, _THERE, ())}
    if not there:
        return []
    known = ", ".join(column for column in COLUMNS if column in there)
    query = f"SELECT {known} FROM incident {rest}"  # noqa: S608 - names of ours
    return [open_incidents.from_row(row) for row in rows(reader, query, values)]


_THERE = "SELECT name FROM pragma_table_info('incident')"


# ---------------------------------------------------------------------------------- its cords


@dataclass(frozen=True, slots=True)
class Pulled:
    """A pull of a cord, by whom, and how it went on: narrowed to a release, or to some runs of one,
    that may pass; to the whole of one; released; None for what was not. `is_own`: it was pulled for
    this incident. UTC microseconds."""

    rule: str
    actor: str
    is_own: bool
    seq: int
    at_us: int
    narrowed_seq: int | None
    narrowed_us: int | None
    whole_us: int | None
    released_seq: int | None
    released_us: int | None

    @property
    def stands(self) -> bool:
        return self.released_us is None

    @property
    def is_of_release(self) -> bool:
        return self.rule.split(":")[1] == Scope.RELEASE

    @property
    def until_seq(self) -> int | None:
        """Up to which row of the record it stood as it was pulled."""
        return self.released_seq if self.narrowed_seq is None else self.narrowed_seq

    @property
    def resumed_us(self) -> int | None:
        """When calls could pass it again, if only those of one release; not when some runs of it
        went first."""
        return self.released_us if self.whole_us is None else self.whole_us


# What was pulled for it, and what was pulled over it since it began, also for another one.
_PULLED = f"""
SELECT p.rule, p.actor, p.incident IS :id AS is_own, p.seq, p.at_us,
    n.seq AS narrowed_seq, n.at_us AS narrowed_us, (
        SELECT min(at_us) FROM event
        WHERE actor IS NOT NULL AND type = 'cord.narrowed' AND rule = p.rule AND seq >= n.seq
        AND seq < coalesce(r.seq, {2**62}) AND {IS_WHOLE}
    ) AS whole_us, r.seq AS released_seq, r.at_us AS released_us
FROM event p INDEXED BY event_act
LEFT JOIN event r ON r.seq = (
    SELECT min(seq) FROM event
    WHERE actor IS NOT NULL AND type = 'cord.released' AND rule = p.rule AND seq > p.seq
)
LEFT JOIN event n ON n.seq = (
    SELECT min(seq) FROM event
    WHERE actor IS NOT NULL AND type = 'cord.narrowed' AND rule = p.rule AND seq > p.seq
) AND (r.seq IS NULL OR n.seq < r.seq)
WHERE p.actor IS NOT NULL AND p.type = 'cord.pulled' AND (
    p.incident = :id
    OR p.at_us >= :from_us AND p.at_us < :until_us
    AND p.actor <> '{DRILL}' AND (
        p.rule IN (SELECT value FROM json_each(:rules))
        OR p.run IN (SELECT value FROM json_each(:roots)) OR EXISTS (
            SELECT 1 FROM run, json_each(run.ancestors) a
            WHERE run.name = p.run AND a.value IN (SELECT value FROM json_each(:roots))
        ) OR EXISTS (
            SELECT 1 FROM event d INDEXED BY event_run
            WHERE d.run = p.run AND d.root IN (SELECT value FROM json_each(:roots))
        )
    )
) ORDER BY p.seq
"""  # noqa: S608 - a word of ours


def pulled_over(reader: sqlite3.Connection, incident: Incident) -> list[Pulled]:
    """The cords that were pulled for it, and those that anybody pulled over its tree of runs, its
    tool, its tenant, its release or everything from its beginning to its end, in order."""
    names = {
        *((Scope.RUN, run) for run in (incident.run, incident.root)),
        *((Scope.TOOL, incident.tool), (Scope.RELEASE, incident.release)),
        (Scope.TENANT, incident.tenant),
        (Scope(incident.kind), incident.name),
    }
    over = [f":{scope}:{name}" for scope, name in names if name and scope is not Scope.GLOBAL]
    rules = [f"{level}{rest}" for level in Level for rest in (*over, f":{Scope.GLOBAL}")]
    roots = [incident.name] if incident.kind == Scope.RUN else [*incident.runs]
    values = {
        "id": incident.id,
        "from_us": from_us(incident),
        "until_us": 2**62 if incident.closed_us is None else incident.closed_us,
        "rules": open_incidents.as_list(rules),
        "roots": open_incidents.as_list(roots),
    }
    found = rows(reader, _PULLED, values)
    return [Pulled(**{**row, "is_own": bool(row["is_own"])}) for row in found]


def cords_of(reader: sqlite3.Connection, incident: Incident) -> set[str]:
    """The names of those cords, whether they stand or not."""
    return {one.rule for one in pulled_over(reader, incident)} | ({incident.rule} - {""})


# ---------------------------------------------------------------------------------- a person's


@dataclass(frozen=True, slots=True)
class Subject:
    """What a person may open an incident over, as the record knows it: what it is about, and when
    that made its last call, UTC microseconds."""

    key: Key
    last_us: int


_LAST_OF = "SELECT tenant, root, at_us FROM event WHERE {} AND decision IS NOT NULL {}"
_NEWEST = "ORDER BY seq DESC LIMIT 1"
_OF_RUN = f"""
SELECT * FROM (
    SELECT * FROM (SELECT seq, tenant, root, at_us FROM event
        WHERE run = :name AND decision IS NOT NULL AND :tenant IN ('', tenant) {_NEWEST})
    UNION ALL
    SELECT * FROM (SELECT seq, tenant, root, at_us FROM event
        WHERE root = :name AND root IS NOT NULL AND root <> run AND decision IS NOT NULL
        AND :tenant IN ('', tenant) {_NEWEST})
) {_NEWEST}
"""  # noqa: S608 - words of ours


def subject(
    reader: sqlite3.Connection, kind: Scope, name: str, tenant: str, since_us: int
) -> Subject | None:
    """What of this name has made calls; of a run its tree, of a tool what one tenant does with it:
    the one that is named, or else the only one since then. None when nothing has. Raises QueryError
    where several tenants use the tool."""
    if kind is Scope.RUN:
        found = list(rows(reader, _OF_RUN, {"name": name, "tenant": tenant}))
        return next((Subject(_tree(row), row["at_us"]) for row in found), None)
    if kind is Scope.TOOL:
        return _of_tool(reader, name, tenant, since_us)
    if kind is Scope.GLOBAL:
        newest = rows(reader, _LAST_OF.format("1", _NEWEST), ())
        return next((Subject(Key(kind.value, "", EVERYBODY), row["at_us"]) for row in newest), None)
    query = _LAST_OF.format(f"{kind.value} = ?", _NEWEST)
    key = Key(kind.value, name if kind is Scope.TENANT else "", name)
    return next((Subject(key, row["at_us"]) for row in rows(reader, query, (name,))), None)


def _tree(row: Row) -> Key:
    return Key(Scope.RUN.value, row["tenant"], row["root"])


def _of_tool(reader: sqlite3.Connection, name: str, tenant: str, since_us: int) -> Subject | None:
    newest = _LAST_OF.format("tool = ?", f"ORDER BY seq DESC LIMIT {_USERS_ROWS}")
    if tenant:
        newest = _LAST_OF.format("tool = ? AND +tenant = ?", _NEWEST)
    query = (
        "SELECT tenant, max(at_us) AS at_us "  # noqa: S608 - words of ours
        f"FROM ({newest}) WHERE tenant IS NOT NULL GROUP BY tenant ORDER BY at_us DESC"
    )
    found = list(rows(reader, query, (name, tenant) if tenant else (name,)))
    lately = [row["tenant"] for row in found if row["at_us"] >= since_us]
    if len(lately) > 1:
        users = ", ".join(lately[:5])
        raise QueryError(
            f"several tenants use {name} ({users}); an incident of a tool is about one: --tenant T"
        )
    if not found:
        return None
    return Subject(Key(Scope.TOOL.value, found[0]["tenant"], name), found[0]["at_us"])
