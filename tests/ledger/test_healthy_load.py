"""Two hundred agents that do their work for ten minutes: no detector stops any of them.

The real store judges and settles every call, with all detectors enforced; only time is made up.
"""

import heapq
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

import pytest

from ledger.records import Ask, Bearer, Claimant, Outcome
from ledger.states import CallState, ClaimAfter
from ledger.tokens import Grant
from policies.call import Effect, Request, ToolCall, Traits
from policies.decide import decide
from policies.detectors.rules import Mode, Rule
from policies.detectors.runs import DETECTORS
from policies.policy import Policy, Tool
from policies.verdict import Action
from tests.ledger.healthy_runs import LOAD, MICRO, Behaviour, Call, codes, digest, loops, said
from tests.ledger.world import START_US, World, a_policy

MINUTES = 10
PARENTS, CHILDREN_EACH = 5, 3  # of those who code
TOOLS = {
    *("model", "jobs.get", "pay", "orders.list", "mail", "stock.get", "log.tail", "files.get"),
    *("files.put", "tests.run", "notes.put"),
    *(f"site{number}.get" for number in range(40)),
}
ALERTS = "SELECT actor, count(*) FROM event WHERE type = 'detector.alerted' GROUP BY actor"
TRIPS = "SELECT actor, run, detail FROM event WHERE type = 'detector.tripped'"
INCIDENTS = "SELECT kind, count(*) FROM incident GROUP BY kind"
SLICE_US = 2 * MICRO  # what comes in two seconds shares a transaction


@dataclass(order=True, slots=True)
class Due:
    """A call that is to be made, or one that ends; in the order of time."""

    at_us: int
    number: int
    run: str = field(compare=False)
    call: Call = field(compare=False)
    call_id: str = field(compare=False, default="")


def enforced(tools: set[str]) -> Policy:
    """No ceiling at all, and every detector may stop a run."""
    rules = {name: Rule(Mode.ENFORCE, kind.limits) for name, kind in DETECTORS.items()}
    made = {name: Tool(name) for name in tools}
    return replace(a_policy(), tools=made, ceilings_of=dict.fromkeys(made, ()), detectors=rules)


class Load:
    """Runs by name, each with what it does next."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.made: Counter[str] = Counter()
        self.stopped: list[str] = []
        self._numbers = count()
        self._runs: dict[str, Iterator[Call]] = {}
        self._claimants: dict[str, Claimant] = {}
        self._due: list[Due] = []

    def add(self, run: str, behaves: Behaviour, at_us: int, parent: str = "") -> None:
        by = Bearer(parent, digest(parent.encode())) if parent else None
        grant = Grant(run, tenant="" if parent else "acme", parent=parent, release="1")
        self.world.store.mint(
            grant, digest(run.encode()), actor="ann", at_us=at_us, by=by, policy=self.world.policy
        )
        self._claimants[run] = Bearer(run, digest(run.encode()))
        self._runs[run] = behaves(run, random.Random(run))
        self._next(run, at_us)

    @property
    def runs(self) -> int:
        return len(self._runs)

    def until(self, end_us: int) -> None:
        """All that comes before that time, some of it in each transaction."""
        while self._due and self._due[0].at_us < end_us:
            slice_end_us = self._due[0].at_us + SLICE_US
            with self.world.store.transaction(durable=True):
                while self._due and self._due[0].at_us < min(slice_end_us, end_us):
                    due = heapq.heappop(self._due)
                    self.world.now_us = due.at_us
                    if due.call_id:
                        self._end(due)
                    else:
                        self._begin(due)

    def _next(self, run: str, at_us: int) -> None:
        call = next(self._runs[run])
        due_us = at_us + round(call.after_seconds * MICRO)
        heapq.heappush(self._due, Due(due_us, next(self._numbers), run, call))

    def _begin(self, due: Due) -> None:
        call, call_id = due.call, f"c{due.number}"
        tool = call.tool or "model"
        judged = ToolCall(tool, Effect(call.effect), tool, digest(call.asks.encode()), host=tool)
        traits = Traits(call.action, said(call.recipient), said(call.human))
        request = Request("POST", "https", "api.example", 443, "/")
        claimant = self._claimants[due.run]
        ask = Ask(call_id, due.at_us, claimant, request, judged, traits=traits)
        verdict = self.world.store.admit(ask, self.world.policy, decide).verdict
        self.made[call.effect] += 1
        if verdict.action is not Action.ALLOW:
            self.stopped.append(f"{due.run}, {call.tool} {call.asks}: {verdict}")
            return
        end_us = due.at_us + round(call.takes_seconds * MICRO)
        heapq.heappush(self._due, replace(due, at_us=end_us, call_id=call_id))

    def _end(self, due: Due) -> None:
        call = due.call
        cost = round(call.usd * MICRO) if call.effect == "model" else None
        after = ClaimAfter.DONE if call.effect == "write" else ClaimAfter.KEPT
        told = {"result": call.result, "cost_microusd": cost, "status": call.status}
        outcome = Outcome(due.call_id, due.at_us, CallState.DONE, after, **told)  # type: ignore[arg-type]
        assert self.world.store.settle(outcome, self.world.policy)
        self._next(due.run, due.at_us)


@pytest.mark.alone
@pytest.mark.slow
def test_nobody_who_does_his_work_is_stopped(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """12 seconds for ten minutes of 200 runs."""
    world.policy = enforced(TOOLS)
    load, begun, end_us = Load(world), time.monotonic(), START_US + MINUTES * 60 * MICRO
    for behaves, number in LOAD.items():
        for which in range(number):
            load.add(f"{behaves.__name__}-{which}", behaves, START_US)
    for nth in range(CHILDREN_EACH):
        load.until(START_US + (nth + 1) * 60 * MICRO)
        for which in range(PARENTS):
            load.add(f"child-{which}-{nth}", codes, world.now_us, f"codes-{which}")
    load.until(end_us)
    with capsys.disabled():
        print(
            f"\nhealthy load: {load.runs} runs, {MINUTES} minutes, {load.made.total()} calls "
            f"({dict(load.made)}): {len(world.rows(TRIPS))} trips, alerts "
            f"{dict(world.rows(ALERTS))} in incidents of {dict(world.rows(INCIDENTS))}; "
            f"{time.monotonic() - begun:.0f} s"
        )
    assert load.runs == 200
    assert load.stopped == []
    assert world.store.pulls == {}
    assert world.rows(TRIPS) == []


def test_whoever_does_not_is_stopped_among_them(world: World) -> None:
    world.policy = enforced(TOOLS)
    load = Load(world)
    for behaves in LOAD:
        load.add(behaves.__name__, behaves, START_US)
    load.add("loops", loops, START_US)
    load.until(START_US + 60 * MICRO)
    assert {run for _, run, _ in world.rows(TRIPS)} == {"loops"}
    assert [told.partition(",")[0] for told in load.stopped] == ["loops"]
