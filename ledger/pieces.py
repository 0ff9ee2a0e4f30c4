"""How a step of the schema goes through a whole record: in pieces that last, each told.

What is done is on the disk and out of the write-ahead log before the next piece begins, so a long
record needs no more room than a short one, and after a crash the step goes on where it was. Only
when all is done is the step noted as applied, and nobody is served before.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from sqlite_utils.db import Database

from ledger.sqlite import sqlite3

Progress = Callable[[int, int, str], None]
"""Told again and again while a ledger is brought up to date: so many, of so many, of what."""


def untold(_done: int, _total: int, _what: str) -> None:
    """For whoever does not listen."""


class Step(Protocol):
    """Brings a database one step further, and tells how far it is."""

    def __call__(self, db: Database, progress: Progress = untold, /) -> None: ...


@contextmanager
def piece(conn: sqlite3.Connection) -> Iterator[None]:
    """One transaction of its own, taken over into the database. On an autocommit connection."""
    conn.execute("BEGIN IMMEDIATE")
    try:
        yield
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise
    conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()


def has(conn: sqlite3.Connection, name: str) -> bool:
    """Whether the schema has a table, an index or a view of this name."""
    found = conn.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
    return found is not None


class Telling:
    """Tells on what the steps tell, and the last of it again."""

    def __init__(self, progress: Progress, steps: int) -> None:
        self._progress = progress
        self._last = (0, steps, "steps")
        self.raised: Exception | None = None

    def of(self, step: Step) -> Callable[[Database], None]:
        def made(db: Database) -> None:
            step(db, self._tell)

        return made

    def _tell(self, done: int, total: int, what: str) -> None:
        self._last = (done, total, what)
        self._progress(done, total, what)

    def again(self) -> int:
        """Called by SQLite, which knows no exceptions: 1 interrupts it."""
        try:
            self._progress(*self._last)
        except Exception as error:
            self.raised = error
            return 1
        return 0
