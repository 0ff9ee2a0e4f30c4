"""Rows before the first number and values of another type are found, though no hash tells them."""

from contextlib import closing

import pytest

from ledger import row_checks
from ledger.checks import checked_file
from ledger.row_checks import check_rows
from ledger.sqlite import sqlite3
from tests.ledger.test_schema_checks import rewritten
from tests.ledger.test_trace_checks import looked_at, traced
from tests.ledger.trusted import filled, verified, wrong
from tests.ledger.world import World

__all__ = ["traced"]


@pytest.fixture(params=[1, 5, 10_000])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_checks, "ROWS_AT_ONCE", request.param)


def copied(conn: sqlite3.Connection, table: str, at: str, **changes: str) -> None:
    """A row again, with these changes."""
    names = [row[1] for row in conn.execute(f"PRAGMA table_info({table})")]
    values = ", ".join(changes.get(name, name) for name in names)
    conn.execute(f"INSERT INTO {table} SELECT {values} FROM {table} WHERE {at}")


@pytest.mark.parametrize("seq", [0, -5, -(2**63)])
def test_a_row_before_the_first_is_told_by_both_commands(world: World, seq: int) -> None:
    filled(world)
    copied(world.conn, "event", "seq = 1", seq=str(seq), call_id="'forged'")
    assert [row["id"] for row in world.calls("id:forged")] == ["forged"]
    (problem,) = verified(world.data / "ledger.db").problems
    assert problem.what == f"row {seq} stands before the beginning: they are numbered from 1"
    assert (problem.seq, problem.call_id) == (seq, "forged")
    found = {each.check: each.found for each in checked_file(world.data / "ledger.db")}
    assert found["every row is numbered from one"] == (f"row {seq}",)


def test_a_message_before_the_first_is_found(traced: World) -> None:
    with closing(sqlite3.connect(traced.data / "trace.db", isolation_level=None)) as conn:
        copied(conn, "message", "seq = 1", seq="-3")
    (problem,) = looked_at(traced).problems
    told = "message -3 of the trace stands before the beginning: they are numbered from 1"
    assert (problem.what, problem.seq, problem.call_id) == (told, None, "c0")


def test_a_text_in_the_place_of_bytes_has_the_same_hash_and_is_found(
    world: World, at_once: None
) -> None:
    filled(world)
    path = world.data / "ledger.db"
    world.store.close()
    rewritten(path, "event", ") STRICT", ")")
    rewritten(path, "event", "request_digest BLOB", "request_digest")
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("UPDATE event SET request_digest = lower(hex(request_digest)) WHERE seq = 7")
    rewritten(path, "event", "request_digest,", "request_digest BLOB,")
    rewritten(path, "event", "incident TEXT)", "incident TEXT) STRICT")
    told = [each.what for each in verified(path).problems]
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("UPDATE event SET request_digest = unhex(request_digest) WHERE seq = 7")
    world.store = world.opened()
    assert told == ["row 7 has a value that is not of its column's type"]
    assert wrong(world) == []


def test_the_first_row_of_a_wrong_type_is_named(at_once: None) -> None:
    with closing(sqlite3.connect(":memory:")) as conn:
        conn.execute("CREATE TABLE t (seq INTEGER PRIMARY KEY, call_id TEXT, x BLOB, y INTEGER)")
        assert check_rows(conn, "t", "row") == []
        rows = [(n, "c", b"x", n) for n in (1, 2, 3, 9, 20, 2**62)]
        conn.executemany("INSERT INTO t VALUES (?, ?, ?, ?)", rows)
        conn.execute("INSERT INTO t VALUES (21, NULL, NULL, NULL)")
        assert check_rows(conn, "t", "row") == []
        for seq, column, value in ((2**62, "x", ""), (9, "x", "text"), (3, "call_id", b"c")):
            conn.execute(f"UPDATE t SET {column} = ? WHERE seq = ?", (value, seq))
            (problem,) = check_rows(conn, "t", "row")
            assert problem.seq == seq
