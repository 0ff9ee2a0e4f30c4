"""A detector that fails, and a record that cannot be read back: nothing passes unwatched."""

from dataclasses import replace
from typing import Any

import pytest

from ledger import budgets
from ledger.cords import name
from ledger.errors import LedgerUnavailable, OverCeiling
from ledger.records import Bearer
from ledger.states import EventType
from ledger.tokens import Grant
from policies.detectors import loop, write_spike
from policies.detectors.rules import Mode
from policies.detectors.step import Severity
from policies.verdict import Action, Level, Pull, Reason, Scope
from tests.ledger.looping import R2, USUAL, Looping, with_limits
from tests.ledger.world import R1, World


@pytest.fixture
def looping(world: World) -> Looping:
    return Looping(world)


BROKEN = replace(loop.LIMITS, alert_every_us="soon")  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [Mode.OFF, Mode.OBSERVE, Mode.ENFORCE])
def test_a_detector_that_fails_halts_the_run_whose_step_it_was(
    looping: Looping, mode: Mode
) -> None:
    world = looping.world
    with_limits(world, loop.NAME, BROKEN, mode)
    looping.call(R2, body="other")
    assert looping.call() == []
    assert looping.call() == []  # the first repeat fills the bucket, but too many it is not
    world.store.follow()
    one = looping.watch.found[-1]
    assert (one.rule.mode, one.finding.severity) == (Mode.ENFORCE, Severity.TRIP)
    (pull,) = world.store.pulls.values()
    assert (pull.level, pull.scope, pull.subject) == (Level.HALT, Scope.RUN, "r1")
    assert (pull.actor, "loop failed: TypeError" in pull.reason) == ("detector:loop", True)
    assert world.decided(world.read("x")).verdict.reason is Reason.HALTED
    assert looping.call(R2, body="another") == []
    world.store.release(*name(pull), reason="fine", actor="ann", at_us=world.now_us)
    assert looping.call() == [], "what was known of the run is dropped"


def test_a_detector_of_all_runs_that_fails_begins_anew_and_the_others_go_on(
    looping: Looping,
) -> None:
    limits = replace(write_spike.LIMITS, run_writes="few")  # type: ignore[arg-type]
    world = looping.world
    with_limits(world, write_spike.NAME, limits)
    world.decided(world.ask("w", claimant=R2))
    world.end(world.outcome("w"))
    ((detector, pull),) = [(one.finding.detector, one.pull) for one in looping.watch.found]
    assert (detector, pull and pull.subject) == (write_spike.NAME, "r2")
    assert looping.tripped() == USUAL


def test_a_detector_that_fails_over_rows_that_are_read_does_not_stop_the_reading(
    looping: Looping,
) -> None:
    for _ in range(5):
        looping.call()
    with_limits(looping.world, loop.NAME, BROKEN)
    assert looping.call(R2, body="other") == []
    assert looping.watch.steps == [f"c{number}" for number in range(1, 7)]


def test_while_the_record_cannot_be_read_back_nothing_passes(looping: Looping) -> None:
    world = looping.world
    world.decided(world.read("open"))
    looping.call()
    world.conn.execute("UPDATE event SET seen = '{' WHERE call_id = 'c1'")
    watch = looping.listen()

    def reason(call_id: str) -> Reason:
        return world.decided(world.read(call_id)).verdict.reason

    assert reason("a") is Reason.DETECTOR_FAILURE
    assert reason("b") is Reason.DETECTOR_FAILURE
    world.conn.execute("UPDATE event SET seen = NULL WHERE call_id = 'c1'")
    assert reason("c") is Reason.DETECTOR_FAILURE, "it is not tried again by every call"
    assert world.store.settle(world.outcome("open"), world.policy), "what ends is recorded"
    world.wait(1)
    assert reason("d") is Reason.ALLOWED
    assert watch.steps == ["c1", "open"]
    assert world.shown("a")["reason"] == "detector_failure"


def test_while_it_cannot_be_read_back_no_run_starts_another_or_tells_of_itself(
    looping: Looping,
) -> None:
    world = looping.world
    looping.call()
    token = b"root".ljust(32)
    world.store.mint(Grant("root", "acme"), token, actor="ann", at_us=world.now_us)
    world.conn.execute("UPDATE event SET seen = '{' WHERE call_id = 'c1'")
    looping.listen()
    by: Any = {"by": Bearer("root", token), "actor": "ann", "at_us": world.now_us}
    with pytest.raises(OverCeiling, match="the detectors do not know") as refused:
        world.store.mint(Grant("child", parent="root"), b"c" * 32, **by, policy=world.policy)
    assert refused.value.verdict.reason is Reason.DETECTOR_FAILURE
    with world.store.transaction(durable=True):
        for kind in (EventType.PROGRESSED, EventType.ENDED):
            batch = world.store._open_batch()
            told = budgets.tell(batch, R1, kind, world.policy, world.now_us, mark=1)
            assert told == refused.value.verdict
    assert world.rows("SELECT type FROM event WHERE type LIKE 'run.%'") == []
    assert world.rows("SELECT name FROM run WHERE name = 'child'") == []


def test_a_halt_is_told_also_while_the_record_cannot_be_read_back(looping: Looping) -> None:
    world = looping.world
    looping.call()
    world.conn.execute("UPDATE event SET seen = '{' WHERE call_id = 'c1'")
    looping.listen()
    world.store.pull(Pull(Level.HALT, Scope.RUN, "r1", "loops", "ann", world.now_us))
    verdict = world.decided(world.read("a")).verdict
    assert (verdict.action, verdict.reason) == (Action.REFUSE, Reason.HALTED)


def test_a_database_that_fails_fails_the_transaction(looping: Looping) -> None:
    world = looping.world
    looping.call()
    looping.listen()
    world.conn.execute("ALTER TABLE event RENAME TO elsewhere")
    with pytest.raises(LedgerUnavailable):
        world.decided(world.read("a"))
    world.conn.execute("ALTER TABLE elsewhere RENAME TO event")
    assert world.decided(world.read("a")).verdict.reason is Reason.ALLOWED
