"""A policy over calls that were judged under another: what is said, and what nobody can tell."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from ledger.replaying import Scratch, scratch
from policies import simulating
from policies.call import Effect, Identity, ToolCall
from policies.ceilings import Count
from policies.comparing import Comparison
from policies.decide import decide
from policies.detectors.step import Kind, Step
from policies.load import load
from policies.policy import Policy
from policies.recognizing import Recognizing
from policies.simulated import Asked, Ended, Judged
from policies.simulating import Simulation
from policies.verdict import Action, Level, Pull, Reason, Scope, Trial

R1 = Identity("r1", "acme")
TOOLS = """\
version: 1
tools:
  pay: {match: {host: api.example, method: POST}}
  read: {match: {host: api.example, method: GET}}
"""
WRITES_AT_MOST_1 = "ceilings: [{per: run, count: writes, at_most: 1, then: %s}]\n"


@dataclass
class Given:
    """Calls under the policy `old`, judged by `new`."""

    windows: Scratch
    old: Policy = field(default_factory=lambda: load(TOOLS))
    count: int = 0
    simulation: Simulation = field(init=False)
    heard: Comparison = field(init=False)

    def begin(self, new: str = TOOLS, *, warm: bool = False) -> None:
        policy = load(new)
        known = {self.old.digest: self.old}
        self.simulation = Simulation(policy, self.windows, Recognizing(policy, known.get), decide)
        self.heard = Comparison(self.simulation.is_told)
        if not warm:
            self.simulation.begin()

    def asked(self, reason: Reason = Reason.ALLOWED, **rest: Any) -> Asked:
        self.count += 1
        tool = rest.pop("tool", "pay")
        effect = Effect.READ if tool == "read" else Effect.WRITE
        body = rest.pop("body", f"body {self.count}").encode()
        method = "GET" if tool == "read" else "POST"
        call = ToolCall(tool, effect, "", body, host="api.example", method=method)
        call = replace(call, **rest.pop("call", {}))
        action = {Reason.ALLOWED: Action.ALLOW, Reason.REPLAYED: Action.REPLAY}.get(
            reason, Action.REFUSE
        )
        name = f"c{self.count}"
        given = Asked(
            name, self.count, call, R1, action, reason, "tool:pay", self.old.digest, path="/v1"
        )
        return given._replace(**rest)

    def judge(self, reason: Reason = Reason.ALLOWED, **rest: Any) -> Judged:
        judged = self.simulation.judge(self.asked(reason, **rest))
        assert judged is not None
        self.heard.judged(judged)
        return judged


@pytest.fixture
def given() -> Iterator[Given]:
    with scratch() as windows:
        yield Given(windows)


def reason(judged: Judged) -> Reason | str:
    return judged.why if judged.verdict is None else judged.verdict.reason


def test_calls_of_before_the_beginning_are_not_judged_but_count(given: Given) -> None:
    given.begin(TOOLS + WRITES_AT_MOST_1 % "throttle", warm=True)
    assert given.simulation.judge(given.asked()) is None
    given.simulation.begin()
    assert reason(given.judge()) is Reason.OVER_CEILING


def test_a_refusal_of_who_calls_stays_whatever_the_policy(given: Given) -> None:
    given.begin()
    judged = given.judge(Reason.TOKEN_EXPIRED, rule="identity")
    assert reason(judged) is Reason.TOKEN_EXPIRED


def test_what_could_not_be_judged_is_not_judged_now(given: Given) -> None:
    given.begin()
    assert reason(given.judge(Reason.POLICY_FAILURE)) == simulating.UNJUDGED


CONDITION = TOOLS.replace("method: POST}}", "method: POST}, where: {amount: {at_most: 5}}}")


@pytest.mark.parametrize(
    "call, lost, expected",
    [
        ({"arguments": (("amount", (5,)),)}, (), Reason.ALLOWED),
        ({"arguments": (("amount", (6,)),)}, (), Reason.ARGUMENT_REFUSED),
        ({}, (), simulating.LOST),
        ({"arguments": (("amount", ("[cut]",)),)}, ("amount",), simulating.LOST),
        ({"own": True}, (), Reason.ALLOWED),
    ],
)
def test_a_condition_is_asked_of_what_the_record_holds(
    given: Given, call: dict[str, Any], lost: tuple[str, ...], expected: Reason | str
) -> None:
    given.begin(CONDITION)
    assert reason(given.judge(call=call, lost=frozenset(lost))) == expected


def test_what_is_stopped_before_the_condition_needs_no_argument(given: Given) -> None:
    given.begin(CONDITION + "halted: {runs: [r1]}\n")
    assert reason(given.judge()) is Reason.HALTED


@pytest.mark.parametrize(
    "met",
    [
        Reason.REPLAYED,
        Reason.IN_FLIGHT,
        Reason.OUTCOME_UNKNOWN,
        Reason.DONE_BUT_NOT_STORED,
        Reason.KEY_REUSED,
    ],
)
def test_a_claim_is_met_again_as_it_was(given: Given, met: Reason) -> None:
    given.begin()
    first = given.judge()
    judged = given.judge(met, earlier_call=first.asked.call_id)
    assert reason(judged) is met


def test_a_repeat_of_what_would_not_have_been_made_is_not_judgeable(given: Given) -> None:
    given.begin(TOOLS + "frozen: [pay]\n")
    first = given.judge()
    given.begin(TOOLS + WRITES_AT_MOST_1.replace("at_most: 1", "at_most: 0") % "throttle")
    first = given.judge()
    assert reason(first) is Reason.OVER_CEILING
    judged = given.judge(Reason.REPLAYED, earlier_call=first.asked.call_id)
    assert reason(judged) == simulating.REPEATS_UNMADE


def test_only_the_first_of_the_writes_that_nothing_stops_now_is_known_to_pass(given: Given) -> None:
    given.begin()
    first, again = (given.judge(Reason.FROZEN, body="same") for _ in range(2))
    assert reason(first) is Reason.ALLOWED
    assert reason(again) == simulating.REPEATS_UNKNOWN
    assert reason(given.judge(body="same")) == simulating.REPEATS_UNKNOWN


def test_under_another_rule_of_keys_only_what_nothing_repeats_is_judged(given: Given) -> None:
    rule = "method: POST}, idempotency: {same_body_seconds: 5}}"
    given.begin(TOOLS.replace("method: POST}}", rule))
    assert reason(given.judge(body="same")) is Reason.ALLOWED
    assert reason(given.judge(body="same")) == simulating.REPEATS_UNKNOWN
    assert reason(given.judge(Reason.REPLAYED, body="new")) == simulating.REPEATS_UNKNOWN


def test_a_tool_that_is_gone_is_told_as_unlisted(given: Given) -> None:
    given.begin(TOOLS.replace("method: POST", "method: PUT"))
    assert reason(given.judge()) is Reason.DESTINATION_UNLISTED


def test_what_a_stopped_call_cost_is_spared(given: Given) -> None:
    given.begin(TOOLS + WRITES_AT_MOST_1 % "freeze")
    first, second = given.judge(), given.judge()
    ended = [
        given.simulation.ended(Ended(one.asked.call_id, 9, {Count.SPEND: None}, 500))
        for one in (first, second)
    ]
    assert ended[0] is None
    assert ended[1] is not None
    assert (ended[1].cost_microusd, ended[1].identity) == (500, R1)
    assert ended[1].cause == second.cause
    assert second.cause.startswith("ceiling:")


def pull(actor: str = "ann") -> Pull:
    return Pull(Level.HALT, Scope.RUN, "r1", "", actor, 1)


@pytest.mark.parametrize(
    "actor, expected",
    [
        ("ann", Reason.HALTED),
        ("alert:loop", Reason.HALTED),
        ("detector:loop", Reason.ALLOWED),
        ("ceiling:gone", Reason.ALLOWED),
    ],
)
def test_cords_of_people_stand_and_those_of_rules_are_their_own(
    given: Given, actor: str, expected: Reason
) -> None:
    given.begin()
    given.simulation.moved(pull(actor), is_released=False)
    assert reason(given.judge()) is expected
    given.simulation.moved(pull(actor), is_released=True)
    assert reason(given.judge()) is Reason.ALLOWED


def test_a_cord_that_is_narrowed_twice_lets_both_pass(given: Given) -> None:
    """Each row tells only whom it lets pass as well: a release, or the runs that go first."""
    given.begin(TOOLS + "releases: {known_good: [v1, v2]}\n")
    given.simulation.moved(pull(), is_released=False)
    first = Trial("i1", "v2", ("r1",), 0, 0)
    for more in ({"but_releases": ("v1",)}, {"trial": first}):
        given.simulation.moved(replace(pull(), **more), is_released=False)

    def stopped(release: str) -> bool:
        return reason(given.judge(identity=replace(R1, release=release))) is Reason.HALTED

    assert [stopped(release) for release in ("v1", "v2", "")] == [False, False, True]
    given.simulation.moved(pull(), is_released=False)
    assert stopped("v1")


def test_a_cord_from_before_the_beginning_stands_whoever_pulled_it(given: Given) -> None:
    given.begin(warm=True)
    given.simulation.moved(pull("detector:loop"), is_released=False)
    given.simulation.begin()
    assert reason(given.judge()) is Reason.HALTED


def test_a_ceilings_cord_over_a_running_call_stands_while_the_policy_has_it(given: Given) -> None:
    given.begin(TOOLS + WRITES_AT_MOST_1 % "halt")
    ceiling = given.simulation.policy.ceilings[0]
    given.simulation.moved(pull(f"ceiling:{ceiling.id}"), is_released=False, call_id="c0")
    assert reason(given.judge()) is Reason.HALTED


def test_a_cord_of_its_own_is_lifted_when_a_person_lifts_it(given: Given) -> None:
    given.begin(TOOLS + WRITES_AT_MOST_1 % "halt")
    given.judge()
    tripped, stopped = given.judge(), given.judge(tool="read")
    assert tripped.pulled is not None
    assert (reason(stopped), stopped.is_own) == (Reason.HALTED, True)
    given.simulation.moved(pull(), is_released=True)
    assert reason(given.judge(tool="read")) is Reason.ALLOWED


def a_step(call_id: str, at_us: int) -> Step:
    return Step(
        at_us, Kind.TOOL, call_id, "r1", "r1", "acme", tool="read", action=b"a" * 8, result=b"r" * 8
    )


def test_a_call_that_is_stopped_feeds_no_detector(given: Given) -> None:
    given.begin(TOOLS + "detectors: {loop: {mode: enforce}}\n")
    found = []
    for second in range(60):
        judged = given.judge(tool="read", at_us=second * 1_000_000)
        given.simulation.ended(Ended(judged.asked.call_id, judged.asked.at_us, {}))
        found += given.simulation.feed(a_step(judged.asked.call_id, judged.asked.at_us))
    pulled = [one.pull for one in found if one.pull is not None]
    assert len(pulled) == 1
    assert found[-1].pull is pulled[0]  # and nothing after it
    assert given.heard.rules["detector:loop"].spared.calls > 30


def test_flips_are_counted_by_what_was_and_would_have_been_said(given: Given) -> None:
    given.begin(TOOLS + "frozen: [pay]\n")
    for said in (Reason.ALLOWED, Reason.ALLOWED, Reason.FROZEN, Reason.OVER_CEILING):
        given.judge(said)
    ((flip, calls),) = given.heard.flips.items()
    assert (flip.was, flip.would) == (
        (Action.ALLOW, Reason.ALLOWED),
        (Action.REFUSE, Reason.FROZEN),
    )
    assert (calls.calls, calls.examples) == (2, ["c1", "c2"])
    assert given.heard.otherwise == 1
    assert given.heard.changes


def test_a_ceiling_that_only_tells_changes_nothing(given: Given) -> None:
    given.begin(TOOLS + WRITES_AT_MOST_1 % "alert")
    for _ in range(3):
        given.judge()
    (tally,) = given.heard.rules.values()
    assert (tally.crossed, tally.stopped.calls) == (1, 0)
    assert not given.heard.changes


def test_only_what_is_wanted_is_told(given: Given) -> None:
    given.begin()
    given.heard.wanted = lambda runs, tenant: tenant == "beta"
    given.judge()
    assert given.heard.calls == 0


def test_a_run_that_would_not_have_been_started_is_said(given: Given) -> None:
    given.begin(TOOLS + "ceilings: [{per: tree, count: spawned, at_most: 1, then: halt}]\n")
    children = [replace(R1, run=f"r{number}", ancestors=("r1",)) for number in (2, 3)]
    assert given.simulation.spawned(children[0], 1) is None
    refused = given.simulation.spawned(children[1], 1)
    assert refused is not None
    given.heard.not_started(refused, children[1])
    assert given.heard.changes
    assert reason(given.judge()) is Reason.HALTED
