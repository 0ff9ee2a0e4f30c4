"""Long answers of claimed writes: one sealed file each in DATA/answers, as long as its claim lives.

A file is written while its answer flows (answer_writer.py), by whatever process lets it flow, under
a key of its own; key, name and length stand sealed in the answer's row (vault.py), so that without
the row the file is noise. It is a row of parts, each encrypted with AES-GCM; number and end are in
the nonce, so that none can be left out, moved or cut off. Whatever is not whole is no answer.
"""

import fcntl
import os
import secrets
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ledger.answer_room import UNFINISHED, Room
from ledger.answer_writer import PART_BYTES, AnswerWriter, Run, nonce
from ledger.errors import LedgerError
from ledger.records import AnswerFile
from ledger.sqlite import sqlite3

YOUNG_SECONDS = 60.0  # what is younger may be on its way to its lock, or to its row
WRITE_THREADS = 2  # in each process

_TAG_BYTES = 16


class AnswerFiles:
    """The directory. Any process may write to it; the store's alone names and removes files."""

    def __init__(
        self,
        data: Path,
        run: Run | None = None,
        disk: Callable[[Path], os.statvfs_result] = os.statvfs,
    ) -> None:
        self._directory = data / "answers"
        self._room = Room(self._directory, disk)
        self._run = run or ThreadPoolExecutor(WRITE_THREADS, "answers").submit

    def begin(self, now_seconds: float) -> AnswerWriter:
        """A new file, made with its first bytes if there is room for it."""
        path = self._directory / (secrets.token_hex(16) + UNFINISHED)
        return AnswerWriter(path, self._room, self._run, now_seconds)

    def adopt(self, file: AnswerFile, claim: int) -> str | None:
        """Name a finished file after the row of its claim; the name, or None if it is gone.

        The name is on the disk when this returns. A second time, after a rollback, it is the same.
        """
        name = f"{claim}-{file.name.removesuffix(UNFINISHED)}"
        try:
            with suppress(FileNotFoundError):
                (self._directory / file.name).rename(self._directory / name)
            (self._directory / name).stat()
            _sync(self._directory)
        except OSError:
            return None
        return name

    def has(self, file: AnswerFile) -> bool:
        """Whether a file of this name and length is there."""
        try:
            return (self._directory / file.name).stat().st_size == _sealed_bytes(file.size_bytes)
        except OSError:
            return False

    def open(self, file: AnswerFile) -> "AnswerReader | None":
        """All of it is read and checked first, so call it where that may take a while. None when
        it is not there whole, as it was written."""
        try:
            reader = AnswerReader(self._directory / file.name, file)
        except OSError:
            return None
        try:
            while reader.read():
                pass
            reader.rewind()
        except (LedgerError, OSError):
            reader.close()
            return None
        return reader

    def sweep(self, conn: sqlite3.Connection, now_us: int) -> int:
        """Remove the files that no row of an answer names; those being written stay, and the
        youngest. How many."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return 0
        gone = [name for name in names if not self._is_wanted(conn, name, now_us)]
        for name in gone:
            with suppress(OSError):
                (self._directory / name).unlink()
        return len(gone)

    def _is_wanted(self, conn: sqlite3.Connection, name: str, now_us: int) -> bool:
        if _is_young(self._directory / name, now_us):
            return True
        if name.endswith(UNFINISHED):
            return _is_locked(self._directory / name)
        claim = name.partition("-")[0]
        if not (claim.isascii() and claim.isdecimal() and len(claim) < 19):
            return False
        row = conn.execute("SELECT file FROM answer WHERE claim = ?", (int(claim),)).fetchone()
        return row is not None and row[0] == name


class AnswerReader:
    """One file, part by part. Made by `AnswerFiles.open`."""

    def __init__(self, path: Path, file: AnswerFile) -> None:
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._cipher = AESGCM(file.key)
        self.size_bytes = file.size_bytes
        self._parts = 0
        self._left_bytes = file.size_bytes
        self._is_open = True

    def read(self) -> bytes:
        """The next part; empty when all was read. Raises LedgerError when it is not as it was."""
        if self._left_bytes <= 0:
            return b""
        clear_bytes = min(PART_BYTES, self._left_bytes)
        place = self._parts * (PART_BYTES + _TAG_BYTES)
        sealed = os.pread(self._handle, clear_bytes + _TAG_BYTES, place)
        last = clear_bytes == self._left_bytes
        try:
            clear = self._cipher.decrypt(nonce(self._parts, last=last), sealed, None)
        except (InvalidTag, ValueError):
            raise LedgerError("a stored answer is not as it was written") from None
        self._parts += 1
        self._left_bytes -= len(clear)
        return clear

    def rewind(self) -> None:
        self._parts, self._left_bytes = 0, self.size_bytes

    def close(self) -> None:
        if self._is_open:
            self._is_open = False
            os.close(self._handle)

    def __del__(self) -> None:
        if hasattr(self, "_is_open"):
            self.close()


def _sealed_bytes(size_bytes: int) -> int:
    return size_bytes + _TAG_BYTES * max(1, -(-size_bytes // PART_BYTES))


def _is_young(path: Path, now_us: int) -> bool:
    """A clock that was set back does not keep a file for longer."""
    try:
        written_us = path.stat(follow_symlinks=False).st_mtime_ns // 1_000
    except OSError:
        return False
    return abs(now_us - written_us) < YOUNG_SECONDS * 1e6


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_locked(path: Path) -> bool:
    """Whether a process that lives is writing it."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(handle)
