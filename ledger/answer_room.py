"""How much room long answers may take: on the disk, all of them, and in memory, what waits for it.

Counted here as they come and go, and now and then anew, since other processes write and remove
them too. Files are neither made nor removed here.
"""

import os
from collections.abc import Callable
from pathlib import Path
from threading import Lock, RLock

ANSWER_FILE_BYTES_MAX = 64 * 1024 * 1024  # a longer answer is not kept for replay
ANSWER_FILES_BYTES_MAX = 4 * 1024**3  # all of them together; beyond it no further one is kept
QUEUED_BYTES_MAX = 16 * 1024 * 1024  # of all answers of a process, what its disk has yet to take
COUNT_SECONDS = 10.0  # how old the count of what others wrote may be
SPARED_BYTES_MAX = 512 * 1024 * 1024  # of the disk, or a twentieth of it: for the ledger alone

UNFINISHED = ".part"


class Room:
    """Of one process. Safe in any thread; the disk is asked in `take` and `is_spared` alone."""

    def __init__(
        self, directory: Path, disk: Callable[[Path], os.statvfs_result] = os.statvfs
    ) -> None:
        self._directory = directory
        self._disk = disk
        self._lock = RLock()  # never held while the disk is asked; a writer may die inside it
        self._counting = Lock()
        self._counted_seconds: float | None = None
        self._there_bytes = 0  # of files that are finished, or others' to finish
        self._since_bytes = 0  # of them, what was finished here since the last count began
        self._own: set[str] = set()  # being written here: each may come to the most
        self._queued_bytes = 0

    def take(self, name: str, now_seconds: float) -> bool:
        """Room on the disk for one more, until `give`. Raises OSError."""
        if self._counted_seconds is None or now_seconds - self._counted_seconds >= COUNT_SECONDS:
            self._count(now_seconds)
        if not self.is_spared(ANSWER_FILE_BYTES_MAX):
            return False
        with self._lock:
            reserved_bytes = self._there_bytes + ANSWER_FILE_BYTES_MAX * (len(self._own) + 1)
            if reserved_bytes > ANSWER_FILES_BYTES_MAX:
                return False
            self._own.add(name)
            return True

    def give(self, name: str, kept_bytes: int = 0) -> None:
        """It is not written any more; what is kept of it. A second time this does nothing."""
        with self._lock:
            if name in self._own:
                self._own.remove(name)
                self._there_bytes += kept_bytes
                self._since_bytes += kept_bytes

    def is_spared(self, more_bytes: int = 0) -> bool:
        """Whether with so much more the disk keeps what is the ledger's. Raises OSError."""
        disk = self._disk(self._directory)
        spared_bytes = min(SPARED_BYTES_MAX, disk.f_blocks * disk.f_frsize // 20)
        return disk.f_bavail * disk.f_frsize - more_bytes >= spared_bytes

    def queue(self, size_bytes: int) -> bool:
        """Whether so much more may wait for the disk; then until `unqueue`."""
        with self._lock:
            if self._queued_bytes + size_bytes > QUEUED_BYTES_MAX:
                return False
            self._queued_bytes += size_bytes
            return True

    def unqueue(self, size_bytes: int) -> None:
        with self._lock:
            self._queued_bytes -= size_bytes

    def _count(self, now_seconds: float) -> None:
        """Whatever comes meanwhile is counted twice rather than not at all, until the next."""
        if not self._counting.acquire(blocking=self._counted_seconds is None):
            return
        try:
            with self._lock:
                own, self._since_bytes = set(self._own), 0
            there_bytes = 0
            with os.scandir(self._directory) as entries:
                for entry in entries:
                    if entry.name not in own:
                        there_bytes += _size(entry)
            with self._lock:
                self._there_bytes = there_bytes + self._since_bytes
            self._counted_seconds = now_seconds
        finally:
            self._counting.release()


def _size(entry: "os.DirEntry[str]") -> int:
    if entry.name.endswith(UNFINISHED):
        return ANSWER_FILE_BYTES_MAX  # what it may come to
    try:
        return entry.stat(follow_symlinks=False).st_size
    except OSError:
        return 0
