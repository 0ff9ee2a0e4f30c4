"""The trace is chained like the record, and its seals say how far it went."""

from contextlib import closing
from pathlib import Path

import pytest

from ledger import trace, trace_checks, trace_pruning, trace_schema
from ledger.sqlite import sqlite3
from ledger.trace import TraceStore
from ledger.traced import Caught, Side
from ledger.verification import Verified, verify
from tests.ledger.trusted import KEYS, called, change, sealed, trusted
from tests.ledger.world import START_US, World


@pytest.fixture
def traced(world: World) -> World:
    """Six messages, the first four of them sealed."""
    trusted(world)
    store = TraceStore.open(world.data, b"k" * 32, lambda: world.now_us)
    for number in range(3):
        store.keep([message(f"c{number}", side) for side in (Side.REQUEST, Side.RESPONSE)])
        if number == 1:
            called(world, "a")
            sealed(world, trace.head(world.data))
    store.close()
    return world


def message(call_id: str, side: Side) -> Caught:
    return Caught(
        call_id=call_id,
        side=side,
        at_us=START_US,
        run="r1",
        tenant="acme",
        tool="read",
        release="",
        start="GET https://api.example/",
        level="full",
        headers=(("content-type", "text/plain"),),
        body=b"hello " + call_id.encode(),
        body_bytes=8,
    )


def looked_at(world: World, *, in_place: bool = True) -> Verified:
    opened = trace.open_trace(world.data)
    if opened is None:
        return verify(world.conn, KEYS.public, in_place=in_place)
    with closing(opened):
        return verify(world.conn, KEYS.public, trace=opened, in_place=in_place)


def tampered(world: World, statement: str) -> list[str]:
    conn = sqlite3.connect(world.data / "trace.db", isolation_level=None)
    conn.execute(statement)
    conn.close()
    return [problem.what for problem in looked_at(world).problems]


def test_a_trace_that_nobody_touched_is_whole(traced: World) -> None:
    found = looked_at(traced)
    assert (found.problems, found.trace) == ([], 6)


def pruned(world: World, amount: int) -> None:
    """The oldest are gone, as `retain` takes them out."""
    conn = trace_schema.open_writer(world.data)
    conn.execute("BEGIN")
    conn.execute(
        "INSERT OR REPLACE INTO pruned SELECT 1, seq, hash, at_us FROM message WHERE seq = ?",
        (amount,),
    )
    conn.execute("DELETE FROM message WHERE seq <= ?", (amount,))
    conn.execute("COMMIT")
    conn.close()


@pytest.mark.parametrize("amount, left", [(1, 5), (4, 2), (5, 1), (6, 0)])
def test_what_was_pruned_is_not_missing(traced: World, amount: int, left: int) -> None:
    pruned(traced, amount)
    found = looked_at(traced)
    assert (found.problems, found.trace) == ([], left)


def test_all_may_be_pruned_and_it_goes_on(traced: World) -> None:
    store = TraceStore.open(traced.data, b"k" * 32, lambda: traced.now_us)
    assert store.retain(START_US + 1, None).messages == 6
    store.keep([message("new", Side.REQUEST)])
    store.close()
    found = looked_at(traced)
    assert (found.problems, found.trace) == ([], 1)


@pytest.mark.parametrize("together", [1, 2, 5])
def test_it_is_whole_behind_each_step_of_a_pruning(
    traced: World, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_pruning, "PRUNED_TOGETHER", together)
    monkeypatch.setattr(trace_checks, "MESSAGES_AT_ONCE", 2)
    store = TraceStore.open(traced.data, b"k" * 32, lambda: traced.now_us)
    left = 6
    for gone in store.retaining(START_US + 1, None):
        left -= gone.messages
        found = looked_at(traced)
        assert (found.problems, found.trace) == ([], left)
    store.close()
    assert left == 0


@pytest.mark.parametrize(
    "statement, told",
    [
        ("UPDATE pruned SET seq = 1", "messages 2 to 2 of the trace are missing"),
        ("UPDATE pruned SET hash = x'00'", "message 3 of the trace was changed"),
        ("DELETE FROM pruned", "messages 1 to 2 of the trace are missing"),
        ("DELETE FROM message WHERE seq = 3", "messages 3 to 3 of the trace are missing"),
    ],
)
def test_a_cut_that_does_not_fit_is_found(traced: World, statement: str, told: str) -> None:
    pruned(traced, 2)
    assert tampered(traced, statement) == [told]


def forged(world: World, seq: int) -> str:
    """A statement that tells of pruning up to that message, with its true hash. Nobody signs it."""
    with closing(sqlite3.connect(world.data / "trace.db")) as conn:
        (told,) = conn.execute("SELECT hex(hash) FROM message WHERE seq = ?", (seq,)).fetchone()
    return f"INSERT OR REPLACE INTO pruned VALUES (1, {seq}, x'{told}', 0)"


NOT_PRUNED = "the trace tells that it was pruned up to message {}, although message {} stands"


@pytest.mark.parametrize("kept, last", [(2, 4), (2, 6), (4, 6)], ids=["sealed", "all", "unsealed"])
@pytest.mark.parametrize("oldest", [0, 1], ids=["whole", "pruned before"])
def test_a_tail_that_was_cut_off_is_not_what_was_pruned(
    traced: World, kept: int, last: int, oldest: int
) -> None:
    if oldest:
        pruned(traced, oldest)
    statement = forged(traced, last)
    tampered(traced, f"DELETE FROM message WHERE seq > {kept}")
    assert tampered(traced, statement) == [NOT_PRUNED.format(last, oldest + 1)]


@pytest.mark.parametrize("at_once", [1, 2, 3, 1_000])
@pytest.mark.parametrize("gone", [(2, 2), (3, 3), (3, 4), (4, 4), (4, 5)])
def test_a_hole_is_not_what_was_pruned_wherever_a_read_ends(
    traced: World, at_once: int, gone: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_checks, "MESSAGES_AT_ONCE", at_once)
    first, last = gone
    statement = forged(traced, last)
    told = f"messages {first} to {last} of the trace are missing"
    assert tampered(traced, f"DELETE FROM message WHERE seq BETWEEN {first} AND {last}") == [told]
    assert tampered(traced, statement) == [NOT_PRUNED.format(last, 1)]


@pytest.mark.parametrize("at_once", [1, 2, 1_000])
def test_the_oldest_may_be_pruned_while_it_is_looked_at(
    traced: World, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_checks, "MESSAGES_AT_ONCE", at_once)
    read, amounts = trace_checks._read, iter((1, 4, 5))

    def meanwhile(conn: sqlite3.Connection, seq: int) -> object:
        amount = next(amounts, None)
        if amount is not None:
            pruned(traced, amount)
        return read(conn, seq)

    monkeypatch.setattr(trace_checks, "_read", meanwhile)
    assert looked_at(traced).problems == []
    assert next(amounts, None) is None


def test_a_cut_at_a_sealed_message_must_be_that_message(traced: World) -> None:
    pruned(traced, 6)
    forged = "UPDATE pruned SET seq = 4, hash = x'00'"
    assert "is not what was sealed" in tampered(traced, forged)[0]


@pytest.mark.parametrize(
    "statement, told",
    [
        ("UPDATE message SET run = 'r2' WHERE seq = 2", "message 2 of the trace was changed"),
        ("UPDATE message SET hash = x'00' WHERE seq = 6", "message 6 of the trace was changed"),
        ("DELETE FROM message WHERE seq = 1", "messages 1 to 1 of the trace are missing"),
        ("DELETE FROM message WHERE seq IN (3, 4)", "messages 3 to 4 of the trace are missing"),
        (
            "DELETE FROM message WHERE seq > 3",
            "the trace is cut off after message 3, although the seal of "
            "2026-11-18T11:06:40.000Z covers message 4",
        ),
    ],
)
def test_what_was_changed_in_it_is_found(traced: World, statement: str, told: str) -> None:
    assert tampered(traced, statement) == [told]


def test_a_trace_that_was_written_anew_is_not_what_was_sealed(traced: World) -> None:
    (traced.data / "trace.db").unlink()
    store = TraceStore.open(traced.data, b"k" * 32, lambda: traced.now_us)
    store.keep([message(f"x{number}", Side.REQUEST) for number in range(5)])
    store.close()
    told = [problem.what for problem in looked_at(traced).problems]
    assert told == ["the trace up to message 4 is not what was sealed at 2026-11-18T11:06:40.000Z"]


def test_a_trace_that_is_gone_is_missed_where_it_should_be(traced: World) -> None:
    (traced.data / "trace.db").unlink()
    for extra in ("-wal", "-shm"):
        Path(f"{traced.data / 'trace.db'}{extra}").unlink(missing_ok=True)
    told = [problem.what for problem in looked_at(traced).problems]
    assert told == ["the trace is gone; 4 messages were sealed"]
    assert looked_at(traced, in_place=False).problems == []
    change(traced, "UPDATE seal SET trace_seq = 0")
    assert looked_at(traced).problems != []
