"""When an incident counts as recovered, where its cords were not lifted for all."""

from dataclasses import replace

from ledger.incident_timeline import milestones
from ledger.sqlite import sqlite3
from policies.verdict import Level, Scope
from tests.ledger.findings import the_one, told
from tests.ledger.test_incident_timeline import CHILD, called, reader, released
from tests.ledger.world import World, a_pull

__all__ = ["reader"]


def test_it_has_recovered_when_its_cords_let_a_good_release_pass(
    world: World, reader: sqlite3.Connection
) -> None:
    """The bad one stays halted; a cord that is pulled anew is whole again."""

    def recovered_us() -> int | None:
        return milestones(reader, the_one(world)).recovered_us

    told(world, call=called(world, claimant=CHILD), release="v7")
    world.store.pull(replace(a_pull(Scope.RELEASE, "v7"), at_us=world.now_us))
    world.wait(5)
    world.store.release(Level.HALT, Scope.RUN, "r1", reason="good", actor="ann",
                        at_us=world.now_us, releases=("v6",))  # fmt: skip
    resumed_us = world.now_us
    assert recovered_us() == resumed_us
    released(world, Scope.RUN, "r1")
    assert recovered_us() == resumed_us
    world.store.pull(replace(a_pull(subject="r1"), at_us=world.now_us))
    assert recovered_us() is None


def test_a_release_that_stays_stopped_and_nothing_else_is_no_recovery(
    world: World, reader: sqlite3.Connection
) -> None:
    told(world, call=called(world), release="v7")
    world.store.pull(replace(a_pull(Scope.RELEASE, "v7"), at_us=world.now_us))
    released(world, Scope.RUN, "r1")
    assert milestones(reader, the_one(world)).recovered_us is None
    released(world, Scope.RELEASE, "v7")
    assert milestones(reader, the_one(world)).recovered_us == world.now_us
