"""Whether rows stand where a chain can hold them: numbered from 1, with values of their columns'
types. A hash covers bytes as their hex, so that a text in their place would have the same."""

from ledger.seal_checks import Problem
from ledger.sqlite import sqlite3

ROWS_AT_ONCE = 10_000

# What a hash cannot tell from a value of the column's type; numbers it can.
_MISTAKABLE = {"TEXT": "blob", "BLOB": "text"}


def check_rows(conn: sqlite3.Connection, table: str, named: str, of: str = "") -> list[Problem]:
    """The first row of each kind that does not. `table` has `seq` and `call_id`; `named` is what a
    row is to people, `of` where it stands."""
    found = []
    row = conn.execute(
        f"SELECT seq, call_id FROM {table} WHERE seq < 1 ORDER BY seq LIMIT 1"  # noqa: S608 - ours
    ).fetchone()
    if row is not None:
        what = f"{named} {row[0]}{of} stands before the beginning: they are numbered from 1"
        found.append(_problem(what, row, of))
    row = _mistyped(conn, table)
    if row is not None:
        what = f"{named} {row[0]}{of} has a value that is not of its column's type"
        found.append(_problem(what, row, of))
    return found


def _problem(what: str, row: tuple[int, object], of: str) -> Problem:
    seq, call = row
    return Problem(what, None if of else seq, None if call is None else str(call))


def _quoted(name: str) -> str:
    """Columns are the file's, whoever named them."""
    return '"' + name.replace('"', '""') + '"'


def _mistyped(conn: sqlite3.Connection, table: str) -> tuple[int, object] | None:
    wrong = " OR ".join(
        f"typeof({_quoted(name)}) = '{_MISTAKABLE[kind]}'"
        for _, name, kind, *_ in conn.execute(f"PRAGMA table_info({table})").fetchall()
        if kind in _MISTAKABLE
    )
    (end,) = conn.execute(f"SELECT max(seq) FROM {table}").fetchone()  # noqa: S608 - ours
    select = (
        "SELECT max(seq), min(CASE WHEN wrong THEN seq END) FROM (SELECT seq, "  # noqa: S608 - ours
        f"({wrong or 0}) AS wrong FROM {table} WHERE seq > ? ORDER BY seq LIMIT ?)"
    )
    at, bad = 0, None
    while bad is None and at < (end or 0):
        last, bad = conn.execute(select, (at, ROWS_AT_ONCE)).fetchone()
        at = end if last is None else last
    if bad is None:
        return None
    (call,) = conn.execute(f"SELECT call_id FROM {table} WHERE seq = ?", (bad,)).fetchone()  # noqa: S608
    return int(bad), call
