"""The detectors' memory is made again from the record, and is then as if it had never been lost."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from ledger import budgets, watching
from ledger.cords import name
from ledger.errors import LedgerUnavailable, OverCeiling
from ledger.records import Bearer
from ledger.states import EventType
from ledger.tokens import Grant
from ledger.watching import Found, Watch
from policies.call import Identity, Traits
from policies.detectors import fan_out, loop, write_spike
from policies.detectors.rules import SHIPPED, Mode, Response, Rule
from policies.detectors.step import Severity, Step
from policies.verdict import Action, Level, Pull, Reason, Scope
from tests.ledger.world import R1, World, a_worker

R2 = Identity("r2", "acme")


class Listening(Watch):
    """Remembers what was found over what came in, and how often its state was made."""

    def __init__(self) -> None:
        super().__init__()
        self.found, self.steps = list[Found](), list[str]()
        self.made, self._is_reading = 0, False

    def make(self, *args: Any) -> bool:
        self._is_reading, self.made, self.steps = True, self.made + 1, []
        try:
            return super().make(*args)
        finally:
            self._is_reading = False

    def feed(self, step: Step) -> list[Found]:
        self.steps += [step.call_id] if self._runs is not None else []
        return super().feed(step)

    def _found(self, *args: Any) -> list[Found]:
        found = super()._found(*args)
        if not self._is_reading:
            self.found += found
        return found


class Looping:
    """A run that asks for the same again and again, every second."""

    def __init__(self, world: World) -> None:
        self.world, self.calls = world, 0
        self.watch = self.listen()

    def listen(self) -> Listening:
        self.watch = self.world.store._memory.watch = Listening()
        return self.watch

    def call(self, who: Identity = R1, *, body: str = "same", fails: bool = False) -> list[Found]:
        """What was found over one call."""
        world, self.calls = self.world, self.calls + 1
        world.wait(1)
        call_id, before = f"c{self.calls}", len(self.watch.found)
        ask = replace(world.read(call_id, claimant=who), traits=Traits(body.encode() * 8))
        world.decided(ask)
        outcome = replace(world.outcome(call_id), result=b"the same" * 4)
        if fails:
            with world.failing():
                assert world.store.settle(outcome, world.policy)
        assert world.store.settle(outcome, world.policy)
        return self.watch.found[before:]

    def tripped(self, within: int = 40, **rest: Any) -> int:
        """After how many calls."""
        for number in range(1, within + 1):
            if any(one.finding.severity is Severity.TRIP for one in self.call(**rest)):
                return number
        return 0


@pytest.fixture
def looping(world: World) -> Looping:
    return Looping(world)


def with_rules(world: World, rules: Mapping[str, Rule]) -> None:
    world.policy = replace(world.policy, detectors=rules)


def with_limits(world: World, detector: str, limits: Any, mode: Mode = Mode.ALERT) -> None:
    with_rules(world, {**SHIPPED, detector: Rule(mode, limits)})


USUAL = 8
"""The call over which the loop trips."""


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


# ---------------------------------------------------------------------------- failures


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
