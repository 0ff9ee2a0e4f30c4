"""The detectors' memory is made again from the record, and is then as if it had never been lost."""

from dataclasses import replace
from typing import Any

import pytest

from ledger import watching
from ledger.tokens import Grant
from policies.detectors import fan_out, loop
from policies.detectors.rules import SHIPPED, Mode, Response
from policies.verdict import Level, Pull, Scope
from tests.ledger.looping import USUAL, Looping, with_limits, with_rules
from tests.ledger.world import R1, World, a_worker


@pytest.fixture
def looping(world: World) -> Looping:
    return Looping(world)


def test_a_loop_trips(looping: Looping) -> None:
    assert looping.tripped() == USUAL
    (one, *_) = [each for each in looping.watch.found if each.pull]
    assert one.finding.detector == loop.NAME
    assert (one.rule, one.step.call_id) == (SHIPPED[loop.NAME], f"c{USUAL}")


def test_a_call_that_is_settled_again_after_a_failure_counts_once(looping: Looping) -> None:
    """What the transaction that failed had found counts neither for nor against."""
    assert looping.tripped(fails=True) in (USUAL, USUAL + 1)
    assert looping.watch.made > USUAL - 1


@pytest.mark.parametrize("before", [1, 3, USUAL - 1])
def test_a_start_in_the_middle_of_a_loop_delays_the_trip_by_nothing(
    looping: Looping, before: int
) -> None:
    for _ in range(before):
        looping.call()
    looping.world.reopen()
    looping.listen()
    assert looping.tripped() + before == USUAL


def test_what_is_found_in_rows_that_are_read_is_not_found_again(looping: Looping) -> None:
    for _ in range(USUAL + 5):
        looping.call()
    looping.world.reopen()
    watch = looping.listen()
    looping.world.decided(looping.world.read("x"))
    assert (watch.made, len(watch.steps), watch.found) == (1, USUAL + 5, [])
    assert looping.tripped() == 1


def test_a_step_that_comes_before_the_state_is_made_is_read_then(looping: Looping) -> None:
    """After a start a worker is found dead before any call is judged."""
    world = looping.world
    world.store.register(a_worker())
    world.decided(world.read("a", worker="w1"))
    world.reopen(alive=lambda worker: True)
    watch = looping.listen()
    world.store.forsake("w1", world.now_us, "it is gone")
    assert (watch.made, watch.steps) == (0, [])
    world.decided(world.read("b"))
    assert (watch.made, watch.steps) == (1, ["a"])
    world.store.settle(world.outcome("b"), world.policy)
    assert (watch.made, watch.steps) == (1, ["a", "b"])


def test_rows_of_the_running_transaction_count_and_go_with_it(looping: Looping) -> None:
    """A limit is edited between two calls of one transaction, which then fails."""
    world, watch = looping.world, looping.watch
    world.admit(world.read("a"), world.read("b"))
    with world.failing():
        world.store.settle(world.outcome("a"), world.policy)
        with_limits(world, loop.NAME, replace(loop.LIMITS, fast_burst=6))
        world.store.settle(world.outcome("b"), world.policy)
        assert (watch.made, watch.steps) == (2, ["a", "b"])
    world.store.settle(world.outcome("b"), world.policy)
    assert (watch.made, watch.steps) == (3, ["b"])
    world.store.settle(world.outcome("a"), world.policy)
    assert (watch.made, watch.steps) == (3, ["b", "a"])


def test_what_was_read_of_rows_that_are_rolled_back_is_forgotten(looping: Looping) -> None:
    world, watch = looping.world, looping.watch
    world.decided(world.read("a"))
    watch = looping.listen()
    with world.failing():
        world.store.settle(world.outcome("a"))  # without a policy it is not fed
        world.store.admit(world.read("b"), world.policy, world.judge)
        assert watch.steps == ["a"]
    world.decided(world.read("c"))
    assert watch.steps == []


def test_an_edit_of_limits_counts_from_the_next_call_on(looping: Looping) -> None:
    for _ in range(4):
        looping.call()
    with_limits(looping.world, loop.NAME, replace(loop.LIMITS, fast_burst=2))
    assert (looping.tripped(), looping.watch.made) == (1, 2)


@pytest.mark.parametrize(
    "rules",
    [
        dict(SHIPPED),
        {each: replace(rule, mode=Mode.OBSERVE) for each, rule in SHIPPED.items()},
        {each: replace(rule, then=Response.HALT_RUN) for each, rule in SHIPPED.items()},
    ],
    ids=["the same again", "modes", "responses"],
)
def test_an_edit_of_all_else_makes_nothing_anew(looping: Looping, rules: Any) -> None:
    looping.call()
    with_rules(looping.world, rules)
    assert looping.tripped() == USUAL - 1
    assert looping.watch.made == 1
    assert looping.watch.found[-1].rule is rules[loop.NAME]


def test_a_detector_that_is_off_finds_nothing_and_looks_on(looping: Looping) -> None:
    rules = {each: replace(rule, mode=Mode.OFF) for each, rule in SHIPPED.items()}
    with_rules(looping.world, rules)
    assert looping.tripped(within=USUAL + 2) == 0
    with_rules(looping.world, SHIPPED)
    assert looping.tripped() == 1


def test_runs_that_are_started_are_stopped_in_the_transaction_that_mints_them(
    world: World,
) -> None:
    with_limits(world, fan_out.NAME, fan_out.LIMITS, Mode.ENFORCE)
    store, trip = world.store, fan_out.LIMITS.trip_spawns
    for number in range(trip + 1):
        assert not store.pulls
        grant = Grant(f"k{number}", parent="k0") if number else Grant("k0", "acme")
        token = grant.run.encode().ljust(32)
        store.mint(grant, token, actor="ann", at_us=world.now_us, policy=world.policy)
    ((cord, pull),) = store.pulls.items()
    assert (cord, pull.actor) == ((Level.HALT, Scope.RUN, "k0"), "detector:fan_out")


# ---------------------------------------------------------------------------- what is forgotten


def released(world: World, level: Level, scope: Scope, subject: str, actor: str) -> None:
    world.store.pull(Pull(level, scope, subject, "loops", actor, world.now_us))
    world.store.release(level, scope, subject, reason="fine", actor="ann", at_us=world.now_us)


@pytest.mark.parametrize("starts", [False, True])
@pytest.mark.parametrize(
    "scope, subject",
    [
        *((Scope.RUN, "r1"), (Scope.TOOL, "r1/read"), (Scope.TOOL, "read"), (Scope.GLOBAL, "")),
        *((Scope.RELEASE, R1.release), (Scope.TENANT, "acme")),
    ],
)
def test_who_is_let_go_on_begins_anew(
    looping: Looping, scope: Scope, subject: str, starts: bool
) -> None:
    assert looping.tripped() == USUAL
    released(looping.world, Level.HALT, scope, subject, "detector:loop")
    if starts:
        looping.world.reopen()
        looping.listen()
    assert looping.tripped() == USUAL


def test_what_a_person_pulled_and_released_says_nothing(looping: Looping) -> None:
    assert looping.tripped() == USUAL
    released(looping.world, Level.HALT, Scope.RUN, "r1", "ann")
    assert looping.tripped() == 1


def test_a_cord_of_a_detector_that_ends_by_itself_lets_begin_anew(looping: Looping) -> None:
    world = looping.world
    assert looping.tripped() == USUAL
    until_us = world.now_us + 1
    halt = Pull(Level.HALT, Scope.RUN, "r1", "loops", "detector:loop", world.now_us, until_us)
    world.store.pull(halt)
    world.store.expire(until_us)
    assert looping.tripped() == USUAL


# ---------------------------------------------------------------------------- what is read


def test_no_more_is_read_than_the_newest_rows(
    looping: Looping, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(6):
        looping.call()
    monkeypatch.setattr(watching, "ROWS_MAX", 7)
    watch = looping.listen()
    looping.world.decided(looping.world.read("x"))
    assert watch.steps == ["c3", "c4", "c5", "c6"]  # of one the call itself was looked up


def test_nothing_older_than_ten_minutes_is_read(looping: Looping) -> None:
    for _ in range(3):
        looping.call()
    looping.world.wait(600)
    looping.call()
    watch = looping.listen()
    looping.world.decided(looping.world.read("x"))
    assert watch.steps == ["c4"]
