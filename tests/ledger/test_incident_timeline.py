"""What happened in an incident and when it turned, read from a real record."""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from typing import Any

import pytest

from ledger import incident_reads
from ledger.connection import open_reader
from ledger.incident_figures import first_bad_call
from ledger.incident_timeline import COLUMNS, Milestones, milestones, timeline
from ledger.open_incidents import Incident, Key, new_id
from ledger.queries import QueryError, Row
from ledger.sqlite import sqlite3
from ledger.states import CallState
from ledger.tokens import Grant
from policies.call import Identity
from policies.verdict import Level, Scope
from tests.ledger.findings import ALERT, TOOL, TRIP, close, listed, the_one, told
from tests.ledger.test_incident_acts import opened
from tests.ledger.world import R1, START_US, World, a_pull

CHILD = Identity("child", "acme", ("r1",), release="v7")
OTHER = Identity("r2", "umbrella", release="v7")
ANOTHER = Identity("r3", "acme", release="v8")


@pytest.fixture
def reader(world: World) -> Iterator[sqlite3.Connection]:
    with closing(open_reader(world.data)) as found:
        yield found


def called(world: World, *, effect: str = "write", ends: bool = True, **rest: Any) -> str:
    """A call a second later, with an id that tells its time."""
    world.wait(1)
    name = new_id(world.now_us)
    given = {"tool": "read" if effect == "read" else "pay", "body": name, **rest}
    found = world.decided(world.ask(name, effect=effect, **given))
    if ends and found.verdict.action == "allow":
        world.settle(name)
    return name


def released(world: World, scope: Scope, subject: str, level: Level = Level.HALT) -> None:
    world.wait(1)
    world.store.release(level, scope, subject, reason="mended", actor="ann", at_us=world.now_us)


def told_in(row: Row) -> tuple[Any, ...]:
    return row["type"], row["run"], row["actor"], row["detail"]


def an_incident(world: World) -> Incident:
    """A run that was refused after two writes; then its cord was released, and it was closed."""
    first = called(world, effect="read")
    called(world)
    told(world, ALERT, call=first)
    called(world, claimant=CHILD, tool="mail", target="/send")
    called(world, claimant=OTHER)
    called(world, effect="read", claimant=CHILD)
    told(world, TRIP, call=first)
    for _ in range(3):
        called(world)
    one = the_one(world)
    world.store.ack_incident(one.id, actor="ann", at_us=world.now_us)
    world.store.record_policy("d2" * 32, "# d2", "policy.yaml", world.now_us)
    released(world, Scope.RUN, "r1")
    called(world, effect="read", ends=False)
    world.wait(1)
    close(world, the_one(world))
    called(world)
    return listed(world, closed=True)[0]


def test_a_timeline_tells_the_whole_story_in_order(
    world: World, reader: sqlite3.Connection
) -> None:
    one = an_incident(world)
    rows = timeline(reader, one, 100)
    assert [tuple(row) for row in rows] == [COLUMNS] * len(rows)
    assert [row["seq"] for row in rows] == sorted(row["seq"] for row in rows)
    charges = "api.example/v1/charges"
    assert [told_in(row) for row in rows] == [
        ("call.intent", "r1", None, f"the first call: read GET {charges}: done, 200"),
        ("call.intent", "r1", None, f"write POST {charges}: done, 200"),
        ("incident.opened", "r1", "pullcord", "run r1 of tenant acme, by loop: it goes round"),
        ("detector.alerted", "r1", "detector:loop", "it goes round"),
        ("call.intent", "child", None, "write POST api.example/send: done, 200"),
        ("detector.tripped", "r1", "detector:loop", "it goes round"),
        ("cord.pulled", "r1", "detector:loop", "it goes round"),
        ("call.refused", "r1", None, "3 refused, halted until 2026-11-18T11:06:48.000Z"),
        ("incident.acked", "r1", "ann", "owner ann"),
        ("policy.accepted", None, "policy:d2d2d2d2d2d2", "policy.yaml"),
        ("cord.released", "r1", "ann", "mended"),
        ("call.intent", "r1", None, f"the last call: read GET {charges}: pending"),
        ("incident.closed", "r1", "ann", "mended; no regression test: no test"),
    ]
    assert (rows[0]["id"], rows[0]["at"]) == (one.first_call, "2026-11-18T11:06:41.000Z")
    assert (rows[6]["rule"], rows[4]["tool"]) == ("halt:run:r1", "mail")


@pytest.mark.parametrize("limit", [0, 1, 5, 13])
def test_of_a_long_one_the_newest_rows_are_told(
    world: World, reader: sqlite3.Connection, limit: int
) -> None:
    one = an_incident(world)
    everything = timeline(reader, one, 100)
    assert timeline(reader, one, limit) == (everything[-limit:] if limit else [])


@pytest.mark.parametrize(
    "kind, name, tenant, runs",
    [
        (Scope.RUN, "r1", "acme", ["r1", "child"]),
        (Scope.TENANT, "acme", "acme", ["r1", "child", "r3"]),
        (Scope.TOOL, "pay", "acme", ["r1", "r3"]),
        (Scope.RELEASE, "v7", "", ["child", "r2"]),
    ],
)
def test_what_people_did_over_it_is_in_it_and_what_they_did_elsewhere_is_not(
    world: World,
    reader: sqlite3.Connection,
    kind: Scope,
    name: str,
    tenant: str,
    runs: list[str],
) -> None:
    opened(world, kind, name, tenant)
    for claimant, tool in ((R1, "pay"), (CHILD, "mail"), (OTHER, "pay"), (ANOTHER, "pay")):
        call = called(world, claimant=claimant, tool=tool, ends=False)
        world.settle(call, status=None)
        world.store.resolve(call, CallState.DONE, actor="ann", reason="asked", at_us=world.now_us)
    rows = timeline(reader, the_one(world), 100)
    assert [row["run"] for row in rows if row["type"] == "call.resolved"] == runs


def test_the_cords_of_a_tree_are_those_of_its_runs(
    world: World, reader: sqlite3.Connection
) -> None:
    """Also of one that is known by its calls alone."""
    called(world, claimant=CHILD)
    opened(world)
    for subject in ("child", "r2", "r1"):
        world.store.pull(replace(a_pull(subject=subject), at_us=world.now_us))
    world.store.release(Level.HALT, Scope.RUN, "r1", reason="ok", actor="bob",
                        at_us=world.now_us, releases=("v7",))  # fmt: skip
    world.store.pull(replace(a_pull(subject="child"), actor="eve", at_us=world.now_us), tells=True)
    released(world, Scope.RUN, "child")
    world.store.pull(replace(a_pull(subject="child"), at_us=world.now_us - 3_700_000_000))
    rows = timeline(reader, the_one(world), 100)
    assert [told_in(row)[:3] for row in rows if row["type"].startswith("cord")] == [
        ("cord.pulled", "child", "ann"),
        ("cord.pulled", "r1", "ann"),
        ("cord.narrowed", "r1", "bob"),
        ("cord.pulled_again", "child", "eve"),
        ("cord.released", "child", "ann"),
    ]


@pytest.mark.parametrize(
    "kind, name, tenant, runs",
    [
        (Scope.RUN, "r1", "acme", {"r1", "child"}),
        (Scope.TENANT, "acme", "acme", {"r1", "child"}),
        (Scope.TOOL, "pay", "acme", {"r1"}),
        (Scope.TOOL, "pay", "umbrella", {"r2"}),
        (Scope.RELEASE, "v7", "", {"child", "r2"}),
    ],
)
def test_a_persons_incident_tells_the_calls_of_what_it_is_about(
    world: World, reader: sqlite3.Connection, kind: Scope, name: str, tenant: str, runs: set[str]
) -> None:
    called(world)
    called(world, claimant=CHILD, tool="mail")
    called(world, claimant=OTHER)
    one = opened(world, kind, name, tenant)
    rows = timeline(reader, one, 100)
    assert {row["run"] for row in rows if row["type"] == "call.intent"} == runs
    assert rows[-1]["type"] == "incident.opened"


def test_every_read_follows_an_index(world: World, reader: sqlite3.Connection) -> None:
    """However much else the ledger holds."""
    an_incident(world)
    for kind, name, tenant in ((Scope.TENANT, "acme", "acme"), (Scope.TOOL, "pay", "acme"),
                               (Scope.RELEASE, "v7", "")):  # fmt: skip
        opened(world, kind, name, tenant)
    statements: list[str] = []
    reader.set_trace_callback(statements.append)
    for one in listed(world, closed=True):
        timeline(reader, one, 10)
        milestones(reader, one)
    reader.set_trace_callback(None)
    assert len(statements) > 40
    for statement in statements:
        plan = [row[3] for row in reader.execute(f"EXPLAIN QUERY PLAN {statement}")]
        scans = [
            step for step in plan
            if step.startswith("SCAN") and not step.startswith(("SCAN (", "SCAN json_each",
                                                                "SCAN a VIRTUAL", "SCAN CONSTANT"))
        ]  # fmt: skip
        assert scans == [], (statement, plan)


# ---------------------------------------------------------------------------- when it turned


def test_an_incident_of_a_detector_turns_with_its_rows(
    world: World, reader: sqlite3.Connection
) -> None:
    one = an_incident(world)
    second = 1_000_000
    assert milestones(reader, one) == Milestones(
        first_bad_us=START_US + second,
        detected_us=START_US + 2 * second,
        first_cord_us=START_US + 5 * second,
        contained_us=START_US + 5 * second,
        recovered_us=START_US + 9 * second,
        closed_us=START_US + 11 * second,
    )


def test_it_has_not_recovered_while_a_cord_stands(world: World, reader: sqlite3.Connection) -> None:
    call = called(world)
    told(world, call=call)
    world.store.pull(replace(a_pull(Scope.TENANT, "acme"), at_us=world.now_us))
    released(world, Scope.RUN, "r1")
    assert milestones(reader, the_one(world)).recovered_us is None
    released(world, Scope.TENANT, "acme")
    assert milestones(reader, the_one(world)).recovered_us == world.now_us


def test_a_persons_turns_with_the_cords_over_what_it_is_about(
    world: World, reader: sqlite3.Connection
) -> None:
    """The first call since the person says; not a drill's cord, nor one over something else."""
    call = called(world)
    told(world, run="r9", call=call)
    for scope, subject, actor in (
        (Scope.RUN, "r2", "ann"),
        (Scope.GLOBAL, "", "drill"),
    ):
        world.store.pull(replace(a_pull(scope, subject), actor=actor, at_us=world.now_us))
    one = opened(world, since_us=START_US)
    assert milestones(reader, one) == Milestones(
        START_US + 1_000_000, one.opened_us, None, None, None, None
    )
    world.wait(3)
    world.store.pull(replace(a_pull(subject="r1/pay", scope=Scope.TOOL), at_us=world.now_us))
    assert milestones(reader, one).contained_us == world.now_us


def test_a_cord_that_was_pulled_for_another_one_stops_it_too(
    world: World, reader: sqlite3.Connection
) -> None:
    call = called(world)
    mine = opened(world)
    world.wait(1)
    told(world, TRIP, detector="write_spike", subject=TOOL, name="pay", call=call)
    assert {one.kind for one in listed(world)} == {"run", "tool"}
    assert milestones(reader, mine).contained_us == world.now_us
    told(world, ALERT, call=call)
    joined = next(one for one in listed(world) if one.id == mine.id)
    assert (joined.findings, milestones(reader, joined).detected_us) == (1, mine.opened_us)


@pytest.mark.parametrize(
    "scope, subject",
    [(Scope.RUN, "r1"), (Scope.RUN, "child"), (Scope.TENANT, "acme"), (Scope.GLOBAL, ""),
     (Scope.TOOL, "child/mail")],
)  # fmt: skip
@pytest.mark.parametrize("seconds, belongs", [(-1, False), (0, True), (5, True), (30, False)])
def test_a_cord_belongs_to_what_it_stands_over_while_it_is_open(
    world: World,
    reader: sqlite3.Connection,
    scope: Scope,
    subject: str,
    seconds: int,
    belongs: bool,
) -> None:
    """From the first of its calls on, until it is closed."""
    given: dict[str, Any] = {"actor": "ann", "at_us": world.now_us, "policy": world.policy}
    world.store.mint(Grant("r1", "acme"), b"r" * 32, **given)
    world.store.mint(Grant("child", "acme", "r1"), b"c" * 32, **given)
    called(world)
    one = opened(world, since_us=world.now_us)
    at_us = world.now_us + seconds * 1_000_000
    world.wait(20)
    close(world, one)
    world.wait(20)
    world.store.pull(replace(a_pull(scope, subject), at_us=at_us))
    (one,) = listed(world, closed=True)
    assert milestones(reader, one).contained_us == (at_us if belongs else None)


def test_a_cord_of_any_of_its_runs_belongs_to_what_several_did(
    world: World, reader: sqlite3.Connection
) -> None:
    opened(world, Scope.TOOL, "pay", "acme")
    called(world, claimant=CHILD)
    one = replace(the_one(world), runs=("r3", "r1", "release:v9", "*"))
    for subject in ("r2", "child"):
        world.wait(1)
        world.store.pull(replace(a_pull(subject=subject), at_us=world.now_us))
    assert milestones(reader, one).contained_us == world.now_us
    assert milestones(reader, replace(one, runs=("r3",))).contained_us is None


def test_the_first_bad_call_is_the_oldest_since_it_went_wrong(
    world: World, reader: sqlite3.Connection
) -> None:
    """As the detectors say, where they know; else the call that convinced."""
    called(world)
    began_us = world.now_us
    told(world, ALERT, call=called(world))
    one = the_one(world)
    known = milestones(reader, replace(one, since_us=began_us)).first_bad_us
    unknown = milestones(reader, replace(one, since_us=None)).first_bad_us
    assert (known, unknown) == (began_us, began_us + 1_000_000)


def test_what_was_pruned_leaves_the_times_that_are_known(
    world: World, reader: sqlite3.Connection
) -> None:
    told(world, call=new_id(START_US - 7_000))
    one = the_one(world)
    assert milestones(reader, one).first_bad_us == START_US - 7_000
    called(world)
    assert first_bad_call(reader, one) is None, "another one would not be the first"
    later = replace(one, first_call="", since_us=world.now_us + 1)
    assert milestones(reader, later).first_bad_us is None
    assert milestones(reader, replace(one, id="gone")).detected_us == one.opened_us


# ---------------------------------------------------------------------------- what is meant


def test_a_name_is_looked_up_in_the_record(world: World, reader: sqlite3.Connection) -> None:
    called(world, claimant=CHILD)
    at_us = world.now_us
    for kind, name, key in (
        (Scope.RUN, "child", Key("run", "acme", "r1")),
        (Scope.RUN, "r1", Key("run", "acme", "r1")),
        (Scope.TENANT, "acme", Key("tenant", "acme", "acme")),
        (Scope.TOOL, "pay", Key("tool", "acme", "pay")),
        (Scope.RELEASE, "v7", Key("release", "", "v7")),
    ):
        assert incident_reads.subject(reader, kind, name, "", 0) == incident_reads.Subject(
            key, at_us
        )
        assert incident_reads.subject(reader, kind, f"{name}x", "", 0) is None
    assert incident_reads.subject(reader, Scope.RUN, "r1", "umbrella", 0) is None


def test_of_a_tool_that_several_use_the_tenant_is_asked_for(
    world: World, reader: sqlite3.Connection
) -> None:
    called(world, claimant=OTHER)
    later_us = world.now_us + 1
    called(world)
    with pytest.raises(QueryError, match=r"several tenants use pay \(acme, umbrella\).*--tenant T"):
        incident_reads.subject(reader, Scope.TOOL, "pay", "", 0)
    found = incident_reads.subject(reader, Scope.TOOL, "pay", "umbrella", 0)
    assert found is not None
    assert found.key.tenant == "umbrella"
    found = incident_reads.subject(reader, Scope.TOOL, "pay", "", later_us)
    assert found is not None
    assert found.key.tenant == "acme"


def test_an_older_ledger_tells_what_it_knows(world: World) -> None:
    """One that step 0008 made has no owner and no opener."""
    told(world)
    world.conn.execute("DROP VIEW incidents")
    world.conn.execute("ALTER TABLE incident DROP COLUMN owner")
    assert (the_one(world).name, the_one(world).owner) == ("r1", "")
