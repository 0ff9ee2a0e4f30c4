"""Reads of the record: pages, single calls, the tail, sums, and a person's own SQL."""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest

from ledger import queries
from ledger.connection import open_reader
from ledger.errors import Kind, LedgerUnavailable
from ledger.filters import parse
from ledger.queries import CALL_COLUMNS, QueryError
from ledger.sqlite import sqlite3
from ledger.tokens import Grant
from policies.ceilings import Then
from policies.verdict import Action, Level
from tests.ledger.world import START_US, World, a_ceiling, a_policy, a_pull


@pytest.fixture
def reader(world: World) -> Iterator[sqlite3.Connection]:
    opened = open_reader(world.data)
    yield opened
    opened.close()


def ids(rows: Iterator[queries.Row] | list[queries.Row]) -> list[str]:
    return [row["id"] for row in rows]


# Lists


def test_calls_come_newest_first_with_the_columns_of_the_contract(
    world: World, reader: sqlite3.Connection
) -> None:
    world.admit(*(world.read(name) for name in "abc"))
    rows = list(queries.calls(reader))
    assert ids(rows) == ["c", "b", "a"]
    assert all(tuple(row) == CALL_COLUMNS for row in rows)


def test_a_model_call_shows_its_tokens_and_its_cost(
    world: World, reader: sqlite3.Connection
) -> None:
    world.admit(world.read("a"), world.read("b"))
    world.settle("a", input_tokens=1000, output_tokens=200, cost_microusd=3250)
    world.settle("b", input_tokens=7, output_tokens=0, cost_microusd=None)
    shown = [
        (row["input_tokens"], row["output_tokens"], row["cost_usd"])
        for row in queries.calls(reader)
    ]
    assert shown == [(7, 0, None), (1000, 200, 0.00325)]
    assert sum(row["cost_usd"] for row in queries.totals(reader)) == 0.00325


def test_calls_come_in_pages(world: World, reader: sqlite3.Connection) -> None:
    world.admit(*(world.read(name) for name in "abcdefg"))
    world.settle("d")
    pages, after = [], None
    while page := ids(queries.calls(reader, limit=3, after=after)):
        pages.append(page)
        after = page[-1]
    assert pages == [["g", "f", "e"], ["d", "c", "b"], ["a"]]


def test_a_page_after_an_unknown_call_is_empty(world: World, reader: sqlite3.Connection) -> None:
    world.decided(world.read("a"))
    assert ids(queries.calls(reader, after="nobody")) == []


def test_a_call_that_was_stopped_after_it_was_let_through_shows_what_its_caller_was_told(
    world: World, reader: sqlite3.Connection
) -> None:
    world.admit(world.ask("a"), world.ask("b", body="y"), world.read("c"))
    assert [row["reason"] for row in queries.calls(reader)] == ["allowed"] * 3
    world.settle("a")
    world.settle("b", sent=False, status=None, reason="address_refused")
    world.settle("c", complete=False, reason="cut")
    shown = {row["id"]: (row["decision"], row["reason"]) for row in queries.calls(reader)}
    assert shown == {
        "a": ("allow", "allowed"),
        "b": ("allow", "address_refused"),
        "c": ("allow", "cut"),
    }
    assert ids(queries.calls(reader, parse("reason:cut", 0))) == ["c"]
    assert ids(queries.calls(reader, parse("-reason:allowed", 0))) == ["c", "b"]
    (_, ended) = queries.call(reader, "b")["events"]  # type: ignore[index]
    assert (ended["type"], ended["reason"]) == ("call.outcome", "address_refused")


# One call


def test_a_call_is_shown_with_its_rows(world: World, reader: sqlite3.Connection) -> None:
    world.decided(world.ask("0190aa11"))
    world.settle("0190aa11", status=201)
    row = queries.call(reader, "0190AA")
    assert row is not None
    assert (row["id"], row["state"], row["status"]) == ("0190aa11", "done", 201)
    assert [event["type"] for event in row["events"]] == ["call.intent", "call.outcome"]
    assert {event["tool"] for event in row["events"]} == {"pay"}


def test_the_start_of_an_id_must_name_one_call(world: World, reader: sqlite3.Connection) -> None:
    world.admit(*(world.read(name) for name in ("0190aa", "0190ab", "0190aa1")))
    with pytest.raises(QueryError, match="several calls begin with 0190"):
        queries.call(reader, "0190")
    row = queries.call(reader, "0190aa")
    assert row is not None
    assert row["id"] == "0190aa"
    assert queries.call(reader, "0191") is None
    assert queries.call(reader, "") is None


def test_a_call_is_shown_with_the_cord_that_it_pulled(
    world: World, reader: sqlite3.Connection
) -> None:
    world.policy = a_policy(a_ceiling(0, then=Then.HALT))
    world.decided(world.read("a"))
    row = queries.call(reader, "a")
    assert row is not None
    assert [event["type"] for event in row["events"]] == ["call.refused", "cord.pulled"]


# Everything that happens


def test_the_tail_goes_on_where_it_was(world: World, reader: sqlite3.Connection) -> None:
    assert queries.last_events(reader) == []
    world.decided(world.ask("a"))
    world.store.pull(a_pull())
    first = queries.tail(reader, 0)
    assert [row["type"] for row in first] == ["call.intent", "cord.pulled"]
    world.settle("a")
    (row,) = queries.tail(reader, first[-1]["seq"])
    assert (row["type"], row["id"], row["run"], row["tool"]) == ("call.outcome", "a", "r1", "pay")
    assert queries.tail(reader, row["seq"]) == []
    assert queries.last_events(reader, limit=1) == [row]
    assert len(queries.tail(reader, 0, limit=2)) == 2


def test_cords_are_listed_newest_first(world: World, reader: sqlite3.Connection) -> None:
    timed = dataclasses.replace(
        a_pull(level=Level.FREEZE), at_us=START_US + 5, until_us=START_US + 9, but_releases=("v1",)
    )
    world.store.pull(a_pull())
    world.store.pull(timed)
    assert queries.pulls(reader) == [timed, a_pull()]


def test_sums(world: World, reader: sqlite3.Connection) -> None:
    world.decided(world.ask("a"))
    world.settle("a")
    world.admit(world.ask("b"), world.ask("c"), world.read("d", claimant=None))
    found = {
        (row["tool"], row["decision"], row["state"]): row["calls"] for row in queries.totals(reader)
    }
    assert found == {
        ("pay", "allow", "done"): 1,
        ("pay", "replay", "replayed"): 2,
        ("read", "refuse", "refused"): 1,
    }
    assert [row["calls"] for row in queries.totals(reader, parse("state:done", 0))] == [1]


# A person's own SQL


def test_a_select_is_answered(world: World, reader: sqlite3.Connection) -> None:
    world.decided(world.ask("a"))
    found = queries.sql(reader, "SELECT id, count(*) AS n FROM calls GROUP BY id")
    assert list(found) == [{"id": "a", "n": 1}]


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM event JOIN policy ON policy.id = event.policy",
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION SELECT i + 1 FROM n WHERE i < 5) SELECT i FROM n",
        "PRAGMA table_info(event)",
        "SELECT upper(tool), json_group_array(id) FROM calls GROUP BY 1",
        "EXPLAIN QUERY PLAN SELECT 1",
    ],
)
def test_what_reads_is_answered(world: World, reader: sqlite3.Connection, text: str) -> None:
    list(queries.sql(reader, text))


@pytest.mark.parametrize(
    "text",
    [
        "DELETE FROM event",
        "UPDATE event SET state = 'done'",
        "INSERT INTO durable VALUES (2, 0)",
        "CREATE TABLE x (y)",
        "CREATE TEMP TABLE x (y)",
        "DROP TABLE event",
        "ATTACH DATABASE ':memory:' AS other",
        "DETACH DATABASE main",
        "PRAGMA query_only = OFF",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA writable_schema = ON",
        "VACUUM",
        "VACUUM INTO '/tmp/copy.db'",
        "BEGIN IMMEDIATE",
        "COMMIT",
        "SELECT load_extension('x')",
        "SELECT 1; DELETE FROM event",
        "SELECT writefile('/tmp/x', 'y')",
        "no SQL at all",
        "",
    ],
)
def test_what_does_not_read_is_refused(world: World, reader: sqlite3.Connection, text: str) -> None:
    world.decided(world.ask("a"))
    with pytest.raises(QueryError):
        list(queries.sql(reader, text))
    assert world.shown("a")["state"] == "pending"
    assert reader.execute("PRAGMA query_only").fetchone() == (1,)
    assert [row["n"] for row in queries.sql(reader, "SELECT 1 AS n")] == [1]


def test_hashes_of_tokens_and_sealed_answers_are_hidden(
    world: World, reader: sqlite3.Connection
) -> None:
    world.store.mint(Grant("r1", "acme"), b"h" * 32, actor="ann", at_us=1)
    world.store.enroll("bob", "pull", b"o" * 32, actor="ann", at_us=1)
    world.decided(world.ask("a"))
    world.settle("a")
    (token,) = queries.sql(reader, "SELECT * FROM token")
    assert (token["hash"], token["run"]) == (None, "r1")
    (operator,) = queries.sql(reader, "SELECT * FROM operator")
    assert (operator["hash"], operator["name"]) == (None, "bob")
    (answer,) = queries.sql(reader, "SELECT * FROM answer")
    assert answer["sealed"] is None


def test_a_damaged_ledger_is_told_as_such(world: World, reader: sqlite3.Connection) -> None:
    world.admit(*(world.read(str(number)) for number in range(200)))
    world.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = world.data / "ledger.db"
    with path.open("r+b") as file:
        size = len(file.read())
        file.seek(4096)
        file.write(b"\xa5" * (size - 4096))
    for ask in (queries.calls, lambda conn: queries.sql(conn, "SELECT * FROM event")):
        with pytest.raises(LedgerUnavailable, match=re.escape(f"({path}: ")) as told:
            list(ask(reader))
        assert told.value.kind is Kind.CORRUPT


def test_a_slow_query_ends(world: World, reader: sqlite3.Connection) -> None:
    ticks = iter(range(10**6))
    endless = (
        "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    )
    with pytest.raises(QueryError, match="longer than 10 s"):
        list(queries.sql(reader, endless, monotonic_seconds=lambda: float(next(ticks))))


def test_a_reader_is_free_again_after_a_query_was_left(
    world: World, reader: sqlite3.Connection
) -> None:
    world.admit(world.read("a"), world.read("b"))
    rows: Any = queries.sql(reader, "SELECT id FROM calls")
    next(rows)
    rows.close()
    assert ids(queries.calls(reader)) == ["b", "a"]
    assert world.decided(world.read("c")).verdict.action is Action.ALLOW
