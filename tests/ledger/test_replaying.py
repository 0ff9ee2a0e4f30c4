"""The same policy over the same rows says what was said live, call by call and reason by reason."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest

from ledger.records import Answer
from ledger.states import CallState, ClaimAfter, HoldState
from policies.call import Identity, Traits, Worth
from policies.ceilings import Count, Per, Then
from policies.detectors.rules import SHIPPED, Mode
from policies.policy import Policy
from policies.simulating import REPEATS_UNMADE
from policies.verdict import Action, Level, Reason, Scope
from tests.ledger.simulated import Heard, simulated
from tests.ledger.test_holds import decide, parked
from tests.ledger.world import R1, START_US, World, a_ceiling, a_policy, a_pull

ENFORCED = {name: replace(rule, mode=Mode.ENFORCE) for name, rule in SHIPPED.items()}
RUNS = (
    R1,
    Identity("r2", "acme", agent="biller", release="2026-11-21.1"),
    Identity("r3", "acme", ("r2",), agent="mailer", budgets=(("r3", 300_000),)),
    Identity("r4", "beta", read_only=True),
    Identity("r5", "beta", ("r6", "r7"), tools=("read", "pay")),
)
LOOPING = Identity("r9", "gamma")
CEILINGS = (
    a_ceiling(40),
    a_ceiling(12, Per.TENANT, Count.WRITES, 30),
    a_ceiling(3, Per.RUN, Count.IN_FLIGHT, None),
    a_ceiling(900_000, Per.TENANT, Count.SPEND, 120),
    a_ceiling(16, Per.TREE, Count.CALLS, 60, Then.FREEZE),
    a_ceiling(9_000, Per.RELEASE, Count.TOKENS, None, Then.HALT),
    a_ceiling(9, Per.AGENT, Count.CALLS, 20, Then.ALERT),
    a_ceiling(4, Per.TENANT, Count.DESTINATIONS, None),
)


class Traffic:
    """Calls of all kinds, thrown by dice; the clock moves on between them."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.dice = Random(seed)
        self.open: list[str] = []
        self.count = 0

    def flow(self, calls: int) -> None:
        for _ in range(calls):
            self._call()
            while self.open and self.dice.random() < 0.6:
                self._end(self.open.pop(self.dice.randrange(len(self.open))))
            if self.dice.random() < 0.06:
                self._cord()
            self.world.wait(self.dice.choice((0, 0.05, 0.4, 1, 2)))
        for name in self.open:
            self._end(name)

    def _call(self) -> None:
        dice, world = self.dice, self.world
        self.count += 1
        name, who = f"c{self.count:04}", dice.choice(RUNS)
        if dice.random() < 0.25:
            self._repeat(name)
            return
        effect = dice.choice(("write", "write", "read", "read", "model"))
        worth = (
            Worth(dice.randrange(400), dice.randrange(60_000), 10, "m")
            if effect == "model"
            else Worth()
        )
        ask = world.ask(
            name,
            effect=effect,
            tool="read" if effect == "read" else dice.choice(("pay", "mail")),
            body=f"b{dice.randrange(25)}",
            key=dice.choice((None, None, f"k{dice.randrange(12)}")) if effect == "write" else None,
            claimant=who,
            host=f"api{dice.randrange(5)}.example",
            worth=worth,
        )
        if dice.random() < 0.03:
            ask = replace(ask, call=replace(ask.call, fault=Reason.BATCH_OF_WRITES))
        ask = replace(ask, traits=Traits(bytes([dice.randrange(3)]), b"", b"", 0))
        if dice.random() < 0.02:
            ask = replace(ask, claimant=None)
        if world.decided(ask).verdict.action is Action.ALLOW:
            self.open.append(name)

    def _repeat(self, name: str) -> None:
        ask = self.world.ask(name, effect="read", tool="read", claimant=LOOPING)
        ask = replace(ask, traits=Traits(b"same", b"", b"", 0))
        if self.world.decided(ask).verdict.action is Action.ALLOW:
            self.world.end(self.world.outcome(name, result=b"same"))

    def _end(self, name: str) -> None:
        dice, call = self.dice, self.world.asks[name].call
        chance = dice.random()
        used: dict[str, Any] = {}
        if call.worth.spend_microusd:
            used = dice.choice(
                (
                    {},
                    {"used_tokens": 0, "used_microusd": 0},
                    {"used_tokens": 90, "used_microusd": 70_000, "cost_microusd": 60_000},
                    {"used_tokens": 300, "used_microusd": 2_000, "cost_microusd": 2_000},
                )
            )
        status: int | None = 200
        state, after = CallState.DONE, ClaimAfter.DONE
        if chance < 0.1:
            state, after, status = CallState.NOT_SENT, ClaimAfter.RELEASED, None
        elif chance < 0.2:
            state, after, status = CallState.UNKNOWN, ClaimAfter.UNKNOWN, None
        elif chance < 0.7:
            self._settle(name, {"status": 200, "body": b"kept", **used})
            return
        result = bytes([dice.randrange(2)])
        outcome = self.world.outcome(name, state, after, status=status, result=result, **used)
        assert self.world.end(outcome)

    def _settle(self, name: str, told: dict[str, Any]) -> None:
        """With its answer, so that it can be replayed."""
        body = told.pop("body")
        answer = Answer(200, (), body)
        outcome = self.world.outcome(name, answer=answer, result=b"same", **told)
        assert self.world.end(outcome)

    def _cord(self) -> None:
        world, dice = self.world, self.dice
        scope, subject = dice.choice(
            ((Scope.RUN, "r2"), (Scope.TENANT, "beta"), (Scope.TOOL, "mail"), (Scope.GLOBAL, ""))
        )
        level = dice.choice((Level.HALT, Level.FREEZE, Level.THROTTLE))
        world.store.pull(replace(a_pull(scope, subject, level), at_us=world.now_us))
        for pull in list(world.store._memory.pulls.values()):
            if dice.random() < 0.7:
                world.store.release(
                    pull.level, pull.scope, pull.subject,
                    reason="looked at", actor="ann", at_us=world.now_us,
                )  # fmt: skip


def recorded(world: World) -> list[tuple[Any, ...]]:
    return world.rows(
        "SELECT call_id, decision, reason, rule FROM event WHERE decision IS NOT NULL ORDER BY seq"
    )


def said(heard: Heard) -> list[tuple[Any, ...]]:
    return [
        (one.asked.call_id, one.verdict.action, one.verdict.reason, one.verdict.rule)
        for one in heard.verdicts
        if one.verdict is not None
    ]


def cords(world: World) -> set[tuple[Any, ...]]:
    """Those that ceilings and detectors pulled."""
    pulled = world.rows(
        "SELECT rule, actor FROM event WHERE type = 'cord.pulled' "
        "AND (actor LIKE 'ceiling:%' OR actor LIKE 'detector:%')"
    )
    return set(pulled)


@pytest.mark.parametrize("seed", range(3))
def test_the_same_policy_says_the_same(world: World, seed: int) -> None:
    world.policy = replace(a_policy(*CEILINGS), detectors=ENFORCED)
    Traffic(world, seed).flow(500)
    heard = simulated(world)
    was, is_now = recorded(world), said(heard)
    assert len(was) == 500
    assert is_now == was
    assert not heard.changes
    assert heard._own == cords(world)
    reasons = {row[2] for row in was}
    assert {"allowed", "replayed", "halted", "over_ceiling", "key_reused"} <= reasons
    assert {actor.partition(":")[0] for _, actor in heard._own} == {"ceiling", "detector"}


@pytest.mark.parametrize("mode", [Mode.ALERT, Mode.ENFORCE])
def test_the_same_detectors_find_the_same(world: World, mode: Mode) -> None:
    rules = {name: replace(rule, mode=mode) for name, rule in SHIPPED.items()}
    world.policy = replace(a_policy(), detectors=rules)
    for number in range(30):
        ask = world.ask(f"c{number:02}", effect="read", tool="read", body="same")
        ask = replace(ask, traits=Traits(b"same", b"", b"", 0))
        if world.decided(ask).verdict.action is Action.ALLOW:
            outcome = world.outcome(ask.call_id, after=ClaimAfter.KEPT, result=b"same")
            world.store.settle(outcome, world.policy)
        world.wait(1.5)
    heard = simulated(world)
    assert said(heard) == recorded(world)
    found = {
        (f"detector:{one.finding.detector}", str(one.finding.severity)) for one in heard.findings
    }
    words = {"detector.alerted": "alert", "detector.tripped": "trip"}
    rows = world.rows("SELECT type, actor FROM event WHERE type LIKE 'detector.%'")
    assert found == {(actor, words[kind]) for kind, actor in rows}
    assert found
    assert heard._own == cords(world)
    assert bool(heard._own) is (mode is Mode.ENFORCE)


def test_held_calls_are_said_to_be_held_and_then_what_they_were(world: World) -> None:
    world.policy = a_policy(a_ceiling(0, count=Count.WRITES, then=Then.HOLD))
    for name, state in (("a", HoldState.APPROVED), ("b", HoldState.REJECTED)):
        ask, hold = parked(world, name, body=name)
        decide(world, hold.ticket, state)
        world.decided(ask)
    world.settle("a")
    heard = simulated(world)
    assert [row[2] for row in recorded(world)] == ["held", "allowed", "held", "hold_rejected"]
    assert said(heard) == recorded(world)


def test_a_policy_that_holds_no_more_lets_each_held_call_pass_once(world: World) -> None:
    world.policy = a_policy(a_ceiling(0, count=Count.WRITES, then=Then.HOLD))
    ask, hold = parked(world)
    decide(world, hold.ticket, HoldState.REJECTED)
    world.decided(ask)
    heard = simulated(world, a_policy(digest="d1"))
    ((flip, counted),) = heard.flips.items()
    assert (flip.was[1], flip.would[1], counted.calls) == (Reason.HELD, Reason.ALLOWED, 1)


def loop(world: World, calls: int = 60, spend_microusd: int = 1_000) -> None:
    """The same call with the same result, which nobody stops."""
    for number in range(calls):
        ask = world.ask(f"c{number:02}", effect="read", tool="read")
        world.decided(replace(ask, traits=Traits(b"same", b"", b"", 0)))
        outcome = world.outcome(
            ask.call_id, after=ClaimAfter.KEPT, result=b"same", cost_microusd=spend_microusd
        )
        world.store.settle(outcome, world.policy)
        world.wait(1)


def test_what_enforcing_would_have_saved(world: World) -> None:
    loop(world)
    heard = simulated(world, replace(world.policy, detectors=ENFORCED))
    tally = heard.rules["detector:loop"]
    first = next(one for one in heard.verdicts if one.action is Action.REFUSE)
    spared = 60 - int(first.asked.call_id[1:])
    assert heard.changes
    assert (tally.cords, tally.spared.calls, tally.saved_microusd) == (1, spared, spared * 1_000)
    assert tally.saved_us == spared * 1_000_000
    assert tally.spared.examples[0] == first.asked.call_id
    assert [(flip.was[1], flip.would[1]) for flip in heard.flips] == [
        (Reason.ALLOWED, Reason.HALTED)
    ]


def test_nothing_is_pulled_by_a_detector_that_only_alerts(world: World) -> None:
    loop(world)
    heard = simulated(world)
    assert not heard.changes
    assert heard.rules["detector:loop"].cords == 0
    assert heard.findings


def test_a_cord_of_a_ceiling_stands_only_where_the_policy_has_that_ceiling(world: World) -> None:
    world.policy = a_policy(a_ceiling(1, count=Count.WRITES, then=Then.FREEZE))
    for name in "abc":
        world.decided(world.ask(name, body=name))
    heard = simulated(world, a_policy(digest="d1"))
    assert [one.verdict.reason for one in heard.verdicts if one.verdict] == [Reason.ALLOWED] * 3
    assert [one.calls for one in heard.flips.values()] == [1, 1]


def test_a_persons_cord_stands_whatever_the_policy(world: World) -> None:
    world.store.pull(a_pull())
    world.decided(world.read("a"))
    world.store.release(Level.HALT, Scope.RUN, "r1", reason="x", actor="ann", at_us=START_US)
    world.decided(world.read("b"))
    heard = simulated(world, a_policy(digest="d1"))
    assert [one.verdict.reason for one in heard.verdicts if one.verdict] == [
        Reason.HALTED,
        Reason.ALLOWED,
    ]


def test_windows_are_warm_when_the_period_begins(world: World) -> None:
    world.policy = a_policy(a_ceiling(3, within_seconds=60))
    for name in "abcd":
        world.decided(world.read(name))
        world.wait(10)
    heard = simulated(world, since_us=START_US + 25_000_000)
    assert said(heard) == recorded(world)[3:]
    assert said(heard)[0][2] == Reason.OVER_CEILING


def test_a_cord_from_before_the_period_stands(world: World) -> None:
    world.store.pull(a_pull())
    world.wait(100)
    world.decided(world.read("a"))
    assert said(simulated(world, since_us=world.now_us)) == recorded(world)


def test_nothing_behind_the_end_is_judged(world: World) -> None:
    world.decided(world.read("a"))
    world.wait(100)
    world.decided(world.read("b"))
    assert [row[0] for row in said(simulated(world, until_us=world.now_us - 1))] == ["a"]


def test_what_repeats_a_write_that_would_not_have_been_made_is_not_judgeable(world: World) -> None:
    world.decided(world.ask("a"))
    world.settle("a")
    world.decided(world.ask("b"))
    tighter = a_policy(a_ceiling(0, count=Count.WRITES), digest="d1")
    heard = simulated(world, tighter)
    assert [one.why for one in heard.verdicts] == ["", REPEATS_UNMADE]
    assert heard.unjudged[REPEATS_UNMADE].examples == ["b"]


def test_a_call_that_only_the_new_policy_lets_pass_counts_on_its_ceilings(world: World) -> None:
    world.policy = a_policy(a_ceiling(0))
    for name in "abc":
        world.decided(world.read(name))
    heard = simulated(world, a_policy(a_ceiling(2), digest="d1"))
    assert [row[2] for row in said(heard)] == ["allowed", "allowed", "over_ceiling"]


@pytest.mark.parametrize(
    "used",
    [
        {},
        {"used_microusd": 0},
        {"used_microusd": 30},
        {"used_microusd": 30, "cost_microusd": 30},
        {"used_microusd": 30, "cost_microusd": 20},
    ],
)
def test_what_a_call_reserved_becomes_what_it_used(world: World, used: dict[str, Any]) -> None:
    world.policy = a_policy(a_ceiling(100, count=Count.SPEND, within_seconds=None))
    for name, spend in (("a", 80), ("b", 75), ("c", 25)):
        ask = world.ask(name, effect="model", worth=Worth(1, spend))
        if world.decided(ask).verdict.action is Action.ALLOW:
            world.settle(name, **used)
    assert said(simulated(world)) == recorded(world)


def a_policy_that_halts() -> Policy:
    return a_policy(a_ceiling(1, then=Then.HALT), digest="d1")


def test_a_ceilings_cord_is_told_with_the_run_that_it_stops(world: World) -> None:
    for name in "abcd":
        world.decided(world.read(name))
        world.settle(name, cost_microusd=7)
        world.wait(1)
    tally = simulated(world, a_policy_that_halts()).rules["ceiling:run-calls-1"]
    assert (tally.cords, tally.stopped.calls, tally.spared.calls) == (1, 3, 3)
    assert (tally.saved_microusd, list(tally.runs)) == (21, ["r1"])
