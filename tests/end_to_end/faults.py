"""Faults of the ledger's disk, made for real under a running proxy, and ended.

Each is a context manager over the data directory; the fault stands inside its block.
"""

import os
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import NoReturn

import pytest

from ledger.sqlite import sqlite3

DISK = "size=8m,mode=0711"
PAGE_BYTES = 4096


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Another program has a transaction open, and does not end it."""
    with closing(sqlite3.connect(data / "ledger.db", isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield


@contextmanager
def read_only(data: Path) -> Iterator[None]:
    """What is on the disk cannot be changed any more, also through files that are open."""
    files = [str(data / name) for name in ("ledger.db", "ledger.db-wal")]
    _as_root("chattr", "+i", *files)
    try:
        yield
    finally:
        _as_root("chattr", "-i", *files)


@contextmanager
def missing(data: Path) -> Iterator[None]:
    """The file is gone from its folder; the proxy has it open still."""
    away = data / "moved-away"
    (data / "ledger.db").rename(away)
    try:
        yield
    finally:
        away.rename(data / "ledger.db")


@contextmanager
def full(data: Path) -> Iterator[None]:
    """Not one page is left on the disk, whoever gives one back meanwhile; for a folder on a
    `small_disk`."""
    filler, over = data / "filler", threading.Event()
    with filler.open("wb", buffering=0) as file:
        _fill(file)

        def fill_again() -> None:
            while not over.wait(0.005):
                _fill(file)

        filling = threading.Thread(target=fill_again)
        filling.start()
        try:
            yield
        finally:
            over.set()
            filling.join()
            filler.unlink()


def _fill(file: FileIO) -> None:
    with suppress(OSError):
        while True:
            file.write(bytes(PAGE_BYTES))


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A few megabytes, mounted at this folder."""
    folder.mkdir()
    _as_root("mount", "-t", "tmpfs", "-o", DISK, "tmpfs", str(folder))
    try:
        yield
    finally:
        _as_root("umount", "--lazy", str(folder))


def damage(data: Path) -> None:
    """Every page but the first is overwritten, for good."""
    with closing(sqlite3.connect(data / "ledger.db", isolation_level=None)) as other:
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with (data / "ledger.db").open("r+b") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        file.seek(PAGE_BYTES)
        file.write(b"\xa5" * (size_bytes - PAGE_BYTES))


@contextmanager
def spoiled(data: Path) -> Iterator[None]:
    """A row among the newest tells what nobody writes. While no proxy runs, before and after."""
    file = data / "ledger.db"
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        seq, seen = other.execute(
            "SELECT seq, seen FROM event WHERE type = 'call.outcome' ORDER BY seq DESC LIMIT 1"
        ).fetchone()
        other.execute("UPDATE event SET seen = '{' WHERE seq = ?", (seq,))
    try:
        yield
    finally:
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("UPDATE event SET seen = ? WHERE seq = ?", (seen, seq))


def copy(data: Path, to: Path) -> None:
    """A backup of the ledger, made while the proxy runs."""
    with closing(sqlite3.connect(data / "ledger.db", isolation_level=None)) as other:
        other.execute("VACUUM INTO ?", (str(to),))


def _as_root(*command: str) -> None:
    if os.geteuid() != 0:
        _missing(f"only root can {command[0]}")
    subprocess.run(command, check=True, timeout=30)


def _missing(what: str) -> NoReturn:
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)
