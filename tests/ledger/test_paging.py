"""All calls page by page, and the views `runs` and `effects`."""

from pathlib import Path
from typing import Any

import pytest
from sqlite_utils.db import Database

from ledger.backups import backup
from ledger.connection import open_reader
from ledger.filters import ALL, parse
from ledger.paging import every_call
from ledger.queries import CALL_COLUMNS
from ledger.states import CallState
from policies.call import Identity
from tests.ledger.world import World, a_pull


def ids(world: World, terms: str = "", page_rows: int = 3) -> list[str]:
    reader = open_reader(world.data)
    try:
        return [row["id"] for row in every_call(reader, parse(terms, world.now_us), page_rows)]
    finally:
        reader.close()


@pytest.mark.parametrize("page_rows", [1, 2, 3, 7, 8, 100])
def test_every_call_comes_once_oldest_first(world: World, page_rows: int) -> None:
    world.admit(*(world.read(name) for name in "abcdefg"))
    world.settle("d")
    world.store.pull(a_pull())
    assert ids(world, page_rows=page_rows) == list("abcdefg")
    assert ids(world, "-id:b state:pending", page_rows) == list("acefg")
    assert ids(world, "id:a id:g", page_rows) == ["a", "g"]


def test_an_empty_ledger_has_none(world: World) -> None:
    assert ids(world) == []


def test_what_begins_meanwhile_is_left_out_and_pages_are_reads_of_their_own(world: World) -> None:
    world.admit(*(world.read(name) for name in "abcd"))
    reader = open_reader(world.data)
    rows = every_call(reader, ALL, 2)
    first = next(rows)
    assert tuple(first) == CALL_COLUMNS
    world.settle("c")
    world.decided(world.read("e"))
    next(rows)
    world.store.checkpoint()
    assert not reader.in_transaction
    assert [(row["id"], row["state"]) for row in rows] == [("c", "done"), ("d", "pending")]
    reader.close()


# Views


def rows_of(world: World, statement: str) -> list[dict[str, Any]]:
    reader = open_reader(world.data)
    try:
        cursor = reader.execute(statement)
        names = [column[0] for column in cursor.description]
        return [dict(zip(names, row, strict=True)) for row in cursor]
    finally:
        reader.close()


def test_effects_are_the_writes_that_the_world_may_have_seen(world: World) -> None:
    for name in ("done", "unknown", "not_sent", "resolved", "taken_back", "pending"):
        world.decided(world.ask(name, body=name))
    world.decided(world.ask("replayed", body="pending", key="k"))
    world.decided(world.read("read"))
    world.settle("done")
    world.settle("not_sent", sent=False, status=None)
    for name in ("unknown", "resolved", "taken_back"):
        world.settle(name, status=None, complete=False)
    said: dict[str, Any] = {"reason": "asked them", "actor": "ann", "at_us": world.now_us}
    world.store.resolve("resolved", CallState.DONE, **said)
    world.store.resolve("taken_back", CallState.NOT_SENT, **said)
    world.store.pull(a_pull())
    world.decided(world.ask("halted"))
    effects = rows_of(world, "SELECT * FROM effects ORDER BY seq")
    assert [(row["id"], row["state"], row["resolved_by"]) for row in effects] == [
        ("done", "done", None),
        ("unknown", "unknown", None),
        ("resolved", "done", "ann"),
        ("pending", "pending", None),
    ]
    assert effects[2]["resolved_because"] == "asked them"


def test_a_run_is_one_row_with_its_sums(world: World) -> None:
    child = Identity("r2", "acme", ("r1",), release="v2")
    world.admit(world.ask("a"), world.read("b"), world.read("c", claimant=child))
    world.settle("a")
    world.settle("b", input_tokens=10, output_tokens=5, cost_microusd=250)
    world.decided(world.ask("d"))
    world.wait(5)
    world.decided(world.ask("e", claimant=child, body="e"))
    world.settle("e", status=None, complete=False)
    world.store.pull(a_pull())
    world.decided(world.read("f"))
    runs = rows_of(world, "SELECT * FROM runs ORDER BY run")
    names = ("run", "parent", "root", "release", "calls", "reads", "writes", "unknown", "refused")
    assert [tuple(row[name] for name in names) for row in runs] == [
        ("r1", None, "r1", "2026-11-20.3", 4, 1, 1, 0, 1),
        ("r2", "r1", "r1", "v2", 2, 1, 1, 1, 0),
    ]
    assert (runs[0]["replayed"], runs[0]["input_tokens"], runs[0]["output_tokens"]) == (1, 10, 5)
    assert runs[0]["cost_usd"] == 0.00025
    assert runs[0]["first_at"] < runs[0]["last_at"]
    assert (runs[1]["pending"], runs[1]["cost_usd"], runs[1]["input_tokens"]) == (1, 0.0, 0)


def test_a_copy_opens_in_sqlite_utils(world: World, tmp_path: Path) -> None:
    world.decided(world.ask("a"))
    reader = open_reader(world.data)
    copy = Database(backup(reader, tmp_path / "copy.db").path)
    reader.close()
    assert {"calls", "cords", "effects", "incidents", "runs"} == set(copy.view_names())
    assert [row["id"] for row in copy.view("effects").rows] == ["a"]
    assert [row["run"] for row in copy.view("runs").rows] == ["r1"]
    copy.close()


@pytest.mark.parametrize(
    "statement, index",
    [
        ("SELECT * FROM runs WHERE run = 'r1'", "event_run"),
        ("SELECT * FROM effects WHERE run = 'r1' ORDER BY seq DESC LIMIT 9", "event_run"),
        ("SELECT * FROM effects WHERE id = 'a'", "event_call"),
        ("SELECT * FROM calls WHERE run = 'r1' AND seq > 5 AND seq <= 9 ORDER BY seq", "event_run"),
        ("SELECT * FROM calls WHERE seq > 5 AND seq <= 9 ORDER BY seq LIMIT 9", "PRIMARY KEY"),
    ],
)
def test_a_view_uses_its_index(world: World, statement: str, index: str) -> None:
    plan = " | ".join(row[3] for row in world.rows(f"EXPLAIN QUERY PLAN {statement}"))
    assert index in plan
    assert not {"SCAN event", "SCAN d", "SCAN e"} & set(plan.split(" | ")), plan
    assert "TEMP B-TREE FOR ORDER BY" not in plan
