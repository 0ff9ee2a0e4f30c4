"""Connections to the ledger: the one writer with its lock, and readers. No tables are known here.

PRAGMAs and their reasons: notes/store.md, section 3. One SQLite library per process, the one that
sqlite-utils chose; and nothing here opens or copies the database's files in any other way, since
a plain open and close drops SQLite's own locks.
"""

import errno
import fcntl
import os
from pathlib import Path

from ledger.errors import Kind, LedgerBusy, LedgerError, LedgerUnavailable, unavailable
from ledger.sqlite import STATEMENTS_KEPT, sqlite3

DATABASE = "ledger.db"
LOCK = "ledger.lock"

MIGRATIONS_TABLE = "_sqlite_migrations"  # what sqlite-utils keeps in every ledger
ROOM_BYTES_MIN = 1024 * 1024  # a disk with less is full: the log may still have room of its own

_PRAGMAS = (
    "page_size=4096",
    "auto_vacuum=INCREMENTAL",
    "wal_autocheckpoint=0",
    "journal_size_limit=-1",
    "cache_size=-65536",
    "temp_store=MEMORY",
    "foreign_keys=ON",
    "mmap_size=0",
    "trusted_schema=OFF",
    "fullfsync=ON",
    "synchronous=FULL",
)

_OS_KINDS = {
    errno.EACCES: Kind.READ_ONLY,
    errno.EPERM: Kind.READ_ONLY,
    errno.EROFS: Kind.READ_ONLY,
    errno.ENOSPC: Kind.FULL,
    errno.EDQUOT: Kind.FULL,
    errno.ENOENT: Kind.MISSING,
    errno.ENOTDIR: Kind.MISSING,
}


def open_reader(data: Path, busy_seconds: float = 5.0) -> sqlite3.Connection:
    """A connection that cannot write. LedgerUnavailable when there is no ledger to read."""
    return open_file(data / DATABASE, busy_seconds)


def open_file(path: Path, busy_seconds: float = 5.0) -> sqlite3.Connection:
    """The same for a ledger under another name. Its files are opened by SQLite alone."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    _check_plain(path)
    try:
        conn = sqlite3.connect(
            uri,
            uri=True,
            isolation_level=None,
            timeout=busy_seconds,
            check_same_thread=False,
            cached_statements=STATEMENTS_KEPT,
        )
        try:
            conn.execute("PRAGMA query_only=ON")
            conn.execute("PRAGMA trusted_schema=OFF")
            conn.execute("SELECT 1 FROM sqlite_schema")
        except sqlite3.Error:
            conn.close()
            raise
    except sqlite3.Error as error:
        raise unavailable(error, path) from error
    return conn


def is_ledger(data: Path) -> bool:
    """Whether there is a database that this program made; False where nobody can tell."""
    try:
        conn = open_reader(data)
    except LedgerUnavailable:
        return False
    try:
        return MIGRATIONS_TABLE in _tables(conn)
    except sqlite3.Error:
        return False
    finally:
        conn.close()


def _tables(conn: sqlite3.Connection) -> set[str]:
    return {name for (name,) in conn.execute("SELECT name FROM sqlite_schema")}


def _check_plain(path: Path) -> None:
    """A directory, a pipe or a device in the ledger's place is told as what it is."""
    if path.exists() and not path.is_file():
        raise LedgerUnavailable(Kind.OTHER, f"{path} is no plain file")


class Writer:
    """The one connection that writes, and the lock that makes it the one.

    The lock is the kernel's (flock): it ends with the process however that ends.
    """

    def __init__(self, data: Path, busy_seconds: float) -> None:
        """Raises LedgerBusy and LedgerUnavailable."""
        self._path = data / DATABASE
        self._durable = True
        self._patient = True
        self._busy_ms = round(busy_seconds * 1000)
        self._corrupt = False
        self._known: dict[str, tuple[int, int]] = {}
        try:
            data.mkdir(mode=0o711, parents=True, exist_ok=True)
            _check_plain(self._path)
            self._lock = _lock(data)
            try:
                if not self._path.exists():
                    self._path.touch(mode=0o600)
                self._path.chmod(0o600)
            except OSError:
                os.close(self._lock)
                raise
        except OSError as error:
            kind = _OS_KINDS.get(error.errno or 0, Kind.OTHER)
            raise LedgerUnavailable(kind, str(error)) from error
        try:
            self.conn = self._connect(busy_seconds)
        except BaseException:
            os.close(self._lock)
            raise

    def _connect(self, busy_seconds: float) -> sqlite3.Connection:
        try:
            conn = sqlite3.connect(
                self._path,
                isolation_level=None,
                timeout=busy_seconds,
                check_same_thread=False,
                cached_statements=STATEMENTS_KEPT,
            )
        except sqlite3.Error as error:
            raise unavailable(error, self._path) from error
        try:
            self._check_ours(conn)
            for pragma in _PRAGMAS:
                conn.execute(f"PRAGMA {pragma}")
            (mode,) = conn.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.Error as error:
            conn.close()
            raise unavailable(error, self._path) from error
        except LedgerError:
            conn.close()
            raise
        if mode != "wal":
            conn.close()
            raise LedgerUnavailable(Kind.OTHER, "this file system has no write-ahead log")
        return conn

    def _check_ours(self, conn: sqlite3.Connection) -> None:
        """Looked at before anything is written."""
        tables = _tables(conn)
        if tables and MIGRATIONS_TABLE not in tables:
            raise LedgerError(
                f"{self._path} is another program's database, not a ledger; choose another --data"
            )

    def check_room(self) -> None:
        """Raises LedgerUnavailable when the disk has less room than a busy second may need."""
        try:
            disk = os.statvfs(self._path.parent)
        except OSError as error:
            raise LedgerUnavailable(Kind.MISSING, str(error)) from error
        if disk.f_bavail * disk.f_frsize < ROOM_BYTES_MIN:
            raise LedgerUnavailable(Kind.FULL, str(self._path))

    def watch_files(self) -> None:
        """From now on the files that are open must stay the ones that the folder shows."""
        wal = self._path.with_name(f"{DATABASE}-wal")
        for path in (self._path, self._path.with_name(LOCK), wal):
            self._known[str(path)] = _inode(str(path))

    def begin(self, *, durable: bool, patient: bool) -> None:
        """Start a transaction that holds the write lock; `durable` ones reach the disk.

        One that is not patient does not wait for another program's lock.
        """
        if self._corrupt:
            raise LedgerUnavailable(Kind.CORRUPT, str(self._path))
        for path, inode in self._known.items():
            if _inode(path) != inode:
                raise LedgerUnavailable(Kind.MISSING, path)
        if durable is not self._durable:
            self.conn.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
            self._durable = durable
        if patient is not self._patient:
            self.conn.execute(f"PRAGMA busy_timeout={self._busy_ms if patient else 0}")
            self._patient = patient
        self.conn.execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        self.conn.execute("COMMIT")

    def checkpoint(self) -> None:
        """Take the write-ahead log over into the database. Outside a transaction."""
        self.conn.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def rollback(self) -> None:
        """Never raises: SQLite has rolled back by itself after some errors."""
        try:
            if self.conn.in_transaction:
                self.conn.execute("ROLLBACK")
        except sqlite3.Error:
            # What a failed rollback leaves is rolled back when the file is opened again.
            self._corrupt = True

    def failed(self, error: sqlite3.Error) -> LedgerUnavailable:
        """The error as ours. After damage was seen once, nothing is trusted again."""
        known = unavailable(error, self._path)
        if known.kind is Kind.OTHER and not os.access(f"{self._path}-wal", os.W_OK):
            known = LedgerUnavailable(Kind.READ_ONLY, known.cause)
        self._corrupt = self._corrupt or known.kind is Kind.CORRUPT
        return known

    def close(self) -> None:
        try:
            if not self._corrupt:
                self.conn.execute("PRAGMA optimize")
        except sqlite3.Error:
            # It only refreshes statistics.
            pass
        finally:
            self.conn.close()
            self.release_lock()

    def release_lock(self) -> None:
        os.close(self._lock)


def _inode(path: str) -> tuple[int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return (0, 0)
    return (found.st_dev, found.st_ino)


def _lock(data: Path) -> int:
    handle = os.open(data / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(handle)
        raise LedgerBusy(
            f"another pullcord owns {data} (pid {owner}); end it, or choose another --data"
        ) from None
    os.ftruncate(handle, 0)
    os.pwrite(handle, f"{os.getpid()}\n".encode(), 0)
    return handle
