"""A body of the trace that is not what was kept is told, and never shown."""

import hashlib
from contextlib import closing

import pytest
import zstandard

from ledger import bodies, body_checks, trace
from ledger.bodies import is_whole, unpacked
from ledger.sqlite import sqlite3
from ledger.trace import TraceStore
from ledger.traced import Side
from tests.ledger.test_row_checks import copied
from tests.ledger.test_trace_checks import looked_at, message, traced
from tests.ledger.world import World

__all__ = ["traced"]

FORGED = zstandard.ZstdCompressor().compress(b"the agent asked for a refund")
OF_C1 = f"WHERE digest = x'{hashlib.sha256(b'hello c1').hexdigest()}'"


@pytest.fixture(params=[1, 4, 100], autouse=True)
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_checks, "MESSAGES_AT_ONCE", request.param)


def tampered(world: World, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(world.data / "trace.db", isolation_level=None)) as conn:
        conn.execute(statement, values)


def shown(world: World, call_id: str) -> list[tuple[str | None, str]]:
    conn = trace.open_trace(world.data)
    assert conn is not None
    with closing(conn):
        return [(kept.text, kept.why) for kept in trace.messages(conn, call_id)]


def test_bodies_are_counted_each_once(traced: World) -> None:
    found = looked_at(traced)
    assert (found.problems, found.trace, found.bodies) == ([], 6, 3)


def test_what_has_no_body_is_not_looked_for(traced: World) -> None:
    store = TraceStore.open(traced.data, b"k" * 32, lambda: 0)
    store.keep([message("pruned", Side.REQUEST)])
    store.close()
    tampered(traced, "DELETE FROM message WHERE seq > 6")
    tampered(traced, "DELETE FROM body WHERE digest NOT IN (SELECT digest FROM message)")
    found = looked_at(traced)
    assert (found.problems, found.bodies) == ([], 3)


@pytest.mark.parametrize(
    "packed",
    [
        FORGED,
        b"\x00",
        b"",
        zstandard.ZstdCompressor().compress(b"hello c1")[:-2],
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(10_000_000)),
    ],
    ids=["forged", "broken", "empty", "cut off", "a bomb"],
)
def test_a_body_that_was_changed_is_told_and_not_shown(
    traced: World, packed: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "UNPACKED_BYTES_MAX", 1_000_000)
    assert shown(traced, "c1") == [("hello c1", "")] * 2
    tampered(traced, f"UPDATE body SET zstd = ? {OF_C1}", packed)
    found = looked_at(traced)
    (problem,) = found.problems
    assert problem.what == "the body of message 3 of the trace is not what was kept"
    assert (problem.call_id, found.bodies, found.trace) == ("c1", 2, 6)
    assert shown(traced, "c1") == [(None, "damaged")] * 2
    assert shown(traced, "c0") == [("hello c0", "")] * 2


def test_a_body_that_is_gone_while_its_message_stands_is_told(traced: World) -> None:
    tampered(traced, f"DELETE FROM body {OF_C1}")
    told = [problem.what for problem in looked_at(traced).problems]
    assert told == ["the body of message 3 of the trace is gone"]


def test_a_row_before_the_first_does_not_vouch_for_a_body(traced: World) -> None:
    tampered(traced, f"UPDATE body SET zstd = ? {OF_C1}", FORGED)
    with closing(sqlite3.connect(traced.data / "trace.db", isolation_level=None)) as conn:
        copied(conn, "message", "seq = 3", seq="-3")
    told = [problem.what for problem in looked_at(traced).problems]
    assert "the body of message 3 of the trace is not what was kept" in told


def test_a_long_list_is_cut(traced: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_checks, "FOUND_MAX", 2)
    tampered(traced, "UPDATE body SET zstd = x'00'")
    told = [problem.what for problem in looked_at(traced).problems]
    assert len(told) == 3
    assert told[-1] == "and the bodies of further messages of the trace"


@pytest.mark.parametrize("size", [0, 1, 70_000, 3_000_000])
def test_a_text_of_any_length_is_itself(size: int) -> None:
    text = ("ä" * size).encode()
    packed = zstandard.ZstdCompressor(level=3).compress(text)
    assert unpacked(packed, hashlib.sha256(text).digest()) == text.decode()
    assert unpacked(packed, hashlib.sha256(b"other").digest()) is None
    assert not is_whole(packed.hex(), hashlib.sha256(text).digest())
