"""What can go wrong with the record, said so that a person knows whose fault it is and what to do.

LedgerError
    LedgerBusy          another process owns the data folder
    LedgerUnavailable   SQLite cannot do what was asked; `kind` says why
"""

from enum import StrEnum
from pathlib import Path

from ledger.sqlite import sqlite3


class LedgerError(Exception):
    """The request is wrong or the ledger is not ours; the message says what to do."""


class LedgerBusy(LedgerError):
    """Another process owns the ledger."""


class Kind(StrEnum):
    """Why the store cannot record."""

    LOCKED = "locked"
    FULL = "full"
    READ_ONLY = "read_only"
    CORRUPT = "corrupt"
    MISSING = "missing"
    OTHER = "other"


MEANING: dict[Kind, str] = {
    Kind.LOCKED: "another program holds a lock on the ledger; end it",
    Kind.FULL: "the disk of the ledger is full; make room",
    Kind.READ_ONLY: "the ledger cannot be written; check its permissions and its mount",
    Kind.CORRUPT: "the ledger is damaged; keep the file, restore a backup while no pullcord runs",
    Kind.MISSING: "the ledger's files were removed or replaced; put them back",
    Kind.OTHER: "the ledger cannot be used",
}


class LedgerUnavailable(LedgerError):
    """Nothing can be recorded, so nothing may pass. `kind` is stable, the text is for people."""

    def __init__(self, kind: Kind, cause: str = "") -> None:
        super().__init__(f"{MEANING[kind]} ({cause})" if cause else MEANING[kind])
        self.kind = kind
        self.cause = cause


# Primary and, where they say more, extended result codes (https://www.sqlite.org/rescode.html).
# As numbers, because the SQLite modules name different ones of them.
_KINDS: dict[int, Kind] = {
    3: Kind.READ_ONLY,  # PERM
    5: Kind.LOCKED,  # BUSY
    6: Kind.LOCKED,  # LOCKED
    8: Kind.READ_ONLY,  # READONLY
    8 | 4 << 8: Kind.MISSING,  # READONLY_DBMOVED
    10 | 19 << 8: Kind.FULL,  # IOERR_SHMSIZE
    11: Kind.CORRUPT,  # CORRUPT
    13: Kind.FULL,  # FULL
    14: Kind.MISSING,  # CANTOPEN
    15: Kind.LOCKED,  # PROTOCOL
    26: Kind.CORRUPT,  # NOTADB
}


def unavailable(error: sqlite3.Error, path: Path) -> LedgerUnavailable:
    """The SQLite error over the file at `path` as ours, by its result code."""
    code = getattr(error, "sqlite_errorcode", 1)
    kind = _KINDS.get(code) or _KINDS.get(code & 0xFF, Kind.OTHER)
    return LedgerUnavailable(kind, f"{path}: {error}")
