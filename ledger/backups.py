"""A copy of the ledger while it is in use, as it is at one moment. On connections that only read.

The file itself is never copied: that drops SQLite's locks, and misses what stands in the log.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ledger.connection import open_file
from ledger.errors import Kind, LedgerError, unavailable, was_interrupted
from ledger.queries import rows
from ledger.sqlite import sqlite3
from ledger.whole_file import new_file

_STEPS_BETWEEN_SIGNALS = 100_000


@dataclass(frozen=True, slots=True)
class Backup:
    """`events` is the number of the newest row of the record in it, `at_us` its time; 0 and None
    where there is none."""

    path: Path
    size_bytes: int
    events: int
    at_us: int | None


def backup(
    reader: sqlite3.Connection,
    path: Path,
    *,
    force: bool = False,
    table: Literal["event", "message"] = "event",
) -> Backup:
    """Write the ledger to a file of its own, which is there whole or not at all; or the trace,
    whose rows are its messages.

    Whoever writes it goes on. Raises LedgerError, and LedgerUnavailable when the ledger
    cannot be read.
    """
    path = path.absolute()
    if path.resolve() == _source(reader):
        raise LedgerError(f"{path} is the ledger itself; choose another name")
    with new_file(path, force=force) as unfinished:
        # Between steps Python looks whether somebody has pressed Ctrl-C.
        reader.set_progress_handler(lambda: 0, _STEPS_BETWEEN_SIGNALS)
        try:
            # It forbids the copy, too; that the ledger was opened only to be read stays.
            reader.execute("PRAGMA query_only=OFF")
            reader.execute("VACUUM INTO ?", (str(unfinished),))
        except sqlite3.Error as error:
            if was_interrupted(error):
                raise KeyboardInterrupt from error
            known = unavailable(error, path)
            if known.kind is Kind.CORRUPT:
                raise unavailable(error, _source(reader)) from error
            raise LedgerError(f"{path} cannot be written: {error}") from error
        finally:
            reader.set_progress_handler(None, 0)
            reader.execute("PRAGMA query_only=ON")
        size_bytes = unfinished.stat().st_size
        events, at_us = _newest(unfinished, table)
    return Backup(path, size_bytes, events, at_us)


def _newest(path: Path, table: str) -> tuple[int, int | None]:
    """Read back from the copy, which also shows that it can be read."""
    copy = open_file(path)
    try:
        newest = f"SELECT seq, at_us FROM {table} ORDER BY seq DESC LIMIT 1"  # noqa: S608 - ours
        found = list(rows(copy, newest, ()))
    finally:
        copy.close()
    return (found[0]["seq"], found[0]["at_us"]) if found else (0, None)


def _source(reader: sqlite3.Connection) -> Path:
    _, _, name = reader.execute("PRAGMA database_list").fetchone()
    return Path(name).resolve()
