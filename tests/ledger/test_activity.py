"""How much is going on, and how much a cord has refused: counted in bounded time."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import count

import pytest

from ledger import activity
from ledger.activity import Activity, Refusing
from ledger.connection import open_reader
from ledger.errors import LedgerUnavailable
from ledger.sqlite import sqlite3
from ledger.states import EventType
from policies.call import Identity
from policies.ceilings import Per
from tests.ledger.world import World, a_ceiling, a_policy, a_pull


@pytest.fixture
def reader(world: World) -> Iterator[sqlite3.Connection]:
    opened = open_reader(world.data)
    yield opened
    opened.close()


def test_an_empty_record_tells_of_nothing(world: World, reader: sqlite3.Connection) -> None:
    assert activity.activity(reader, world.now_us) == Activity(0, 0, 0)
    assert activity.refused_by(reader, "halt:run:r1", 0) == 0


def test_calls_and_refusals_since_a_time_are_counted_with_their_runs(
    world: World, reader: sqlite3.Connection
) -> None:
    world.decided(world.read("old", claimant=Identity("r0", "acme")))
    world.settle("old")
    world.wait(60)
    since_us = world.now_us
    world.decided(world.read("a"))
    world.settle("a")
    world.store.pull(replace(a_pull(), at_us=world.now_us))
    world.decided(world.read("b"))
    world.decided(world.read("c", claimant=Identity("r2", "acme")))
    world.decided(world.read("nobody", claimant=None))
    assert activity.activity(reader, since_us) == Activity(runs=2, calls=4, refused=2)


def test_a_run_with_a_call_in_flight_is_active_however_long(
    world: World, reader: sqlite3.Connection
) -> None:
    world.decided(world.read("slow"))
    world.wait(3_600)
    assert activity.activity(reader, world.now_us) == Activity(runs=1, calls=0, refused=0)


def test_only_what_a_cord_refused_since_it_was_pulled_counts(
    world: World, reader: sqlite3.Connection
) -> None:
    halt, rule = a_pull(), "halt:run:r1"
    world.store.pull(halt)
    world.decided(world.read("a"))
    world.store.release(
        halt.level, halt.scope, halt.subject, reason="x", actor="ann", at_us=world.now_us
    )
    world.wait(60)
    since_us = world.now_us
    world.store.pull(replace(halt, at_us=since_us))
    for name in ("b", "c"):
        world.decided(world.read(name))
    world.store.pull(replace(a_pull(subject="r2"), at_us=since_us))
    world.decided(world.read("d", claimant=Identity("r2", "acme")))
    assert activity.refused_by(reader, rule, since_us) == 2
    assert activity.refused_by(reader, rule, 0) == 3


def test_a_read_that_takes_too_long_is_given_up(world: World, reader: sqlite3.Connection) -> None:
    with world.store.transaction(durable=True):
        for number in range(2_000):
            world.store.admit(world.read(f"c{number}"), world.policy, world.judge)
    clock = count()
    with pytest.raises(LedgerUnavailable), activity.limited(reader, 0.5, lambda: next(clock)):
        activity.activity(reader, 0)
    assert activity.activity(reader, 0).calls == 2_000


def test_the_ceilings_that_refused_are_told_with_whose_calls_they_were(
    world: World, reader: sqlite3.Connection
) -> None:
    tight = a_ceiling(1)
    world.policy = a_policy(tight, a_ceiling(2, Per.TENANT))
    world.decided(world.read("old"))
    world.decided(world.read("old2"))
    world.wait(70)
    since_us = world.now_us
    for name in "abc":
        world.decided(world.read(name))
    world.decided(world.read("d", claimant=Identity("r2", "acme")))
    for name in "ef":
        world.decided(world.read(name, claimant=Identity(f"run-{name}", "acme")))
    rule, other = "ceiling:run-calls-1", "ceiling:tenant-calls-2"
    assert activity.refusing(reader, since_us) == [
        Refusing(rule, str(tight), 2, 1, "r1"),
        Refusing(other, "at most 2 calls per tenant within 60 s", 2, 2, "run-f"),
    ]
    assert activity.refusing(reader, world.now_us + 1) == []


def test_acts_of_one_kind_are_counted_since_a_time(
    world: World, reader: sqlite3.Connection
) -> None:
    for kind in (EventType.CROSSED, EventType.CROSSED, EventType.UNPRICED):
        world.store.note(kind, actor="pullcord", at_us=world.now_us, detail="x")
        world.wait(60)
    assert activity.told(reader, EventType.CROSSED, 0) == 2
    assert activity.told(reader, EventType.CROSSED, world.now_us - 120 * 1_000_000) == 1
    assert activity.told(reader, EventType.UNPRICED, world.now_us) == 0
