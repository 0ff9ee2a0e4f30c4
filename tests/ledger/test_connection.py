"""The one writer and its files: who owns them, who may read them, and what happens to them."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.connection import open_reader
from ledger.errors import Kind, LedgerBusy, LedgerUnavailable
from ledger.queries import calls
from ledger.sqlite import STATEMENTS_KEPT, sqlite3
from policies.verdict import Action
from tests.ledger.world import VAULT_KEY, World, a_ceiling, a_policy, a_pull

ROOT = Path(__file__).resolve().parents[2]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_files_are_the_owners_alone(world: World) -> None:
    world.decided(world.ask("a"))
    files = {path.name: mode(path) for path in world.data.iterdir()}
    assert files == {
        "ledger.db": 0o600,
        "ledger.db-wal": 0o600,
        "ledger.db-shm": 0o600,
        "ledger.lock": 0o600,
    }


def test_an_open_file_is_closed_to_others_at_the_next_start(world: World) -> None:
    world.store.close()
    (world.data / "ledger.db").chmod(0o644)
    world.store = world.opened()
    assert mode(world.data / "ledger.db") == 0o600


def test_every_connection_has_the_pragmas(world: World) -> None:
    wanted = {
        "journal_mode": "wal",
        "synchronous": 2,
        "busy_timeout": 5000,
        "wal_autocheckpoint": 0,
        "journal_size_limit": -1,
        "cache_size": -65536,
        "temp_store": 2,
        "foreign_keys": 1,
        "mmap_size": 0,
        "trusted_schema": 0,
        "page_size": 4096,
        "auto_vacuum": 2,
    }
    assert {name: world.conn.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted} == wanted


def test_what_a_start_runs_pushes_no_statement_of_a_call_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pysqlite3 drops those used least so far, which would be the newest."""
    told: set[str] = set()
    kept: list[int] = []
    connect = sqlite3.connect

    class Counting(sqlite3.Connection):
        def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
            told.add(sql)
            return super().execute(sql, *rest)

    def counting(*place: Any, cached_statements: int = 0, **rest: Any) -> sqlite3.Connection:
        kept.append(cached_statements)
        return connect(*place, cached_statements=cached_statements, factory=Counting, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(sqlite3, "connect", counting)
        world = World(tmp_path)
        at_start = len(told)
        world.decided(world.ask())
        world.settle("a")
        world.store.close()
    assert STATEMENTS_KEPT in kept
    assert at_start < len(told) < STATEMENTS_KEPT


def test_a_second_store_is_told_who_owns_the_folder(world: World) -> None:
    with pytest.raises(LedgerBusy, match=rf"owns .*data \(pid {os.getpid()}\)"):
        world.opened()
    assert world.decided(world.ask("a")).verdict.action is Action.ALLOW


def test_a_store_of_another_process_is_told_who_owns_the_folder(world: World) -> None:
    code = (
        "import sys; from pathlib import Path; from ledger.store import LedgerBusy, Store\n"
        f"try: Store.open(Path(sys.argv[1]), {VAULT_KEY!r}, lambda: 0)\n"
        "except LedgerBusy as busy: print(busy)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(world.data)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"(pid {os.getpid()})" in done.stdout


def test_a_closed_store_can_be_opened_again(world: World) -> None:
    world.reopen()
    assert world.decided(world.ask("a")).verdict.action is Action.ALLOW


# Readers


def test_a_reader_cannot_write(world: World) -> None:
    reader = open_reader(world.data)
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("DELETE FROM event")
    reader.close()


def test_a_reader_sees_what_was_committed_after_it_was_opened(world: World) -> None:
    reader = open_reader(world.data)
    assert list(calls(reader)) == []
    world.decided(world.ask("a"))
    assert [row["id"] for row in calls(reader)] == ["a"]
    reader.close()


def test_a_ledger_can_be_read_when_no_store_is_open(world: World) -> None:
    world.decided(world.ask("a"))
    world.store.close()
    assert [row["id"] for row in world.calls()] == ["a"]
    world.store = world.opened()


def test_a_folder_name_with_odd_characters_can_be_read(tmp_path: Path) -> None:
    odd = World(tmp_path / "what? 100% #1")
    odd.decided(odd.ask("a"))
    assert len(odd.calls()) == 1
    odd.store.close()


def test_a_ledger_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable) as told:
        open_reader(tmp_path)
    assert told.value.kind is Kind.MISSING
    assert list(tmp_path.iterdir()) == []


# What may go wrong. Nothing passes, nothing is lost, and it heals where it can.


def unavailable(world: World, kind: Kind) -> str:
    """Nothing can be admitted, settled, pulled; and the memory did not move. What is told."""
    pulls = world.store.pulls
    acts: list[Callable[[], object]] = [
        lambda: world.decided(world.ask("new", body="new")),
        lambda: world.settle("open"),
        lambda: world.store.pull(a_pull()),
        lambda: world.read_fast("r"),
    ]
    told = [failure_of(act) for act in acts]
    assert {failure.kind for failure in told} == {kind}
    assert world.store.pulls is pulls
    return str(told[0])


def failure_of(act: Callable[[], object]) -> LedgerUnavailable:
    with pytest.raises(LedgerUnavailable) as told:
        act()
    return told.value


def healed(world: World) -> None:
    assert world.decided(world.ask("new", body="new")).verdict.action is Action.ALLOW
    assert world.settle("open") is True
    assert world.shown("open")["state"] == "done"
    assert len(world.calls()) == 2


def test_a_locked_ledger_refuses_until_the_lock_is_gone(world: World) -> None:
    world.store.close()
    world.store = world.opened(busy_seconds=0.02)
    world.decided(world.ask("open"))
    outsider = sqlite3.connect(world.data / "ledger.db", isolation_level=None)
    outsider.execute("BEGIN EXCLUSIVE")
    assert "another program holds a lock" in unavailable(world, Kind.LOCKED)
    outsider.execute("ROLLBACK")
    outsider.close()
    healed(world)


def test_a_full_disk_refuses_until_there_is_room(world: World) -> None:
    """SQLite's own limit on pages gives the error that a full disk gives."""
    world.decided(world.ask("open"))
    pages = world.conn.execute("PRAGMA page_count").fetchone()[0]
    world.conn.execute(f"PRAGMA max_page_count={pages}")
    world.policy = a_policy(a_ceiling(10**6))
    failure, passed = None, 0
    while failure is None and passed < 1000:
        try:
            world.decided(world.read(f"r{passed}"))
            passed += 1
        except LedgerUnavailable as full:
            failure = full
    assert failure is not None
    assert failure.kind is Kind.FULL
    # Whatever was told to have passed is there, and nothing else is.
    assert len(world.calls(limit=2000)) == passed + 1
    window = world.store._memory.windows.get((world.policy.ceilings[0].id, "r1"))
    assert window is not None
    assert sum(window.counts) == passed
    world.conn.execute("PRAGMA max_page_count=1000000")
    assert world.decided(world.read("last")).verdict.action is Action.ALLOW
    assert len(world.calls(limit=2000)) == passed + 2
    assert world.settle("open") is True


def test_a_read_only_ledger_refuses_until_it_can_be_written(world: World) -> None:
    world.decided(world.ask("open"))
    world.conn.execute("PRAGMA query_only=ON")
    assert "cannot be written" in unavailable(world, Kind.READ_ONLY)
    world.conn.execute("PRAGMA query_only=OFF")
    healed(world)


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerUnavailable):
        World(tmp_path / "file" / "data")


def corrupt(world: World) -> bytes:
    """Overwrite the pages of the tables while nobody looks. What was there before."""
    world.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    world.conn.execute("PRAGMA cache_size=0")
    with (world.data / "ledger.db").open("r+b") as file:
        whole = file.read()
        file.seek(4096)
        file.write(b"\xa5" * (len(whole) - 4096))
    return whole


def test_a_damaged_ledger_refuses_for_good(world: World) -> None:
    world.decided(world.ask("open"))
    whole = corrupt(world)
    assert "damaged" in unavailable(world, Kind.CORRUPT)
    with (world.data / "ledger.db").open("r+b") as file:
        file.write(whole)
    unavailable(world, Kind.CORRUPT)


def test_a_damaged_ledger_is_told_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "ledger.db").write_bytes(b"this is no database, however long one looks at it" * 99)
    with pytest.raises(LedgerUnavailable) as told:
        World(tmp_path)
    assert told.value.kind is Kind.CORRUPT


@pytest.mark.parametrize("name", ["ledger.db", "ledger.db-wal", "ledger.lock"])
def test_a_file_that_was_removed_is_noticed(world: World, name: str) -> None:
    world.decided(world.ask("open"))
    aside = world.data / "aside"
    (world.data / name).rename(aside)
    assert name in unavailable(world, Kind.MISSING)
    aside.rename(world.data / name)
    healed(world)


@pytest.mark.parametrize("name", ["ledger.db", "ledger.lock"])
def test_a_file_that_was_replaced_is_noticed(world: World, name: str) -> None:
    world.decided(world.ask("open"))
    copy = world.data / "copy"
    shutil.copy(world.data / name, copy)
    copy.rename(world.data / name)
    assert "put them back" in unavailable(world, Kind.MISSING)


def test_what_could_not_be_written_is_not_replayed_later(world: World) -> None:
    """A write whose admission failed holds no claim: the retry goes through."""
    world.decided(world.ask("open"))
    world.conn.execute("PRAGMA query_only=ON")
    for _ in range(3):
        with pytest.raises(LedgerUnavailable):
            world.decided(world.ask("new", body="new", key="k1"))
    world.conn.execute("PRAGMA query_only=OFF")
    assert world.decided(world.ask("new", body="new", key="k1")).verdict.action is Action.ALLOW
