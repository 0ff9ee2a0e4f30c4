"""`ledger prune` clears nothing away that somebody has changed, and signs nothing for them."""

from dataclasses import astuple, replace

import pytest

from ledger.errors import LedgerError
from ledger.seals import Gap
from ledger.states import CallState
from tests.ledger.trusted import KEYS, called, change, pruned, rechain, sealed, trusted, wrong
from tests.ledger.world import World, a_pull


@pytest.fixture
def old(world: World) -> World:
    """Two days after three reads; what is called from then on is new."""
    trusted(world)
    called(world, "a", "b", "c")
    return world


def later(world: World) -> None:
    world.wait(2 * 86_400)
    called(world, "new")


def gaps(world: World) -> list[tuple[int, int, int]]:
    return world.rows("SELECT first_seq, last_seq, rows FROM gap ORDER BY first_seq")


@pytest.mark.parametrize(
    "statement, told",
    [
        ("UPDATE event SET run = 'other' WHERE seq = 3", "row 3 is not as it was recorded"),
        ("UPDATE event SET hash = NULL WHERE seq = 1", "row 1 is not as it was recorded"),
        ("DELETE FROM event WHERE seq = 2", "what stood before row 3 is missing"),
    ],
)
def test_what_somebody_has_changed_is_not_pruned(old: World, statement: str, told: str) -> None:
    later(old)
    change(old, statement)
    before = old.rows("SELECT seq FROM event")
    with pytest.raises(LedgerError, match=rf"{told}.*pullcord ledger verify"):
        pruned(old)
    assert old.rows("SELECT seq FROM event") == before
    assert gaps(old) == []


def test_rows_that_were_written_anew_are_found_by_their_seal_after_pruning(old: World) -> None:
    """Pruning does not look at seals; verify does, as long as a seal is over the gap's last row."""
    later(old)
    sealed(old)
    change(old, "UPDATE event SET run = 'other' WHERE seq = 3")
    rechain(old, 3, 8)
    pruned(old)
    assert wrong(old)[0].startswith("rows 1 to 8 were written anew")


@pytest.mark.parametrize("column", ["signature", "after", "before"])
def test_a_gap_that_was_changed_is_not_merged(old: World, column: str) -> None:
    old.admit(old.read("d"))
    old.settle("d")
    later(old)
    pruned(old)
    old.wait(7_200)
    called(old, "newer")
    change(old, f"UPDATE gap SET {column} = x'00'")
    with pytest.raises(LedgerError, match="the gap from row 1 on is not signed"):
        pruned(old)


@pytest.mark.parametrize("column", ["signature", "after", "before"])
def test_a_gap_behind_that_was_changed_is_not_merged_either(world: World, column: str) -> None:
    trusted(world)
    world.admit(world.read("lost"))
    world.settle("lost", complete=False)
    called(world, "a")
    world.wait(2 * 86_400)
    world.admit(world.read("open"))
    pruned(world)
    assert gaps(world) == [(3, 4, 2)]
    world.store.resolve("lost", CallState.DONE, reason="seen", actor="bob", at_us=world.now_us)
    world.wait(7_200)
    called(world, "newer")
    change(world, f"UPDATE gap SET {column} = x'00'")
    with pytest.raises(LedgerError, match="the gap from row 3 on is not signed"):
        pruned(world)
    assert gaps(world) == [(3, 4, 2)]


def test_a_gap_that_nobody_signed_is_not_made_good_by_pruning(world: World) -> None:
    """Rows that stay, with a forged gap over them: it must not become part of a signed one."""
    trusted(world)
    world.store.pull(a_pull(subject="r9"))  # a cord that stands
    world.admit(world.ask("w", key="k1"))
    world.settle("w", status=500)  # nobody knows how it ended
    called(world, "a", "b", "c")
    sealed(world)
    later(world)
    ((third,),) = world.rows("SELECT hash FROM event WHERE seq = 3")
    change(world, "INSERT INTO gap VALUES (1, 3, ?, ?, 3, 0, 'ann', 'x', x'00')", bytes(32), third)
    with pytest.raises(LedgerError, match="the gap from row 1 on is not signed"):
        pruned(world)
    change(world, "DELETE FROM event WHERE seq <= 3")
    assert wrong(world)[0].startswith("the gap from row 1 to 3 is signed with the key x, which")


@pytest.mark.parametrize("first, last, other", [(7, 8, 9), (1, 3, 4), (1, 9, 4)])
def test_a_gap_over_rows_that_stand_stops_pruning(
    world: World, first: int, last: int, other: int
) -> None:
    """Also one that was signed once: from a copy of the ledger, say."""
    trusted(world)
    world.admit(world.ask("w", key="k1"))
    world.settle("w", status=500)
    world.store.pull(a_pull(subject="r9"))
    called(world, "a", "b")
    sealed(world)
    world.store.pull(a_pull(subject="r8"))
    later(world)
    ((identity,),) = world.rows("SELECT previous FROM seal ORDER BY seq LIMIT 1")
    hashes = dict(world.rows("SELECT seq, hash FROM event"))
    before, after = hashes.get(first - 1, bytes(32)), hashes[last]
    gap = Gap(first, last, before, after, 1, 0, "ann", KEYS.signer.key_id)
    signed = replace(gap, signature=KEYS.signer.sign(gap.text(identity)))
    change(world, "INSERT INTO gap VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", *astuple(signed))
    with pytest.raises(LedgerError, match=f"the gap from row {first} on is over rows that stand"):
        pruned(world)
    assert other in dict(world.rows("SELECT seq, hash FROM event"))
