"""Long answers of claimed writes: one sealed file each in DATA/answers, as long as its claim lives.

A file is written while its answer flows, by whatever process lets it flow, under a key of its own;
key, name and length stand sealed in the answer's row (vault.py), so that without the row the file
is noise. It is a row of parts, each encrypted with AES-GCM; number and end are in the nonce, so
that none can be left out, moved or cut off. Whatever is not whole is no answer.
"""

import fcntl
import os
import secrets
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ledger.errors import LedgerError
from ledger.records import AnswerFile
from ledger.sqlite import sqlite3

ANSWER_FILE_BYTES_MAX = 64 * 1024 * 1024  # a longer answer is not kept for replay
ANSWER_FILES_BYTES_MAX = 4 * 1024**3  # all of them together; beyond it no further one is kept
PART_BYTES = 64 * 1024  # what is sealed, and read again, at once

_TAG_BYTES = 16
_KEY_BYTES = 32
_UNFINISHED = ".part"


class AnswerFiles:
    """The directory. Any process may write to it; the store's alone names and removes files."""

    def __init__(self, data: Path) -> None:
        self._directory = data / "answers"

    def begin(self) -> "AnswerWriter | None":
        """A new file; None where there is no room for one, or it cannot be made."""
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            if self._reserved_bytes() + ANSWER_FILE_BYTES_MAX > ANSWER_FILES_BYTES_MAX:
                return None
            return AnswerWriter(self._directory / (secrets.token_hex(16) + _UNFINISHED))
        except OSError:
            return None

    def _reserved_bytes(self) -> int:
        """What is there, and what those that are being written may come to."""
        with os.scandir(self._directory) as entries:
            return sum(
                ANSWER_FILE_BYTES_MAX if entry.name.endswith(_UNFINISHED) else _size(entry)
                for entry in entries
            )

    def adopt(self, file: AnswerFile, claim: int) -> str | None:
        """Name a finished file after the row of its claim; the name, or None if it is gone."""
        name = f"{claim}-{file.name.removesuffix(_UNFINISHED)}"
        try:
            (self._directory / file.name).rename(self._directory / name)
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

    def sweep(self, conn: sqlite3.Connection) -> int:
        """Remove the files that no row of an answer names; those being written stay. How many."""
        try:
            names = os.listdir(self._directory)
        except FileNotFoundError:
            return 0
        gone = [name for name in names if not self._is_wanted(conn, name)]
        for name in gone:
            with suppress(OSError):
                (self._directory / name).unlink()
        return len(gone)

    def _is_wanted(self, conn: sqlite3.Connection, name: str) -> bool:
        if name.endswith(_UNFINISHED):
            return _is_locked(self._directory / name)
        claim = name.partition("-")[0]
        if not (claim.isascii() and claim.isdecimal() and len(claim) < 19):
            return False
        row = conn.execute("SELECT file FROM answer WHERE claim = ?", (int(claim),)).fetchone()
        return row is not None and row[0] == name


class AnswerWriter:
    """One file on its way. `add` until it is False or the answer ends; then `finish`, or `drop`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._handle = os.open(path, flags, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as long as this process lives
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._cipher = AESGCM(self._key)
        self._waiting = bytearray()
        self._parts = 0
        self._size_bytes = 0
        self._is_open = True

    def add(self, chunk: bytes) -> bool:
        """More of the answer. False: it is too long, or the disk takes no more; nothing is kept."""
        if not self._is_open:
            return False
        self._size_bytes += len(chunk)
        if self._size_bytes > ANSWER_FILE_BYTES_MAX:
            self.drop()
            return False
        self._waiting += chunk
        try:
            while len(self._waiting) > PART_BYTES:  # the last part is never an empty one
                self._write(bytes(self._waiting[:PART_BYTES]), last=False)
                del self._waiting[:PART_BYTES]
        except OSError:
            self.drop()
            return False
        return True

    def finish(self) -> AnswerFile | None:
        """Bring it to the disk, which takes a while. None: it is not kept."""
        if not self._is_open:
            return None
        try:
            self._write(bytes(self._waiting), last=True)
            os.fsync(self._handle)
        except OSError:
            self.drop()
            return None
        return AnswerFile(self._path.name, self._key, self._size_bytes)

    def release(self) -> None:
        """It has been adopted, or nobody wants it: then it is swept away."""
        if self._is_open:
            self._is_open = False
            os.close(self._handle)

    def drop(self) -> None:
        """It is not wanted."""
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
        self.release()

    def __del__(self) -> None:
        if hasattr(self, "_is_open"):
            self.release()

    def _write(self, clear: bytes, *, last: bool) -> None:
        sealed = self._cipher.encrypt(_nonce(self._parts, last=last), clear, None)
        self._parts += 1
        while sealed:
            sealed = sealed[os.write(self._handle, sealed) :]


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
            clear = self._cipher.decrypt(_nonce(self._parts, last=last), sealed, None)
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


def _nonce(part: int, *, last: bool) -> bytes:
    """Unique under a key that seals one file only."""
    return part.to_bytes(11) + bytes((last,))


def _sealed_bytes(size_bytes: int) -> int:
    return size_bytes + _TAG_BYTES * max(1, -(-size_bytes // PART_BYTES))


def _size(entry: "os.DirEntry[str]") -> int:
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0


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
