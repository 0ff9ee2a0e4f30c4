"""Which cord a trip pulls: tests/cases/responses.yaml."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.detectors import response
from policies.detectors.response import Responding
from policies.detectors.rules import Mode, Response, Rule
from policies.detectors.runs import Runs
from policies.detectors.step import Finding, Kind, Severity, Step, Subject
from policies.verdict import Pull, Scope

ROWS = yaml.safe_load(Path("tests/cases/responses.yaml").read_text("utf-8"))
SEEN = "first_seen_destination"
START_US = 1_795_000_000_000_000


def trip(responding: Responding, told: dict[str, Any]) -> Pull | None:
    run, tool = told.get("run", "r1"), told.get("tool", "pay")
    detector, about = told.get("by", "loop"), Subject(told.get("about", "run"))
    step = Step(
        START_US + told.get("at", 0) * 1_000_000,
        Kind.TOOL,
        "c1",
        run,
        told.get("root", told.get("name", run)),
        told.get("tenant", "acme"),
        release=told.get("release", ""),
        tool=tool,
        is_write=told.get("writes", False),
    )
    name, followed = told.get("name", run), told.get("followed", "")
    severity = Severity(told.get("severity", "trip"))
    shared = told.get("shared_tool", False), told.get("shared_release", False)
    finding = Finding(detector, severity, about, name, "it loops", ("c1",), tool, followed, *shared)
    then = Response(told["then"]) if "then" in told else None
    return responding.cord(finding, Rule(Mode(told.get("mode", "enforce")), None, then), step)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["it"])
def test_a_trip_pulls_the_smallest_cord_that_is_enough(row: dict[str, Any]) -> None:
    responding, pull = Responding(), None
    for told in row["trips"]:
        if "released" in told:
            scope, _, subject = told["released"].partition(" ")
            responding.forget(Scope(scope), subject)
        else:
            pull = trip(responding, told)
    assert pull is not None
    assert f"{pull.level} {pull.scope} {pull.subject}" == row["pulls"]
    assert pull.reason.startswith("it loops; ")
    assert row.get("says", "") in pull.reason
    last = row["trips"][-1]
    assert pull.actor == f"detector:{last.get('by', 'loop')}"
    assert pull.at_us == START_US + last.get("at", 0) * 1_000_000


def test_sentences_name_rows_once() -> None:
    assert len({row["it"] for row in ROWS}) == len(ROWS)


def test_an_alert_pulls_nothing_and_makes_no_later_cord_larger() -> None:
    responding = Responding()
    assert trip(responding, {"severity": "alert", "by": "burn"}) is None
    pull = trip(responding, {})
    assert pull is not None
    assert pull.scope is Scope.TOOL


def test_what_is_remembered_of_trips_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response, "TRIPS_MAX", 100)
    responding = Responding()
    for number in range(300):
        trip(responding, {"run": f"r{number}", "tool": f"t{number % 7}"})
    assert len(responding._trips) == 100
    assert max(len(alike) for alike in responding._trips.values()) == response.ALIKE_MAX
    pull = trip(responding, {"run": "r299", "at": 601, "tool": "t5"})
    assert pull is not None
    assert pull.subject == "r299/t5"


def test_of_trips_that_are_too_old_to_count_nothing_is_remembered() -> None:
    responding = Responding()
    for number in range(3_000):
        trip(responding, {"run": f"r{number}", "at": number})
    runs = {common.name for common in responding._trips if common.what is Scope.RUN}
    assert runs == {f"r{number}" for number in range(2_399, 3_000)}
    pull = trip(responding, {"run": "r2399", "at": 3_000, "by": "burn"})  # a second too old
    assert pull is not None
    assert (pull.scope, pull.subject) == (Scope.RUN, "r2399")
    assert "had tripped" not in pull.reason


def test_a_trip_that_comes_again_looks_at_no_more_than_a_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many tripped before."""
    responding, looked = Responding(), []
    for number in range(2_000):
        trip(responding, {"run": f"r{number}", "mode": "alert"})
    alike = Responding._alike

    def counted(self: Responding, *what: Any) -> list[response.Trip]:
        looked.append(len(self._trips[what[0]]))
        return alike(self, *what)

    monkeypatch.setattr(Responding, "_alike", counted)
    trip(responding, {"run": "r7", "mode": "alert"})
    assert sum(looked) <= 4 * response.ALIKE_MAX


# ---- what the findings bring with them


def a_step(number: int, seconds: float, **rest: Any) -> Step:
    told = {"run": "r1", "root": "r1", "tenant": "acme", "tool": "look", **rest}
    at_us = START_US + round(seconds * 1_000_000)
    return Step(at_us, Kind.TOOL, f"c{number}", action=b"same", result=b"same", **told)


def findings(steps: list[Step], detector: str) -> list[Finding]:
    runs = Runs()
    return [one for step in steps for one in runs.feed(step) if one.detector == detector]


def test_a_loop_names_its_tool_where_it_is_one() -> None:
    (*_, last) = findings([a_step(number, 2 * number) for number in range(12)], "loop")
    assert (last.severity, last.tool) == (Severity.TRIP, "look")
    steps = [a_step(number, number, tool=f"t{number % 2}") for number in range(24)]
    (*_, last) = findings(steps, "loop")
    assert (last.severity, last.tool) == (Severity.TRIP, "")


def test_a_repeat_of_long_ago_is_no_evidence_about_a_loop() -> None:
    old = [a_step(number, number * 2, tool="poll") for number in range(2)]
    steps = old + [a_step(9 + number, 600 + number) for number in range(12)]
    trips = [one for one in findings(steps, "loop") if one.severity is Severity.TRIP]
    assert {one.tool for one in trips} == {"look"}


def written(number: int, seconds: float, release: str, recipient: bytes = b"iban") -> Step:
    run = f"{release}-{number}"
    step = a_step(number, seconds, run=run, root=run, is_write=True, release=release)
    return Step(
        **{**{name: getattr(step, name) for name in step.__slots__}, "recipient": recipient}
    )


@pytest.mark.parametrize(
    "before, releases, told",
    [
        ([], ["v2"] * 6, ""),  # there is none to go back to
        (["v1"], ["v2"] * 6, "v2"),
        (["v1"], ["v2", "v2", "v1", "v2", "v2", "v2"], ""),
        (["v1"], [""] * 6, ""),
    ],
)
def test_a_finding_names_the_one_release_that_followed_another(
    before: list[str], releases: list[str], told: str
) -> None:
    first = [written(100, 0, release, b"another") for release in before]
    steps = first + [written(number, 1 + number, one) for number, one in enumerate(releases)]
    found = findings(steps, SEEN)
    assert found[-1].severity is Severity.TRIP
    assert {one.release for one in found} == {told} or releases[2] == "v1"
    assert found[-1].release == told


def tripped(runs: Runs, responding: Responding, steps: Iterable[Step]) -> list[str]:
    """The cords of loops, each once."""
    pulls = [
        responding.cord(one, Rule(Mode.ENFORCE, None, None), step)
        for step in steps
        for one in runs.feed(step)
        if one.detector == "loop"
    ]
    return list(dict.fromkeys(pull.rule for pull in pulls if pull is not None))


def looping(run: str, root: str, tenant: str, release: str = "") -> list[Step]:
    who = {"run": run, "root": root, "tenant": tenant, "release": release}
    depth = 0 if run == root else 1
    return [a_step(number, 2 * number, **who, depth=depth) for number in range(10)]


@pytest.mark.parametrize("release", ["", "v2"])
def test_children_of_one_root_stop_nothing_but_their_tree(release: str) -> None:
    """In the hands of an agent: as many of them as it likes, and other tenants beside it."""
    runs, responding = Runs(), Responding()
    for of in ("v1", release):
        runs.feed(a_step(99, 0, run="good", root="good", tenant="good", release=of))
        runs.feed(a_step(99, 0, run="old", root="old", tenant="evil", release=of))
    steps = [step for run in "abcde" for step in looping(run, "root", "evil", release)]
    rules = tripped(runs, responding, steps)
    assert "halt:run:root" in rules
    assert {rule.split(":")[1] for rule in rules} == {"run", "tool"}
    assert all("/" in rule for rule in rules if rule.startswith("halt:tool"))


@pytest.mark.parametrize(
    "tenants, before, others, pulled",
    [
        ("aaa", "v1", "", "halt:release:v2"),
        ("aaa", "", "", "halt:tool:look"),  # it followed none
        ("aaa", "v1", "z", "halt:tool:r2/look"),  # z uses both
        ("abc", "v1", "", "halt:release:v2"),
        ("abc", "v1", "z", "halt:release:v2"),
        ("abc", "", "z", "halt:tool:look"),
    ],
)
def test_what_others_use_too_is_stopped_only_by_trips_of_several_tenants(
    tenants: str, before: str, others: str, pulled: str
) -> None:
    runs, responding = Runs(), Responding()
    for tenant in sorted({*tenants}) if before else "":
        runs.feed(a_step(99, 0, tool="", run="old", root="old", tenant=tenant, release=before))
    for tenant in others:
        runs.feed(a_step(99, 0, run="good", root="good", tenant=tenant, release="v2"))
    steps = [
        step
        for number, tenant in enumerate(tenants)
        for step in looping(f"r{number}", f"r{number}", tenant, "v2")
    ]
    assert tripped(runs, responding, steps)[-1] == pulled


def test_five_children_of_one_root_are_one_that_writes_to_somebody_new() -> None:
    steps = [written(number, number, "") for number in range(6)]
    assert not findings([replace(step, root="root", depth=1) for step in steps], SEEN)
    assert findings(steps, SEEN)
    apart = [replace(step, tenant=f"t{number}") for number, step in enumerate(steps)]
    assert not findings(apart, SEEN), "recipients are the tenants' own"


def test_a_run_that_a_person_released_begins_anew() -> None:
    runs = Runs()
    trips = [runs.feed(a_step(number, 2 * number)) for number in range(12)]
    assert trips[-1]
    runs.forget(Scope.RUN, "r1")
    assert not runs.feed(a_step(12, 24))
    again = [runs.feed(a_step(number, 2 * number)) for number in range(13, 24)]
    assert again[-1]
    runs.forget(Scope.TOOL, "r2/look")
    assert runs.feed(a_step(24, 48))
    runs.forget(Scope.TOOL, "r1/look")
    assert not runs.feed(a_step(25, 50))


def test_a_recipient_that_a_person_let_pass_is_known() -> None:
    runs = Runs()
    found = [one for number in range(6) for one in runs.feed(written(number, number, ""))]
    assert found[-1].detector == "first_seen_destination"
    runs.forget(Scope.TOOL, "look")
    assert not [one for number in range(6, 12) for one in runs.feed(written(number, number, ""))]


def test_a_release_that_a_person_let_pass_is_judged_anew() -> None:
    runs = Runs()

    def feed(release: str, count: int, is_ok: bool) -> list[Finding]:
        steps = [
            Step(
                START_US + number, Kind.TOOL, f"c{number}", f"{release}-{number % 6}", "",
                "acme", release=release, tool="t", action=b"%d" % number, is_ok=is_ok,
            )
            for number in range(count)
        ]  # fmt: skip
        return [one for step in steps for one in runs.feed(step) if one.detector == "release"]

    assert not feed("v1", 300, True)
    assert feed("v2", 8, False)
    assert feed("v2", 1, False)
    runs.forget(Scope.RELEASE, "v2")
    assert not feed("v2", 1, False)
    assert feed("v2", 8, False)
