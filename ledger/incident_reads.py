"""Reads of incidents for people, on connections that cannot write: also of a ledger that an older
version made, which has none.
"""

from ledger import open_incidents
from ledger.filters import Filter
from ledger.open_incidents import SELECT, Incident
from ledger.pieces import has
from ledger.queries import CALL_COLUMNS, QueryError, Row, calls, rows
from ledger.sqlite import sqlite3

LISTED_MAX = 500
ROWS_MAX = 500  # of the record, that tell of one incident

_NEWEST_FIRST = "ORDER BY id DESC LIMIT ?"  # ids begin with the time
_ROWS = """
SELECT seq, type, strftime('%Y-%m-%dT%H:%M:%S', at_us / 1000000, 'unixepoch')
    || printf('.%03dZ', at_us / 1000 % 1000) AS at,
    call_id AS id, run, tenant, release, tool, rule, actor, detail
FROM event WHERE incident = ? ORDER BY seq DESC LIMIT ?
"""
_CORDS = "SELECT DISTINCT rule FROM event WHERE incident = ? AND type = 'cord.pulled'"


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
    """What the record tells of it, in order; of very much the newest."""
    return list(rows(reader, _ROWS, (incident.id, ROWS_MAX)))[::-1]


def cords_of(reader: sqlite3.Connection, incident: Incident) -> set[str]:
    """What was pulled for it, whether it stands or not."""
    found = rows(reader, _CORDS, (incident.id,))
    return {str(row["rule"]) for row in found} | ({incident.rule} - {""})


def calls_of(reader: sqlite3.Connection, incident: Incident) -> list[Row]:
    """The calls that convinced the detectors, the newest last; those that were pruned are left
    out."""
    found = [next(calls(reader, Filter("id = ?", (one,)), 1), None) for one in incident.evidence]
    return [{name: row[name] for name in CALL_COLUMNS} for row in found if row is not None]


def _read(reader: sqlite3.Connection, rest: str, *values: str | int) -> list[Incident]:
    if not has(reader, "incident"):
        return []
    return [open_incidents.from_row(row) for row in rows(reader, f"{SELECT} {rest}", values)]
