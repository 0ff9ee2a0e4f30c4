"""A long record is brought up to date in pieces: told, bounded, and gone on with after a break."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlite_utils.db import Database
from sqlite_utils.migrations import Migrations

from ledger import chain, migrations
from ledger.chain import GENESIS, link, stored
from ledger.checks import check_current
from ledger.connection import Writer
from ledger.errors import LedgerError
from ledger.migrations import STEPS, migrate
from ledger.pieces import Step
from ledger.sqlite import sqlite3

ROWS = 1_000
PIECE = 100
Told = list[tuple[int, int, str]]


class Broken(Exception):
    """Whatever ends the work."""


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "ROWS_IN_A_PIECE", PIECE)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return older(tmp_path)


def older(data: Path, rows: int = ROWS) -> Path:
    """A ledger of the time before the chain."""
    with closing(sqlite3.connect(data / "ledger.db", isolation_level=None)) as conn:
        early = Migrations("pullcord")
        for name, step in STEPS[:5]:
            early(name=name)(once(step))
        early.apply(Database(conn))
        conn.execute("INSERT INTO policy VALUES (7, 'd7', 'policy.yaml', 1, 'text')")
        conn.execute(
            "INSERT INTO event (type, at_us, call_id, tenant, tool, policy, request_digest, detail)"
            " WITH n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) "
            "SELECT 'call.intent', i, 'call' || i, 'acme', 'pay', CASE WHEN i % 3 THEN 7 END, "
            "x'00ff', hex(zeroblob(500)) FROM n",
            (rows,),
        )
    return data


def once(step: Step) -> Callable[[Database], None]:
    def made(db: Database) -> None:
        step(db)

    return made


def upgraded(data: Path, progress: Callable[[int, int, str], None]) -> None:
    writer = Writer(data, 1.0)
    try:
        migrate(Database(writer.conn), progress)
    finally:
        writer.close()


def read(data: Path, statement: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(data / "ledger.db", isolation_level=None)) as conn:
        return list(conn.execute(statement))


def applied(data: Path) -> list[str]:
    return [str(name) for (name,) in read(data, "SELECT name FROM _sqlite_migrations ORDER BY id")]


def is_chained(data: Path) -> bool:
    with closing(sqlite3.connect(data / "ledger.db", isolation_level=None)) as conn:
        rows, previous = stored(conn, 0, ROWS, ROWS), GENESIS
        assert [row.columns["policy"] for row in rows[:3]] == ["d7", "d7", None]
        for row in rows:
            previous = link(previous, row.columns)
            if row.hash != previous:
                return False
        return len(rows) == ROWS


def test_it_tells_how_far_it_is_and_an_upgraded_ledger_tells_nothing(data: Path) -> None:
    told: Told = []
    upgraded(data, lambda *far: told.append(far))
    assert told == [
        *((done, ROWS, "rows") for done in range(0, ROWS + 1, PIECE)),
        *((number, 5, "indexes") for number in range(5)),
    ]
    assert is_chained(data)
    assert applied(data) == [name for name, _ in STEPS]
    told.clear()
    upgraded(data, lambda *far: told.append(far))
    assert told == []


@pytest.mark.parametrize("done", [0, 100, 900, 1_000])
def test_what_breaks_off_goes_on_where_it_was(data: Path, done: int) -> None:
    def breaks(*far: object) -> None:
        if far == (done, ROWS, "rows"):
            raise Broken

    with pytest.raises(Broken):
        upgraded(data, breaks)
    assert read(data, "SELECT count(*) FROM event WHERE hash IS NOT NULL") == [(done,)]
    assert "0006_trust" not in applied(data)
    reader = sqlite3.connect(data / "ledger.db")
    with closing(reader), pytest.raises(LedgerError, match="an older pullcord made it"):
        check_current(reader)
    told: Told = []
    upgraded(data, lambda *far: told.append(far))
    assert told[0] == (done, ROWS, "rows")
    assert is_chained(data)


def test_rows_that_an_older_version_wrote_meanwhile_are_chained_too(data: Path) -> None:
    def breaks(done: int, _total: int, _what: str) -> None:
        if done == ROWS - PIECE:
            raise Broken

    with pytest.raises(Broken):
        upgraded(data, breaks)
    read(data, "DELETE FROM event WHERE seq > 950")
    read(data, "INSERT INTO event (type, at_us) VALUES ('cord.pulled', 5)")
    upgraded(data, lambda *_: None)
    rows = read(data, "SELECT seq, hash IS NULL FROM event WHERE seq > 949 ORDER BY seq")
    assert rows == [(950, 0), (ROWS + 1, 0)]


@pytest.mark.parametrize("number", range(5))
def test_indexes_that_are_there_are_not_made_again(data: Path, number: int) -> None:
    def breaks(done: int, _total: int, what: str) -> None:
        if (done, what) == (number, "indexes"):
            raise Broken

    with pytest.raises(Broken):
        upgraded(data, breaks)
    assert applied(data)[-1] == "0006_trust"
    upgraded(data, lambda *_: None)
    fresh = data / "fresh"
    upgraded(fresh, lambda *_: None)
    schema = "SELECT type, name, sql FROM sqlite_schema ORDER BY type, name"
    assert read(data, schema) == read(fresh, schema)


def test_a_step_that_was_done_and_not_noted_is_only_noted(data: Path) -> None:
    upgraded(data, lambda *_: None)
    before = read(data, "SELECT seq, hash FROM event")
    read(data, "DELETE FROM _sqlite_migrations WHERE name >= '0006'")
    upgraded(data, lambda *_: None)
    assert applied(data) == [name for name, _ in STEPS]
    assert read(data, "SELECT seq, hash FROM event") == before
    assert len(read(data, "SELECT * FROM calls")) == ROWS


def test_the_log_holds_one_piece_however_long_the_record_is(data: Path) -> None:
    sizes: list[int] = []
    upgraded(data, lambda *_: sizes.append((data / "ledger.db-wal").stat().st_size))
    assert max(sizes) < 3 * PIECE * 2_000 < (data / "ledger.db").stat().st_size


def test_a_long_statement_gives_signs_of_life_and_can_be_ended(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrations, "_STEPS_BETWEEN_SIGNS", 1_000)
    told: Told = []

    def breaks(*far: object) -> None:
        if far == (1, 5, "indexes") and far in told:
            raise Broken
        told.append(far)  # type: ignore[arg-type]

    with pytest.raises(Broken):
        upgraded(data, breaks)
    assert told.count((0, 5, "indexes")) > 1
    upgraded(data, lambda *_: None)
    assert applied(data) == [name for name, _ in STEPS]
