"""Runs that are quiet are packed: they take less room, and go on as what they were."""

import gc
import random
import tracemalloc
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import pytest

from policies.detectors import burn, loop, progress, resting, runs
from policies.detectors.progress import Progress
from policies.detectors.runs import Run, Runs
from policies.detectors.step import Finding, Kind, Severity, Step
from policies.verdict import Scope
from tests.policies.runs_of import CASES, Row
from tests.policies.runs_of import steps as steps_of

START_US = 1_795_000_000_000_000
SECOND_US = 1_000_000
ROWS = [row for rows in CASES.values() for row in rows]
ALWAYS_US = -1  # then each run is packed as soon as it was fed


@pytest.fixture(autouse=True)
def none_awake(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a test would need more runs than it looks at."""
    monkeypatch.setattr(resting, "AWAKE_MAX", 0)


def a_step(number: int, seconds: float, run: str = "r1", **rest: Any) -> Step:
    at_us = START_US + round(seconds * SECOND_US)
    told = {"root": run, "tenant": "acme", "tool": "pay", "action": b"%08d" % number, **rest}
    return Step(at_us, told.pop("kind", Kind.TOOL), f"{number:032x}", run, **told)


def known(fleet: Runs, name: str) -> Run:
    run = fleet._runs.get(name)
    assert run is not None
    return run


def told(one: Progress, now_us: int) -> dict[str, Any]:
    """Of writes how many count."""
    parts = {field.name: getattr(one, field.name) for field in fields(one)}
    return {**parts, "writes": one.writes.within(now_us, 60) if one.writes else 0}


def found(fleet: Runs, steps: Iterator[Step]) -> list[Finding]:
    return [finding for step in steps for finding in fleet.feed(step)]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_the_same_is_found_of_a_run_that_is_packed_after_each_step(
    row: Row, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resting, "QUIET_US", 10**15)
    expected = found(Runs(), steps_of(row))
    monkeypatch.setattr(resting, "QUIET_US", ALWAYS_US)
    fleet = Runs()
    assert found(fleet, steps_of(row)) == expected
    assert not fleet._runs._awake


def varied(count: int) -> Iterator[Step]:
    """A few runs by turns: calls, repeats, writes, replays, models that cost, marks, words."""
    dice = random.Random(11)
    for number in range(count):
        kind = dice.choice((Kind.TOOL, Kind.TOOL, Kind.TOOL, Kind.MODEL, Kind.MARK))
        is_write = kind is Kind.TOOL and dice.random() < 0.2
        rest: dict[str, Any] = {"kind": kind, "is_write": is_write}
        if kind is Kind.TOOL:
            rest |= {
                "action": b"%08d" % dice.randrange(40),
                "result": b"%08d" % dice.randrange(3),
                "destination": f"host-{dice.randrange(9)}",
                "replayed": is_write and dice.random() < 0.3,
            }
        elif kind is Kind.MODEL:
            rest |= {"spend_microusd": dice.randrange(90_000), "tokens": dice.randrange(9_000)}
            rest["human"] = b"%08d" % dice.randrange(60) if dice.random() < 0.05 else b""
        else:
            rest["mark"] = number
        yield a_step(number, number * 0.7, f"r{dice.randrange(7)}", **rest)


def test_what_is_packed_goes_on_as_what_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resting, "QUIET_US", 3 * SECOND_US)
    packs = Runs()
    monkeypatch.setattr(resting, "QUIET_US", 10**15)
    keeps, earned = Runs(), []
    for step in varied(4_000):
        monkeypatch.setattr(resting, "QUIET_US", 3 * SECOND_US)
        seen = packs.feed(step)
        monkeypatch.setattr(resting, "QUIET_US", 10**15)
        assert seen == keeps.feed(step)
        assert packs.earned_milli == keeps.earned_milli
        earned.append(packs.earned_milli)
    assert len(set(earned)) > 3
    now_us = step.at_us
    for name in keeps._runs:
        assert told(known(packs, name).progress, now_us) == told(
            known(keeps, name).progress, now_us
        )


def test_writes_that_are_too_old_to_count_are_not_packed() -> None:
    fleet = Runs()
    for number in range(5):
        fleet.feed(a_step(number, number, is_write=True))
    fleet.feed(a_step(9, 63.9, "r2"))
    assert "r1" in fleet._runs._awake  # for 59.9 seconds
    fleet.feed(a_step(10, 64.1, "r2"))
    assert "r1" in fleet._runs._quiet
    run = known(fleet, "r1").progress
    assert run.epoch == 5
    assert run.writes is None


def test_a_pause_makes_nothing_forgotten() -> None:
    """What is spent before and after it adds up, as do repeats; others speak meanwhile."""
    fleet = Runs()
    usd = 1_000_000
    half = burn.LIMITS.trip_microusd // 2
    spent = [a_step(n, n, kind=Kind.MODEL, spend_microusd=half // 4) for n in range(4)]
    assert not [one for one in found(fleet, iter(spent)) if one.severity is Severity.TRIP]
    for number in range(10, 700, 10):
        fleet.feed(a_step(number, number, f"other-{number % 30}"))
    assert "r1" in fleet._runs._quiet
    after = a_step(701, 701, kind=Kind.MODEL, spend_microusd=half)
    (tripped,) = [one for one in fleet.feed(after) if one.detector == burn.NAME]
    assert (tripped.severity, tripped.why) == (Severity.TRIP, "$2.00 since progress")
    assert burn.LIMITS.trip_microusd == 2 * usd


def test_a_call_that_was_made_before_a_pause_is_known_after_it() -> None:
    fleet = Runs()
    told: dict[str, Any] = {"action": b"same-one", "result": b"the same"}
    fleet.feed(a_step(1, 0, **told))
    for number in range(10, 200, 10):
        fleet.feed(a_step(number, number, f"other-{number}"))
    assert "r1" in fleet._runs._quiet
    fleet.feed(a_step(2, 200, **told))
    now = known(fleet, "r1")
    assert now.progress.is_stale
    assert now.progress.repeats == 1


def test_counts_that_are_one_stay_one_and_limits_are_shared() -> None:
    """One object that begins at once would be counted once more if it became two."""
    limits = loop.Limits(alert_burst=3)
    fleet = Runs({loop.NAME: limits})
    fleet.feed(a_step(1, 0, is_write=True))
    fleet.feed(a_step(2, 100, "other"))
    assert list(fleet._runs._quiet) == ["r1"]
    now = known(fleet, "r1")
    assert now.progress.unmoved is now.progress.unearned is now.progress.unwritten
    (of_loop,) = [one for one in now.at_once if isinstance(one, loop.Loop)]
    assert of_loop.limits is limits


def test_the_stalest_are_forgotten_first_packed_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RUNS_MAX", 5)
    fleet = Runs()
    for number in range(4):
        fleet.feed(a_step(number, number, f"old-{number}"))
    for number in range(4):
        fleet.feed(a_step(10 + number, 200 + number, "old-1" if number == 0 else f"new-{number}"))
    assert list(fleet._runs) == ["old-3", "old-1", "new-1", "new-2", "new-3"]
    assert len(fleet._runs) == 5
    for number in range(8):
        fleet.feed(a_step(20 + number, 204, f"newest-{number}"))
    assert list(fleet._runs) == [f"newest-{number}" for number in range(3, 8)]


def test_who_is_let_go_on_begins_anew_packed_or_not() -> None:
    fleet = Runs()
    for number, run in enumerate(("top", "kid", "other")):
        root = "top" if run == "kid" else run
        fleet.feed(a_step(number, 0, run, root=root, depth=int(run == "kid")))
    for number in range(5):
        fleet.feed(a_step(10 + number, 100 + number, "awake", root="top", depth=1))
    assert set(fleet._runs._quiet) == {"top", "kid", "other"}
    fleet.forget(Scope.RUN, "top")
    assert list(fleet._runs) == ["other"]
    fleet.forget(Scope.TENANT, "acme")
    assert len(fleet._runs) == 0


def long_run(name: str, begin_seconds: float) -> Iterator[Step]:
    """Five hundred calls within twenty seconds, most of them alike in what they bring."""
    dice = random.Random(name)
    for number in range(500):
        at_seconds = begin_seconds + number / 25
        action = dice.randbytes(8)
        told: dict[str, Any] = {"result": b"the same"}
        if dice.random() < 0.2:
            told = {"result": dice.randbytes(8), "is_write": True}
        step = a_step(number, at_seconds, name, action=action, destination="api.example", **told)
        step.call_id = dice.randbytes(16).hex()
        yield step


def test_a_quiet_run_takes_half_the_room() -> None:
    """In bytes, of runs that are as long as what is remembered of each; and a woken one takes no
    more than before it was packed."""
    fleet, count = Runs(), 30
    found(fleet, long_run("first", 0))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(count):
            found(fleet, long_run(f"r{number}", 100 + 20 * number))
        found(fleet, (a_step(n, 1_000 + n, "last") for n in range(count + 2)))
        gc.collect()  # when it does so by itself hangs on all that this process holds
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(fleet._runs._quiet) == count + 1
    assert taken / count < 5_500
    assert progress.ACTIONS_MAX == 256


def test_the_few_that_were_heard_of_last_stay_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resting, "AWAKE_MAX", 3)
    monkeypatch.setattr(resting, "QUIET_US", ALWAYS_US)
    fleet = Runs()
    for number in range(5):
        fleet.feed(a_step(number, number, f"r{number}"))
    assert list(fleet._runs._quiet) == ["r0", "r1"]
    assert list(fleet._runs._awake) == ["r2", "r3", "r4"]


def test_a_run_that_is_calm_stays_packed_while_a_call_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resting, "QUIET_US", ALWAYS_US)
    fleet = Runs()
    for number in range(3):
        step = a_step(number, number, result=b"%08d" % number)
        assert not fleet.may_find(step)
        assert not fleet._runs._awake
        fleet.feed(step)
    assert fleet._runs.calm("r1") is known(fleet, "r1").calm
    assert fleet._runs.calm("r2") is None


def test_of_one_that_repeats_itself_it_is_looked_at_what_it_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected = [Runs().may_find(a_step(1, 0))]
    awake, fleet = Runs(), Runs()
    monkeypatch.setattr(resting, "QUIET_US", ALWAYS_US)
    for seconds in range(12):
        step = a_step(1, seconds, result=b"the same")
        expected.append(awake.may_find(step))
        assert fleet.may_find(step) is expected[-1]
        with monkeypatch.context() as patched:
            patched.setattr(resting, "QUIET_US", 10**15)
            awake.feed(step)
        fleet.feed(step)
    assert {False, True} == set(expected)
