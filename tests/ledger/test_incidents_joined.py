"""Which findings are of one incident, and which of several."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ledger.incident_scope import RUNS_MAX, moment, terms
from ledger.incidents import TOGETHER_SECONDS
from ledger.open_incidents import MANY_RUNS
from policies.call import Identity, Traits
from policies.detectors.rules import Mode, Response, Rule
from policies.detectors.runs import DETECTORS
from policies.policy import UNDO_RUN
from policies.verdict import Scope
from tests.ledger.findings import (
    ALERT,
    RELEASE,
    TOOL,
    TREE,
    TRIP,
    a_found,
    listed,
    tell,
    the_one,
    told,
)
from tests.ledger.world import World

NO_UNDO = f"-run:{UNDO_RUN}"


@contextmanager
def written(world: World) -> Iterator[list[str]]:
    """The statements that wrote an incident meanwhile."""
    found: list[str] = []
    world.conn.set_trace_callback(
        lambda told: found.append(told) if "INTO incident" in told else None
    )
    yield found
    world.conn.set_trace_callback(None)


def test_runs_join_under_their_root_whichever_detector_tells(world: World) -> None:
    told(world, ALERT, detector="spiral", run="child", root="r1")
    told(world, ALERT, detector="burn", run="other", root="r1")
    told(world, TRIP, detector="fan_out", run="third", root="r1", subject=TREE, name="r1")
    found = the_one(world)
    assert (found.name, found.detector, found.findings) == ("r1", "fan_out", 3), "who pulled"


def test_tenants_stay_apart(world: World) -> None:
    for tenant in ("acme", "zeta"):
        told(world, ALERT, tenant=tenant)
        told(world, ALERT, detector="first_seen_destination", subject=TOOL, name="pay",
             tenant=tenant, run=f"of-{tenant}")  # fmt: skip
    assert sorted((one.kind, one.tenant) for one in listed(world)) == [
        ("run", "acme"),
        ("run", "zeta"),
        ("tool", "acme"),
        ("tool", "zeta"),
    ]


def test_one_recipient_of_several_runs_is_one_incident(world: World) -> None:
    for number in range(3, 6):
        world.wait(11)
        severity = TRIP if number == 5 else ALERT
        told(world, severity, detector="first_seen_destination", subject=TOOL, name="pay",
             run=f"r{number}", call=f"c{number}", cord=(Scope.TOOL, "pay"))  # fmt: skip
    found = the_one(world)
    assert (found.kind, found.name, found.severity) == ("tool", "pay", "trip")
    assert (found.rule, found.evidence) == ("halt:tool:pay", ("c3", "c4", "c5"))


def test_the_store_itself_makes_one_incident_of_what_five_runs_do(world: World) -> None:
    """Each succeeds, with another body, to somebody to whom nobody wrote before."""
    rules = {name: Rule(Mode.ENFORCE, kind.limits) for name, kind in DETECTORS.items()}
    world.policy = replace(world.policy, detectors=rules)
    actions = []
    for number in range(7):
        world.wait(3)
        call, who = f"c{number}", Identity(f"r{number}", "acme")
        ask = world.ask(call, body=call, claimant=who, tool="mail")
        traits = Traits(action=call.encode(), recipient=b"mallory")
        actions.append(world.decided(replace(ask, traits=traits)).verdict.action)
        if actions[-1] == "allow":
            world.end(world.outcome(call))
    assert actions == ["allow"] * 5 + ["refuse"] * 2
    found = the_one(world)
    assert (found.kind, found.name, found.detector) == ("tool", "mail", "first_seen_destination")
    assert (found.rule, found.findings) == ("freeze:tool:mail", 2)
    assert found.evidence == tuple(f"c{number}" for number in range(5))


def test_a_spike_of_several_runs_is_one_incident(world: World) -> None:
    """Each run for itself, then the tool, then the release that all of them are of."""
    for run in ("r1", "r2", "r3"):
        told(world, TRIP, detector="write_spike", run=run, release="v2")
    told(world, ALERT, detector="write_spike", subject=TOOL, name="pay", run="r4", release="v2")
    told(world, TRIP, detector="write_spike", run="r5", cord=(Scope.RELEASE, "v2"), release="v2")
    told(world, TRIP, detector="release", subject=RELEASE, name="v2", run="r6", release="v2",
         cord=(Scope.RELEASE, "v2"))  # fmt: skip
    found = the_one(world)
    assert (found.kind, found.name, found.rule) == ("tool", "pay", "halt:release:v2")
    assert len(world.store.pulls) == 4


def test_another_thing_that_goes_wrong_with_the_same_tool_is_another_incident(
    world: World,
) -> None:
    told(world, ALERT, detector="write_spike", subject=TOOL, name="pay", run="r1")
    told(world, ALERT, detector="loop", run="r2", tool="pay")
    assert {one.kind for one in listed(world)} == {"tool", "run"}


def test_a_run_whose_spike_made_the_incident_joins_it_with_all_else(world: World) -> None:
    told(world, TRIP, detector="write_spike", run="r1")
    told(world, TRIP, detector="burn", run="r1", tool="model")
    assert the_one(world).kind == "tool"


def test_many_runs_of_a_release_make_an_incident_of_the_release(world: World) -> None:
    """It names those that led to it, and what the runs still do belongs to it."""
    for run in ("r1", "r2"):
        told(world, run=run, release="v2")
    world.wait(5)
    cord = (Scope.RELEASE, "v2")
    told(world, run="r3", release="v2", cord=cord)
    told(world, run="r4", release="v2", cord=cord)
    wide, *runs = listed(world)
    assert (wide.kind, wide.name, wide.tenant, wide.findings) == ("release", "v2", "", 1)
    assert {one.name for one in runs} == {"r1", "r2"}
    (detail,) = world.rows(
        "SELECT detail FROM event WHERE type = 'incident.opened' AND incident = ?", wide.id
    )[0]
    assert all(one.id in detail for one in runs)
    told(world, ALERT, run="r5", release="v2")
    assert len(listed(world)) == 3


def test_one_tool_of_one_run_is_a_matter_of_the_run(world: World) -> None:
    told(world, ALERT)
    told(world, TRIP, cord=(Scope.TOOL, "r1/pay"))
    assert (the_one(world).kind, the_one(world).rule) == ("run", "halt:tool:r1/pay")


def test_a_cord_that_the_policy_wants_wide_makes_no_wider_incident_and_takes_in_the_rest(
    world: World,
) -> None:
    wide: dict[str, Any] = {"then": Response.HALT_TENANT, "cord": (Scope.TENANT, "acme")}
    told(world, ALERT)
    told(world, TRIP, **wide)
    told(world, TRIP, run="r2", **wide)
    told(world, TRIP, run="r3", tenant="zeta", then=Response.HALT_TENANT,
         cord=(Scope.TENANT, "zeta"))  # fmt: skip
    assert sorted((one.kind, one.name) for one in listed(world)) == [("run", "r1"), ("run", "r3")]


def test_what_comes_long_after_is_another_thing(world: World) -> None:
    told(world, TRIP, detector="write_spike", run="r1")
    world.wait(TOGETHER_SECONDS + 1)
    told(world, ALERT, detector="burn", run="r1", tool="model")
    assert len(listed(world)) == 2


def test_whose_calls_belong_to_it_and_since_when(world: World) -> None:
    """As early as any finding says; those of other runs by the same tool are none of it."""
    spike: dict[str, Any] = {"detector": "write_spike", "run": "r1"}
    told(world, TRIP, **spike, since_us=world.now_us - 60_000_000)
    world.wait(11)
    told(world, TRIP, **spike, root="r1", since_us=world.now_us - 90_000_000)
    told(world, TRIP, detector="write_spike", run="kid", root="r2", since_us=world.now_us)
    found = the_one(world)
    assert found.since_us == world.now_us - 90_000_000
    assert found.runs == ("r1", "r2")
    began = f"since:{moment(found.since_us)}"
    assert terms(found) == ("tool:pay", "tenant:acme", NO_UNDO, "under:r1", "under:r2", began)
    told(world, ALERT, detector="write_spike", subject=TOOL, name="pay", run="r3", any_run=True)
    assert terms(the_one(world)) == ("tool:pay", "tenant:acme", NO_UNDO, began)
    told(world, TRIP, detector="write_spike", run="r4")
    assert the_one(world).runs == (MANY_RUNS,), "it stays so"


def test_of_a_release_that_is_stopped_all_runs_are_meant(world: World) -> None:
    """Of one whose writes were too few for a finding, too; and of no other release. What was in the
    incident before stays in it."""
    spike: dict[str, Any] = {"detector": "write_spike", "since_us": world.now_us}
    for run in ("r1", "r2"):
        told(world, TRIP, **spike, run=run, release="v1")
    cord = (Scope.RELEASE, "v2")
    told(world, TRIP, **spike, run="r3", release="v2", cord=cord)
    told(world, TRIP, **spike, run="r4", release="v2")
    found = the_one(world)
    began = f"since:{moment(world.now_us)}"
    assert terms(found) == (
        *("tool:pay", "tenant:acme", NO_UNDO, "under:r1", "under:r2", "under:release:v2"),
        began,
    )
    for name, who in {
        "a": Identity("r1", "acme", release="v1"),
        "b": Identity("r5", "acme", release="v2"),
        "c": Identity("r6", "acme", release="v1"),
        "d": Identity("r7", "zeta", release="v2"),
        "e": Identity("r8", "acme"),
    }.items():
        world.admit(world.ask(name, body=name, claimant=who))
    assert [row["id"] for row in world.calls(terms(found))] == ["b", "a"]
    told(world, TRIP, **spike, run="r9", release="v3")
    assert the_one(world).runs == ("r1", "r2", "release:v2", "r9")


def test_releases_that_are_stopped_in_turn_add_up_and_are_written_once(world: World) -> None:
    spike: dict[str, Any] = {"detector": "write_spike", "since_us": world.now_us}
    for number in range(6):
        name = f"v{number % 2}"
        told(world, TRIP, **spike, run=name, release=name, cord=(Scope.RELEASE, name))
    assert the_one(world).runs == ("release:v0", "release:v1")
    with written(world) as rows:
        for number in range(20):
            name = f"v{number % 2}"
            told(world, TRIP, **spike, run=name, release=name, cord=(Scope.RELEASE, name))
    assert rows == []


def test_roots_that_wrote_by_other_releases_stay_beside_the_one_that_is_stopped(
    world: World,
) -> None:
    for run in ("r1", "r2", "r3"):
        told(world, TRIP, detector="write_spike", run=run)
    cord = (Scope.RELEASE, "v2")
    mixed = a_found(world.now_us, detector="write_spike", run="r3", release="v2", cord=cord)
    alike = mixed._replace(finding=replace(mixed.finding, runs=("r2", "r3"), release="v2"))
    tell(world, mixed._replace(finding=replace(mixed.finding, runs=("r4",))))
    assert the_one(world).runs == ("r1", "r2", "r3", "release:v2", "r4")
    tell(world, alike)
    assert the_one(world).runs == ("r1", "r2", "r3", "release:v2", "r4"), "it is written once"


def test_a_finding_whose_roots_all_are_of_a_release_needs_no_roots(world: World) -> None:
    """So a cord on the release stops all that the incident is about."""
    one = a_found(world.now_us, ALERT, detector="first_seen_destination", run="r3", release="v2")
    about = replace(one.finding, subject=TOOL, name="pay", release="v2", runs=("r1", "r2", "r3"))
    tell(world, one._replace(finding=about))
    assert the_one(world).runs == ("r1", "r2", "r3")
    pull = a_found(world.now_us, TRIP, cord=(Scope.RELEASE, "v2")).pull
    trip = replace(about, severity=TRIP, runs=("r1", "r2", "r3", "r4"))
    tell(world, one._replace(finding=trip, pull=pull))
    assert the_one(world).runs == ("release:v2",)
    tell(world, one._replace(finding=about))
    assert the_one(world).runs == ("release:v2",)


def test_what_a_person_opened_stays_as_wide_as_it_was_meant(world: World) -> None:
    began_us = world.now_us
    world.store.open_incident(Scope.TOOL, "pay", "acme", began_us, "odd", "ann", world.now_us)
    told(world, TRIP, detector="write_spike", run="r1", since_us=began_us - 60_000_000)
    found = the_one(world)
    assert (found.since_us, found.runs, found.findings) == (began_us, (), 1)


def test_of_very_many_runs_all_are_meant(world: World) -> None:
    for number in range(RUNS_MAX + 1):
        told(world, TRIP, detector="write_spike", run=f"r{number:03}", call=f"c{number}")
    assert the_one(world).runs == (MANY_RUNS,)


def test_no_more_is_written_of_an_incident_than_it_can_hold(world: World) -> None:
    """A row of it for each new root up to the bound, and then none, whatever names there are."""
    spike: dict[str, Any] = {"detector": "write_spike", "since_us": world.now_us}
    told(world, ALERT, **spike, run="r0")
    with written(world) as rows:
        for number in range(3 * RUNS_MAX):
            told(world, ALERT, **spike, run=f"r{number:03}", call=f"c{number}")
    assert len(rows) == RUNS_MAX
    assert the_one(world).runs == (MANY_RUNS,)
