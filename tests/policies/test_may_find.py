"""A look at a run tells before a step is fed whether anything may be found over it: a no is
certain, and changes nothing.
"""

import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from policies.detectors import burn, fan_out, loop, spiral
from policies.detectors.calm import CHEAP_MICROUSD, CHEAP_TOKENS
from policies.detectors.runs import DetectorError, Runs
from policies.detectors.step import Finding, Kind, Step
from tests.policies.runs_of import CASES, START_US, Row, steps

ROWS = [row for rows in CASES.values() for row in rows]
LOW = {
    loop.NAME: loop.Limits(
        alert_burst=1, fast_burst=2, trip_burst=1, same_result_alert=3, same_result_trip=5
    ),
    spiral.NAME: spiral.Limits(alert_calls=2, trip_calls=4, trip_microusd=900, wander_calls=3),
    burn.NAME: burn.Limits(5_000, 4_000, 2, 9_000, 6_000, 3_000),
    fan_out.NAME: fan_out.Limits(2, 4, 5, 2, 3, 12),
}
NAMES = ("a", "b", "c")
GAPS_US = (0, 50_000, 2_000_000, 9_000_000, 40_000_000, 400_000_000)
KINDS = (*[Kind.TOOL] * 8, *[Kind.MODEL] * 6, Kind.SPAWN, Kind.MARK, Kind.END)


def mixed(seed: int, count: int = 1_500) -> Iterator[Step]:
    """Of few runs, some of them below others, in which little is new."""
    dice, at_us = random.Random(seed), START_US
    for number in range(count):
        at_us += dice.choice(GAPS_US)
        kind, root, below = dice.choice(KINDS), f"r{dice.randrange(3)}", dice.choice((0, 0, 1, 2))
        if kind is Kind.SPAWN:
            below = below or 1
        run = f"{root}.{below}.{dice.randrange(3)}" if below else root
        step = Step(at_us, kind, f"c{number}", run, root, "acme", release="one", depth=below)
        if kind is Kind.TOOL:
            step = replace(
                step,
                tool=dice.choice(NAMES),
                destination=dice.choice(NAMES),
                action=dice.choice(NAMES).encode() * 8,
                result=dice.choice("xy").encode() * 8,
                is_write=dice.random() < 0.1,
                replayed=dice.random() < 0.1,
            )
        if kind is Kind.MODEL:
            step.human = dice.choice((b"", b"", b"", b"%d" % number))
        if dice.random() < 0.4:
            step.spend_microusd, step.tokens = dice.randrange(1_500), dice.randrange(900)
        step.mark = number if dice.random() < 0.02 else 0
        yield step


def said(fed: Iterator[Step], runs: Runs, *, looks: bool = True) -> tuple[list[Finding], int]:
    """What is found, and over how many steps a look had said that nothing would be."""
    found, quiet = list[Finding](), 0
    for step in fed:
        may_find = runs.may_find(step) if looks else True
        at_once = runs.at_once(step)
        assert may_find or not at_once, step
        quiet += not may_find
        found += at_once + runs.later()
    return found, quiet


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_what_is_found_may_be_found(row: Row) -> None:
    found, _ = said(steps(row), Runs())
    assert found == said(steps(row), Runs(), looks=False)[0]


@pytest.mark.parametrize("limits", [{}, LOW], ids=["usual", "low"])
@pytest.mark.parametrize("seed", range(6))
def test_so_it_is_in_runs_and_trees_of_all_kinds(seed: int, limits: dict[str, object]) -> None:
    found, quiet = said(mixed(seed), Runs(limits))
    assert found == said(mixed(seed), Runs(limits), looks=False)[0]
    assert {one.detector for one in found} >= set(limits)
    assert quiet > 20


@pytest.mark.parametrize("more", [{"spend_microusd": 1_000_000}, {"tokens": 500_000}, {}])
def test_a_dear_call_is_looked_at_more_closely(more: dict[str, Any]) -> None:
    runs = Runs()
    call = Step(START_US, Kind.MODEL, "m", "r", "r", "acme", spend_microusd=CHEAP_MICROUSD)
    call.tokens = CHEAP_TOKENS
    assert not runs.may_find(replace(call, **more))
    runs.feed(replace(call, **more))
    assert runs.may_find(replace(call, **more)) is bool(more)


def test_limits_that_cannot_be_compared_are_for_the_detector_to_tell() -> None:
    runs = Runs({burn.NAME: burn.Limits(trip_microusd="much")})  # type: ignore[arg-type]
    call = Step(START_US, Kind.MODEL, "m", "r", "r", "acme", spend_microusd=1)
    with pytest.raises(TypeError):
        runs.may_find(call)
    runs.feed(call)
    with pytest.raises(DetectorError, match="burn failed: TypeError"):
        [runs.feed(call) for _ in range(5)]


def test_nothing_is_to_be_found_in_a_healthy_run() -> None:
    def healthy() -> Iterator[Step]:
        for number in range(400):
            at_us, unlike = START_US + number * 5_000_000, b"%08d" % number
            call = Step(at_us, Kind.TOOL, f"c{number}", "r", "r", "acme", tool="tool")
            yield replace(call, action=unlike, result=unlike, is_write=number % 9 == 0)
            yield Step(at_us + 1, Kind.MODEL, f"m{number}", "r", "r", "acme", spend_microusd=2_000)

    assert said(healthy(), Runs()) == ([], 800)
