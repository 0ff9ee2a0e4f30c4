"""What each channel has still to be told follows from the incidents and from what it was told."""

from collections.abc import Iterator
from contextlib import closing

import pytest

from ledger import deliveries
from ledger.connection import open_reader
from ledger.deliveries import GIVE_UP_SECONDS, TOGETHER_SECONDS, Delivery, Event
from ledger.sqlite import sqlite3
from tests.ledger.made_incidents import OPENED_US, an_incident, ended, tripped
from tests.ledger.world import World

SOON_US = OPENED_US + TOGETHER_SECONDS * 1_000_000


@pytest.fixture
def reader(world: World) -> Iterator[sqlite3.Connection]:
    with closing(open_reader(world.data)) as found:
        yield found


def due(
    reader: sqlite3.Connection, now_us: int = SOON_US, channel: str = "slack"
) -> list[tuple[str, str]]:
    return [one.key for one in deliveries.due(reader, channel, now_us)]


def delivered(
    world: World, event: Event, *, name: str = "i1", sent: bool = True, channel: str = "slack"
) -> Delivery:
    row = Delivery(name, channel, event, sent, SOON_US, 2, "" if sent else "it answered 400")
    world.store.delivered(row)
    return row


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
    given = {"channel": "slack", "old_us": 0, "together_us": 0}
    for query in (deliveries._OPEN, deliveries._CLOSED):
        plan = [row[3] for row in world.conn.execute(f"EXPLAIN QUERY PLAN {query}", given)]
        assert [
            step for step in plan if step.startswith("SCAN") and "incident_open" not in step
        ] == []


def test_incidents_beyond_the_bound_wait(
    world: World, reader: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(deliveries.DUE_MAX + 1):
        an_incident(world.conn, f"i{number}")
    assert len(due(reader)) == deliveries.DUE_MAX


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
