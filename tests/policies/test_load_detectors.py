"""The policy's section `detectors`, and that each of its limits bites: for each a value at which
some made-up run is told, and one at which it is not."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from policies.detectors.loop import Limits as LoopLimits
from policies.detectors.rules import SHIPPED, Mode, Response
from policies.detectors.runs import DETECTORS, Runs
from policies.detectors.step import Kind, Severity, Step
from policies.load import load_file
from policies.policy import Policy
from policies.schema_detectors import written

Build = Callable[[str], Policy]
Steps = Iterator[Step]

START_US = 1_795_000_200_000_000  # a span of five minutes begins
ALERT, TRIP = Severity.ALERT, Severity.TRIP


def a_step(number: int, seconds: float, kind: Kind = Kind.TOOL, **rest: Any) -> Step:
    run = rest.pop("run", "r1")
    told = {"root": run, "tenant": "acme", "tool": "look", "action": b"a", "result": b"r", **rest}
    return Step(START_US + round(seconds * 1_000_000), kind, f"c{number}", run, **told)


def repeats(count: int, every: float, usd: float = 0, **rest: Any) -> Steps:
    """The same call with the same result."""
    for number in range(count):
        if usd:
            spent = round(usd * 1_000_000)
            yield a_step(number, number * every, Kind.MODEL, spend_microusd=spent)
        yield a_step(number, number * every, **rest)


def varied(count: int, every: float) -> Steps:
    for number in range(count):
        yield a_step(number, number * every, action=b"%d" % number)


def models(count: int, every: float, usd: float = 0, tokens: int = 0) -> Steps:
    spent = round(usd * 1_000_000)
    for number in range(count):
        yield a_step(number, number * every, Kind.MODEL, spend_microusd=spent, tokens=tokens)


def wandering(count: int) -> Steps:
    """Something new each time, and two questions in turn that were asked before."""
    for number in range(count):
        yield a_step(number, 5 * number, Kind.MODEL)
        asked = b"%d" % (number % 10)
        yield a_step(number, 5 * number, action=asked, result=b"%d" % number)


def earning(count: int, every: float, usd: float, *, is_write: bool) -> Steps:
    """Money, and something to show for it."""
    for number in range(count):
        new = b"%d" % number
        spent = round(usd * 1_000_000)
        yield a_step(number, number * every, Kind.MODEL, spend_microusd=spent)
        yield a_step(number, number * every, action=new, result=new, is_write=is_write)


def spawns(count: int, every: float, depth: int = 1) -> Steps:
    for number in range(count):
        yield a_step(
            number, number * every, Kind.SPAWN, run=f"child-{number}", root="r1", depth=depth
        )


def new_and_old(pattern: str, every: float = 2) -> Steps:
    """`n`: a call that brings something new, `o`: one that does not."""
    for number, kind in enumerate("o" + pattern):
        action = b"%d" % number if kind == "n" else b"old"
        yield a_step(number, number * every, action=action, result=action)


def writes(count: int, every: float, runs: int = 1, start: float = 0, **rest: Any) -> Steps:
    for number in range(count):
        seconds = start + number * every
        action = b"order %d at %d" % (number, seconds)
        told = {"run": f"r{number % runs}", "is_write": True, "action": action, **rest}
        yield a_step(number, seconds, **told)


def usually_few() -> Steps:
    """Five writes in each span of five minutes, and at last twenty."""
    yield from chain.from_iterable(writes(5, 10, 3, 300 * span) for span in range(200))
    yield from writes(20, 5, 3, 300 * 200)


def a_bad_release() -> Steps:
    for release, failing in (("v1", 2), ("v2", 60)):
        for number in range(400):
            yield a_step(
                number, number, run=f"{release}-{number % 6}", release=release,
                action=b"%d" % number, is_ok=number % 100 >= failing,
            )  # fmt: skip


class Bite(NamedTuple):
    """`told` and `not_told` are values of one limit, `beside` other limits."""

    key: str
    told: Any
    not_told: Any
    severity: Severity
    steps: Callable[[], Steps]
    beside: str = ""


BITES = (
    Bite("loop.alert_every", "20s", "5s", ALERT, lambda: repeats(20, 8)),
    Bite("loop.alert_burst", 3, 100, ALERT, lambda: repeats(12, 2)),
    Bite("loop.fast_every", "4.5s", "1s", TRIP, lambda: repeats(12, 2)),
    Bite("loop.fast_burst", 5, 50, TRIP, lambda: repeats(12, 2)),
    Bite("loop.trip_every", "10s", "5s", TRIP, lambda: repeats(40, 6, 0.3)),
    Bite("loop.trip_burst", 8, 500, TRIP, lambda: repeats(40, 6, 0.3)),
    Bite("loop.trip_usd", "2.00", 1000, TRIP, lambda: repeats(40, 6, 0.3)),
    Bite("loop.same_result_every", "6s", "1s", ALERT, lambda: varied(80, 2)),
    Bite("loop.same_result_alert", 18, 500, ALERT, lambda: varied(80, 2)),
    Bite("loop.same_result_trip", 40, 500, TRIP, lambda: varied(80, 2)),
    Bite("spiral.alert_calls", 6, 100, ALERT, lambda: models(30, 5)),
    Bite("spiral.trip_calls", 10, 100, TRIP, lambda: models(30, 5)),
    Bite("spiral.trip_usd", "0.5", 1000, TRIP, lambda: models(30, 20, 0.1)),
    Bite("spiral.trip_lasted", "60s", "10h", TRIP, lambda: models(30, 5)),
    Bite("spiral.alert_every", "60s", "1s", ALERT, lambda: models(30, 5)),
    Bite("spiral.trip_every", "15s", "1s", TRIP, lambda: models(30, 5)),
    Bite("spiral.wander_calls", 20, 500, ALERT, lambda: wandering(60)),
    Bite("spiral.wander_repeats", 2, 500, ALERT, lambda: wandering(60)),
    Bite("burn.trip_usd", "2.00", 1000, TRIP, lambda: models(10, 60, 1)),
    Bite("burn.trip_tokens", 5_000, 1_000_000, TRIP, lambda: models(10, 60, 0, 1_000)),
    Bite("burn.trip_calls", 3, 1_000, TRIP, lambda: models(10, 60, 1)),
    Bite("burn.fast_trip_usd", 10, 1000, TRIP, lambda: earning(20, 30, 3, is_write=True)),
    Bite("burn.fast_alert_usd", 5, 1000, ALERT, lambda: earning(20, 30, 3, is_write=True)),
    Bite(
        "burn.idle_alert_usd", 2, 1000, ALERT,
        lambda: earning(180, 60, 0.05, is_write=False), "trip_usd: 1000",
    ),
    Bite("fan_out.alert_spawns", 9, 60, ALERT, lambda: spawns(12, 1)),
    Bite("fan_out.trip_spawns", 15, 60, TRIP, lambda: spawns(16, 1)),
    Bite("fan_out.trip_live", 20, 64, TRIP, lambda: spawns(25, 10), "trip_spawns: 64"),
    Bite("fan_out.trip_depth", 3, 10, TRIP, lambda: spawns(12, 40, 3)),
    Bite("fan_out.trip_depth_descendants", 8, 1_000, TRIP, lambda: spawns(12, 40, 3)),
    Bite("fan_out.trip_descendants", 10, 1_000, TRIP, lambda: spawns(12, 40)),
    Bite("novelty.calls_max", 10, 200, ALERT, lambda: new_and_old("n" * 15 + "o" * 9)),
    Bite("novelty.calls_min", 10, 20, TRIP, lambda: new_and_old("o" * 12)),
    Bite("novelty.alert_percent", 60, 40, ALERT, lambda: new_and_old("no" * 12)),
    Bite(
        "novelty.trip_percent", 60, 25, TRIP, lambda: new_and_old("no" * 12), "alert_percent: 60"
    ),
    Bite("novelty.alert_every", "60s", "1s", TRIP, lambda: new_and_old("o" * 12)),
    Bite("novelty.trip_every", "4.5s", "1s", TRIP, lambda: new_and_old("o" * 12)),
    Bite("write_spike.run_writes", 60, 1_000, TRIP, lambda: writes(70, 0.5)),
    Bite("write_spike.tool_writes", 100, 1_000, ALERT, lambda: writes(120, 1.1, 3)),
    Bite("write_spike.tool_times", 1, 100, ALERT, usually_few, "tool_writes: 5"),
    Bite("write_spike.tool_runs", 3, 10, ALERT, lambda: writes(120, 1.1, 3)),
    Bite(
        "first_seen_destination.within", "10m", "10s", TRIP,
        lambda: writes(8, 30, 8, recipient=b"iban"),
    ),
    Bite(
        "first_seen_destination.alert_runs", 3, 100, ALERT,
        lambda: writes(8, 30, 8, recipient=b"iban"),
    ),
    Bite(
        "first_seen_destination.trip_runs", 5, 100, TRIP,
        lambda: writes(8, 30, 8, recipient=b"iban"),
    ),
    Bite("release.runs", 5, 100, TRIP, a_bad_release),
    Bite("release.calls", 200, 10_000, TRIP, a_bad_release),
    Bite("release.sum_milli", 5_000, 1_000_000, TRIP, a_bad_release),
    Bite("release.usual_milli", 20, 600, TRIP, a_bad_release),
    Bite("release.times", 2, 1_000, TRIP, a_bad_release),
)  # fmt: skip


def is_told(policy: Policy, one: Bite) -> bool:
    runs = Runs({name: rule.limits for name, rule in policy.detectors.items()})
    detector, _, _ = one.key.partition(".")
    return any(
        finding.detector == detector and finding.severity is one.severity
        for step in one.steps()
        for finding in runs.feed(step)
    )


@pytest.mark.parametrize("one", BITES, ids=lambda one: one.key)
def test_a_limit_bites(one: Bite, a_policy: Build) -> None:
    detector, _, key = one.key.partition(".")
    for value, expected in ((one.told, True), (one.not_told, False)):
        limits = ", ".join(filter(None, (f"{key}: {value}", one.beside)))
        policy = a_policy(f"detectors: {{{detector}: {{limits: {{{limits}}}}}}}")
        assert is_told(policy, one) is expected, value


def test_every_limit_has_its_row() -> None:
    known = {
        f"{name}.{written(one.name)}"
        for name, kind in DETECTORS.items()
        for one in fields(kind.limits)
    }
    assert {one.key for one in BITES} == known
    assert len(BITES) == len(known)


# ---- the section


def test_without_the_section_every_detector_tells_and_pulls_nothing(a_policy: Build) -> None:
    policy = a_policy("unlisted: refuse")
    assert policy.detectors == SHIPPED
    assert set(policy.detectors) == set(DETECTORS)
    assert {rule.mode for rule in policy.detectors.values()} == {Mode.ALERT}


def test_what_is_said_of_one_detector_leaves_the_others(a_policy: Build) -> None:
    policy = a_policy(
        """
        detectors:
          loop: {mode: enforce, then: halt_run, limits: {trip_burst: 12}}
          spiral: enforce
          burn: observe
          fan_out: "off"
          novelty: false
          write_spike: {mode: false}
          release: {then: throttle}
        """
    )
    rules = policy.detectors
    assert rules["loop"].limits == LoopLimits(trip_burst=12)
    assert (rules["loop"].mode, rules["loop"].then) == (Mode.ENFORCE, Response.HALT_RUN)
    modes = [rules[name].mode for name in ("spiral", "burn", "fan_out", "novelty", "write_spike")]
    assert modes == [Mode.ENFORCE, Mode.OBSERVE, Mode.OFF, Mode.OFF, Mode.OFF]
    assert (rules["release"].mode, rules["release"].then) == (Mode.ALERT, Response.THROTTLE)
    assert rules["first_seen_destination"] == SHIPPED["first_seen_destination"]
    assert [rules[name].limits for name in DETECTORS if name != "loop"] == [
        kind.limits for name, kind in DETECTORS.items() if name != "loop"
    ]


def test_an_edit_of_something_else_leaves_the_limits_equal(a_policy: Build) -> None:
    """Who remembers what runs did goes by them: other limits begin anew."""
    text = "detectors: {loop: {limits: {trip_every: 12s, trip_usd: 2.50}}}"
    one, other = a_policy(text), a_policy(f"unlisted: allow\n{text}")
    assert one.detectors == other.detectors
    assert [hash(rule) for rule in one.detectors.values()] == [
        hash(rule) for rule in other.detectors.values()
    ]


@pytest.mark.parametrize(
    "told, microseconds",
    [("4.5s", 4_500_000), ("0.25s", 250_000), ("1.005s", 1_005_000), ("24h", 86_400_000_000)],
)
def test_a_time_may_be_finer_than_a_second(told: str, microseconds: int, a_policy: Build) -> None:
    policy = a_policy(f"detectors: {{loop: {{limits: {{fast_every: {told}}}}}}}")
    assert policy.detectors["loop"].limits.fast_every_us == microseconds


def test_the_shipped_policy_stops_what_is_sure_and_tells_the_rest() -> None:
    rules = load_file(Path("config/policy.yaml")).detectors
    enforced = {name for name, rule in rules.items() if rule.mode is Mode.ENFORCE}
    assert enforced == {"loop", "spiral", "burn", "fan_out"}
    assert {rule.mode for rule in rules.values()} == {Mode.ENFORCE, Mode.ALERT}
