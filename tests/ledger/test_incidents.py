"""Incidents over a real store: each mode, closing, and what outlives a failure."""

import json
from dataclasses import replace
from typing import Any

import pytest

from ledger import incident_reads, incidents
from ledger.connection import open_reader
from ledger.errors import LedgerError
from ledger.incidents import OBSERVED_SECONDS
from ledger.open_incidents import EVIDENCE_MAX, TOLD_MAX
from policies.detectors.rules import Mode, Rule
from policies.detectors.runs import DETECTORS
from policies.verdict import Level, Scope
from tests.ledger.findings import ALERT, TRIP, a_found, close, listed, the_one, told, types
from tests.ledger.trusted import called, pruned, sealed, trusted, wrong
from tests.ledger.world import R1, World

SECRET = "sk_live_4eC39HqLyjWDarjtT1zdp7dc"


# ---------------------------------------------------------------------------- modes


def test_a_trip_that_is_enforced_pulls_the_cord_and_opens_an_incident(world: World) -> None:
    told(world)
    found = the_one(world)
    assert (found.kind, found.name, found.tenant, found.run) == ("run", "r1", "acme", "r1")
    assert (found.severity, found.detector, found.rule) == ("trip", "loop", "halt:run:r1")
    assert (found.findings, found.evidence, found.raised_us) == (1, ("c1",), None)
    assert next(iter(world.store.pulls.values())).subject == "r1"
    assert types(world) == ["incident.opened", "detector.tripped", "cord.pulled"]
    rows = world.rows("SELECT type, rule, actor, call_id, incident FROM event ORDER BY seq")
    assert rows == [
        ("incident.opened", None, "pullcord", None, found.id),
        ("detector.tripped", "halt:run:r1", "detector:loop", "c1", found.id),
        ("cord.pulled", "halt:run:r1", "detector:loop", "c1", found.id),
    ]
    assert world.rows("SELECT incident FROM cords") == [(found.id,)]


def test_a_mode_that_alerts_tells_what_it_would_have_pulled(world: World) -> None:
    told(world, TRIP, Mode.ALERT)
    found = the_one(world)
    assert (found.severity, found.rule) == ("trip", "")
    assert world.store.pulls == {}
    (detail,) = world.rows("SELECT detail FROM event WHERE type = 'detector.tripped'")
    assert detail == ("it goes round; the policy only alerts, else it had pulled halt:run:r1",)


def test_an_alert_becomes_a_trip_of_the_same_incident(world: World) -> None:
    told(world, ALERT, call="c1")
    opened = the_one(world)
    assert (opened.severity, opened.rule, opened.raised_us) == ("alert", "", None)
    world.wait(1)
    told(world, TRIP, call="c2", why="and on")
    found = the_one(world)
    assert found.id == opened.id
    assert (found.severity, found.rule, found.why) == ("trip", "halt:run:r1", "and on")
    assert (found.findings, found.evidence) == (2, ("c1", "c2"))
    assert found.raised_us == found.updated_us == world.now_us
    assert types(world) == [
        *("incident.opened", "detector.alerted", "detector.tripped", "cord.pulled"),
    ]


def test_a_mode_that_observes_writes_a_row_now_and_then_and_nothing_else(world: World) -> None:
    for _ in range(100):
        world.wait(1)
        told(world, TRIP, Mode.OBSERVE)
    told(world, TRIP, Mode.OBSERVE, run="r2")
    assert listed(world) == []
    assert world.store.pulls == {}
    assert types(world) == ["detector.observed"] * 2
    (detail,) = world.rows("SELECT detail FROM event WHERE run = 'r1'")
    assert detail == ("it goes round; the policy only observes, else it had pulled halt:run:r1",)
    world.wait(OBSERVED_SECONDS)
    told(world, TRIP, Mode.OBSERVE)
    assert types(world) == ["detector.observed"] * 3


def test_the_store_itself_follows_what_a_run_does(world: World) -> None:
    """The same read with the same answer, until it is halted; then nothing passes."""
    rules = {name: Rule(Mode.ENFORCE, kind.limits) for name, kind in DETECTORS.items()}
    world.policy = replace(world.policy, detectors=rules)
    world.store.close()
    world.store = world.opened()
    verdicts = []
    for number in range(40):
        world.wait(1)
        verdicts.append(world.decided(world.read(f"c{number}", body="same")).verdict.action)
        if verdicts[-1] == "allow":
            world.store.settle(world.outcome(f"c{number}"), world.policy)
    assert verdicts[-1] == "refuse"
    found = the_one(world)
    assert (found.run, found.detector, found.severity) == ("r1", "loop", "trip")
    assert found.rule == next(iter(world.store.pulls.values())).rule
    assert types(world).count("detector.alerted") == types(world).count("detector.tripped") == 1
    assert set(found.evidence) <= {f"c{number}" for number in range(40)}
    world.check_memory()


# ---------------------------------------------------------------------------- repeats


@pytest.mark.parametrize("mode", [Mode.ALERT, Mode.ENFORCE])
def test_a_thousand_repeats_make_one_row_and_touch_the_database_hardly(
    world: World, mode: Mode
) -> None:
    told(world, TRIP, mode)
    statements: list[str] = []
    with world.store.transaction(durable=False):
        world.conn.set_trace_callback(statements.append)
        for number in range(1_000):
            world.wait(0.01)
            one = a_found(world.now_us, TRIP, mode, call=f"c{number}")
            incidents.found(world.store._open_batch(), one)
        world.conn.set_trace_callback(None)
    assert len(statements) <= 1
    assert types(world).count("detector.tripped") == 1
    assert the_one(world).findings == 1
    world.wait(10)
    told(world, TRIP, mode, call="last")
    found = the_one(world)
    assert (found.updated_us, found.findings, found.evidence[-1]) == (world.now_us, 1, "last")


def test_evidence_is_the_newest_calls_and_has_an_end(world: World) -> None:
    for number in range(EVIDENCE_MAX + 5):
        world.wait(11)
        told(world, ALERT, call=f"c{number}")
    assert the_one(world).evidence == tuple(f"c{number}" for number in range(5, EVIDENCE_MAX + 5))


def test_rows_of_one_incident_have_an_end_but_each_cord_is_told(world: World) -> None:
    for number in range(TOLD_MAX + 20):
        told(world, run=f"r{number}", root="r0")
    found = the_one(world)
    assert len(world.store.pulls) == TOLD_MAX + 20
    assert types(world).count("cord.pulled") == TOLD_MAX + 20
    assert world.rows("SELECT count(DISTINCT incident) FROM event") == [(1,)]
    assert found.findings == TOLD_MAX + 20


def test_a_run_that_goes_on_after_a_release_is_stopped_and_told_again(world: World) -> None:
    told(world)
    world.store.release(
        Level.HALT, Scope.RUN, "r1", reason="mended", actor="ann", at_us=world.now_us
    )
    told(world, call="c2")
    assert [pull.rule for pull in world.store.pulls.values()] == ["halt:run:r1"]
    assert types(world).count("detector.tripped") == types(world).count("cord.pulled") == 2
    assert the_one(world).findings == 2


# ---------------------------------------------------------------------------- closing


def test_a_person_closes_and_what_goes_on_opens_another(world: World) -> None:
    told(world, ALERT)
    first = the_one(world)
    world.wait(5)
    closed = close(world, first)
    assert closed is not None
    assert (closed.state, closed.closed_by, closed.closed_because) == ("closed", "ann", "mended")
    assert (listed(world), listed(world, closed=True)) == ([], [closed])
    (row,) = world.rows(
        "SELECT actor, detail, run, incident FROM event WHERE type = 'incident.closed'"
    )
    assert row == ("ann", "mended", "r1", first.id)
    told(world, ALERT, call="c2")
    second = the_one(world)
    assert second.id != first.id
    assert second.evidence == ("c2",)
    assert types(world).count("detector.alerted") == 2


def test_closing_lifts_no_cord(world: World) -> None:
    told(world)
    close(world, the_one(world))
    assert [pull.rule for pull in world.store.pulls.values()] == ["halt:run:r1"]


@pytest.mark.parametrize("actor, reason", [("ann", " "), ("", "mended"), ("ann", "caf\udce9")])
def test_closing_takes_a_name_and_a_reason(world: World, actor: str, reason: str) -> None:
    told(world)
    with pytest.raises(LedgerError):
        world.store.close_incident(
            the_one(world).id, reason=reason, actor=actor, at_us=world.now_us
        )
    assert the_one(world).state == "open"


def test_none_is_closed_twice_and_none_that_is_not_there(world: World) -> None:
    told(world)
    found = the_one(world)
    close(world, found)
    with pytest.raises(LedgerError, match="ann has closed it: mended"):
        close(world, found)
    assert close(world, replace(found, id="nothing")) is None


def test_a_close_that_is_rolled_back_was_none(world: World) -> None:
    told(world, ALERT)
    with world.failing():
        close(world, the_one(world))
    told(world, ALERT)
    assert the_one(world).state == "open"
    assert types(world) == ["incident.opened", "detector.alerted"]


# ---------------------------------------------------------------------------- failures


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.ALERT, Mode.ENFORCE])
def test_what_is_rolled_back_leaves_nothing_and_is_told_when_it_comes_again(
    world: World, mode: Mode
) -> None:
    with world.failing():
        incidents.found(world.store._open_batch(), a_found(world.now_us, TRIP, mode))
    assert (types(world), listed(world), world.store.pulls) == ([], [], {})
    told(world, TRIP, mode)
    assert types(world)[-1] == {
        Mode.OBSERVE: "detector.observed",
        Mode.ALERT: "detector.tripped",
        Mode.ENFORCE: "cord.pulled",
    }[mode]  # fmt: skip
    assert len(listed(world)) == (mode is not Mode.OBSERVE)


def test_a_raise_that_is_rolled_back_is_told_when_it_comes_again(world: World) -> None:
    told(world, ALERT)
    with world.failing():
        incidents.found(world.store._open_batch(), a_found(world.now_us, TRIP))
    assert the_one(world).severity == "alert"
    told(world, TRIP)
    found = the_one(world)
    assert (found.severity, found.rule, found.findings) == ("trip", "halt:run:r1", 2)


def test_a_restart_keeps_the_open_incident_and_what_was_told(world: World) -> None:
    told(world, ALERT)
    told(world, TRIP)
    before, rows = the_one(world), types(world)
    world.reopen()
    told(world, ALERT, call="c9")
    told(world, TRIP, call="c9")
    assert the_one(world).id == before.id
    assert types(world) == rows


# ---------------------------------------------------------------------------- in the record


def test_pruning_leaves_what_an_open_incident_stands_on(world: World) -> None:
    """Its own rows, and the whole calls that convinced the detector; until it is closed."""
    trusted(world)
    called(world, "a", "b", "c")
    told(world, ALERT, call="b")
    told(world, ALERT, Mode.OBSERVE, call="c", run="r2")
    world.wait(2 * 86_400)
    called(world, "new")
    pruned(world)
    assert [row["id"] for row in world.calls()] == ["new", "b"]
    assert [kind for kind in types(world) if not kind.startswith("call.")] == [
        *("incident.opened", "detector.alerted"),
    ]
    assert wrong(world) == []
    close(world, the_one(world))
    called(world, "newer")
    pruned(world)
    assert [row["id"] for row in world.calls()] == ["newer", "new"]
    assert "incident.opened" not in types(world)
    assert wrong(world) == []


def test_the_record_with_incidents_in_it_is_whole(world: World) -> None:
    trusted(world)
    called(world, "a")
    told(world, ALERT, call="a")
    told(world, TRIP, call="a")
    close(world, the_one(world))
    sealed(world)
    assert wrong(world) == []
    world.conn.execute("UPDATE event SET incident = 'another' WHERE type = 'detector.tripped'")
    assert wrong(world) != []


# ---------------------------------------------------------------------------- what is told


def test_secrets_are_masked_everywhere(world: World) -> None:
    told(world, why=f"it sent {SECRET}")
    close(world, the_one(world))
    for table in ("event", "incident", "pull"):
        for row in world.rows(f"SELECT * FROM {table}"):
            assert SECRET not in str(row)
    assert "[redacted:" in world.rows("SELECT why FROM incident")[0][0]


def test_the_view_tells_it_in_words(world: World) -> None:
    told(world)
    (row,) = world.rows(
        "SELECT state, severity, kind, name, detector, cord, tenant, opened_at, closed_at, "
        "release, calls FROM incidents"
    )
    opened = "2026-11-18T11:06:40.000Z"
    assert row[:8] == ("open", "trip", "run", "r1", "loop", "halt:run:r1", "acme", opened)
    assert (row[8:10], json.loads(row[10])) == ((None, None), ["c1"])


def test_an_incident_is_read_with_its_rows_and_its_calls(world: World) -> None:
    world.decided(world.read("c1", claimant=R1))
    told(world)
    reader = open_reader(world.data)
    found = the_one(world)
    assert incident_reads.count_open(reader) == 1
    assert incident_reads.named(reader, found.id[:8].upper()) == found
    assert incident_reads.named(reader, "") is None
    assert incident_reads.named(reader, "zz") is None
    rows = incident_reads.rows_of(reader, found)
    assert [row["type"] for row in rows] == types(world)[1:]
    (call,) = incident_reads.calls_of(reader, found)
    assert (call["id"], call["tool"], call["run"]) == ("c1", "read", "r1")
    reader.close()


def test_many_rows_of_one_type_hide_no_other(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as a message to each tenant. Of each type the newest are read, and the first."""
    monkeypatch.setattr(incident_reads, "ROWS_MAX", 3)
    told(world, ALERT)
    one = the_one(world)
    at: dict[str, Any] = {"actor": "ann", "at_us": world.now_us}
    world.store.step_incident(one.id, "contain", "done", **at)
    for number in range(6):
        world.store.note_incident(one.id, f"note {number}", public=True, **at)
    reader = open_reader(world.data)
    rows = incident_reads.rows_of(reader, one)
    reader.close()
    assert [row["seq"] for row in rows] == sorted(row["seq"] for row in rows)
    assert [row["type"] for row in rows[:3]] == [
        *("incident.opened", "detector.alerted", "incident.step"),
    ]
    assert [row["detail"] for row in rows[3:]] == ["note 0", "note 3", "note 4", "note 5"]


def test_a_start_that_two_ids_have_is_no_name(world: World) -> None:
    told(world, run="r1")
    told(world, run="r2")
    reader = open_reader(world.data)
    with pytest.raises(LedgerError, match="several incidents begin with"):
        incident_reads.named(reader, the_start(world))
    reader.close()


def the_start(world: World) -> str:
    first, second = (one.id for one in listed(world))
    return "".join(a for a, b in zip(first[:8], second[:8], strict=True) if a == b)
