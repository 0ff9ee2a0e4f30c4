"""What can go wrong with the record, said so that a person knows whose fault it is and what to do.

LedgerError
    LedgerBusy          another process owns the data folder
    OverCeiling         a bound has no room; what it pulled over that stands
    NotGranted          a run asks for tools that it has not itself
    LedgerUnavailable   SQLite cannot do what was asked; `kind` says why
"""

from enum import StrEnum
from pathlib import Path

from ledger.sqlite import sqlite3
from policies.verdict import Verdict


class LedgerError(Exception):
    """The request is wrong or the ledger is not ours; the message says what to do."""


class LedgerBusy(LedgerError):
    """Another process owns the ledger."""


class NotGranted(LedgerError):
    """A run asks for tools for its child that it may not use itself."""


class OverCeiling(LedgerError):
    """A ceiling has no room for this act. Its cord, where it has one, is pulled in the transaction
    around the act, which therefore has to be committed all the same."""

    def __init__(self, message: str, verdict: Verdict) -> None:
        super().__init__(message)
        self.verdict = verdict


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

_INTERRUPT = 9


def unavailable(error: sqlite3.Error, path: Path) -> LedgerUnavailable:
    """The SQLite error over the file at `path` as ours, by its result code."""
    code = getattr(error, "sqlite_errorcode", 1)
    kind = _KINDS.get(code) or _KINDS.get(code & 0xFF, Kind.OTHER)
    return LedgerUnavailable(kind, f"{path}: {error}")


def was_interrupted(error: sqlite3.Error) -> bool:
    """Whether a progress handler ended the statement. The exception of a signal that came inside
    one is lost on the way through SQLite."""
    return getattr(error, "sqlite_errorcode", 1) == _INTERRUPT
