"""An exported incident judged by policies: the same as live, call by call."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ledger import incident_export
from ledger.connection import open_reader
from ledger.errors import LedgerError
from ledger.incident_reads import named
from policies.load import load
from policies.verdict import Scope
from proxy.regression import as_lines, expected_of, judged, policy_before, policy_in, proven, reach
from proxy.regression_files import Case, Expected, read
from tests.proxy.exporting import exported
from tests.proxy.runaway import (
    BEFORE,
    CALLS,
    COST_MICROUSD,
    FEW,
    FROZEN,
    HEALTHY,
    LOOP,
    REFUSED,
    SLOW,
    TREE,
    Runaway,
    looped,
    refunded,
)

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def loop(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("loop")
    return read(exported(folder / "data", looped(folder / "data"), LOOP, folder / "out"))


@pytest.fixture(scope="module")
def refunds(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("refunds")
    return read(exported(folder / "data", refunded(folder / "data"), FEW, folder / "out"))


def test_it_is_contained_where_the_same_policy_contains_it_live(loop: Case, tmp_path: Path) -> None:
    live = Runaway(tmp_path / "data", load(LOOP))
    passed = len(live.loops())
    live.ends()
    before = sum(row[0] == "call.intent" for row in loop.rows if row[-1] < loop.first)
    reached = reach(loop, load(LOOP))
    assert (reached.contained, reached.rule, reached.reason) == (True, "detector:loop", "halted")
    assert before + reached.calls == passed < CALLS
    assert reached.microusd == reached.calls * COST_MICROUSD
    assert reached.us == (reached.calls - 1) * 1_000_000
    assert (reached.unjudged, reached.tripped) == (0, ())


def test_the_policy_of_that_day_contains_nothing(loop: Case) -> None:
    """What a person halted by hand is no policy's work."""
    reached = reach(loop, policy_before(loop))
    assert not reached.contained
    assert reached.calls == reached.asked > reach(loop, load(LOOP)).calls


def test_a_ceiling_that_pulls_a_cord_contains(refunds: Case) -> None:
    reached = reach(refunds, load(FEW))
    assert (reached.contained, reached.calls, reached.reason) == (True, 4, "over_ceiling")
    assert (reached.us, reached.healthy_runs, reached.tripped) == (3_000_000, HEALTHY, ())


def test_a_ceiling_that_lets_calls_pass_again_only_slows(refunds: Case) -> None:
    found = judged(refunds, load(SLOW))
    assert not found.reached.contained
    assert not found.kept
    assert "only slowed down by ceiling:" in "\n".join(as_lines(found))


@pytest.mark.parametrize("then", ["halt", "throttle"])
def test_runs_that_would_not_have_been_started_call_nobody(tmp_path: Path, then: str) -> None:
    unnoticed = BEFORE.replace("loop: alert", "fan_out: observe")
    made = Runaway(tmp_path / "data", load(unnoticed))
    assert len(made.fans_out(12)) == 12
    incident = made.opened()
    made.ends()
    policy = TREE.replace("halt", then)
    case = read(exported(tmp_path / "data", incident, policy, tmp_path / "out"))
    reached = reach(case, load(policy))
    assert (reached.contained, reached.calls, reached.asked) == (True, 5, 12)
    assert reached.rule.startswith("ceiling:")
    assert not reach(case, policy_before(case)).contained


def test_a_detector_tells_since_when(tmp_path: Path) -> None:
    """Of runs that start runs: from the first that was started, long before anybody noticed."""
    made = Runaway(tmp_path / "data")
    assert len(made.fans_out(20)) == 20
    incident = made.the_incident()
    made.ends()
    assert incident.detector == "fan_out"
    case = read(exported(tmp_path / "data", incident.id, TREE, tmp_path / "out"))
    reached = reach(case, load(TREE))
    assert (reached.contained, reached.calls, reached.asked) == (True, 5, 20)


@pytest.mark.parametrize(
    "kind, name, tenant", [(Scope.RELEASE, "v8", ""), (Scope.TOOL, "refunds.create", "acme")]
)
@pytest.mark.parametrize(
    "policy, calls",
    [
        (REFUSED, 0),
        (FEW.replace("run, count: writes, at_most: 4", "release, count: writes, at_most: 12"), 12),
    ],
)
def test_a_bad_release_over_many_runs(
    tmp_path: Path, kind: Scope, name: str, tenant: str, policy: str, calls: int
) -> None:
    made = Runaway(tmp_path / "data", load(BEFORE.replace("loop: alert", "write_spike: observe")))
    made.releases()
    incident = made.opened(kind, name, tenant)
    made.ends()
    told = ("--release", "v8") if kind is Scope.TOOL else ()
    case = read(exported(tmp_path / "data", incident, policy, tmp_path / "out", *told))
    reached = reach(case, load(policy))
    assert (reached.contained, reached.calls, reached.asked) == (True, calls, CALLS)
    assert (reached.healthy_runs, reached.tripped) == (HEALTHY, ())
    assert not reach(case, policy_before(case)).contained


def test_a_policy_that_stops_everything_stops_healthy_runs(refunds: Case) -> None:
    found = judged(refunds, load(FROZEN))
    assert found.reached.contained
    assert found.reached.calls == 0
    assert [run for run, _, _ in found.reached.tripped] == ["h0", "h1", "h2"]
    assert [check.what for check in found.checks if not check.kept] == ["false trips"]


def test_each_expectation_is_compared(refunds: Case) -> None:
    reached = reach(refunds, load(FEW))
    assert expected_of(reached) == refunds.expected == Expected(4, 40_000, 3_000_000)
    free = expected_of(replace(reached, microusd=0))
    assert free == Expected(4, None, 3_000_000)  # it did not go wrong by dollars
    kept = judged(refunds, load(FEW))
    without = replace(kept, reached=replace(reached, microusd=0), checks=())
    assert ", $0.04, " in as_lines(kept)[2]
    assert "$" not in " ".join(as_lines(without))
    assert expected_of(reach(refunds, load(BEFORE))) == Expected(CALLS - 1 + 3)
    found = judged(refunds, load(FEW.replace("at_most: 4", "at_most: 5")))
    assert [check.what for check in found.checks if not check.kept] == [
        "contained by call",
        "contained by dollar",
        "contained by second",
    ]


@pytest.mark.parametrize(
    "policy, says",
    [
        (FEW, ""),
        (BEFORE, "both policies are the same"),
        (f"{BEFORE}# otherwise the same\n", "does not keep the test"),
        (SLOW, "does not keep the test"),
    ],
)
def test_a_proof_takes_a_policy_that_changes_the_end(refunds: Case, policy: str, says: str) -> None:
    proof = proven(refunds, load(policy))
    assert not proof.before.kept
    assert says in proof.why
    assert bool(says) is bool(proof.why)
    if says:
        assert "--policy FILE" in proof.why
        assert f"incident close {refunds.incident['id']}" in proof.why


def test_a_mend_that_contains_no_earlier_proves_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    same = f"{FEW}# another text\n"
    case = read(exported(data, refunded(data, FEW), same, tmp_path / "out"))
    assert "it proves no mend" in proven(case, load(same)).why


def test_what_follows_a_release_is_no_part_of_it(tmp_path: Path) -> None:
    made = Runaway(tmp_path / "data")
    made.refunds()
    made.halts(calls=3)
    made.resumes()
    assert made.call("r1", "POST", "/v1/refunds", '{"charge":"after"}')
    made.opened()
    made.ends()
    with closing(open_reader(tmp_path / "data")) as reader:
        incident = named(reader, made.the_incident().id)
        assert incident is not None
        found = incident_export.exported(reader, incident, b"key")
    assert found.calls == CALLS + 3
    assert not [row for row in found.rows if row["type"] == "cord.released"]


def test_a_person_says_by_which_tools_it_went_wrong(tmp_path: Path) -> None:
    made = Runaway(tmp_path / "data")
    made.call("r1", "GET", "/v1/charges/ch_1", result="paid")
    made.refunds()
    made.opened()
    made.ends()
    with closing(open_reader(tmp_path / "data")) as reader:
        incident = named(reader, made.the_incident().id)
        assert incident is not None

        def tools(*wanted: str) -> tuple[str, ...]:
            assert incident is not None
            return incident_export.exported(reader, incident, b"key", wanted).tools

        assert tools() == ("refunds.create",)
        assert tools("charges.read") == ("charges.read",)
        with pytest.raises(LedgerError, match=r"there: charges\.read, refunds\.create"):
            tools("refunds.make")


INCIDENTS = sorted(file.parent for file in (ROOT / "incidents").glob("*/incident.json"))


@pytest.mark.parametrize("folder", INCIDENTS, ids=lambda at: at.name)
def test_the_incidents_of_this_project_are_proven(folder: Path) -> None:
    """They pass with their mend, and fail when it is taken out."""
    case = read(folder)
    assert proven(case, policy_in(case)).why == ""


def test_rows_hold_no_bodies_and_no_names_of_people(refunds: Case) -> None:
    text = "".join(
        path.read_text("utf-8") for path in refunds.folder.iterdir() if "jsonl" in path.name
    )
    assert "ch_7" not in text
    assert "ann" not in text
    with closing(open_reader(refunds.folder.parent / "data")) as reader:
        digests = reader.execute("SELECT hex(request_digest) FROM event").fetchall()
    assert not [one for (one,) in digests if one and one.lower() in text]
