"""The calls of an incident in slots of time, and what a model said before one."""

from collections.abc import Iterator

import pytest

from ledger import incident_calls
from ledger.connection import open_reader
from ledger.filters import parse
from ledger.incident_calls import Span
from ledger.incident_figures import figures
from ledger.sqlite import sqlite3
from policies.call import Identity
from tests.ledger.world import R1, START_US, World, a_policy, a_pull

OTHER = Identity("r2", "acme", agent="biller", release="v2")


@pytest.fixture
def reader(world: World) -> Iterator[sqlite3.Connection]:
    made = open_reader(world.data)
    yield made
    made.close()


def some_calls(world: World) -> None:
    """A second apart: a read, a paid write, another run's write, and a write that is refused."""
    world.decided(world.read("read"))
    world.settle("read")
    world.wait(1)
    world.decided(world.ask("write"))
    world.settle("write", cost_microusd=700)
    world.wait(1)
    world.decided(world.ask("other", claimant=OTHER, body="o"))
    world.wait(1)
    world.store.pull(a_pull())
    world.decided(world.ask("late", body="l"))


def test_the_span_of_calls(world: World, reader: sqlite3.Connection) -> None:
    some_calls(world)
    found = incident_calls.span(reader, parse("root:r1", 0))
    assert found == Span(START_US, START_US + 3_000_000, START_US + 1_000_000)
    assert incident_calls.span(reader, parse("root:nobody", 0)) is None


def test_slots_hold_what_was_decided(world: World, reader: sqlite3.Connection) -> None:
    some_calls(world)
    found = incident_calls.slots(reader, parse("tenant:acme", 0), START_US + 1, 1_000_000, 2)
    told = [tuple(row.values()) for row in found]
    assert told == [
        (-1, "read", "allow", "2026-11-20.3", 1, 0),
        (0, "write", "allow", "2026-11-20.3", 1, 700),
        (1, "write", "allow", "v2", 1, 0),
        (2, "write", "refuse", "2026-11-20.3", 1, 0),
    ]


def test_a_call_that_was_held_and_then_decided_is_one(
    held: World, reader: sqlite3.Connection
) -> None:
    """One that still waits is one, too; as in the figures of a scope."""
    for name in ("decided", "waits"):
        ask = held.ask(name, body=name, may_wait=True)
        assert held.decided(ask).verdict.action == "hold"
    held.policy = a_policy()
    held.decided(held.asks["decided"])
    everything = parse("", 0)
    found = incident_calls.slots(reader, everything, START_US, 1_000_000, 2)
    assert {row["decision"]: row["calls"] for row in found} == {"allow": 1, "hold": 1}
    assert sorted(incident_calls.newest(reader, everything, 5)) == ["decided", "waits"]
    assert incident_calls.count(reader, everything) == 2
    assert figures(reader, everything).effects == {"write": 2}


def test_calls_by_id_and_the_first_and_newest(world: World, reader: sqlite3.Connection) -> None:
    some_calls(world)
    found = incident_calls.by_id(reader, ["late", "nothing", "write"])
    assert list(found) == ["write", "late"]
    assert found["write"]["cost_usd"] == 0.0007
    everything = parse("", 0)
    assert incident_calls.first_writes(reader, everything, 5) == ["write", "other"]
    assert incident_calls.first_writes(reader, everything, 1) == ["write"]
    assert incident_calls.newest(reader, everything, 2) == ["late", "other"]


def test_the_model_of_the_same_run_that_spoke_last(
    world: World, reader: sqlite3.Connection
) -> None:
    some_calls(world)
    for name, claimant in (("m1", R1), ("m2", R1), ("m3", OTHER)):
        world.decided(world.ask(name, effect="model", tool="read", claimant=claimant))
    world.decided(world.read("after", claimant=OTHER))
    calls = incident_calls.by_id(reader, ["write", "after", "m2"])
    assert incident_calls.model_before(reader, calls["after"]) == "m3"
    assert incident_calls.model_before(reader, calls["write"]) is None
    assert incident_calls.model_before(reader, {**calls["write"], "run": None}) is None


def test_every_read_follows_an_index(world: World, reader: sqlite3.Connection) -> None:
    """None looks at all rows of the record, however many there are."""
    some_calls(world)
    asked: list[str] = []
    reader.set_trace_callback(asked.append)
    chosen = parse(["root:r1", "tenant:acme", "since:2026-11-01T00:00:00Z"], 0)
    incident_calls.span(reader, chosen)
    incident_calls.slots(reader, chosen, START_US, 1_000, 60)
    incident_calls.first_writes(reader, chosen, 5)
    incident_calls.newest(reader, chosen, 5)
    incident_calls.model_before(reader, incident_calls.by_id(reader, ["late"])["late"])
    incident_calls.undoing(reader, "i1")
    reader.set_trace_callback(None)
    assert len(asked) >= 8
    for statement in asked:
        plan = [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {statement}")]
        assert not [step for step in plan if step in ("SCAN event", "SCAN d", "SCAN e")], statement
