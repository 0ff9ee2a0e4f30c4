"""Each check of the ledger finds what it is for, and a ledger in use has nothing to find."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from ledger import checks
from ledger.checks import CHECKS, FOUND_MAX, checked, checked_file
from ledger.connection import open_reader
from ledger.sqlite import sqlite3
from ledger.states import CallState
from tests.ledger.test_migrations import first_step_ledger
from tests.ledger.world import World


def problems(world: World) -> dict[str, tuple[str, ...]]:
    reader = open_reader(world.data)
    try:
        return {each.check: each.found for each in checked(reader) if not each.is_ok}
    finally:
        reader.close()


def used(world: World) -> None:
    """A ledger with one of everything."""
    world.admit(world.ask("a"), world.ask("b", body="b"), world.ask("c", body="c"), world.read("d"))
    world.settle("a")
    world.settle("b", status=500)
    world.settle("c", status=None, complete=False)
    world.decided(world.ask("e"))
    world.decided(world.ask("f", body="f"))
    world.decided(world.ask("g", body="g"))
    world.settle("g", status=None, complete=False)
    said: dict[str, Any] = {"reason": "x", "actor": "ann", "at_us": world.now_us}
    world.store.resolve("g", CallState.DONE, **said)
    states = {row["id"]: row["state"] for row in world.calls()}
    assert states == {
        "a": "done",
        "b": "unknown",
        "c": "unknown",
        "d": "pending",
        "e": "replayed",
        "f": "pending",
        "g": "done",
    }


def test_a_ledger_in_use_is_whole(world: World) -> None:
    used(world)
    reader = open_reader(world.data)
    findings = list(checked(reader))
    assert not reader.in_transaction
    reader.close()
    assert tuple(finding.check for finding in findings) == CHECKS
    assert all(finding.is_ok and not finding.skipped for finding in findings)
    world.reopen()
    assert problems(world) == {}


ROWS = {
    "every open call has its intent": (
        "DELETE FROM event WHERE call_id = 'd'",
        {"call d"},
    ),
    "no open call has ended": (
        "INSERT INTO open_call (call_id, claim) VALUES ('a', NULL)",
        {"call a"},
    ),
    "every open call that claimed has its claim": (
        "DELETE FROM claim WHERE call_id = 'f'",
        {"call f"},
    ),
    "every intent has ended or is open": (
        "DELETE FROM open_call WHERE call_id = 'd'",
        {"call d"},
    ),
    "every outcome has its intent": (
        "DELETE FROM event WHERE call_id = 'b' AND type = 'call.intent'",
        {"call b"},
    ),
    "no call has ended twice": (
        "INSERT INTO event (type, at_us, call_id, state) VALUES ('call.outcome', 1, 'a', 'done')",
        {"call a"},
    ),
    "only unknown outcomes were resolved, once": (
        "INSERT INTO event (type, at_us, call_id, state, actor) "
        "VALUES ('call.resolved', 1, 'a', 'done', 'ann'), ('call.resolved', 1, 'g', 'done', 'ann')",
        {"call a", "call g"},
    ),
    "every claim has its call": (
        "UPDATE claim SET call_id = 'z' WHERE call_id = 'a'",
        {"claim of call z"},
    ),
    "a pending claim is that of an open call": (
        "UPDATE claim SET state = 'pending', expires_us = NULL WHERE call_id = 'c'",
        {"claim of call c"},
    ),
    "an unknown claim is that of an unknown call": (
        "UPDATE claim SET state = 'unknown', expires_us = NULL WHERE call_id = 'a'",
        {"claim of call a"},
    ),
    "every kept answer has its claim": (
        "INSERT INTO answer (claim, sealed) VALUES (99, x'00')",
        {"answer of claim 99"},
    ),
    "every claim with an answer has it": (
        "DELETE FROM answer WHERE claim = (SELECT id FROM claim WHERE call_id = 'b')",
        {"claim of call b"},
    ),
    "every key that was told of a claim has it for its time": (
        "INSERT INTO claim_alias SELECT x'0102030405060708ff', id, expires_us + 1 FROM claim "
        "WHERE call_id = 'a' UNION ALL SELECT x'1102030405060708ff', 99, 0",
        {"key 0102030405060708", "key 1102030405060708"},
    ),
    "its tables, views and triggers are pullcord's": (
        "CREATE TRIGGER quiet AFTER UPDATE ON durable BEGIN SELECT 1; END",
        {"the trigger quiet on durable is none of pullcord's"},
    ),
    "every row is numbered from one": (
        "INSERT INTO event (seq, type, at_us) VALUES (0, 'x', 1), (-5, 'x', 1)",
        {"row 0", "row -5"},
    ),
    "its references lead somewhere": (
        "UPDATE event SET policy = 77 WHERE call_id = 'a' AND type = 'call.intent'",
        {"event row 1 names no policy"},
    ),
    "its schema is known": (
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) "
        "VALUES ('pullcord', '9999_future', '')",
        {"step 9999_future is of a newer pullcord"},
    ),
}


@pytest.mark.parametrize("check", ROWS)
def test_what_does_not_fit_is_found_by_name(world: World, check: str) -> None:
    used(world)
    statement, found = ROWS[check]
    world.store.close()
    conn = sqlite3.connect(world.data / "ledger.db", isolation_level=None)
    conn.execute(statement)
    conn.close()
    told = problems(world)
    if check == "its schema is known":
        conn = sqlite3.connect(world.data / "ledger.db", isolation_level=None)
        conn.execute("DELETE FROM _sqlite_migrations WHERE name = '9999_future'")
        conn.close()
    world.store = world.opened()
    assert check in told
    assert set(told[check]) == found


def test_every_check_but_those_of_the_file_is_broken_above() -> None:
    assert set(CHECKS) - set(ROWS) == {"the file is a ledger", "its pages and indexes are whole"}


@pytest.mark.usefixtures("heard")
def test_ctrl_c_ends_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    used(world)
    monkeypatch.setattr(checks, "_STEPS_BETWEEN_SIGNALS", 10)
    reader = open_reader(world.data)
    with pytest.raises(KeyboardInterrupt):
        for _ in checked(Pressed(reader)):  # type: ignore[arg-type]
            pass
    assert not reader.in_transaction
    reader.close()


class Pressed:
    """A connection while somebody presses Ctrl-C in the midst of each statement."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self.conn = conn

    def set_progress_handler(self, look: Callable[[], int] | None, steps: int) -> None:
        def pressed() -> int:
            signal.raise_signal(signal.SIGINT)
            return 0 if look is None else look()

        self.conn.set_progress_handler(None if look is None else pressed, steps)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.conn, name)


def test_a_long_list_is_cut(world: World) -> None:
    for number in range(FOUND_MAX + 5):
        world.decided(world.read(f"r{number:02}"))
    world.conn.execute("DELETE FROM open_call")
    (found,) = problems(world).values()
    assert (len(found), found[-1]) == (FOUND_MAX + 1, "and more")
    world.store._memory.open_calls.clear()
    world.store._memory.in_flight.clear()


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[: 4096 * 3] + b"\x5a" * 4096 + whole[4096 * 4 :],
        lambda whole: whole[: len(whole) - 8192],
        lambda whole: whole[:40_000],
    ],
    ids=["a page of letters", "the end is gone", "most is gone"],
)
def test_a_damaged_file_is_told_and_what_rests_on_it_is_skipped(
    world: World, damage: Callable[[bytes], bytes]
) -> None:
    used(world)
    world.store.close()
    path = world.data / "ledger.db"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    findings = {each.check: each for each in checked_file(path)}
    path.write_bytes(whole)
    world.store = world.opened()
    assert any(not each.is_ok for each in findings.values())
    last = findings.get(CHECKS[-1])
    assert last is None or last.skipped


def test_another_programs_database_is_no_ledger(world: World) -> None:
    path = world.data / "other.db"
    conn = sqlite3.connect(path)
    conn.execute("CREATE TABLE notes (text)")
    conn.close()
    first, *rest = checked_file(path)
    assert first.found == ("it is another program's database",)
    assert all(each.skipped for each in rest)


def test_an_older_ledger_is_looked_at_as_far_as_it_can_be(world: World) -> None:
    old = world.data / "old"
    old.mkdir()
    first_step_ledger(old)
    reader = open_reader(old)
    findings = list(checked(reader))
    reader.close()
    assert all(each.is_ok for each in findings)
    assert [each.skipped.partition(";")[0] for each in findings] == [""] * 4 + [
        "an older pullcord made it"
    ] * (len(CHECKS) - 4)
