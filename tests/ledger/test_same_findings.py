"""The store, the detectors alone, and the record read back say the same of the same calls: of each
hard case of tests/cases/detectors.yaml, and by the same call.
"""

from dataclasses import replace
from typing import Any

import pytest

from ledger import steps
from ledger.records import Ask, Outcome
from ledger.states import CallState, ClaimAfter
from ledger.steps import Forgotten
from ledger.watching import Watch
from policies.call import Effect, Identity, Request, ToolCall, Traits
from policies.decide import decide
from policies.detectors.rules import SHIPPED
from policies.detectors.runs import Runs
from policies.detectors.step import Kind, Step
from policies.policy import Tool
from tests.ledger.world import World, a_policy
from tests.policies.runs_of import CASES, Row
from tests.policies.runs_of import steps as steps_of

ROWS = [row for rows in CASES.values() for row in rows if "spawns" not in row]
STEPS_MAX = 130  # of a case: each is said to be one long before

Said = set[tuple[str, str, str]]
"""Detector, severity, and the call by which it was said first."""

TOLD = (
    "SELECT actor, type, call_id FROM event "
    "WHERE type IN ('detector.alerted', 'detector.tripped') ORDER BY seq"
)
SEVERITY = {"detector.alerted": "alert", "detector.tripped": "trip"}


def lived(world: World, fed: list[Step]) -> None:
    """Each step as a call that is admitted and settled, whatever it is a step of."""
    request = Request("POST", "https", "api.example", 443, "/")
    for step in fed:
        effect = Effect.MODEL if step.kind is Kind.MODEL else Effect.READ
        effect = Effect.WRITE if step.is_write else effect
        tool = step.tool or "model"
        call = ToolCall(tool, effect, tool, step.call_id.encode().ljust(32), host="api.example")
        who = Identity(step.run, "acme", release=step.release)
        traits = Traits(step.action, step.recipient, step.human, step.mark)
        world.now_us = step.at_us
        with world.store.transaction(durable=False):
            ask = Ask(step.call_id, step.at_us, who, request, call, traits=traits)
            assert world.store.admit(ask, world.policy, decide).verdict.action == "allow"
            world.store.settle(ended(step), world.policy)
        world.store.follow()


def ended(step: Step) -> Outcome:
    after = ClaimAfter.DONE if step.is_write else ClaimAfter.KEPT
    return Outcome(
        step.call_id,
        step.at_us,
        CallState.DONE,
        after,
        status=200 if step.is_ok else 503,
        result=step.result,
        cost_microusd=step.spend_microusd or None,
    )


def said_live(world: World) -> Said:
    """The record tells each finding once, and that is the first of its kind."""
    return {
        (actor.removeprefix("detector:"), SEVERITY[kind], call)
        for actor, kind, call in world.rows(TOLD)
    }


def said_alone(fed: list[Step]) -> Said:
    runs, first = Runs(), dict[tuple[str, str], str]()
    for step in fed:
        for finding in runs.feed(replace(step, tenant="acme")):
            first.setdefault((finding.detector, finding.severity), step.call_id)
    return {(*what, call) for what, call in first.items()}


def said_of_rows(world: World) -> Said:
    """By a watch of its own, which is fed with the rows of the record."""
    watch, first = Watch(), dict[tuple[str, str], str]()
    watch.make(world.store._conn, SHIPPED, 0)
    watch._runs = Runs()
    rows: list[Any] = world.rows(f"SELECT {', '.join(steps.COLUMNS)} FROM event ORDER BY seq")
    for told in steps.of_rows(rows):
        assert not isinstance(told, Forgotten)
        for found in (*watch.feed(told), *watch.follow()):
            first.setdefault((found.finding.detector, found.finding.severity), told.call_id)
    return {(*what, call) for what, call in first.items()}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_live_alone_and_read_back_they_say_the_same(world: World, row: Row) -> None:
    tools = {name: Tool(name) for name in ("tool", "pay", "model")}
    free = dict.fromkeys(tools, ())
    world.policy = replace(a_policy(), tools=tools, ceilings_of=free, detectors=SHIPPED)
    fed = list(steps_of(row))[:STEPS_MAX]
    lived(world, fed)
    alone = said_alone(fed)
    assert said_live(world) == alone
    assert said_of_rows(world) == alone
    assert bool(alone) or row["wants"] in ("none", "quiet")
