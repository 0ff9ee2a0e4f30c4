"""Whatever somebody does to the record by hand is found, and the first bad row is named."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger import verification
from ledger.backups import backup
from ledger.connection import open_file, open_reader
from ledger.errors import LedgerError, LedgerUnavailable
from ledger.sqlite import sqlite3
from ledger.verification import verify
from tests.ledger.test_migrations import first_step_ledger
from tests.ledger.trusted import (
    KEYS,
    SIGNER,
    called,
    change,
    filled,
    pruned,
    rechain,
    sealed,
    trusted,
    verified,
    with_digest,
    wrong,
)
from tests.ledger.world import START_US, World


@pytest.fixture
def kept(world: World) -> World:
    return filled(world)


@pytest.fixture(params=[1, 3, 1000])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """However many rows are read together."""
    monkeypatch.setattr(verification, "ROWS_AT_ONCE", request.param)
    return request.param


def columns(world: World) -> list[str]:
    return [row[1] for row in world.conn.execute("PRAGMA table_info(event)")]


# What is well


def test_a_record_that_nobody_touched_is_whole(kept: World, at_once: int) -> None:
    found = verified(kept.data / "ledger.db")
    assert found.problems == []
    assert (found.rows, found.last.seq, found.first_us) == (12, 12, START_US)
    assert (found.seals, found.unsealed, found.gaps, found.policies) == (1, 2, 0, 1)
    assert found.last == kept.store.head


def test_an_empty_ledger_is_whole(world: World) -> None:
    found = verified(world.data / "ledger.db")
    assert (found.problems, found.rows, found.seals, found.last_seal) == ([], 0, 0, None)


def test_a_failed_transaction_leaves_no_mark(kept: World) -> None:
    with kept.failing():
        kept.store.admit(kept.read("lost"), kept.policy, kept.judge)
        kept.store.seal(SIGNER, kept.store.head, START_US)
    called(kept, "e")
    sealed(kept)
    assert wrong(kept) == []
    assert verified(kept.data / "ledger.db").rows == 14


def test_a_commit_that_fails_leaves_no_mark(kept: World) -> None:
    def refuse(action: int, what: str | None, *_: object) -> int:
        commits = action == sqlite3.SQLITE_TRANSACTION and what == "COMMIT"
        return sqlite3.SQLITE_DENY if commits else sqlite3.SQLITE_OK

    kept.conn.set_authorizer(refuse)
    with pytest.raises(LedgerUnavailable, match="not authorized"):
        called(kept, "lost")
    kept.conn.set_authorizer(None)
    called(kept, "e")
    sealed(kept)
    assert wrong(kept) == []
    assert [row["id"] for row in kept.calls("id:lost")] == []


def test_it_goes_on_after_a_restart(kept: World) -> None:
    kept.admit(kept.read("open"))
    kept.reopen()
    called(kept, "e")
    sealed(kept)
    assert wrong(kept) == []


def test_an_old_ledger_is_chained_when_it_is_brought_up_to_date(tmp_path: Path) -> None:
    first_step_ledger(tmp_path)
    with_older = open_file(tmp_path / "ledger.db")
    with pytest.raises(LedgerError, match="an older pullcord made it"):
        verify(with_older, KEYS.public)
    with_older.close()
    world = World(tmp_path)
    trusted(world)
    assert wrong(world) == []
    assert verified(tmp_path / "ledger.db").rows > 2
    change(world, "UPDATE event SET run = 'r2' WHERE seq = 1")
    assert wrong(world) == ["row 1 was changed"]
    world.store.close()


def test_a_backup_is_looked_at_like_the_ledger(kept: World, tmp_path: Path) -> None:
    reader = open_reader(kept.data)
    made = backup(reader, tmp_path / "copy.db")
    reader.close()
    assert verified(made.path).problems == []
    copy = sqlite3.connect(made.path)
    copy.execute("UPDATE event SET tool = 'mail' WHERE seq = 4")
    copy.commit()
    copy.close()
    (problem,) = verified(made.path).problems
    assert (problem.seq, problem.call_id, problem.what) == (4, "b", "row 4 was changed")


def test_a_ledger_is_looked_at_while_it_is_written_and_pruned(kept: World) -> None:
    found, stop = [], threading.Event()

    def looking() -> None:
        while not stop.is_set():
            found.append(verified(kept.data / "ledger.db"))

    thread = threading.Thread(target=looking)
    thread.start()
    try:
        for number in range(60):
            called(kept, f"n{number}")
            sealed(kept)
            kept.wait(400)
            if number % 10 == 9:
                pruned(kept)
    finally:
        stop.set()
        thread.join()
    assert len(found) > 1
    assert [problem for each in found for problem in each.problems] == []
    assert verified(kept.data / "ledger.db").pruned > 50


def test_what_is_no_ledger_is_told(tmp_path: Path) -> None:
    sqlite3.connect(tmp_path / "other.db").execute("CREATE TABLE t (x)").connection.close()
    reader = open_file(tmp_path / "other.db")
    with pytest.raises(LedgerError, match="another program's database"):
        verify(reader, KEYS.public)
    reader.close()


# Rows


def test_a_changed_value_is_found_in_every_column(kept: World) -> None:
    """Set, changed, or taken away."""
    for column in columns(kept):
        if column in ("seq", "hash"):
            continue
        rows = kept.conn.execute(f"SELECT seq, {column} FROM event WHERE seq IN (7, 8, 9)")
        for seq, value in rows.fetchall():
            touched: Any = b"\x01" if isinstance(value, bytes) else 1 if value is None else None
            if isinstance(value, int):
                touched = value + 1
            elif isinstance(value, str):
                touched = value + "x"
            if column == "policy":
                touched = None if value else 1
            if column in ("type", "at_us") and touched is None:
                continue
            if column.endswith("digest") and value is None:
                touched = b"\x00"
            change(kept, f"UPDATE event SET {column} = ? WHERE seq = ?", touched, seq)
            assert wrong(kept)[:1] == [f"row {seq} was changed"], (column, seq, value, touched)
            change(kept, f"UPDATE event SET {column} = ? WHERE seq = ?", value, seq)
    assert wrong(kept) == []


def test_a_flipped_bit_of_a_hash_is_found(kept: World) -> None:
    for seq, value in kept.conn.execute("SELECT seq, hash FROM event").fetchall():
        flipped = bytes([value[0] ^ 1]) + value[1:]
        change(kept, "UPDATE event SET hash = ? WHERE seq = ?", flipped, seq)
        assert wrong(kept)[:1] == [f"row {seq} was changed"]
        change(kept, "UPDATE event SET hash = ? WHERE seq = ?", value, seq)
    change(kept, "UPDATE event SET hash = NULL WHERE seq = 3")
    assert wrong(kept)[:1] == ["row 3 has no hash"]


@pytest.mark.parametrize(
    "gone, told",
    [
        ((1,), "row 1 is missing between the beginning and row 2"),
        ((5,), "row 5 is missing between row 4 and row 6"),
        ((5, 6, 7), "rows 5 to 7 are missing between row 4 and row 8"),
        ((5, 9), "row 5 is missing between row 4 and row 6"),
    ],
)
def test_a_deleted_row_is_missed(
    kept: World, at_once: int, gone: tuple[int, ...], told: str
) -> None:
    for seq in gone:
        change(kept, "DELETE FROM event WHERE seq = ?", seq)
    assert wrong(kept) == [told]


def test_a_deleted_row_is_missed_also_when_the_others_close_up(kept: World) -> None:
    change(kept, "DELETE FROM event WHERE seq = 5")
    change(kept, "UPDATE event SET seq = seq - 1 WHERE seq > 5")
    assert wrong(kept)[0] == "row 5 was changed"


@pytest.mark.parametrize("first, second", [(3, 4), (4, 7), (11, 12)])
@pytest.mark.parametrize("keeps_hashes", [False, True])
def test_a_reordered_pair_is_found(
    kept: World, first: int, second: int, keeps_hashes: bool
) -> None:
    hashes = dict(kept.conn.execute("SELECT seq, hash FROM event").fetchall())
    for seq, to in ((first, 99), (second, first), (99, second)):
        change(kept, "UPDATE event SET seq = ? WHERE seq = ?", to, seq)
    change(kept, "UPDATE sqlite_sequence SET seq = 12 WHERE name = 'event'")
    if keeps_hashes:
        for seq in (first, second):
            change(kept, "UPDATE event SET hash = ? WHERE seq = ?", hashes[seq], seq)
    assert wrong(kept)[0] == f"row {first} stands out of order: row {second} belongs here"


@pytest.mark.parametrize("has_a_good_hash", [False, True])
def test_an_inserted_row_is_found(kept: World, has_a_good_hash: bool) -> None:
    for seq in range(12, 4, -1):
        change(kept, "UPDATE event SET seq = ? WHERE seq = ?", seq + 1, seq)
    change(
        kept,
        "INSERT INTO event (seq, type, at_us, run, actor, hash) "
        "VALUES (5, 'cord.released', ?, 'r1', 'eve', x'00')",
        START_US,
    )
    if has_a_good_hash:
        rechain(kept, 5, 5)
        assert wrong(kept)[0] == "row 5 was inserted: the next belongs here"
    else:
        assert wrong(kept)[0] == "row 5 was inserted: row 6 belongs here"


def test_rows_that_were_chained_anew_are_not_those_that_were_sealed(
    kept: World, at_once: int
) -> None:
    change(kept, "UPDATE event SET run = 'other' WHERE seq = 5")
    rechain(kept, 5, 12)
    (told,) = wrong(kept)
    assert told.startswith("rows 1 to 10 were written anew: not what was sealed at 2026-11-18T")


def test_the_first_seal_that_does_not_fit_says_from_where(kept: World) -> None:
    sealed(kept)
    called(kept, "e")
    sealed(kept)
    change(kept, "UPDATE event SET run = 'other' WHERE seq = 13")
    rechain(kept, 13, 14)
    (told,) = wrong(kept)
    assert told.startswith("rows 13 to 14 were written anew")


# The end


def test_a_truncated_tail_is_found_by_the_last_seal(kept: World) -> None:
    change(kept, "DELETE FROM event WHERE seq > 8")
    change(kept, "UPDATE sqlite_sequence SET seq = 8 WHERE name = 'event'")
    (told,) = wrong(kept)
    assert told.startswith("the record is cut off after row 8, although the seal of 2026-11-18T")
    assert told.endswith("covers row 10")


def test_all_of_it_gone_is_found_too(kept: World) -> None:
    change(kept, "DELETE FROM event")
    change(kept, "DELETE FROM sqlite_sequence WHERE name = 'event'")
    assert wrong(kept)[0].startswith("the record is cut off after row 0")


def test_a_tail_behind_the_last_seal_is_missed_by_its_numbers(kept: World) -> None:
    change(kept, "DELETE FROM event WHERE seq = 12")
    assert wrong(kept) == ["the record is cut off after row 11, although 12 rows were numbered"]
    kept.reopen()
    called(kept, "e")
    assert wrong(kept) == ["row 12 is missing between row 11 and row 13"]


def test_a_tail_cut_off_with_its_seals_is_found_by_a_copy_of_them(kept: World) -> None:
    copies = [sealed(kept)]
    assert wrong(kept, copies) == []
    change(kept, "DELETE FROM event WHERE seq > 10")
    change(kept, "DELETE FROM seal WHERE seq > 10")
    change(kept, "UPDATE sqlite_sequence SET seq = 10 WHERE name = 'event'")
    assert wrong(kept) == []
    (told,) = wrong(kept, copies)
    assert told.startswith("line 1 of the copies: a seal of 2026-11-18T")
    assert told.endswith("over row 12, and the record is cut off after row 10")


def test_a_ledger_that_went_on_from_a_cut_differs_from_the_copies(kept: World) -> None:
    copies = [sealed(kept)]
    change(kept, "DELETE FROM event WHERE seq > 10")
    change(kept, "DELETE FROM seal WHERE seq > 10")
    change(kept, "UPDATE sqlite_sequence SET seq = 10 WHERE name = 'event'")
    kept.reopen()
    called(kept, "e", "f")
    assert wrong(kept, copies) != []
    assert wrong(kept, copies)[0].endswith("over row 12 is not in the ledger any more")
    change(kept, "DELETE FROM seal WHERE seq > 12")
    with kept.store.transaction(durable=True):
        pass
    sealed(kept)
    assert wrong(kept) == []


def test_a_seal_over_another_head_differs_from_its_copy(kept: World) -> None:
    copies = [sealed(kept)]
    change(kept, "UPDATE event SET run = 'other' WHERE seq = 12")
    rechain(kept, 12, 12)
    change(kept, "DELETE FROM seal WHERE seq = 12")
    kept.reopen()
    sealed(kept)
    assert wrong(kept) == []
    assert wrong(kept, copies)[0].endswith("and the ledger has another one in its place")


# Policies


def test_a_changed_policy_text_is_found(kept: World) -> None:
    change(kept, "UPDATE policy SET text = text || ' '")
    assert wrong(kept) == [f"the text of policy {kept.policy.digest[:12]} was changed"]


def test_swapped_policies_are_found(kept: World) -> None:
    first = kept.policy
    kept.policy = with_digest("# the second")
    called(kept, "e")
    assert wrong(kept) == []
    change(kept, "PRAGMA foreign_keys=OFF")
    for before, after in ((1, 9), (2, 1), (9, 2)):
        change(kept, "UPDATE policy SET id = ? WHERE id = ?", after, before)
    assert wrong(kept) == ["row 1 was changed"]
    for before, after in ((1, 9), (2, 1), (9, 2)):
        change(kept, "UPDATE policy SET id = ? WHERE id = ?", after, before)
    change(kept, "UPDATE policy SET text = '# the second' WHERE id = 1")
    change(kept, "UPDATE policy SET text = '# the first' WHERE id = 2")
    assert wrong(kept) == [f"the text of policy {first.digest[:12]} was changed"]
