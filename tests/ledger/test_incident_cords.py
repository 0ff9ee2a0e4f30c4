"""Behind which cord an incident stood still: the last that was needed, not the first."""

from contextlib import closing
from typing import Any

import pytest

from ledger import incident_cords
from ledger.connection import open_reader
from ledger.incident_cords import Containment
from ledger.incident_reads import pulled_over
from ledger.incident_timeline import milestones
from policies.call import Identity
from policies.verdict import Level, Pull, Scope
from tests.ledger.findings import the_one
from tests.ledger.world import World

RUNS = {name: Identity(name, "acme", release="v7") for name in ("r1", "r2", "r3")}


class Night:
    """An incident over a release of three runs. Each call comes a second later, and is named by
    that second, as each cord is."""

    def __init__(self, world: World, *, effect: str = "write") -> None:
        self.world, self.effect, self.start_us = world, effect, world.now_us
        self.call("r1")
        world.store.open_incident(
            Scope.RELEASE, "v7", "", self.start_us, reason="odd", actor="ann", at_us=world.now_us
        )

    def call(self, *runs: str, effect: str = "") -> None:
        """Of a run that is stopped one is refused."""
        for run in runs:
            self.world.wait(1)
            name = f"c{self.now}"
            given: dict[str, Any] = {"effect": effect or self.effect, "body": name}
            if given["effect"] != "write":
                given["tool"] = "read"
            self.world.decided(self.world.ask(name, claimant=RUNS[run], **given))

    @property
    def now(self) -> int:
        return (self.world.now_us - self.start_us) // 1_000_000

    def pull(self, rule: str) -> int:
        self.world.wait(1)
        level, scope, subject = rule.split(":")
        pull = Pull(Level(level), Scope(scope), subject, "stop", "ann", self.world.now_us)
        with self.world.store.transaction(durable=True):
            self.world.store._open_batch().trip(pull, incident=the_one(self.world).id)
        return self.now

    def release(self, rule: str, *releases: str) -> None:
        self.world.wait(1)
        level, scope, subject = rule.split(":")
        self.world.store.release(
            Level(level), Scope(scope), subject, reason="ok", actor="bob",
            at_us=self.world.now_us, releases=releases,
        )  # fmt: skip

    def turned(self) -> tuple[int | None, int | None]:
        """The seconds of the first cord and of the one that contained it."""
        with closing(open_reader(self.world.data)) as reader:
            when = milestones(reader, the_one(self.world))

        def second(at_us: int | None) -> int | None:
            return None if at_us is None else (at_us - self.start_us) // 1_000_000

        return second(when.first_cord_us), second(when.contained_us)

    def found(self) -> Containment | None:
        with closing(open_reader(self.world.data)) as reader:
            one = the_one(self.world)
            cords = incident_cords.stood(pulled_over(reader, one))
            return incident_cords.containment(reader, one, cords)


@pytest.fixture
def night(world: World) -> Night:
    return Night(world)


def test_the_last_cord_that_was_needed_contains_it(night: Night) -> None:
    """One run was stopped, the others wrote on until their release was halted."""
    first = night.pull("freeze:run:r1")
    assert night.turned() == (first, first)
    night.call("r1", "r2", "r3")
    assert night.turned() == (first, None)
    last = night.pull("halt:release:v7")
    assert night.turned() == (first, last)
    night.call("r1", "r2", "r3")
    assert night.turned() == (first, last)
    night.pull("halt:global:")
    assert night.turned() == (first, last), "it stood still before"


def test_what_passes_after_the_last_cord_was_not_contained(night: Night) -> None:
    night.pull("halt:run:r1")
    night.call("r2")
    last = night.pull("halt:run:r2")
    night.call("r3")
    found = night.found()
    assert found is not None
    assert (found.cord.pull.rule, found.is_whole) == ("halt:run:r2", False)
    assert night.turned()[1] is None
    assert last == (found.cord.pull.at_us - night.start_us) // 1_000_000


@pytest.mark.parametrize("releases", [(), ("v7",)])
def test_what_passes_when_calls_may_pass_again_was_contained_before(
    night: Night, releases: tuple[str, ...]
) -> None:
    """Unless the cord was released for all, and then another was needed."""
    first = night.pull("halt:global:")
    night.call("r1")
    night.release("halt:global:", *releases)
    night.call("r1")
    assert night.turned() == (first, first)
    again = night.pull("halt:release:v7")
    assert night.turned() == (first, first if releases else again)


def test_a_cord_that_let_all_pass_before_a_wider_one_was_pulled(night: Night) -> None:
    night.pull("halt:run:r1")
    night.call("r2")
    night.release("halt:run:r1")
    night.call("r1")
    wide = night.pull("halt:release:v7")
    night.call("r1")
    assert night.turned()[1] == wide


def test_a_throttle_contains_nothing(world: World, night: Night) -> None:
    world.store.pull(Pull(Level.THROTTLE, Scope.RELEASE, "v7", "", "ann", world.now_us))
    assert night.turned() == (1, None)
    assert night.found() is None
    halt = night.pull("halt:release:v7")
    assert night.turned() == (halt, halt)


def test_reads_that_a_freeze_lets_pass_are_no_effects(night: Night) -> None:
    first = night.pull("freeze:release:v7")
    night.call("r1", "r2", effect="read")
    assert night.turned() == (first, first)


def test_of_an_incident_that_never_wrote_each_call_counts(world: World) -> None:
    night = Night(world, effect="read")
    first = night.pull("freeze:release:v7")
    night.call("r2")
    halt = night.pull("halt:release:v7")
    night.call("r1")
    assert night.turned() == (first, halt)
