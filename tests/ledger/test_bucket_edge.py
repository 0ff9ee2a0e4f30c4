"""A sliding window attacked where its buckets meet: no span of its length holds more than it may.

Judged by the admission times in the record. Each attack goes on for many windows, with bursts just
before and just after the edges of the buckets, which lie at whole multiples of a sixtieth of it.
"""

import os
import random
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from policies.ceilings import BUCKETS
from policies.verdict import Action
from tests.ledger.world import START_US, World, a_ceiling, a_policy

AT_MOST = 100
ROUNDS = min(int(os.environ.get("ROUNDS", "3")), 20)
WINDOWS = 2 + ROUNDS  # so long an attack goes on
PHASES_US = (0, 1, 250_000, 999_999)  # of its first burst, after the edge of a bucket

Burst = tuple[int, int]
"""When, in microseconds, and how many calls at once."""
Attack = Callable[[int, int, int], Iterator[Burst]]
"""Bursts without end, from a moment on, by the lengths of the window and of its buckets."""


def around_every_edge(start_us: int, within_us: int, bucket_us: int) -> Iterator[Burst]:
    """A few calls before, on and after each edge."""
    for edge_us in count(start_us, bucket_us):
        yield from ((edge_us + shift_us, 4) for shift_us in (-1, 0, 1))


def all_at_once(start_us: int, within_us: int, bucket_us: int) -> Iterator[Burst]:
    """The whole limit before an edge; again and again around the moment when it may be free."""
    for first_us in count(start_us - 1, within_us + bucket_us + 2):
        yield first_us, AT_MOST + 1
        for late_us in (-1, 0, 1, bucket_us - 1, bucket_us, bucket_us + 1):
            yield first_us + within_us + late_us, AT_MOST + 1


def half_on_each_side(start_us: int, within_us: int, bucket_us: int) -> Iterator[Burst]:
    """More than half the limit before an edge and after it, and so half a window later."""
    for edge_us in count(start_us, within_us // 2):
        yield edge_us - 1, AT_MOST * 3 // 5
        yield edge_us, AT_MOST * 3 // 5


def at_any_moment(start_us: int, within_us: int, bucket_us: int) -> Iterator[Burst]:
    """Bursts of any size, within a microsecond of some edge or anywhere."""
    choice, at_us = random.Random(start_us), start_us
    while True:
        at_us += choice.choice((1, bucket_us - 1, bucket_us, choice.randrange(within_us // 4)))
        yield at_us, choice.randrange(1, AT_MOST)


ATTACKS = (around_every_edge, all_at_once, half_on_each_side, at_any_moment)


def most_within(times_us: list[int], within_us: int) -> int:
    """The most of these in any span of this length, its two ends included."""
    most, first = 0, 0
    for last, at_us in enumerate(times_us):
        while at_us - times_us[first] > within_us:
            first += 1
        most = max(most, last - first + 1)
    return most


def attacked(world: World, attack: Attack, within_us: int, phase_us: int) -> None:
    bucket_us = -(-within_us // BUCKETS)
    start_us = (world.now_us // bucket_us + 1) * bucket_us + phase_us * bucket_us // 1_000_000
    for number, (at_us, calls) in enumerate(attack(start_us, within_us, bucket_us)):
        if at_us > start_us + WINDOWS * within_us:
            return
        world.now_us = max(world.now_us, at_us)
        with world.store.transaction(durable=False):
            for call in range(calls):
                world.store.admit(
                    world.read(f"{phase_us}-{number}-{call}"), world.policy, world.judge
                )


@pytest.mark.proof
@pytest.mark.parametrize("within_seconds", [60, 7])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_no_span_of_a_window_holds_more_than_it_may(
    world: World, attack: Attack, within_seconds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sixtieth of 7 seconds is no whole number of microseconds."""
    world.policy = a_policy(a_ceiling(AT_MOST, within_seconds=within_seconds))
    within_us, told = within_seconds * 1_000_000, []
    for phase_us in PHASES_US:
        before = len(world.rows("SELECT 1 FROM event"))
        attacked(world, attack, within_us, phase_us)
        found = world.rows("SELECT at_us, type FROM event ORDER BY seq LIMIT -1 OFFSET ?", before)
        times_us = [at_us for at_us, kind in found if kind == "call.intent"]
        told.append(f"{most_within(times_us, within_us)} ({len(times_us)} of {len(found)} asks)")
        assert most_within(times_us, within_us) == AT_MOST
        # Nor is it stingy: it is free again soon after, when an attack looks for it.
        assert len(times_us) >= AT_MOST * WINDOWS * 3 // 5
        world.now_us += 2 * within_us
    with capsys.disabled():
        print(
            f"\n{attack.__name__}: at most {AT_MOST} within {within_seconds} s, {', '.join(told)}"
        )


def test_a_full_window_stays_full_over_a_restart_at_an_edge(world: World) -> None:
    world.policy = a_policy(a_ceiling(AT_MOST))
    world.now_us = START_US // 1_000_000 * 1_000_000 - 1
    passed = []
    for step_us in (0, 1, 60_000_000 - 1, 60_000_000, 60_000_001, 61_000_000):
        world.now_us += step_us - (world.now_us - (START_US // 1_000_000 * 1_000_000 - 1))
        asks = [world.read(f"{step_us}-{number}") for number in range(AT_MOST)]
        decisions = world.admit(*asks)
        passed.append(sum(each.verdict.action is Action.ALLOW for each in decisions))
        world.reopen()
    assert passed == [AT_MOST, 0, 0, 0, AT_MOST, 0]
