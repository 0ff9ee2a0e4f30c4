"""Detectors that look at more than one run: trees, recipients, spikes, releases; their bounds."""

from collections.abc import Iterator
from typing import Any

import pytest

from policies.detectors import (
    fan_out,
    first_seen,
    hopping,
    progress,
    releases,
    runs,
    write_spike,
)
from policies.detectors.runs import Runs
from policies.detectors.step import Finding, Kind, Severity, Step, Subject

START_US = 1_795_000_000_000_000
SECOND_US = 1_000_000


def a_step(number: int, seconds: float, kind: Kind = Kind.TOOL, **rest: Any) -> Step:
    run = rest.pop("run", "r1")
    told = {"root": run, "tenant": "acme", "tool": "pay", "action": b"%d" % number, **rest}
    return Step(START_US + round(seconds * SECOND_US), kind, f"c{number}", run, **told)


def told(steps: Iterator[Step], detector: str) -> list[tuple[int, Finding]]:
    """What a detector says, each with the number of its step from one on."""
    fleet = Runs()
    return [
        (number, finding)
        for number, step in enumerate(steps, 1)
        for finding in fleet.feed(step)
        if finding.detector == detector
    ]


def spawns(count: int, every_seconds: float, depth: int = 1) -> Iterator[Step]:
    for number in range(count):
        yield a_step(
            number, number * every_seconds, Kind.SPAWN, run=f"child-{number}", root="r1",
            depth=depth,
        )  # fmt: skip


@pytest.mark.parametrize(
    "count, every_seconds, depth, alert_at, trip_at",
    [
        (8, 1, 1, None, None),  # the most that a healthy conversation did in five minutes
        (30, 60, 1, None, None),
        (20, 1, 1, 9, 15),  # claude-code#69332, #69395: hundreds within minutes
        (12, 59, 3, None, 8),  # three deep (#68110), slowly
        (250, 61, 1, None, 200),
    ],
)
def test_a_tree_that_fans_out_is_told(
    count: int, every_seconds: float, depth: int, alert_at: int | None, trip_at: int | None
) -> None:
    found = told(spawns(count, every_seconds, depth), fan_out.NAME)
    first = {finding.severity: number for number, finding in reversed(found)}
    assert first.get(Severity.ALERT) == alert_at
    assert first.get(Severity.TRIP) == trip_at
    assert all(finding.name == "r1" for _, finding in found)


def test_runs_that_have_ended_are_not_live() -> None:
    def steps() -> Iterator[Step]:
        for spawned in spawns(40, 25):
            yield spawned
            yield a_step(0, 0, Kind.END, run=spawned.run, root="r1", depth=1)

    assert not [one for _, one in told(steps(), fan_out.NAME) if one.severity is Severity.TRIP]


@pytest.mark.parametrize("count, said", [(60, None), (61, 61)])
def test_one_run_that_writes_more_than_one_a_second_is_told(count: int, said: int | None) -> None:
    steps = (a_step(number, number * 0.5, is_write=True) for number in range(count))
    found = told(steps, write_spike.NAME)
    assert [number for number, _ in found[:1]] == ([said] if said else [])


def written(count: int, runs_count: int, recipient: bytes, every_seconds: float) -> Iterator[Step]:
    for number in range(count):
        run = f"r{number % runs_count}"
        yield a_step(number, number * every_seconds, run=run, is_write=True, recipient=recipient)


def test_a_new_recipient_of_several_runs_is_told_and_then_stopped() -> None:
    found = told(written(11, 11, b"iban", 30), first_seen.NAME)
    assert [(number, one.severity) for number, one in found][:3] == [
        (3, Severity.ALERT), (4, Severity.ALERT), (5, Severity.TRIP),
    ]  # fmt: skip
    assert found[2][1].evidence == ("c0", "c1", "c2", "c3", "c4")
    assert found[2][1].subject is Subject.TOOL


def test_a_recipient_that_is_known_for_longer_is_nobody_new() -> None:
    assert not told(written(11, 11, b"iban", 400), first_seen.NAME)


def test_a_spike_of_a_tool_takes_several_runs() -> None:
    assert not told(written(250, 2, b"", 1.1), write_spike.NAME)
    found = told(written(250, 3, b"", 1.1), write_spike.NAME)
    assert found[0][0] == 101
    assert found[0][1].severity is Severity.ALERT


def released(release: str, count: int, failing: int, runs_count: int = 6) -> Iterator[Step]:
    """Of each hundred calls so many fail."""
    for number in range(count):
        yield a_step(
            number, number, run=f"{release}-{number % runs_count}", release=release,
            is_ok=number % 100 >= failing,
        )  # fmt: skip


@pytest.mark.parametrize(
    "failing, runs_count, trips", [(3, 6, False), (60, 6, True), (60, 2, False)]
)
def test_a_release_that_fails_more_than_the_one_before_is_told(
    failing: int, runs_count: int, trips: bool
) -> None:
    def steps() -> Iterator[Step]:
        yield from released("1", 400, 2)
        yield from released("2", 400, failing, runs_count)

    found = told(steps(), releases.NAME)
    assert bool(found) is trips
    assert all(one.subject is Subject.RELEASE and one.name == "2" for _, one in found)


def test_a_release_without_a_known_predecessor_is_not_judged() -> None:
    assert not told(released("1", 400, 90), releases.NAME)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "RUNS_MAX", 50)
    monkeypatch.setattr(runs, "TREES_MAX", 40)
    monkeypatch.setattr(write_spike, "KNOWN_MAX", 30)
    monkeypatch.setattr(first_seen, "KNOWN_MAX", 25)
    monkeypatch.setattr(releases, "RELEASES_MAX", 20)
    fleet = Runs()
    for number in range(3_000):
        fleet.feed(
            a_step(
                number, number, run=f"r{number % 70}", root=f"root{number % 60}", depth=1,
                release=f"l{number}", is_write=True, recipient=b"%d" % number,
                destination=f"h{number}", tool=f"t{number}",
            )
        )  # fmt: skip
    assert len(fleet._runs) == 50
    assert len(fleet._trees) == 40
    spike, met, known = fleet._fleet
    assert isinstance(spike, write_spike.WriteSpike)
    assert isinstance(met, first_seen.FirstSeen)
    assert isinstance(known, releases.Releases)
    assert (len(spike._of_tools), len(met._recipients)) == (30, 25)
    assert len(known._known) == 20
    run = fleet._runs.get(f"r{2_999 % 70}")
    assert run is not None
    one = run.progress
    assert len(one._answers) <= progress.ACTIONS_MAX
    assert len(one._destinations) <= progress.DESTINATIONS_MAX


def test_what_is_remembered_of_a_tree_is_bounded() -> None:
    fleet = Runs()
    for number in range(3_000):
        who: Any = {"run": f"r{number // 4 % 90}", "root": "top", "depth": 1}
        action = b"%d" % (number // 4 % 70)
        fleet.feed(a_step(number, number / 10, **who, action=action, result=b"same"))
    hopping_of = fleet._trees["top"].hopping
    assert len(hopping_of._repeating) == hopping.REPEATING_MAX
    assert len(hopping_of._stuck) == hopping.KNOWN_MAX
    assert max(map(len, hopping_of._stuck.values())) <= hopping.TRIP_RUNS
