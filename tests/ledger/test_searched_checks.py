"""A text of the trace that `text:` no longer finds is told: nobody would miss the call."""

from contextlib import closing
from dataclasses import replace

import pytest

from ledger.sqlite import sqlite3
from ledger.trace import TraceStore
from ledger.traced import Side
from tests.ledger.test_trace_checks import looked_at, message, traced
from tests.ledger.trusted import trusted
from tests.ledger.world import START_US, World

__all__ = ["traced"]

TOLD = (
    "{} of the trace, from message {} on, cannot be found by text: any more, only by other fields; "
    "nothing builds its index anew"
)


@pytest.fixture(params=["3.42.0", "3.43.0"])
def kept(request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """Texts beside what has none, in an index of either form."""
    monkeypatch.setattr("ledger.trace_schema.sqlite3.sqlite_version", request.param)
    trusted(world)
    with closing(TraceStore.open(world.data, b"k" * 32, lambda: world.now_us)) as store:
        store.keep(
            [
                replace(message("early", Side.REQUEST), at_us=START_US - 1),
                replace(message("empty", Side.REQUEST), body=b"", body_bytes=0),
                replace(message("short", Side.REQUEST), level="digest"),
                replace(message("binary", Side.REQUEST), headers=(), body=b"\xff\x00\x80"),
                message("c1", Side.REQUEST),
                replace(message("signs", Side.REQUEST), body=b"...", body_bytes=3),
                message("c1", Side.RESPONSE),
            ]
        )
    return world


def tampered(world: World, statement: str) -> list[tuple[str, str | None]]:
    with closing(sqlite3.connect(world.data / "trace.db", isolation_level=None)) as conn:
        conn.execute(statement)
    return [(problem.what, problem.call_id) for problem in looked_at(world).problems]


def test_what_has_no_text_needs_no_place(kept: World) -> None:
    assert looked_at(kept).problems == []
    with closing(TraceStore.open(kept.data, b"k" * 32, lambda: kept.now_us)) as store:
        assert store.retain(START_US, None).messages == 1
        assert looked_at(kept).problems == []
        store.keep([message("new", Side.REQUEST)])
    assert looked_at(kept).problems == []


@pytest.mark.parametrize(
    "statement, amount, seq, call",
    [
        ("DELETE FROM searched", "4 messages", 1, "early"),
        ("DELETE FROM searched WHERE rowid = 7", "1 message", 7, "c1"),
        ("DELETE FROM searched WHERE rowid > 5", "2 messages", 6, "signs"),
    ],
)
def test_texts_that_were_taken_out_of_the_index_are_told(
    kept: World, statement: str, amount: str, seq: int, call: str
) -> None:
    assert tampered(kept, statement) == [(TOLD.format(amount, seq), call)]


def test_an_index_that_was_emptied_as_a_whole_is_told(traced: World) -> None:
    emptied = "INSERT INTO searched (searched) VALUES ('delete-all')"
    assert tampered(traced, emptied) == [(TOLD.format("6 messages", 1), "c0")]


def test_a_trace_without_an_index_has_none_to_miss(traced: World) -> None:
    assert tampered(traced, "DROP TABLE searched") == []
