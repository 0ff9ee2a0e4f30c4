"""What `ledger prune` takes out and leaves: whole calls, nothing that counts, a signed gap."""

from dataclasses import replace

import pytest

from ledger import pruning
from ledger.chain import Head
from ledger.checks import checked
from ledger.connection import open_reader
from ledger.pruning import Pruned
from ledger.states import CallState, EventType
from ledger.tokens import Grant
from policies.ceilings import Count, Then
from policies.verdict import Level, Reason, Scope
from tests.ledger.test_holds import parked
from tests.ledger.trusted import (
    HOUR_US,
    KEYS,
    called,
    pruned,
    sealed,
    trusted,
    verified,
    wrong,
)
from tests.ledger.world import World, a_ceiling, a_policy, a_pull


@pytest.fixture
def old(world: World) -> World:
    """Two days after three reads; what is called from then on is new."""
    trusted(world)
    called(world, "a", "b", "c")
    return world


def later(world: World) -> None:
    world.wait(2 * 86_400)
    called(world, "new")


def left(world: World) -> list[str]:
    """The calls that are still told."""
    return [row["id"] for row in reversed(world.calls())]


def gaps(world: World) -> list[tuple[int, int, int]]:
    return world.rows("SELECT first_seq, last_seq, rows FROM gap ORDER BY first_seq")


def is_whole(world: World) -> bool:
    reader = open_reader(world.data)
    found = [finding for finding in checked(reader) if not finding.is_ok or finding.skipped]
    reader.close()
    return found == [] and wrong(world) == []


def test_old_calls_go_and_leave_a_gap(old: World) -> None:
    later(old)
    assert pruned(old) == Pruned(6, 3, None)
    assert left(old) == ["new"]
    assert gaps(old) == [(1, 6, 6)]
    assert old.rows("SELECT at_us, actor, key_id FROM gap") == [
        (old.now_us, "ann", KEYS.signer.key_id)
    ]
    assert is_whole(old)


def test_what_is_newer_stays(old: World) -> None:
    assert pruned(old) == Pruned()
    old.wait(1_800)
    called(old, "later")
    old.wait(1_801)
    assert pruned(old).calls == 3
    assert left(old) == ["later"]
    assert is_whole(old)


def test_the_newest_row_stays_whatever_its_age(old: World) -> None:
    old.wait(86_400)
    assert pruned(old).calls == 2
    assert left(old) == ["c"]
    old.reopen()
    called(old, "new")
    assert pruned(old).calls == 1
    assert is_whole(old)


def test_a_call_goes_whole_or_not_at_all(old: World) -> None:
    """It began before that and ended after it."""
    old.admit(old.read("slow"))
    old.wait(86_400)
    old.settle("slow")
    later(old)
    assert pruned(old, 2 * 86_400 * 1_000_000 + HOUR_US).calls == 3
    assert left(old) == ["slow", "new"]
    assert is_whole(old)


def test_an_open_call_stays(old: World) -> None:
    old.admit(old.read("open"))
    later(old)
    pruned(old)
    assert left(old) == ["open", "new"]
    old.settle("open")
    old.wait(7_200)
    called(old, "newer")
    pruned(old)
    assert left(old) == ["newer"]
    assert is_whole(old)


def test_a_write_stays_while_its_claim_protects(old: World) -> None:
    old.admit(old.ask("w", key="k"))
    old.settle("w")
    later(old)
    pruned(old)
    assert left(old) == ["w", "new"]
    assert old.store.reap() == 1
    pruned(old)
    assert left(old) == ["new"]
    assert is_whole(old)


def test_an_unknown_outcome_stays_until_a_person_has_settled_it(old: World) -> None:
    """Also where it took no claim: nobody knows how a read ended that broke off."""
    old.admit(old.read("lost"))
    old.settle("lost", complete=False)
    old.admit(old.ask("w"))
    old.settle("w", status=None, complete=False)
    later(old)
    pruned(old)
    assert left(old) == ["lost", "w", "new"]
    for name in ("lost", "w"):
        old.store.resolve(name, CallState.NOT_SENT, reason="looked", actor="bob", at_us=old.now_us)
    old.wait(7_200)
    called(old, "newer")
    pruned(old)
    assert left(old) == ["newer"]
    assert is_whole(old)


def test_a_call_that_waits_for_a_person_stays_with_its_ticket(old: World) -> None:
    policy = old.policy
    holds = a_policy(a_ceiling(0, count=Count.WRITES, then=Then.HOLD))
    old.policy = replace(holds, text=policy.text, digest=policy.digest)
    parked(old, "held")
    later(old)
    pruned(old)
    assert left(old) == ["held", "new"]
    old.store.left("held", old.now_us, Reason.HOLD_EXPIRED, "nobody came")
    old.wait(2 * 86_400)
    called(old, "newer")
    pruned(old)
    assert left(old) == ["held", "newer"]  # its ticket is still there
    old.store.reap()
    old.wait(7_200)
    called(old, "newest")
    pruned(old)
    assert left(old) == ["newest"]
    assert is_whole(old)


def test_a_call_that_waits_by_anothers_ticket_stays_too(old: World) -> None:
    policy = old.policy
    holds = a_policy(a_ceiling(0, count=Count.WRITES, then=Then.HOLD))
    old.policy = replace(holds, text=policy.text, digest=policy.digest)
    old.decided(old.ask("shares"))
    later(old)
    pruned(old)
    assert left(old) == ["shares", "new"]


def test_a_cord_is_remembered_while_it_stands(old: World) -> None:
    for subject in ("r7", "r8"):
        old.store.pull(a_pull(subject=subject))
    old.store.release(Level.HALT, Scope.RUN, "r8", reason="ok", actor="bob", at_us=old.now_us)
    later(old)
    pruned(old)
    assert old.rows("SELECT type, run FROM event WHERE type LIKE 'cord.%'") == [
        ("cord.pulled", "r7")
    ]
    assert is_whole(old)


def test_a_token_and_an_operator_are_remembered_while_they_live(old: World) -> None:
    for name, ends in (("r1", None), ("r2", 3_600), ("r3", None)):
        expires_us = None if ends is None else old.now_us + ends * 1_000_000
        grant = Grant(run=name, tenant="acme", expires_us=expires_us)
        old.store.mint(grant, name.encode() * 16, actor="ann", at_us=old.now_us)
    for name in ("ada", "bob"):
        old.store.enroll(name, "pull", name.encode() * 8, actor="ann", at_us=old.now_us)
    old.store.revoke("r3", actor="ann", at_us=old.now_us)
    old.store.dismiss("bob", actor="ann", at_us=old.now_us)
    later(old)
    pruned(old)
    minted = old.rows("SELECT run FROM event WHERE type = 'token.minted'")
    enrolled = old.rows("SELECT substr(detail, 1, 12) FROM event WHERE type LIKE 'operator.%'")
    assert (minted, enrolled) == ([("r1",)], [("operator ada",)])
    assert is_whole(old)


def test_policies_and_prunings_are_never_forgotten(old: World) -> None:
    policy = old.policy
    old.store.record_policy(policy.digest, policy.text, policy.source, old.now_us)
    old.store.note_pruned(Pruned(4, 2), "then", actor="ann", at_us=old.now_us)
    later(old)
    pruned(old)
    kinds = [kind for (kind,) in old.rows("SELECT type FROM event ORDER BY seq")]
    assert kinds[:2] == [EventType.POLICY, EventType.PRUNED]
    assert old.rows("SELECT actor, detail FROM event WHERE type = 'ledger.pruned'") == [
        ("ann", "4 rows, 2 calls, older than then")
    ]
    assert old.rows("SELECT count(*) FROM policy") == [(1,)]
    assert is_whole(old)


@pytest.mark.parametrize("window, most", [(1, 1), (2, 2), (3, 4), (500, 1000)])
def test_gaps_that_meet_are_one(
    old: World, monkeypatch: pytest.MonkeyPatch, window: int, most: int
) -> None:
    """Calls that overlap: their rows go in several steps, and one stays amid them."""
    monkeypatch.setattr(pruning, "WINDOW_ROWS", window)
    monkeypatch.setattr(pruning, "ROWS_MAX", most)
    old.admit(*(old.read(name) for name in "defgh"))
    for name in "hfdg":
        old.settle(name)
    later(old)
    assert pruned(old) == Pruned(14, 7, None)
    assert left(old) == ["e", "new"]
    assert gaps(old) == [(1, 7, 7), (9, 15, 7)]
    assert is_whole(old)
    old.settle("e")
    old.wait(7_200)
    called(old, "newer")
    pruned(old)
    assert gaps(old) == [(1, 18, 18)]
    assert is_whole(old)


def test_between_two_steps_the_record_is_whole(old: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends the process there: the rest goes the next time."""
    monkeypatch.setattr(pruning, "WINDOW_ROWS", 2)
    old.admit(*(old.read(name) for name in "defgh"))
    for name in "hfdge":
        old.settle(name)
    later(old)
    after_seq: int | None = 0
    while after_seq is not None:
        before_us = old.now_us - HOUR_US
        step = old.store.prune(after_seq, before_us, KEYS, Head(), actor="ann", at_us=old.now_us)
        after_seq = step.next_seq
        old.reopen()
        assert is_whole(old)
    assert left(old) == ["new"]


def test_a_step_that_is_rolled_back_took_nothing(old: World) -> None:
    later(old)
    with old.failing():
        old.store.prune(0, old.now_us, KEYS, Head(), actor="ann", at_us=old.now_us)
    assert gaps(old) == []
    assert left(old) == ["a", "b", "c", "new"]
    called(old, "newer")
    sealed(old)
    assert is_whole(old)
    assert pruned(old).calls == 3


def test_calls_of_the_same_transaction_are_looked_at(old: World) -> None:
    later(old)
    with old.store.transaction(durable=True):
        old.store.admit(old.read("meanwhile"), old.policy, old.judge)
        old.store.prune(0, old.now_us, KEYS, Head(), actor="ann", at_us=old.now_us)
    assert left(old) == ["new", "meanwhile"]
    old.settle("meanwhile")
    assert is_whole(old)


def test_a_dry_run_counts_the_same(old: World) -> None:
    later(old)
    reader = open_reader(old.data)
    seqs, planned = pruning.planned(reader, 0, old.now_us - HOUR_US, old.now_us)
    reader.close()
    assert (seqs, planned.rows, planned.calls) == ([1, 2, 3, 4, 5, 6], 6, 3)
    assert left(old) == ["a", "b", "c", "new"]


def test_the_record_has_a_seal_and_an_identity_from_then_on(old: World) -> None:
    later(old)
    assert verified(old.data / "ledger.db").seals == 0
    pruned(old)
    found = verified(old.data / "ledger.db")
    assert (found.seals, found.unsealed) == (1, 0)
    old.wait(7_200)
    called(old, "newer")
    assert pruned(old).calls == 1
    assert verified(old.data / "ledger.db").seals == 1  # sealing is not for it to do


def test_old_rows_behind_those_of_a_clock_that_was_ahead_go_too(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "WINDOW_ROWS", 4)
    monkeypatch.setattr(pruning, "AHEAD_ROWS", 6)
    trusted(world)
    day_us = 86_400_000_000
    world.now_us += 3 * day_us
    called(world, *(f"ahead{number}" for number in range(20)))
    world.now_us -= 3 * day_us
    called(world, "old")
    world.now_us += 3 * day_us
    called(world, *(f"new{number}" for number in range(20)))
    assert pruned(world) == Pruned(2, 1, None)
    assert gaps(world) == [(41, 42, 2)]
    assert is_whole(world)


def test_what_tells_of_a_ledger_behind_its_seal_is_never_pruned(old: World) -> None:
    for kind in (EventType.BEHIND_SEAL, EventType.TRACE_BEHIND):
        old.store.note(kind, actor="pullcord", at_us=old.now_us, detail="x")
    later(old)
    pruned(old)
    kinds = [kind for (kind,) in old.rows("SELECT type FROM event ORDER BY seq")]
    assert kinds[:2] == [EventType.BEHIND_SEAL, EventType.TRACE_BEHIND]
