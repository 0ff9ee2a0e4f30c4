"""However many things go wrong, or are made up: incidents stay few, are told again where it counts,
end by themselves where nothing stands, and are found by indexes."""

from contextlib import closing
from typing import Any

import pytest

from ledger import deliveries, incidents, open_incidents
from ledger.connection import open_reader
from ledger.deliveries import TOGETHER_SECONDS, Delivery
from ledger.incidents import QUIET_SECONDS
from ledger.open_incidents import (
    ALERTS_MAX,
    ALERTS_OF_TENANT_MAX,
    ALERTS_SECONDS,
    TRIPS_MAX,
    TRIPS_OF_TENANT_MAX,
    TRIPS_SECONDS,
    Incident,
)
from policies.detectors.rules import Mode
from policies.verdict import Level, Scope
from tests.ledger.findings import ALERT, TRIP, a_found, close, listed, tell, the_one, told, types
from tests.ledger.world import World


def heard(world: World) -> list[tuple[str, str, str]]:
    """What a channel is told now: the incident, how bad, the cord."""
    world.wait(TOGETHER_SECONDS)
    with closing(open_reader(world.data)) as reader:
        found = deliveries.due(reader, "pager", world.now_us)
    for one in found:
        row = Delivery(one.incident.id, "pager", one.event, one.since_us, True, world.now_us, 1)
        world.store.delivered(row)
    return [(one.incident.id, str(one.event), one.incident.cord) for one in found]


def lifted(world: World, scope: Scope, subject: str) -> None:
    world.store.release(Level.HALT, scope, subject, reason="ok", actor="ann", at_us=world.now_us)


def many(world: World) -> list[Incident]:
    with closing(open_reader(world.data)) as reader:
        found = reader.execute("SELECT id FROM incident WHERE kind IN ('tenant', 'global')")
        ids = {one for (one,) in found}
        query = f"{open_incidents.SELECT} ORDER BY id"
        return [one for one in open_incidents.found_by(reader, query, ()) if one.id in ids]


# ---------------------------------------------------------------------------- told again


def test_a_trip_after_a_release_is_told_again_under_the_same_id(world: World) -> None:
    told(world)
    found = the_one(world)
    assert heard(world) == [(found.id, "trip", "halt:run:r1")]
    lifted(world, Scope.RUN, "r1")
    world.wait(3 * 86_400)
    assert heard(world) == []
    told(world, call="c2")
    assert heard(world) == [(found.id, "trip", "halt:run:r1")]
    assert the_one(world).id == found.id


def test_a_wider_cord_is_told_again_but_repeats_and_calls_in_flight_are_not(world: World) -> None:
    told(world, cord=(Scope.TOOL, "r1/pay"))
    assert len(heard(world)) == 1
    for number in range(30):
        told(world, cord=(Scope.TOOL, "r1/pay"), call=f"c{number}")
        world.wait(1)
    assert heard(world) == []
    told(world, detector="burn")
    assert [cord for *_, cord in heard(world)] == ["halt:run:r1"]
    told(world, ALERT, detector="spiral")
    told(world, TRIP, Mode.ALERT, detector="spiral")
    assert heard(world) == []


def test_cords_that_are_pulled_at_once_are_one_message(world: World) -> None:
    for number in range(5):
        told(world, run=f"r{number}", root="r0")
        world.wait(1)
    assert len(heard(world)) == 1
    assert heard(world) == []


def test_a_clock_that_is_set_back_hides_no_cord(world: World) -> None:
    told(world)
    heard(world)
    lifted(world, Scope.RUN, "r1")
    world.wait(-3_600)
    told(world, call="c2")
    world.wait(7_200)
    assert len(heard(world)) == 1


def test_what_only_alerts_and_goes_on_after_a_quiet_day_is_told_again(world: World) -> None:
    told(world, TRIP, Mode.ALERT)
    assert len(heard(world)) == 1
    world.wait(QUIET_SECONDS)
    assert heard(world) == []
    told(world, TRIP, Mode.ALERT, call="c2")
    assert len(heard(world)) == 1
    told(world, TRIP, Mode.ALERT, call="c3")
    assert heard(world) == []


# ---------------------------------------------------------------------------- too many


def test_one_tenant_opens_so_many_alerts_an_hour_and_the_rest_is_one_incident(
    world: World,
) -> None:
    for number in range(ALERTS_OF_TENANT_MAX + 40):
        told(world, ALERT, run=f"r{number}", tenant="evil", call=f"c{number}")
    found = listed(world)
    assert len(found) == ALERTS_OF_TENANT_MAX + 1
    (one,) = many(world)
    assert (one.kind, one.name, one.tenant, one.findings) == ("tenant", "evil", "evil", 40)
    assert (one.severity, one.run, one.root, one.tool) == ("alert", "", "", "")
    assert "too many incidents at once" in one.why
    assert one.evidence[-1] == f"c{ALERTS_OF_TENANT_MAX + 39}"
    assert types(world).count("detector.alerted") == ALERTS_OF_TENANT_MAX + 40
    world.wait(1)
    told(world, ALERT, run="r-good", tenant="good")
    told(world, ALERT, run=f"r{ALERTS_OF_TENANT_MAX}", tenant="evil")  # no news
    assert (listed(world)[0].name, many(world)[0].findings) == ("r-good", 40)
    world.wait(ALERTS_SECONDS)
    told(world, ALERT, run="later", tenant="evil")
    assert listed(world)[0].name == "later"


def test_made_up_tenants_open_so_many_and_no_more(world: World) -> None:
    for number in range(ALERTS_MAX + 40):
        told(world, ALERT, run="r1", tenant=f"t{number}")
    (one,) = many(world)
    assert len(listed(world)) == 100
    assert world.rows("SELECT count(*) FROM incident") == [(ALERTS_MAX + 1,)]
    assert (one.kind, one.name, one.tenant, one.findings) == ("global", "all tenants", "", 40)


def test_a_restart_forgets_no_opening(world: World) -> None:
    for number in range(ALERTS_OF_TENANT_MAX - 1):
        told(world, ALERT, run=f"r{number}")
    world.reopen()
    with world.failing():  # what is rolled back was none
        incidents.found(world.store._open_batch(), a_found(world.now_us, ALERT, run="lost"))
    told(world, ALERT, run="last")
    assert many(world) == []
    for number in range(2):
        told(world, ALERT, run=f"more{number}")
    (one,) = many(world)
    assert one.findings == 2


def test_a_trip_that_pulls_nothing_has_no_room_of_its_own(world: World) -> None:
    for number in range(ALERTS_OF_TENANT_MAX + 3):
        told(world, TRIP, Mode.ALERT, run=f"r{number}")
        world.wait(10)
    (one,) = many(world)
    assert (one.severity, one.findings) == ("trip", 3)
    world.reopen()
    told(world, TRIP, Mode.ALERT, run="more")
    assert many(world)[0].findings == 4


def test_a_trip_opens_its_own_whatever_alerts(world: World) -> None:
    for number in range(ALERTS_OF_TENANT_MAX + 1):
        told(world, ALERT, run=f"r{number}")
    world.wait(1)
    told(world, run=f"r{ALERTS_OF_TENANT_MAX}", call="t")
    newest = listed(world)[0]
    assert (newest.name, newest.severity) == (f"r{ALERTS_OF_TENANT_MAX}", "trip")
    assert many(world)[0].severity == "alert"


@pytest.mark.parametrize(
    "most, tenant, name",
    [(TRIPS_OF_TENANT_MAX, "evil", "evil"), (TRIPS_MAX, "", "all tenants")],
)
def test_trips_have_a_bound_too_but_each_pulls_its_cord(
    world: World, most: int, tenant: str, name: str
) -> None:
    for number in range(most + 5):
        told(world, run=f"r{number}", tenant=tenant or f"t{number}")
    assert len(world.store.pulls) == types(world).count("cord.pulled") == most + 5
    (one,) = many(world)
    assert (one.name, one.severity, one.findings) == (name, "trip", 5)
    assert world.rows("SELECT count(*) FROM incident") == [(most + 1,)]
    assert world.rows("SELECT count(*) FROM cords WHERE incident = ?", one.id) == [(5,)]
    assert [cord for *_, cord in heard(world)].count(f"halt:run:r{most + 4}") == 1
    world.wait(TRIPS_SECONDS)
    told(world, run=f"r{most}", tenant=tenant or f"t{most}", call="again")
    assert listed(world)[0].name == f"r{most}"


def test_what_was_too_much_is_closed_like_any_other_and_no_detector_forgets(world: World) -> None:
    for number in range(ALERTS_OF_TENANT_MAX + 3):
        told(world, ALERT, run=f"r{number}")
    (one,) = many(world)
    closed = close(world, one)
    assert closed is not None
    assert closed.state == "closed"
    (row,) = world.rows("SELECT seen FROM event WHERE type = 'incident.closed'")
    assert row == (None,)
    world.wait(1)
    told(world, ALERT, run=f"r{ALERTS_OF_TENANT_MAX}")
    assert many(world)[-1].id != one.id


# ---------------------------------------------------------------------------- quiet ones


def test_an_alert_that_was_quiet_for_a_day_is_closed_and_a_trip_is_not(world: World) -> None:
    told(world, ALERT, run="quiet")
    told(world, TRIP, run="worse")
    told(world, ALERT, run="live")
    world.wait(QUIET_SECONDS - 1)
    told(world, ALERT, run="live", call="c2")
    world.store.reap()
    assert len(listed(world)) == 3
    heard(world)
    world.wait(2)
    world.store.reap()
    assert {one.name for one in listed(world)} == {"worse", "live"}
    (row,) = world.rows("SELECT actor, detail, run, seen FROM event WHERE type = 'incident.closed'")
    assert row == ("pullcord", "nothing was added to it for a day", "quiet", None)
    assert [event for _, event, _ in heard(world)] == ["closed"]
    told(world, ALERT, run="quiet", call="c9")
    assert len(listed(world)) == 3


def test_so_many_are_closed_in_one_step(world: World) -> None:
    tell(world, *(a_found(world.now_us, ALERT, run=f"r{number}") for number in range(5)))
    world.wait(QUIET_SECONDS + 1)
    world.store.reap(2)
    assert len(listed(world)) == 3


# ---------------------------------------------------------------------------- by indexes


def test_what_a_finding_belongs_to_and_what_is_quiet_is_found_by_indexes(world: World) -> None:
    names = ("since", "tenant", "root", "of_run", "cords", "tool", "release", "detectors")
    given: dict[str, Any] = dict.fromkeys((*names, "detector", "limit"), "[]")
    wanted = {
        open_incidents.PART_OF: {
            "PRIMARY KEY (id=?)",
            "INDEX incident_tree (tenant=? AND root=?)",
            "INDEX incident_cord (rule=?)",
            "INDEX incident_open (kind=? AND tenant=? AND name=?)",
        },
        open_incidents.LED_TO_IT: {"INDEX incident_quiet (severity=? AND updated_us>?)"},
    }
    for query, indexes in wanted.items():
        assert _searched(world, query, given) == indexes
    assert _searched(world, open_incidents.QUIET, (0, 1)) == {
        "INDEX incident_quiet (severity=? AND updated_us<?)"
    }
    assert _searched(world, open_incidents._LATELY, ("",)) == {"PRIMARY KEY (id>?)"}


def _searched(world: World, query: str, given: Any) -> set[str]:
    plan = [row[3] for row in world.conn.execute(f"EXPLAIN QUERY PLAN {query}", given)]
    assert not [step for step in plan if step.startswith("SCAN incident")]
    found = {step for step in plan if step.startswith("SEARCH incident USING ")}
    return {step.removeprefix("SEARCH incident USING ").removeprefix("COVERING ") for step in found}
