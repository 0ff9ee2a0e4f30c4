"""The file of the trace: DATA/trace.db, its tables and its connections. Rows are not known here.

It is no part of the ledger: no admission waits for it, and losing it loses no record. Every
message is a row; bodies lie beside them, one for all that are equal. The oldest are pruned.
"""

import os
from collections.abc import Callable
from pathlib import Path

from ledger.connection import open_file
from ledger.errors import Kind, LedgerError, LedgerUnavailable, unavailable
from ledger.sqlite import STATEMENTS_KEPT, sqlite3

DATABASE = "trace.db"
APPLICATION_ID = 0x70637472  # "pctr": whose file it is
VERSION = 1

RESERVE_BYTES = 512 * 1024 * 1024  # of the disk, which the ledger beside it needs;
RESERVE_PARTS = 20  # of a small one a twentieth

_CONTENTLESS_DELETE_SINCE = (3, 43, 0)

INDEX = "searched"
# The text itself it keeps only where SQLite could not forget a row otherwise.
INDEXES = tuple(
    f'CREATE VIRTUAL TABLE {INDEX} USING fts5(text{kept}, tokenize="unicode61 remove_diacritics 2")'
    for kept in ("", ", content='', contentless_delete=1")
)

_MEANING: dict[Kind, str] = {
    Kind.LOCKED: "another program holds a lock on the trace; end it",
    Kind.FULL: "the disk of the trace is full; make room",
    Kind.READ_ONLY: "the trace cannot be written; check its permissions and its mount",
    Kind.CORRUPT: "the trace is damaged; move it away: a new one is begun",
    Kind.MISSING: "the trace's files were removed or replaced; a new one is begun",
    Kind.OTHER: "the trace cannot be used",
}


class TraceUnavailable(LedgerUnavailable):
    """The trace cannot be written, or not be read: nothing of the record is touched by it."""

    def __str__(self) -> str:
        meaning = _MEANING[self.kind]
        return f"{meaning} ({self.cause})" if self.cause else meaning


def unusable(error: sqlite3.Error, path: Path) -> TraceUnavailable:
    """The SQLite error over the trace as ours."""
    told = unavailable(error, path)
    return TraceUnavailable(told.kind, told.cause)


Disk = Callable[[Path], os.statvfs_result]


def no_room(data: Path, disk: Disk = os.statvfs) -> TraceUnavailable | None:
    """Why nothing more is kept on this disk; None while it has room. The ledger, which must be
    written, has what the trace leaves."""
    try:
        found = disk(data)
    except OSError as error:
        return TraceUnavailable(Kind.OTHER, str(error))
    reserve_bytes = min(RESERVE_BYTES, found.f_blocks * found.f_frsize // RESERVE_PARTS)
    left_bytes = found.f_bavail * found.f_frsize
    if left_bytes >= reserve_bytes:
        return None
    needed = f"{reserve_bytes >> 20} MiB are left to the ledger"
    return TraceUnavailable(Kind.FULL, f"{data}: {needed}")


# `hash` chains a message to the one before. `pruned` is one row: the last message that was given
# up, from which the chain goes on.
_TABLES = """
CREATE TABLE message (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    call_id TEXT NOT NULL,
    side TEXT NOT NULL,
    at_us INTEGER NOT NULL,
    run TEXT NOT NULL,
    tenant TEXT NOT NULL,
    tool TEXT NOT NULL,
    release TEXT NOT NULL,
    start TEXT NOT NULL,
    headers TEXT NOT NULL,
    media_type TEXT NOT NULL,
    body_bytes INTEGER NOT NULL,
    is_cut INTEGER NOT NULL,
    digest BLOB NOT NULL,
    why TEXT,
    hash BLOB NOT NULL
) STRICT;
CREATE INDEX message_call ON message (call_id);
CREATE INDEX message_run ON message (run, seq);
CREATE INDEX message_digest ON message (digest);
CREATE TABLE body (
    id INTEGER PRIMARY KEY,
    digest BLOB NOT NULL UNIQUE,
    zstd BLOB NOT NULL,
    kept_bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE pruned (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    seq INTEGER NOT NULL,
    hash BLOB NOT NULL,
    until_us INTEGER NOT NULL
) STRICT;
"""

# NORMAL: after a power cut the last messages may be missing, never the file.
_PRAGMAS = (
    "page_size=4096",
    "auto_vacuum=INCREMENTAL",
    "wal_autocheckpoint=4000",
    "cache_size=-16384",
    "temp_store=MEMORY",
    "mmap_size=0",
    "trusted_schema=OFF",
    "synchronous=NORMAL",
)


def open_writer(data: Path, busy_seconds: float = 5.0) -> sqlite3.Connection:
    """The connection of the tracer; makes the file where there is none.

    Raises TraceUnavailable, and LedgerError where the file is another program's or newer.
    """
    path = data / DATABASE
    try:
        if not path.exists():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            path.chmod(0o600)
    except OSError as error:
        raise TraceUnavailable(Kind.OTHER, str(error)) from error
    try:
        conn = sqlite3.connect(
            path,
            isolation_level=None,
            timeout=busy_seconds,
            check_same_thread=False,
            cached_statements=STATEMENTS_KEPT,
        )
    except sqlite3.Error as error:
        raise unusable(error, path) from error
    try:
        for pragma in _PRAGMAS:
            conn.execute(f"PRAGMA {pragma}")
        conn.execute("PRAGMA journal_mode=WAL").fetchone()
        _prepare(conn, path)
    except sqlite3.Error as error:
        conn.close()
        raise unusable(error, path) from error
    except LedgerError:
        conn.close()
        raise
    return conn


def open_trace(data: Path, busy_seconds: float = 5.0) -> sqlite3.Connection | None:
    """A connection that cannot write; None where nothing was traced yet.

    Raises TraceUnavailable, and LedgerError where the file is another program's or newer.
    """
    path = data / DATABASE
    if not path.exists():
        return None
    try:
        conn = open_file(path, busy_seconds)
    except LedgerUnavailable as error:
        raise TraceUnavailable(error.kind, error.cause) from error
    try:
        if _version(conn, path) == 0:
            conn.close()
            return None
    except sqlite3.Error as error:
        conn.close()
        raise unusable(error, path) from error
    except BaseException:
        conn.close()
        raise
    return conn


def can_search(conn: sqlite3.Connection) -> bool:
    """Whether this file has a full-text index: a SQLite without FTS5 made none."""
    found = conn.execute("SELECT 1 FROM sqlite_schema WHERE name = 'searched'").fetchone()
    return found is not None


def _prepare(conn: sqlite3.Connection, path: Path) -> None:
    if _version(conn, path) == VERSION:
        return
    conn.execute("BEGIN IMMEDIATE")
    try:
        if _version(conn, path) == 0:
            make_tables(conn)
            _make_index(conn)
            conn.execute(f"PRAGMA application_id={APPLICATION_ID}")
            conn.execute(f"PRAGMA user_version={VERSION}")
        conn.execute("COMMIT")
    except BaseException:
        conn.execute("ROLLBACK")
        raise


def make_tables(conn: sqlite3.Connection) -> None:
    """All but the index, which depends on SQLite's version."""
    for statement in _TABLES.split(";\n"):
        conn.execute(statement)


def _make_index(conn: sqlite3.Connection) -> None:
    """Rows of the index have the numbers of the messages."""
    if not conn.execute("SELECT 1 FROM pragma_module_list WHERE name = 'fts5'").fetchone():
        return
    version = tuple(int(part) for part in sqlite3.sqlite_version.split("."))
    conn.execute(INDEXES[version >= _CONTENTLESS_DELETE_SINCE])


def _version(conn: sqlite3.Connection, path: Path) -> int:
    """0 where the file is empty. Raises LedgerError where it is not ours."""
    (ours,) = conn.execute("PRAGMA application_id").fetchone()
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    if (ours, version) == (APPLICATION_ID, VERSION):
        return VERSION
    if ours == APPLICATION_ID:
        raise LedgerError(f"{path} was written by a newer pullcord; use that one")
    if version or conn.execute("SELECT 1 FROM sqlite_schema").fetchone():
        raise LedgerError(f"{path} is another program's database; move it away")
    return 0
