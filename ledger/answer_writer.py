"""Writes one long answer to its sealed file, behind the back of whoever lets the answer flow.

`add`, `drop` and `release` wait for no disk: what they ask for is done in another thread, in their
order. Which file it is, and who may read it, is not known here.
"""

import fcntl
import os
import secrets
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Lock

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ledger import answer_room
from ledger.answer_room import Room
from ledger.records import AnswerFile

PART_BYTES = 64 * 1024  # what is sealed, and read again, at once

_KEY_BYTES = 32
_BATCH_BYTES = 8 * PART_BYTES  # what is taken to the disk at once

Run = Callable[[Callable[[], None]], object]
"""Has it done in another thread, soon."""


class AnswerWriter:
    """One file on its way. `add` until it is False or the answer ends; then `finish`, or `drop`.

    At the end `release`, in any case. `why` it is not kept, once it is given up.
    """

    def __init__(self, path: Path, room: Room, run: Run, now_seconds: float) -> None:
        self.why = ""
        self._path = path
        self._room = room
        self._run = run
        self._began_seconds = now_seconds
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._cipher = AESGCM(self._key)
        self._state = Lock()  # over what follows; never held over anything that takes a while
        self._waiting: deque[bytes] = deque()
        self._waiting_bytes = 0
        self._size_bytes = 0
        self._is_called = False
        self._is_over = False
        self._disk = Lock()  # over what follows: no descriptor is closed under a write
        self._handle: int | None = None
        self._rest = b""
        self._parts = 0

    def add(self, chunk: bytes) -> bool:
        """More of the answer. False: it is not kept, and then nothing of it is."""
        with self._state:
            if self._is_over:
                return False
            self._size_bytes += len(chunk)
            why = self._no_more(len(chunk))
            if not why:
                self._waiting.append(chunk)
                self._waiting_bytes += len(chunk)
            calls = not why and self._waiting_bytes >= _BATCH_BYTES and not self._is_called
            self._is_called = self._is_called or calls
        if why:
            self.drop(why)
            return False
        if calls:
            self._run(self._written)
        return True

    def _no_more(self, more_bytes: int) -> str:
        if self._size_bytes > answer_room.ANSWER_FILE_BYTES_MAX:
            return "it is too long"
        return "" if self._room.queue(more_bytes) else "the disk is too slow"

    def finish(self) -> AnswerFile | None:
        """Bring it to the disk: this waits for it. None: it is not kept."""
        with self._disk:
            if not self._done(self._finish):
                return None
            with self._state:
                if self._is_over:
                    return None
                self._is_over = True
                size_bytes = self._size_bytes
            self._room.give(self._path.name, size_bytes)
            return AnswerFile(self._path.name, self._key, size_bytes)

    def release(self) -> None:
        """It has been adopted, or nobody wants it: then it is swept away."""
        self._give_up("")
        self._run(self._close)

    def drop(self, why: str = "it is not wanted") -> None:
        """It is not kept."""
        self._give_up(why)
        self._run(self._remove)

    def __del__(self) -> None:
        if hasattr(self, "_parts"):  # no thread is at it: each holds it
            self._give_up("")
            self._close()

    def _give_up(self, why: str) -> None:
        with self._state:
            self.why = self.why or why
            self._is_over = True
            left_bytes, self._waiting_bytes = self._waiting_bytes, 0
            self._waiting.clear()
        self._room.unqueue(left_bytes)
        self._room.give(self._path.name)

    # In another thread

    def _written(self) -> None:
        with self._disk:
            self._done(self._write_waiting)

    def _done(self, step: Callable[[], None]) -> bool:
        """Whether it could be done; if not, the file is given up."""
        try:
            step()
        except Exception as failure:
            self._give_up(str(failure) or repr(failure))
            self._unlink()
            return False
        return True

    def _finish(self) -> None:
        self._write_waiting()
        if self._handle is not None and not self._is_over:
            self._write([self._rest], is_end=True)
            os.fsync(self._handle)

    def _write_waiting(self) -> None:
        while (taken := self._taken()) is not None:
            try:
                self._write_parts(taken)
            finally:
                self._room.unqueue(len(taken))

    def _taken(self) -> bytes | None:
        """Some of what waits; None when nothing does. A file is made also for an empty answer."""
        with self._state:
            self._is_called = False
            chunks, size_bytes = [], 0
            while self._waiting and size_bytes < _BATCH_BYTES:
                chunks.append(self._waiting.popleft())
                size_bytes += len(chunks[-1])
            self._waiting_bytes -= size_bytes
            is_new = self._handle is None and not self._is_over
        return b"".join(chunks) if chunks or is_new else None

    def _write_parts(self, taken: bytes) -> None:
        if self._handle is None:
            self._open()
        if not self._room.is_spared():
            raise OSError("the disk is nearly full")
        clear = self._rest + taken
        end = max(0, len(clear) - 1) // PART_BYTES * PART_BYTES  # the last part is no empty one
        self._rest = clear[end:]
        starts = range(0, end, PART_BYTES)
        self._write([clear[start : start + PART_BYTES] for start in starts])

    def _open(self) -> None:
        self._path.parent.mkdir(mode=0o700, exist_ok=True)
        if not self._room.take(self._path.name, self._began_seconds):
            raise OSError("there is no room for it")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._handle = os.open(self._path, flags, 0o600)
        fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # as long as this process lives
        with self._state:
            is_over = self._is_over
        if is_over:  # and what was taken after its end is given back
            self._room.give(self._path.name)

    def _write(self, parts: list[bytes], *, is_end: bool = False) -> None:
        sealed = []
        for clear in parts:
            sealed.append(self._cipher.encrypt(nonce(self._parts, last=is_end), clear, None))
            self._parts += 1
        left = memoryview(b"".join(sealed))
        if self._handle is None:
            raise OSError("its file is closed")
        while left:
            left = left[os.write(self._handle, left) :]

    def _remove(self) -> None:
        with self._disk:
            self._unlink()

    def _unlink(self) -> None:
        if self._handle is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
        self._shut()

    def _close(self) -> None:
        with self._disk:
            self._shut()

    def _shut(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)


def nonce(part: int, *, last: bool) -> bytes:
    """Unique under a key that seals one file only."""
    return part.to_bytes(11) + bytes((last,))
