"""The schema: made once, never by a newer hand, and as the reads expect it."""

from pathlib import Path
from typing import Any

import pytest
from sqlite_utils.db import Database
from sqlite_utils.migrations import Migrations

from ledger import containment, queries
from ledger.connection import open_reader
from ledger.errors import LedgerError
from ledger.migrations import STEPS, migrate
from ledger.queries import CALL_COLUMNS
from ledger.records import Bearer, Recovered
from ledger.sqlite import sqlite3
from policies.call import Identity
from policies.verdict import Level, Scope
from tests.ledger.world import START_US, World, a_pull


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


def test_a_ledger_of_the_first_step_is_brought_up_to_date_with_its_rows(tmp_path: Path) -> None:
    old = first_step_ledger(tmp_path)
    world = World(tmp_path)
    try:
        assert world.store.recovered == Recovered(1, 1)
        assert list(world.store.pulls.values()) == [a_pull()]
        assert world.shown("a")["state"] == "unknown"
        assert [
            row[: len(old[0])] for row in world.rows("SELECT * FROM event WHERE seq <= 2")
        ] == old
        bearer = Bearer("r1", b"h" * 32)
        world.store.release(Level.HALT, Scope.RUN, "r1", reason="ok", actor="bob", at_us=1)
        identity = world.decided(world.read("b", claimant=bearer)).identity
        assert identity == Identity("r1", "acme", (), "biller", "v1")
        reader = open_reader(tmp_path)
        assert containment.proof(reader, Level.HALT, Scope.RUN, "r1").unknown == ("a",)
        reader.close()
        world.check_memory()
    finally:
        world.store.close()


def test_calls_of_an_older_ledger_keep_their_reasons(tmp_path: Path) -> None:
    first_step_ledger(tmp_path)
    world = World(tmp_path)
    try:
        assert world.shown("a")["reason"] == "allowed"
        world.decided(world.read("b", claimant=Identity("r2", "acme")))
        world.settle("b", complete=False, reason="upstream_failed")
        assert world.shown("b")["reason"] == "upstream_failed"
    finally:
        world.store.close()


def test_a_step_that_fails_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    first_step_ledger(tmp_path)
    conn = sqlite3.connect(tmp_path / "ledger.db", isolation_level=None)
    conn.execute("CREATE TABLE alert (in_the_way)")
    with pytest.raises(sqlite3.OperationalError, match="already exists"):
        migrate(Database(conn))
    assert conn.execute("SELECT count(*) FROM pull").fetchone() == (1,)
    assert "until_us" not in [row[1] for row in conn.execute("PRAGMA table_info(pull)")]
    conn.execute("DROP TABLE alert")
    conn.close()
    World(tmp_path).store.close()


def test_cords_can_be_read_before_the_ledger_is_brought_up_to_date(tmp_path: Path) -> None:
    first_step_ledger(tmp_path)
    reader = open_reader(tmp_path)
    assert queries.pulls(reader) == [a_pull()]
    reader.close()


def first_step_ledger(data: Path) -> list[tuple[Any, ...]]:
    """A ledger as step 0001 made it, with a claimed write in flight, a cord and a token."""
    conn = sqlite3.connect(data / "ledger.db", isolation_level=None)
    first = Migrations("pullcord")
    name, step = STEPS[0]

    @first(name=name)
    def made(db: Database) -> None:
        step(db)

    first.apply(Database(conn))
    conn.execute("PRAGMA journal_mode=WAL")
    conn.execute(
        "INSERT INTO event (type, at_us, call_id, run, tenant, tool, effect, decision, reason, "
        "state, request_digest) VALUES ('call.intent', 5, 'a', 'r1', 'acme', 'pay', 'write', "
        "'allow', 'allowed', 'pending', x'00')"
    )
    conn.execute(
        "INSERT INTO event (type, at_us, run, rule, actor, detail) "
        "VALUES ('cord.pulled', 6, 'r1', 'halt:run:r1', 'ann', 'looks wrong')"
    )
    conn.execute(
        "INSERT INTO claim (id, key, fingerprint, call_id, state, created_us, used_us, keep_us, "
        "same_body_us) VALUES (1, x'01', x'00', 'a', 'pending', 5, 5, 0, 0)"
    )
    conn.execute("INSERT INTO open_call VALUES ('a', 1)")
    conn.execute(
        "INSERT INTO pull VALUES ('halt', 'run', 'r1', 'looks wrong', 'ann', ?)", (START_US,)
    )
    conn.execute("INSERT INTO run VALUES ('r1', 'acme', '[]', 'biller', 'v1', 5)")
    conn.execute(
        "INSERT INTO token (hash, id, run, actor, created_us) VALUES (?, 't1', 'r1', 'ann', 5)",
        (b"h" * 32,),
    )
    rows = conn.execute("SELECT * FROM event ORDER BY seq").fetchall()
    conn.close()
    return rows


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
        (
            "SELECT seq FROM event WHERE actor IS NOT NULL AND type = 'cord.pulled' "
            "AND rule = 'halt:run:r1' ORDER BY seq DESC LIMIT 1",
            "event_act",
        ),
        ("SELECT id FROM claim WHERE expires_us <= 5 LIMIT 100", "claim_expires"),
        ("SELECT max(until_us) FROM claim_alias WHERE claim = 1", "claim_alias_claim"),
        ("DELETE FROM claim_alias WHERE claim = 1", "claim_alias_claim"),
    ],
)
def test_a_read_uses_its_index(world: World, statement: str, index: str) -> None:
    plan = " ".join(row[3] for row in world.rows(f"EXPLAIN QUERY PLAN {statement}"))
    assert index in plan
    assert "TEMP B-TREE" not in plan
