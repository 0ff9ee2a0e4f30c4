"""A copy of the ledger while it is in use: whole or not at all, and never over another file."""

import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ledger import backups
from ledger.backups import backup
from ledger.checks import checked
from ledger.connection import open_file, open_reader
from ledger.errors import Kind, LedgerError, LedgerUnavailable
from ledger.sqlite import sqlite3
from ledger.whole_file import new_file
from tests.ledger.test_checks import Pressed
from tests.ledger.world import START_US, World


@pytest.fixture
def reader(world: World) -> Iterator[sqlite3.Connection]:
    opened = open_reader(world.data)
    yield opened
    opened.close()


def filled(world: World) -> None:
    world.admit(world.ask("a"), world.read("b"), world.ask("c", body="y"))
    world.settle("a")
    world.settle("c", status=None, complete=False)


def everything(conn: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    tables = conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")
    names = [name for (name,) in tables.fetchall() if not name.startswith("sqlite_stat")]
    return {name: conn.execute(f'SELECT * FROM "{name}"').fetchall() for name in names}


def test_a_copy_holds_every_row_and_only_its_owner_may_read_it(
    world: World, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    filled(world)
    made = backup(reader, tmp_path / "copy.db")
    assert (made.events, made.at_us) == (5, START_US)
    assert made.size_bytes == (tmp_path / "copy.db").stat().st_size
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o600
    copy = open_file(made.path)
    assert everything(copy) == everything(reader)
    assert all(finding.is_ok and not finding.skipped for finding in checked(copy))
    copy.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.db", "data"]


def test_a_copy_of_an_empty_ledger_tells_no_time(
    reader: sqlite3.Connection, tmp_path: Path
) -> None:
    made = backup(reader, tmp_path / "copy.db")
    assert (made.events, made.at_us) == (0, None)


def test_a_copy_is_a_ledger_to_go_on_with(
    world: World, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    filled(world)
    (tmp_path / "restored").mkdir()
    backup(reader, tmp_path / "restored" / "ledger.db")
    restored = World(tmp_path / "restored")
    assert restored.store.recovered.calls == 1
    assert {row["id"]: row["state"] for row in restored.calls()} == {
        "a": "done",
        "b": "unknown",
        "c": "unknown",
    }
    restored.store.close()


def test_whoever_writes_goes_on_meanwhile(world: World, tmp_path: Path) -> None:
    """The copy is of one moment: every call that is in it is there with all that was committed."""
    stop = threading.Event()
    copies: list[Path] = []

    def copying() -> None:
        reader = open_reader(world.data)
        while not stop.is_set():
            copies.append(backup(reader, tmp_path / f"copy{len(copies)}.db").path)
        reader.close()

    thread = threading.Thread(target=copying)
    thread.start()
    try:
        for number in range(200):
            world.admit(world.ask(f"w{number}", body=f"{number}"))
            world.settle(f"w{number}")
    finally:
        stop.set()
        thread.join()
    for path in copies:
        copy = open_file(path)
        assert [finding for finding in checked(copy) if not finding.is_ok] == []
        copy.close()


@pytest.mark.parametrize("force", [False, True])
def test_a_file_that_is_there_is_replaced_only_by_force(
    reader: sqlite3.Connection, tmp_path: Path, force: bool
) -> None:
    path = tmp_path / "copy.db"
    path.write_text("precious")
    path.chmod(0o644)
    if force:
        backup(reader, path, force=True)
        assert path.read_bytes().startswith(b"SQLite format 3")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        return
    with pytest.raises(LedgerError, match=r"copy\.db exists; .*--force"):
        backup(reader, path)
    assert path.read_text() == "precious"


@pytest.mark.parametrize("force", [False, True])
def test_the_ledger_is_not_copied_over_itself(
    world: World, reader: sqlite3.Connection, tmp_path: Path, force: bool
) -> None:
    (tmp_path / "link").symlink_to(world.data)
    for path in (world.data / "ledger.db", tmp_path / "link" / "ledger.db"):
        with pytest.raises(LedgerError, match="is the ledger itself"):
            backup(reader, path, force=force)
    world.decided(world.read("a"))


def test_a_dangling_link_is_not_written_through(reader: sqlite3.Connection, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LedgerError, match="exists"):
        backup(reader, tmp_path / "link")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("name", ["none/copy.db", "file:x?mode=ro", "caf\u00e9 '%\".db"])
def test_odd_names_are_taken_as_they_are(
    reader: sqlite3.Connection, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    if "/" in name:
        with pytest.raises(LedgerError, match="cannot be written: No such file or directory"):
            backup(reader, path)
        return
    backup(reader, path)
    assert path.read_bytes().startswith(b"SQLite format 3")


def test_a_directory_is_no_place_for_it(reader: sqlite3.Connection, tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="is a directory"):
        backup(reader, tmp_path, force=True)


def test_a_damaged_ledger_is_not_copied(world: World, tmp_path: Path) -> None:
    for number in range(60):
        world.decided(world.read(f"r{number}"))
    world.store.close()
    path = world.data / "ledger.db"
    whole = path.read_bytes()
    path.write_bytes(whole[: 4096 * 3] + b"\x5a" * 4096 + whole[4096 * 4 :])
    reader = open_reader(world.data)
    with pytest.raises(LedgerUnavailable) as told:
        backup(reader, tmp_path / "copy.db")
    reader.close()
    assert told.value.kind is Kind.CORRUPT
    assert str(path) in str(told.value)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    path.write_bytes(whole)
    world.store = world.opened()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux")
def test_a_full_disk_leaves_nothing(
    world: World, reader: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full by a limit on the size of files of this process."""
    import resource
    import signal

    filled(world)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(LedgerError, match=r"copy\.db cannot be written"):
            backup(reader, tmp_path / "copy.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


@pytest.mark.usefixtures("heard")
def test_ctrl_c_ends_it_and_leaves_nothing(
    world: World, reader: sqlite3.Connection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(world)
    monkeypatch.setattr(backups, "_STEPS_BETWEEN_SIGNALS", 10)
    with pytest.raises(KeyboardInterrupt):
        backup(Pressed(reader), tmp_path / "copy.db")  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    backup(reader, tmp_path / "copy.db")


# A file that is there whole or not at all


def test_a_new_file_is_there_when_it_is_done(tmp_path: Path) -> None:
    with new_file(tmp_path / "f", force=False) as unfinished:
        unfinished.write_text("x")
        assert not (tmp_path / "f").exists()
    assert (tmp_path / "f").read_text() == "x"
    assert os.listdir(tmp_path) == ["f"]


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "f", force=False):
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_who_comes_first_keeps_the_name(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with pytest.raises(LedgerError, match="exists"), new_file(path, force=False):
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"
    assert os.listdir(tmp_path) == ["f"]
