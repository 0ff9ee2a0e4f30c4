"""Whoever changes what a person reads the record through is found, in the ledger and the trace."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ledger.checks import TRACE_CHECK, checked_file
from ledger.schema_checks import ledger_differences, trace_differences
from ledger.sqlite import sqlite3
from ledger.trace_schema import INDEXES, make_tables
from tests.ledger.test_trace_checks import looked_at, traced
from tests.ledger.trusted import filled, verified, wrong
from tests.ledger.world import World

__all__ = ["traced"]

CHECK = "its tables, views and triggers are pullcord's"


@pytest.fixture
def kept(world: World) -> World:
    return filled(world)


def rewritten(path: Path, name: str, old: str, new: str) -> None:
    """The text of an object replaced, by what SQLite leaves open to whoever has the file."""
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA writable_schema=ON")
        (sql,) = conn.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
        assert old in sql
        told = (sql.replace(old, new), name)
        conn.execute("UPDATE sqlite_master SET sql = ? WHERE name = ?", told)
        (version,) = conn.execute("PRAGMA schema_version").fetchone()
        conn.execute(f"PRAGMA schema_version={version + 1}")


def made_anew(world: World, name: str, old: str, new: str) -> None:
    (sql,) = world.conn.execute("SELECT sql FROM sqlite_master WHERE name = ?", (name,)).fetchone()
    assert old in sql
    world.conn.execute(f"DROP VIEW {name}")
    world.conn.execute(sql.replace(old, new))


def checked(path: Path, name: str = CHECK) -> tuple[str, ...]:
    return {each.check: each.found for each in checked_file(path)}[name]


def test_a_ledger_that_nobody_touched_is_as_it_was_made(kept: World) -> None:
    kept.conn.execute("ANALYZE")
    assert ledger_differences(kept.conn) == []
    kept.conn.execute("VACUUM")
    assert ledger_differences(kept.conn) == []


def test_a_view_that_hides_a_call_is_told_by_both_commands(kept: World) -> None:
    assert [row["id"] for row in kept.calls("id:w")] == ["w"]
    made_anew(kept, "calls", "WHERE d.type", "WHERE d.call_id <> 'w' AND d.type")
    assert kept.calls("id:w") == []
    told = "the view calls is not as pullcord makes it"
    assert wrong(kept) == [told]
    assert checked(kept.data / "ledger.db") == (told,)


@pytest.mark.parametrize(
    "statement, told",
    [
        ("DROP VIEW incidents", "the view incidents is missing"),
        ("DROP INDEX event_tool", "the index event_tool is missing"),
        (
            "CREATE TRIGGER quiet BEFORE INSERT ON event BEGIN SELECT raise(IGNORE); END",
            "the trigger quiet on event is none of pullcord's",
        ),
        (
            "CREATE TRIGGER t AFTER INSERT ON _sqlite_migrations BEGIN DELETE FROM event; END",
            "the trigger t on _sqlite_migrations is none of pullcord's",
        ),
        ("CREATE INDEX fast ON event (host)", "the index fast on event is none of pullcord's"),
        ("CREATE TABLE extra (x)", "the table extra is none of pullcord's"),
        (
            "ALTER TABLE seal ADD COLUMN note TEXT",
            "the table seal is not as pullcord makes it",
        ),
    ],
)
def test_whatever_was_made_or_dropped_is_named(kept: World, statement: str, told: str) -> None:
    kept.conn.execute(statement)
    assert wrong(kept) == [told]
    assert checked(kept.data / "ledger.db") == (told,)


def test_a_table_that_is_a_view_now_is_told(kept: World) -> None:
    kept.conn.execute("PRAGMA legacy_alter_table=ON")
    kept.conn.execute("ALTER TABLE gap RENAME TO gaps")
    kept.conn.execute("CREATE VIEW gap AS SELECT * FROM gaps WHERE 0")
    told = verified(kept.data / "ledger.db").problems
    assert [each.what for each in told] == [
        "the table gaps is none of pullcord's",
        "the view gap is none of pullcord's",
        "the table gap is missing",
    ]


def test_a_definition_without_its_types_is_told(kept: World) -> None:
    path = kept.data / "ledger.db"
    kept.store.close()
    rewritten(path, "event", ") STRICT", ")")
    told = [each.what for each in verified(path).problems]
    rewritten(path, "event", "incident TEXT)", "incident TEXT) STRICT")
    kept.store = kept.opened()
    assert told == ["the table event is not as pullcord makes it"]
    assert wrong(kept) == []


# The trace


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "trace.db", isolation_level=None)) as conn:
        yield conn


@pytest.mark.parametrize("index", [*INDEXES, ""], ids=["with text", "without text", "none"])
def test_a_trace_is_whole_whichever_sqlite_made_it(trace: sqlite3.Connection, index: str) -> None:
    make_tables(trace)
    if index:
        trace.execute(index)
    trace.execute("ANALYZE")
    assert trace_differences(trace) == []
    trace.execute("CREATE VIEW v AS SELECT 1")
    assert trace_differences(trace) == ["the view v is none of pullcord's"]


def test_an_index_that_this_sqlite_cannot_make_is_taken_as_it_is(
    trace: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tables(trace)
    trace.execute(INDEXES[1])
    monkeypatch.setattr("ledger.schema_checks.INDEXES", (INDEXES[0], INDEXES[1]))
    newer = INDEXES[1].replace("contentless_delete=1", "of_tomorrow=1")
    trace.execute("PRAGMA writable_schema=ON")
    trace.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'searched'", (newer,))
    assert trace_differences(trace)[0] == "the table searched is none of pullcord's"
    monkeypatch.setattr("ledger.schema_checks.INDEXES", (INDEXES[0], newer))
    assert trace_differences(trace) == []
    trace.execute("PRAGMA writable_schema=OFF")
    trace.execute("CREATE TRIGGER t AFTER INSERT ON message BEGIN DELETE FROM message; END")
    assert trace_differences(trace) == ["the trigger t on message is none of pullcord's"]


def test_a_trigger_in_the_trace_is_told_by_both_commands(traced: World) -> None:
    assert checked(traced.data / "ledger.db", TRACE_CHECK) == ()
    with closing(sqlite3.connect(traced.data / "trace.db", isolation_level=None)) as conn:
        conn.execute("CREATE TRIGGER t AFTER INSERT ON message BEGIN DELETE FROM message; END")
    told = "the trigger t on message is none of pullcord's"
    assert [each.what for each in looked_at(traced).problems] == [f"in the trace {told}"]
    assert checked(traced.data / "ledger.db", TRACE_CHECK) == (told,)
