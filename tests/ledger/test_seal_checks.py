"""Seals, copies of them, and gaps: what is signed cannot be changed, left out or put elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest

from ledger import seals
from ledger.chain import Head
from ledger.connection import open_reader
from ledger.errors import LedgerError
from ledger.seals import PublicKeys, Signer
from ledger.verification import verify
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
    wrong,
)
from tests.ledger.world import START_US, World


@pytest.fixture
def kept(world: World) -> World:
    return filled(world)


# Seals


@pytest.mark.parametrize(
    "column, value",
    [
        ("hash", b"\x00" * 32),
        ("trace_seq", 7),
        ("trace_hash", b"\x01" * 32),
        ("at_us", START_US + 1),
        ("previous", b"\x02" * 64),
        ("signature", b"\x03" * 64),
    ],
)
@pytest.mark.parametrize("seq", [10, 12])
def test_a_changed_seal_is_found(kept: World, column: str, value: object, seq: int) -> None:
    sealed(kept)
    change(kept, f"UPDATE seal SET {column} = ? WHERE seq = ?", value, seq)
    told = wrong(kept)
    assert any(what.startswith(f"the seal over row {seq} has a bad signature") for what in told)


def test_a_seal_that_was_taken_out_is_missed_by_the_next(kept: World) -> None:
    sealed(kept)
    called(kept, "e")
    sealed(kept)
    change(kept, "DELETE FROM seal WHERE seq = 12")
    (told,) = wrong(kept)
    assert told.startswith("the seal over row 14 does not follow the one before it")


def test_without_the_first_seal_nobody_knows_whose_they_are(kept: World) -> None:
    sealed(kept)
    change(kept, "DELETE FROM seal WHERE seq = 10")
    (told,) = wrong(kept)
    assert told == ("the seal over row 12 has a bad signature, or seals before it were taken away")


def test_a_seal_by_another_key_counts_only_where_that_is_known(kept: World) -> None:
    other = Signer(b"o" * 32)
    kept.store.seal(other, kept.store.head, kept.now_us)
    (told,) = wrong(kept)
    assert "is signed with the key" in told
    reader = open_reader(kept.data)
    both = PublicKeys(SIGNER.pem + other.pem)
    assert verify(reader, both).problems == []
    assert len(verify(reader, PublicKeys()).problems) == 1
    reader.close()


def test_a_line_that_is_no_copy_is_told_by_its_number(kept: World) -> None:
    line = sealed(kept)
    assert wrong(kept, [line, b"\n", b"{}"]) == ["line 3 of the copies: it is no copy of a seal"]
    changed = line.replace(b'"seq":12', b'"seq":11')
    assert wrong(kept, [changed])[0].endswith("over row 11 has a bad signature")


def test_a_copy_of_another_ledgers_seal_is_told(kept: World, tmp_path: Path) -> None:
    other = trusted(World(tmp_path / "other"))
    called(other, "a")
    line = sealed(other)
    other.store.close()
    assert wrong(kept, [line])[0].endswith("is another ledger's")


# Gaps


@pytest.fixture
def thinned(kept: World) -> World:
    """All but the unknown write, the cord and the newest call is pruned."""
    sealed(kept)
    kept.wait(7_200)
    called(kept, "e")
    pruned(kept)
    return kept


def test_a_pruned_record_is_whole(thinned: World) -> None:
    found = verified(thinned.data / "ledger.db")
    assert found.problems == []
    assert (found.rows, found.pruned, found.gaps) == (5, 9, 2)
    thinned.reopen()
    called(thinned, "f")
    sealed(thinned)
    assert wrong(thinned) == []


@pytest.mark.parametrize(
    "column, value",
    [
        ("last_seq", 7),
        ("before", b"\x01" * 32),
        ("after", b"\x01" * 32),
        ("rows", 1),
        ("at_us", 1),
        ("actor", "eve"),
        ("signature", b"\x03" * 64),
    ],
)
def test_a_changed_gap_is_found(thinned: World, column: str, value: object) -> None:
    change(thinned, f"UPDATE gap SET {column} = ? WHERE first_seq = 1", value)
    assert wrong(thinned)[0].endswith("has a bad signature")


def test_a_gap_that_nobody_signed_is_found(thinned: World) -> None:
    change(thinned, "DELETE FROM gap WHERE first_seq = 1")
    assert wrong(thinned)[0] == "rows 1 to 6 are missing between the beginning and row 7"


def test_a_gap_is_not_signed_by_the_signature_of_another(thinned: World) -> None:
    change(thinned, "DELETE FROM event WHERE seq = 13")
    change(
        thinned,
        "INSERT INTO gap SELECT 13, 13, before, after, 1, at_us, actor, key_id, signature "
        "FROM gap WHERE first_seq = 1",
    )
    assert wrong(thinned) == ["the gap from row 13 to 13 has a bad signature"]


def test_a_row_that_stands_in_a_gap_is_found(thinned: World) -> None:
    change(thinned, "INSERT INTO event (seq, type, at_us) VALUES (4, 'cord.released', 1)")
    assert wrong(thinned)[0].startswith("row 4 stands in the gap from row 1 to 6")


def test_a_gap_does_not_fit_rows_that_were_chained_anew(thinned: World) -> None:
    change(thinned, "UPDATE event SET actor = 'eve' WHERE seq = 9")
    rechain(thinned, 9, 9)
    assert wrong(thinned)[0].endswith("does not fit what stands before it")


def test_a_gap_has_to_fit_the_seal_over_its_last_row(thinned: World) -> None:
    """Both signed: it takes the key to come so far."""
    last = thinned.store.last_seal()
    identity = seals.identity(thinned.conn)
    assert last is not None
    assert identity is not None
    other = replace(last, hash=b"\x00" * 32)
    change(thinned, "DELETE FROM seal WHERE seq = 12")
    seals.write(thinned.conn, replace(other, signature=SIGNER.sign(other.text(identity))))
    assert wrong(thinned) == ["the gap from row 10 to 12 does not fit the seal over its last row"]


# The newest seal, kept outside, and the trace


def back_to(world: World, seq: int) -> None:
    """Cut it off behind a seal, and leave no trace of it in the file."""
    change(world, "DELETE FROM event WHERE seq > ?", seq)
    change(world, "DELETE FROM seal WHERE seq > ?", seq)
    change(world, "UPDATE sqlite_sequence SET seq = ? WHERE name = 'event'", seq)


def looked_at(world: World, newest: bytes) -> list[str]:
    found = verify(world.conn, KEYS.public, newest=newest)
    assert found.is_newest_compared
    return [problem.what for problem in found.problems]


def test_a_cut_back_to_an_earlier_seal_is_found_by_the_newest(kept: World) -> None:
    newest = sealed(kept)
    assert looked_at(kept, newest) == []
    back_to(kept, 10)
    assert wrong(kept) == []  # nothing in the file shows it
    (told,) = looked_at(kept, newest)
    assert told.startswith("the newest seal, kept beside the keys: a seal of ")
    assert told.endswith(" over row 12, and the record is cut off after row 10")


def test_a_newest_seal_that_is_none_is_told(kept: World) -> None:
    (told,) = looked_at(kept, b"garbage")
    assert told == "the newest seal, kept beside the keys: it is no copy of a seal"


def test_a_ledger_that_lacks_a_seal_says_so_for_good(kept: World) -> None:
    newest = sealed(kept)
    assert kept.store.compare_seal(newest, KEYS.public, kept.now_us) == ""
    back_to(kept, 10)
    kept.reopen()
    told = kept.store.compare_seal(newest, KEYS.public, kept.now_us)
    assert told.endswith("the record is cut off after row 10")
    sealed(kept)
    found = verified(kept.data / "ledger.db")
    assert (found.problems, found.behind) == ([], [f"row 11: {told}"])


def test_nothing_is_sealed_over_a_seal_that_vanished(kept: World) -> None:
    sealed(kept)
    last = kept.store.last_seal()
    change(kept, "DELETE FROM seal WHERE seq = 12")
    called(kept, "e")
    with pytest.raises(LedgerError, match="the last seal, over row 12, is not in the ledger"):
        kept.store.seal(SIGNER, Head(), kept.now_us, last)


def test_copies_that_hold_no_seal_prove_nothing(kept: World) -> None:
    told = ["there is no copy of a seal among the copies that were given"]
    assert wrong(kept, []) == told
    assert wrong(kept, [b"\n", b" \n"]) == told


def test_a_trace_that_is_gone_is_missed_by_any_seal_before(world: World) -> None:
    trusted(world)
    called(world, "a")
    sealed(world, Head(500, b"h" * 32))
    called(world, "b")
    signed(world, Head(0))
    told = [each.what for each in verify(world.conn, KEYS.public, in_place=True).problems]
    assert told == [
        "the seal over row 4 covers the trace up to message 0, one before it up to message 500",
        "the trace is gone; 500 messages were sealed",
    ]


def signed(world: World, trace: Head) -> None:
    """A seal as one that tells nothing of the trace would make it."""
    made = seals.made(world.conn, world.store.head, trace, SIGNER, world.now_us)
    assert made is not None
    seals.write(world.conn, made[1])


def test_a_trace_that_goes_back_is_told_in_the_record(world: World) -> None:
    trusted(world)
    called(world, "a")
    sealed(world, Head(500, b"h" * 32))
    called(world, "b")
    sealed(world, Head(3, b"i" * 32))
    called(world, "c")
    sealed(world, Head(4, b"j" * 32))
    assert world.rows("SELECT seq, detail FROM event WHERE type = 'trace.behind_seal'") == [
        (5, "the trace ends with message 3; 500 were sealed")
    ]
    found = verify(world.conn, KEYS.public, in_place=True)
    told = [problem.what for problem in found.problems]
    assert (told, found.trace_losses) == (["the trace is gone; 4 messages were sealed"], 1)
