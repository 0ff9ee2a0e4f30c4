"""Long bodies that nobody needs yet: on the disk, so that they take no memory while they are waited
for.

A file here has no name, and a key that only this process knows: whatever becomes of the process,
nothing that an agent sent stays behind to be read. Who adds to a body waits for no disk: what is
not written yet is in memory, and counted there.
"""

import asyncio
import os
import secrets
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import structlog
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ledger.answer_room import Room

log = structlog.get_logger()

PART_BYTES = 256 * 1024  # of a body, sealed and written at once
SPOOL_FILES_MAX = 64  # each is an open file of this process
SPOOL_BYTES_MAX = 4 * 1024**3  # all of them together, on the disk

_KEY_BYTES = 32
_NONCE_BYTES = 12
_TAG_BYTES = 16
_THREADS = 2


class Spool:
    """The files of one process, in a directory that must exist."""

    def __init__(self, directory: Path) -> None:
        self.room = Room(directory)
        self.threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="spool")
        self.files = 0
        self.size_bytes = 0
        self._directory = directory

    def begin(self, freed: Callable[[int], None]) -> "Spooled | None":
        """For one body; None where there is no room for more. `freed` is told how many of its
        bytes are in memory no longer."""
        if self.files >= SPOOL_FILES_MAX or self.size_bytes >= SPOOL_BYTES_MAX:
            return None
        self.files += 1
        return Spooled(self, SealedFile(self._directory, self.room), freed)


class Spooled:
    """One body. Used in the thread of the loop. `why` it could not be kept; then none of it is.

    At the end `close`, in any case.
    """

    def __init__(self, spool: Spool, file: "SealedFile", freed: Callable[[int], None]) -> None:
        self.why = ""
        self.written_bytes = 0
        self._spool = spool
        self._file = file
        self._freed = freed
        self._waiting: list[bytes] = []
        self._waiting_bytes = 0
        self._writing: asyncio.Future[None] | None = None
        self._is_closed = False

    def add(self, part: bytes) -> None:
        self._waiting.append(part)
        self._waiting_bytes += len(part)
        self._write_on()

    def _write_on(self) -> None:
        if self._writing is not None or self._waiting_bytes < PART_BYTES or self.why:
            return
        parts, size_bytes = self._waiting, self._waiting_bytes
        self._waiting, self._waiting_bytes = [], 0
        loop = asyncio.get_running_loop()
        self._writing = loop.run_in_executor(self._spool.threads, self._file.write, parts)
        self._writing.add_done_callback(partial(self._written, size_bytes))

    def _written(self, size_bytes: int, done: "asyncio.Future[None]") -> None:
        self._writing = None
        failure = None if done.cancelled() else done.exception()
        if failure is not None:
            self._give_up(failure)
        if self._is_closed:
            return
        self.written_bytes += size_bytes
        self._spool.size_bytes += size_bytes
        self._freed(size_bytes)
        self._write_on()

    def _give_up(self, failure: BaseException) -> None:
        self.why = str(failure) or repr(failure)
        log.error("spool.failed", error=self.why)

    async def rest(self) -> None:
        """Until nothing of it is on its way to the disk."""
        while self._writing is not None:
            await asyncio.wait([self._writing])

    async def read(self) -> bytes:
        """All of it, once it rests; nothing where it could not be kept (`why`)."""
        if self.why:
            return b""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._spool.threads, self._file.read, self._waiting)
        except Exception as failure:
            self._give_up(failure)
            return b""

    def close(self) -> None:
        """Nobody wants it from here any more. A second time this does nothing."""
        if self._is_closed:
            return
        self._is_closed = True
        self._waiting = []
        self._spool.files -= 1
        self._spool.size_bytes -= self.written_bytes


class SealedFile:
    """Without a name, and read by who wrote it alone. It is gone when nobody holds this."""

    def __init__(self, directory: Path, room: Room) -> None:
        self._directory = directory
        self._room = room
        self._cipher = AESGCM(secrets.token_bytes(_KEY_BYTES))
        self._sizes_bytes: list[int] = []
        self._handle: int | None = None

    def write(self, parts: list[bytes]) -> None:
        """Behind what is there. Raises OSError."""
        clear = b"".join(parts)
        if not self._room.is_spared(len(clear)):
            raise OSError("the disk is nearly full")
        if self._handle is None:
            with tempfile.TemporaryFile(dir=self._directory, buffering=0) as file:
                self._handle = os.dup(file.fileno())
        left = memoryview(self._cipher.encrypt(self._nonce(len(self._sizes_bytes)), clear, None))
        self._sizes_bytes.append(len(clear))
        while left:
            left = left[os.write(self._handle, left) :]

    def read(self, rest: list[bytes]) -> bytes:
        """All that was written, and `rest` behind it. Raises OSError, and InvalidTag where it is
        not as it was written."""
        found, place = [], 0
        for part, size_bytes in enumerate(self._sizes_bytes):
            if self._handle is None:
                raise OSError("its file is closed")
            sealed = os.pread(self._handle, size_bytes + _TAG_BYTES, place)
            found.append(self._cipher.decrypt(self._nonce(part), sealed, None))
            place += len(sealed)
        return b"".join((*found, *rest))

    def _nonce(self, part: int) -> bytes:
        """Unique under a key that seals one file only."""
        return part.to_bytes(_NONCE_BYTES)

    def __del__(self) -> None:
        handle = self.__dict__.get("_handle")
        if handle is not None:
            os.close(handle)
