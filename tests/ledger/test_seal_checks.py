"""Seals, copies of them, and gaps: what is signed cannot be changed, left out or put elsewhere."""

from dataclasses import replace
from pathlib import Path

import pytest

from ledger import seals
from ledger.connection import open_reader
from ledger.seals import PublicKeys, Signer
from ledger.verification import verify
from tests.ledger.trusted import (
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
