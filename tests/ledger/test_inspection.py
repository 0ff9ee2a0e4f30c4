"""The short look at the file: damage behind the writer's back is noticed, wherever calls lead."""

import os
from collections.abc import Iterator

import pytest

from ledger import inspection
from ledger.errors import Kind, LedgerUnavailable
from ledger.inspection import Inspection
from ledger.sqlite import sqlite3
from ledger.tokens import Grant
from policies.call import Identity
from policies.verdict import Action
from tests.ledger.world import World, a_ceiling, a_policy, a_pull, a_worker

PAGE_BYTES = 4096


@pytest.fixture
def busy(world: World) -> World:
    """A ledger with something in every table, all of it in the file itself."""
    world.policy = a_policy(a_ceiling(500))
    for name in map(str, range(200)):
        world.decided(world.ask(name, key=f"k{name}", body=name))
    for name in map(str, range(100)):
        world.settle(name)
    world.store.mint(Grant("r9", "acme"), b"h" * 32, actor="ann", at_us=1)
    world.store.enroll("bob", "pull", b"o" * 32, actor="ann", at_us=1)
    world.store.pull(a_pull(subject="r8"))
    world.store.register(a_worker())
    world.store.alert_is_new("f1", "2026-11-22T10:00:00Z", 1)
    world.store.checkpoint()
    return world


class Pages:
    """The pages of the file, as a stray program would write them. Never closed: closing any
    handle on the file would drop SQLite's locks."""

    def __init__(self, world: World) -> None:
        self._handle = os.open(world.data / "ledger.db", os.O_RDWR)

    def __len__(self) -> int:
        return os.fstat(self._handle).st_size // PAGE_BYTES

    def read(self, number: int) -> bytes:
        return os.pread(self._handle, PAGE_BYTES, (number - 1) * PAGE_BYTES)

    def write(self, number: int, content: bytes) -> None:
        os.pwrite(self._handle, content, (number - 1) * PAGE_BYTES)


@pytest.fixture
def pages(busy: World) -> Pages:
    return Pages(busy)


@pytest.fixture
def inspector(busy: World) -> Iterator[Inspection]:
    opened = Inspection(busy.data)
    yield opened
    opened.close()


def noticed(inspector: Inspection) -> bool:
    try:
        inspector.look()
    except sqlite3.DatabaseError:
        return True
    return False


@pytest.mark.parametrize("rubbish", [b"\xa5" * PAGE_BYTES, bytes(PAGE_BYTES)])
def test_damage_to_the_top_of_any_table_or_index_is_noticed(
    busy: World, pages: Pages, inspector: Inspection, rubbish: bytes
) -> None:
    roots = busy.rows("SELECT name, rootpage FROM sqlite_schema WHERE rootpage > 0")
    assert dict(roots).keys() >= {"event", "event_call", "claim", "sqlite_autoindex_claim_1"}
    inspector.look()
    for name, number in [("the header and the schema", 1), *roots]:
        whole = pages.read(number)
        pages.write(number, rubbish)
        assert noticed(inspector), name
        pages.write(number, whole)
        inspector.look()


def test_damage_to_any_page_of_the_record_is_noticed_in_time(
    busy: World, pages: Pages, inspector: Inspection
) -> None:
    """Each look goes on by some rows, and begins again at the end."""
    looks = 300 // inspection.ROWS + 2
    (columns,) = busy.rows("SELECT count(*) FROM event")
    assert columns[0] > 3 * inspection.ROWS
    leaves = [number for number in range(2, len(pages) + 1) if b"api.example" in pages.read(number)]
    assert len(leaves) > 10
    for number in leaves[:: len(leaves) // 5]:
        whole = pages.read(number)
        pages.write(number, b"\xa5" * PAGE_BYTES)
        assert sum(noticed(inspector) for _ in range(looks))
        pages.write(number, whole)
        assert not sum(noticed(inspector) for _ in range(looks))


def test_a_look_finds_what_the_writer_does_not_and_then_nothing_is_trusted(
    busy: World, pages: Pages
) -> None:
    calls = [busy.read(name, claimant=Identity("r2", "acme")) for name in "xyz"]
    busy.store.probe()
    for number in range(1, 9):
        pages.write(number, b"\xa5" * PAGE_BYTES)
    assert busy.decided(calls[0]).verdict.action is Action.ALLOW  # from the writer's memory
    for act in (busy.store.probe, busy.store.inspect, lambda: busy.decided(calls[1])):
        with pytest.raises(LedgerUnavailable) as told:
            act()
        assert told.value.kind is Kind.CORRUPT


def test_a_look_holds_nothing_up(busy: World, inspector: Inspection) -> None:
    """Neither a commit nor the taking over of the log, and it sees what was committed since."""
    inspector.look()
    busy.decided(busy.read("later", claimant=Identity("r2", "acme")))
    busy.conn.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert (busy.data / "ledger.db-wal").stat().st_size == 0
    inspector.look()


def test_a_look_is_short_however_large_the_answers_are(busy: World, inspector: Inspection) -> None:
    """It reads keys, never the answers or the texts of policies."""
    kept = inspector._conn.execute("SELECT count(*) FROM sqlite_schema WHERE type <> 'view'")
    ((kept_count,),) = kept.fetchall()
    statements: list[str] = []
    inspector._conn.set_trace_callback(statements.append)
    inspector.look()
    assert len(statements) <= 4 + 2 * kept_count  # both ends of each table and index, and one piece
    assert not [text for text in statements if "sealed" in text or '"text"' in text]
    assert [text for text in statements if "*" in text] == [
        statement for statement in statements if statement.startswith("SELECT * FROM event WHERE")
    ]
