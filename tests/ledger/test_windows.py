"""Ceilings in the store: counted in the admission transaction, exact in batches, kept on disk."""

from itertools import count as endless
from typing import Any

import pytest

from ledger.windows import COMMITTED_MAX
from policies.call import Identity
from policies.ceilings import Count, Per, Then
from policies.verdict import Action
from tests.ledger.world import World, a_ceiling, a_policy

NUMBERS = endless()


def allowed(world: World, count: int, **rest: Any) -> int:
    asks = [world.read(f"r{next(NUMBERS)}", **rest) for _ in range(count)]
    return sum(decision.verdict.action is Action.ALLOW for decision in world.admit(*asks))


def test_64_in_one_batch_against_a_ceiling_of_10(world: World) -> None:
    world.policy = a_policy(a_ceiling(10))
    assert allowed(world, 64) == 10


def test_a_ceiling_holds_over_many_batches(world: World) -> None:
    world.policy = a_policy(a_ceiling(10))
    counts = []
    for _ in range(4):
        world.wait(1)
        counts.append(allowed(world, 4))
    assert counts == [4, 4, 2, 0]


def test_a_window_slides(world: World) -> None:
    world.policy = a_policy(a_ceiling(10))
    assert allowed(world, 11) == 10
    world.wait(59)
    assert allowed(world, 1) == 0
    world.wait(2.1)
    assert allowed(world, 11) == 10


def test_a_window_survives_a_restart(world: World) -> None:
    world.policy = a_policy(a_ceiling(10))
    allowed(world, 7)
    world.reopen()
    assert allowed(world, 7) == 3


def test_a_life_limit_never_frees(world: World) -> None:
    world.policy = a_policy(a_ceiling(5, within_seconds=None))
    allowed(world, 5)
    world.wait(10**8)
    while world.store.reap():
        pass
    world.reopen()
    assert allowed(world, 1) == 0


@pytest.mark.parametrize(
    "per, other, shared",
    [
        (Per.RUN, Identity("r2", "acme"), False),
        (Per.TENANT, Identity("r2", "acme"), True),
        (Per.TENANT, Identity("r2", "bolt"), False),
        (Per.GLOBAL, Identity("r2", "bolt"), True),
    ],
)
def test_whose_window_it_is(world: World, per: Per, other: Identity, shared: bool) -> None:
    world.policy = a_policy(a_ceiling(1, per))
    allowed(world, 1)
    assert allowed(world, 1, claimant=other) == (0 if shared else 1)


def test_only_writes_count_as_writes(world: World) -> None:
    world.policy = a_policy(a_ceiling(1, count=Count.WRITES))
    assert allowed(world, 3) == 3
    assert world.decided(world.ask("a")).verdict.action is Action.ALLOW
    assert world.decided(world.ask("b", body="y")).verdict.reason == "over_ceiling"
    world.wait(1)
    assert allowed(world, 3) == 3


def test_a_replay_counts_as_a_call_and_not_as_a_write(world: World) -> None:
    world.policy = a_policy(a_ceiling(3), a_ceiling(2, count=Count.WRITES))
    world.decided(world.ask("a"))
    world.settle("a")
    assert world.decided(world.ask("b")).verdict.action is Action.REPLAY
    assert world.decided(world.ask("c", body="y")).verdict.action is Action.ALLOW
    verdict = world.decided(world.ask("d", body="z")).verdict
    assert verdict.rule == "ceiling:run-calls-3"


def test_a_refusal_counts_for_nothing(world: World) -> None:
    world.policy = a_policy(a_ceiling(2), a_ceiling(1, count=Count.WRITES))
    world.decided(world.ask("a"))
    for number in range(5):
        world.decided(world.ask(f"b{number}", body=f"{number}"))
    assert allowed(world, 3) == 1


def test_a_ceiling_can_pull_a_cord_in_its_own_transaction(world: World) -> None:
    world.policy = a_policy(a_ceiling(1, then=Then.HALT))
    decisions = world.admit(*(world.read(name) for name in "abc"))
    assert [decision.verdict.reason for decision in decisions] == [
        "allowed",
        "over_ceiling",
        "halted",
    ]
    world.reopen()
    world.wait(1000)
    verdict = world.decided(world.read("d")).verdict
    assert (verdict.reason, verdict.rule) == ("halted", "halt:run:r1")
    assert world.rows("SELECT type, call_id, actor FROM event WHERE rule = 'halt:run:r1'")[0] == (
        "cord.pulled",
        "b",
        "ceiling:run-calls-1",
    )


def test_a_rolled_back_batch_charges_nothing(world: World) -> None:
    world.policy = a_policy(a_ceiling(10))
    allowed(world, 3)
    with world.failing():
        for number in range(5):
            world.store.admit(world.read(f"x{number}"), world.policy, world.judge)
    assert allowed(world, 10) == 7


def test_empty_windows_are_dropped_a_few_at_a_time(world: World) -> None:
    world.policy = a_policy(a_ceiling(9))
    for number in range(7):
        allowed(world, 1, claimant=Identity(f"r{number}", "acme"))
    world.wait(30)
    allowed(world, 1, claimant=Identity("r3", "acme"))
    world.wait(32)
    assert sum(world.store.reap(limit=3) for _ in range(3)) == 6
    assert world.rows("SELECT subject FROM window") == [("r3",)]
    assert allowed(world, 9, claimant=Identity("r3", "acme")) == 8


def test_what_is_remembered_of_windows_is_bounded(world: World) -> None:
    world.policy = a_policy(a_ceiling(1))
    known = world.store._memory.windows
    allowed(world, 1)
    window = known.get(("run-calls-1", "r1"))
    assert window is not None
    for number in range(COMMITTED_MAX + 1):
        known["c", str(number)] = window
        assert len(known) <= COMMITTED_MAX
    assert allowed(world, 1, claimant=Identity("r2", "acme")) == 1
    assert len(known) <= COMMITTED_MAX
    assert allowed(world, 1) == 0


def test_windows_that_nobody_charges_are_given_back_and_count_on(world: World) -> None:
    world.policy = a_policy(a_ceiling(3, within_seconds=None))
    known = world.store._memory.windows
    assert allowed(world, 2) == 2
    for _ in range(3):
        world.wait(60)
        allowed(world, 1, claimant=Identity("r2", "acme"))
    assert known.get(("run-calls-3", "r1")) is None
    assert known.get(("run-calls-3", "r2")) is not None
    assert allowed(world, 2) == 1
