"""Whether the ledger on the disk is still what SQLite wrote: a short look past all caches.

The writer reads most pages from its own memory, so damage to the file may stay unseen until the
next start. A full check reads everything; this reads the ends of every table and index, and a few
rows of the record further each time.
"""

from collections.abc import Iterator
from pathlib import Path

from ledger.connection import open_reader
from ledger.sqlite import sqlite3

ROWS = 64  # of the record that one look goes on by: some eight pages


class Inspection:
    """A connection of its own, for the thread of the writer. `close` it before the writer."""

    def __init__(self, data: Path) -> None:
        """Raises LedgerUnavailable."""
        self._conn = open_reader(data, busy_seconds=0.0)
        self._ends = tuple(_ends(self._conn))
        self._looked_to = 0

    def look(self) -> None:
        """Raises sqlite3.Error when a page that is read is damaged. About a millisecond."""
        self._conn.execute("PRAGMA shrink_memory")  # forgets the pages that it knows
        self._conn.execute("BEGIN")
        try:
            for statement in self._ends:
                self._conn.execute(statement).fetchall()
            rows = self._conn.execute(
                "SELECT * FROM event WHERE seq > ? ORDER BY seq LIMIT ?", (self._looked_to, ROWS)
            ).fetchall()
        finally:
            self._conn.execute("ROLLBACK")
        self._looked_to = rows[-1][0] if len(rows) == ROWS else 0

    def close(self) -> None:
        self._conn.close()


def _ends(conn: sqlite3.Connection) -> Iterator[str]:
    """Statements that find the first and the last entry of each table and of each index."""
    tables = conn.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'").fetchall()
    for table, made_by in tables:
        columns = conn.execute(f'PRAGMA table_info("{table}")').fetchall()
        keys = [name for _, name, *_, place in sorted(columns, key=_place) if place]
        bare = "WITHOUT ROWID" in made_by
        yield from _first_and_last(f'"{table}"', keys if bare else ["rowid"])
        found = conn.execute(f'PRAGMA index_list("{table}")').fetchall()
        for _, index, _, origin, partial in found:
            if bare and origin == "pk":
                continue  # it is the table itself
            named = conn.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (index,))
            only = f" WHERE {named.fetchone()[0].partition(' WHERE ')[2]}" if partial else ""
            indexed = conn.execute(f'PRAGMA index_info("{index}")').fetchall()
            source = f'"{table}" INDEXED BY "{index}"{only}'
            named_columns = [name for _, _, name in indexed]
            if None in named_columns:  # of an expression; it is known by no name to order by
                yield f"SELECT 1 FROM {source} LIMIT 1"  # noqa: S608 - our schema
            else:
                yield from _first_and_last(source, named_columns)


def _place(column: tuple[int, ...]) -> int:
    """A column's place in the primary key, from 1; 0 when it is none of it."""
    return column[-1]


def _first_and_last(source: str, keys: list[str]) -> Iterator[str]:
    for way in ("", " DESC"):
        order = ", ".join(f'"{key}"{way}' for key in keys)
        yield f'SELECT "{keys[0]}" FROM {source} ORDER BY {order} LIMIT 1'  # noqa: S608 - our schema
