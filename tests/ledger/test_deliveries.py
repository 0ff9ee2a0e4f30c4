"""What each channel has still to be told follows from the incidents and from what it was told."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from ledger import deliveries
from ledger.connection import open_reader
from ledger.deliveries import (
    GIVE_UP_SECONDS,
    LATE_SECONDS,
    TOGETHER_SECONDS,
    Delivery,
    Due,
    Event,
)
from ledger.sqlite import sqlite3
from tests.ledger.made_incidents import OPENED_US, an_incident, changed, ended, tripped
from tests.ledger.world import World

SOON_US = OPENED_US + TOGETHER_SECONDS * 1_000_000


@pytest.fixture
def reader(world: World) -> Iterator[sqlite3.Connection]:
    with closing(open_reader(world.data)) as found:
        yield found


def due(
    reader: sqlite3.Connection, now_us: int = SOON_US, channel: str = "slack"
) -> list[tuple[str, str]]:
    return [one.key[:2] for one in deliveries.due(reader, channel, now_us)]


def delivered(
    world: World,
    event: Event,
    *,
    name: str = "i1",
    sent: bool = True,
    channel: str = "slack",
    since_us: int = OPENED_US,
    at_us: int = SOON_US,
) -> Delivery:
    error = "" if sent else "it answered 400"
    row = Delivery(name, channel, event, since_us, sent, at_us, 2, error)
    world.store.delivered(row)
    return row


def test_a_trip_waits_for_its_cord(world: World, reader: sqlite3.Connection) -> None:
    """What another detector, which only alerts, found a moment before is not the news."""
    an_incident(world.conn, severity="trip", rule="")
    assert due(reader, OPENED_US) == []
    tripped(world.conn, at_us=OPENED_US + 6_000_000)
    assert due(reader, OPENED_US + 6_000_000) == [("i1", "trip")]


def test_a_trip_that_pulls_nothing_is_told_after_ten_seconds(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn, severity="trip", rule="")
    assert due(reader, SOON_US) == [("i1", "trip")]


def test_an_alert_waits_for_the_trip_right_behind_it(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn)
    assert due(reader, SOON_US - 1) == []
    assert due(reader, SOON_US) == [("i1", "alert")]
    tripped(world.conn)
    assert due(reader, OPENED_US) == [("i1", "trip")]


def test_each_channel_is_told_once_of_each_severity(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn)
    delivered(world, Event.ALERT)
    assert due(reader) == []
    assert due(reader, channel="pager") == [("i1", "alert")]
    tripped(world.conn)
    assert due(reader) == [("i1", "trip")]
    (one,) = deliveries.due(reader, "slack", SOON_US)
    assert one.told == {"alert"}
    delivered(world, Event.TRIP)
    assert due(reader) == []


def test_what_failed_for_good_is_not_due_again_but_what_is_worse_is(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn)
    delivered(world, Event.ALERT, sent=False)
    assert due(reader) == []
    tripped(world.conn)
    assert due(reader) == [("i1", "trip")]


def test_who_was_told_of_an_incident_is_told_that_it_is_over(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn)
    an_incident(world.conn, "untold")
    delivered(world, Event.ALERT)
    for name in ("i1", "untold"):
        ended(world.conn, name, SOON_US)
    assert due(reader) == [("i1", "closed")]
    (one,) = deliveries.due(reader, "slack", SOON_US)
    assert one.told == {"alert"}
    assert one.since_us == SOON_US
    assert due(reader, SOON_US + GIVE_UP_SECONDS * 1_000_000) == []
    delivered(world, Event.CLOSED)
    assert due(reader) == []


def test_who_was_told_in_vain_is_not_told_that_it_is_over(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn)
    delivered(world, Event.ALERT, sent=False)
    ended(world.conn)
    assert due(reader) == []


def test_trips_go_first(world: World, reader: sqlite3.Connection) -> None:
    for name in ("i1", "i2", "i3"):
        an_incident(world.conn, name)
    tripped(world.conn, "i3")
    assert due(reader) == [("i3", "trip"), ("i1", "alert"), ("i2", "alert")]


def test_what_is_due_since_when(world: World, reader: sqlite3.Connection) -> None:
    an_incident(world.conn)
    assert deliveries.due(reader, "slack", SOON_US)[0].since_us == OPENED_US
    tripped(world.conn, at_us=OPENED_US + 5)
    assert deliveries.due(reader, "slack", SOON_US)[0].since_us == OPENED_US + 5


def test_an_incident_is_read_as_it_is(world: World, reader: sqlite3.Connection) -> None:
    an_incident(world.conn)
    tripped(world.conn)
    (one,) = deliveries.due(reader, "slack", SOON_US)
    found = one.incident
    assert (found.kind, found.name, found.tenant, found.run) == ("run", "r-i1", "acme", "r-i1")
    assert (found.tool, found.release, found.agent) == ("pay", "v7", "biller")
    assert (found.detector, found.cord, found.calls) == ("loop", "halt:run:r-i1", ("c1", "c2"))


def test_what_stands_is_what_was_told_as_it_is(world: World, reader: sqlite3.Connection) -> None:
    for name in ("i1", "i2", "i3", "i4"):
        an_incident(world.conn, name)
    for name in ("i1", "i2", "i3"):
        delivered(world, Event.ALERT, name=name)
    tripped(world.conn, "i2")
    ended(world.conn, "i3")
    delivered(world, Event.ALERT, name="i4", sent=False)
    assert [one.id for one in deliveries.standing(reader, "slack")] == ["i1"]


def test_what_was_told_of_an_incident_can_be_read(world: World, reader: sqlite3.Connection) -> None:
    an_incident(world.conn)
    rows = [delivered(world, Event.ALERT, sent=False), delivered(world, Event.TRIP)]
    assert deliveries.told(reader, "i1") == rows
    assert deliveries.told(reader, "i2") == []


def test_a_delivery_is_part_of_the_transaction_around_it(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn)
    with world.failing():
        delivered(world, Event.ALERT)
    assert due(reader) == [("i1", "alert")]


def test_what_is_due_is_found_by_the_indexes(world: World) -> None:
    """However many incidents and deliveries there were."""
    given = {"channel": "slack", "old_us": 0, "together_us": 0, "from_us": 0, "now_us": 0}
    for query, index in (
        (deliveries._OPEN, "incident_since (<expr>>?)"),
        (deliveries._CLOSED, "incident_closed (closed_us>?)"),
    ):
        plan = [row[3] for row in world.conn.execute(f"EXPLAIN QUERY PLAN {query}", given)]
        assert f"SEARCH i USING INDEX {index}" in plan
        scans = [step for step in plan if step.startswith("SCAN") and step[:6] != "SCAN ("]
        assert scans in ([], ["SCAN i"])  # what the inner one has found
        assert (scans == []) == (query is deliveries._CLOSED)
    plan = [row[3] for row in world.conn.execute(f"EXPLAIN QUERY PLAN {deliveries._ACKED}", given)]
    assert plan[:1] == ["SEARCH i USING PRIMARY KEY (id=?)"]
    assert "SEARCH event USING INDEX event_act (type=?)" in plan
    assert not any(step.startswith("SCAN") for step in plan)


# ---------------------------------------------------------------------------- told again


def test_a_trip_is_told_again_when_another_cord_was_pulled_for_it(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn)
    tripped(world.conn, at_us=OPENED_US)
    delivered(world, Event.TRIP)
    assert due(reader) == []
    tripped(world.conn, at_us=SOON_US + 5)
    again_us = SOON_US + TOGETHER_SECONDS * 1_000_000
    assert due(reader, again_us - 1) == []  # what follows at once makes one message
    assert due(reader, again_us) == [("i1", "trip")]
    (one,) = deliveries.due(reader, "slack", again_us)
    assert one.told == {"trip"}
    assert one.since_us == SOON_US + 5
    delivered(world, Event.TRIP, since_us=one.since_us, at_us=again_us, sent=False)
    assert due(reader, again_us + 2 * TOGETHER_SECONDS * 1_000_000) == []
    assert [found.sent for found in deliveries.told(reader, "i1")] == [True, False]
    assert [found.id for found in deliveries.standing(reader, "slack")] == ["i1"]
    ended(world.conn, "i1", again_us)
    assert due(reader, again_us) == [("i1", "closed")]


def test_a_cord_that_is_pulled_while_a_message_is_on_its_way_is_told_after_it(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn, severity="trip")
    tripped(world.conn, at_us=OPENED_US + 5)
    delivered(world, Event.TRIP, since_us=OPENED_US, at_us=SOON_US)
    assert due(reader, SOON_US + TOGETHER_SECONDS * 1_000_000) == [("i1", "trip")]


def test_tenants_take_turns(world: World, reader: sqlite3.Connection) -> None:
    for number in range(deliveries.DUE_MAX):
        an_incident(world.conn, f"a{number:03}", tenant="evil", severity="trip")
        an_incident(world.conn, f"b{number:03}", tenant="evil")
    for name, severity in (("y1", "alert"), ("z1", "trip"), ("z2", "trip")):
        an_incident(world.conn, name, tenant="good", severity=severity, opened_us=OPENED_US + 1)
    names = [name for name, _ in due(reader, SOON_US + 1)]
    assert names[:5] == ["a000", "z1", "a001", "z2", "a002"]
    for number in range(deliveries.DUE_MAX):
        delivered(world, Event.TRIP, name=f"a{number:03}")
    names = [name for name, _ in due(reader, SOON_US + 1)]
    assert names[:4] == ["z1", "z2", "b000", "y1"]


def test_a_look_at_what_is_new_finds_all_that_the_one_before_did_not(
    world: World, reader: sqlite3.Connection
) -> None:
    for number in range(10):
        an_incident(world.conn, f"i{number}", severity="trip")
        delivered(world, Event.TRIP, name=f"i{number}")
    now_us = SOON_US + 3_600 * 1_000_000
    from_us = deliveries.look_from(deliveries.due(reader, "slack", now_us), now_us)
    assert from_us == now_us - LATE_SECONDS * 1_000_000
    an_incident(world.conn, "late", severity="trip", opened_us=from_us)
    an_incident(world.conn, "old", severity="trip", opened_us=from_us - 1)
    (one,) = deliveries.due(reader, "slack", now_us, from_us)
    assert one.incident.id == "late"
    both = deliveries.due(reader, "slack", now_us)
    assert len(both) == 2
    assert deliveries.look_from(both, now_us) == from_us - 1  # until it was told


def test_incidents_beyond_the_bound_wait(
    world: World, reader: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(deliveries.DUE_MAX + 1):
        an_incident(world.conn, f"i{number}")
    found = deliveries.due(reader, "slack", SOON_US)
    assert len(found) == deliveries.DUE_MAX
    assert deliveries.look_from(found, SOON_US) == 0


def test_the_writes_of_a_run_within_the_hour_are_counted(
    world: World, reader: sqlite3.Connection
) -> None:
    world.admit(world.ask("a"), world.ask("b", body="y"), world.read("c"))
    world.wait(deliveries.WRITES_SECONDS - 1)
    world.admit(world.ask("d", body="z"))
    assert deliveries.writes(reader, "r1", world.now_us) == 3
    world.wait(2)
    assert deliveries.writes(reader, "r1", world.now_us) == 1
    assert deliveries.writes(reader, "r2", world.now_us) == 0


# ---------------------------------------------------------------------------- acknowledged


def test_what_somebody_has_seen_is_told_to_nobody_until_it_gets_worse(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn, acked_us=OPENED_US + 1, owner="ann", acked_by="ann")
    assert due(reader) == []
    tripped(world.conn, at_us=OPENED_US + 1)  # as it was when it was seen
    assert due(reader) == []
    tripped(world.conn, at_us=OPENED_US + 2)
    assert due(reader) == [("i1", "trip")]


def test_what_somebody_has_seen_does_not_stand_on(world: World, reader: sqlite3.Connection) -> None:
    for name in ("i1", "i2"):
        an_incident(world.conn, name)
        delivered(world, Event.ALERT, name=name)
    changed(world.conn, "i1", acked_us=SOON_US)
    assert [one.id for one in deliveries.standing(reader, "slack")] == ["i2"]
    tripped(world.conn, at_us=SOON_US + 1)
    delivered(world, Event.TRIP, since_us=SOON_US + 1)
    assert [one.id for one in deliveries.standing(reader, "slack")] == ["i1", "i2"]


def test_who_was_told_hears_of_the_end_of_what_somebody_has_seen(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn)
    delivered(world, Event.ALERT)
    changed(world.conn, "i1", acked_us=SOON_US)
    ended(world.conn, at_us=SOON_US)
    assert due(reader) == [("i1", "closed")]


def acked(world: World, at_us: int, owner: str = "ann", name: str = "i1") -> None:
    with world.store.transaction(durable=False):
        world.store.ack_incident(name, owner=owner, actor="ann", at_us=at_us)


def ack_due(reader: sqlite3.Connection, now_us: int = SOON_US, from_us: int = 0) -> list[Due]:
    found = deliveries.due(reader, "slack", now_us, from_us, acks=True)
    return [one for one in found if one.event is Event.ACKED]


def test_who_was_told_and_can_hear_it_is_told_once_that_somebody_has_seen_it(
    world: World, reader: sqlite3.Connection
) -> None:
    for name in ("i1", "untold"):
        an_incident(world.conn, name)
    delivered(world, Event.ALERT)
    acked(world, SOON_US)
    acked(world, SOON_US, name="untold")
    assert due(reader) == []
    (one,) = ack_due(reader)
    assert one.key == ("i1", "acked", SOON_US)
    assert (one.incident.owner, one.incident.acked_us) == ("ann", SOON_US)
    assert (set(one.told), one.acks, one.threads) == ({"alert"}, 0, (0,))
    assert ack_due(reader, from_us=SOON_US + 1) == []
    row = delivered(world, Event.ACKED, since_us=SOON_US, at_us=SOON_US + 1)
    assert deliveries.told(reader, "i1")[-1] == row
    assert ack_due(reader) == []
    acked(world, SOON_US + 2, "bob")
    assert ack_due(reader) == []  # it is seen to already


def test_what_got_worse_after_it_is_told_at_once_and_begins_a_thread(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn)
    delivered(world, Event.ALERT)
    acked(world, SOON_US)
    delivered(world, Event.ACKED, since_us=SOON_US, at_us=SOON_US)
    worse_us = SOON_US + 1
    tripped(world.conn, at_us=worse_us)
    (one,) = deliveries.due(reader, "slack", worse_us, acks=True)
    assert (one.event, one.acks, one.threads) == (Event.TRIP, 1, (0,))
    delivered(world, Event.TRIP, since_us=worse_us, at_us=worse_us)
    acked(world, worse_us + 1)
    (one,) = ack_due(reader)
    assert (one.acks, one.threads) == (1, (0, 1))
    delivered(world, Event.ACKED, since_us=worse_us + 1, at_us=worse_us + 1, sent=False)
    assert ack_due(reader) == []
    ended(world.conn, at_us=worse_us + 2)
    (one,) = deliveries.due(reader, "slack", worse_us + 2, acks=True)
    assert (one.event, one.threads) == (Event.CLOSED, (0, 1))


def test_an_alert_for_which_a_cord_is_pulled_after_it_waits_for_nothing(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn)
    delivered(world, Event.ALERT)
    acked(world, SOON_US)
    delivered(world, Event.ACKED, since_us=SOON_US, at_us=SOON_US + TOGETHER_SECONDS * 1_000_000)
    later_us = SOON_US + TOGETHER_SECONDS * 1_000_000 + 1
    changed(world.conn, "i1", raised_us=later_us, rule="freeze:tool:pay")
    assert due(reader, later_us) == [("i1", "alert")]


def test_an_acknowledgement_of_days_ago_is_no_news(
    world: World, reader: sqlite3.Connection
) -> None:
    an_incident(world.conn)
    delivered(world, Event.ALERT)
    acked(world, SOON_US)
    assert ack_due(reader, SOON_US + GIVE_UP_SECONDS * 1_000_000) == []
