"""The schema: made once, never by a newer hand, and as the reads expect it."""

import pytest
from sqlite_utils.db import Database

from ledger.errors import LedgerError
from ledger.migrations import STEPS, migrate
from ledger.queries import CALL_COLUMNS
from ledger.sqlite import sqlite3
from tests.ledger.world import World


def test_steps_have_names_in_order() -> None:
    names = [name for name, _ in STEPS]
    assert names == sorted(set(names))
    assert [name[:4] for name in names] == [f"{number:04}" for number in range(1, len(names) + 1)]


def test_migrating_twice_changes_nothing() -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    migrate(Database(conn))
    schema = "SELECT * FROM sqlite_schema"
    before = conn.execute(schema).fetchall(), conn.execute("SELECT * FROM durable").fetchall()
    migrate(Database(conn))
    after = conn.execute(schema).fetchall(), conn.execute("SELECT * FROM durable").fetchall()
    assert after == before
    conn.close()


def test_a_ledger_of_a_newer_pullcord_is_refused(world: World) -> None:
    world.conn.execute(
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) "
        "VALUES ('pullcord', '9999_future', '')"
    )
    world.store.close()
    with pytest.raises(LedgerError, match=r"made by a newer pullcord \(step 9999_future\)"):
        world.opened()
    conn = sqlite3.connect(world.data / "ledger.db", isolation_level=None)
    conn.execute("DELETE FROM _sqlite_migrations WHERE name = '9999_future'")
    conn.close()
    world.store = world.opened()


def test_the_record_is_only_added_to(world: World) -> None:
    """No statement of the store changes or removes a row of `event`."""
    world.admit(world.ask("a"), world.read("b"))
    before = world.rows("SELECT * FROM event ORDER BY seq")
    world.settle("a")
    world.settle("b")
    world.reopen()
    assert world.rows("SELECT * FROM event ORDER BY seq")[: len(before)] == before


def test_the_view_shows_the_columns_of_the_contract(world: World) -> None:
    shown = [row[1] for row in world.rows("PRAGMA table_info(calls)")]
    assert tuple(shown) == (*CALL_COLUMNS, "seq", "at_us")


@pytest.mark.parametrize(
    "statement, index",
    [
        ("SELECT * FROM calls WHERE id = 'a'", "event_call"),
        ("SELECT * FROM calls WHERE run = 'r1' ORDER BY seq DESC LIMIT 9", "event_run"),
        ("SELECT id FROM claim WHERE expires_us <= 5 LIMIT 100", "claim_expires"),
    ],
)
def test_a_read_uses_its_index(world: World, statement: str, index: str) -> None:
    plan = " ".join(row[3] for row in world.rows(f"EXPLAIN QUERY PLAN {statement}"))
    assert index in plan
    assert "TEMP B-TREE" not in plan
