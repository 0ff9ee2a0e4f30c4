"""The trace as a file: what is kept, found, chained and pruned, in a real one."""

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ledger import trace, trace_pruning
from ledger.chain import GENESIS, Head, link
from ledger.errors import Kind, LedgerError, LedgerUnavailable
from ledger.sqlite import sqlite3
from ledger.trace import Pruned, TraceStore
from ledger.trace_schema import DATABASE
from ledger.traced import Caught, Kept, Side
from tests.ledger.test_redaction import KEY, caught


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TraceStore]:
    opened = TraceStore.open(tmp_path, KEY, lambda: 0)
    yield opened
    opened.close()


@pytest.fixture
def reader(store: TraceStore, tmp_path: Path) -> Iterator[sqlite3.Connection]:
    conn = trace.open_trace(tmp_path)
    assert conn is not None
    yield conn
    conn.close()


def said(text: str, call_id: str = "call", **changes: Any) -> Caught:
    return caught(text.encode(), "text/plain", call_id=call_id, **changes)


def test_a_call_is_kept_as_it_went(store: TraceStore, reader: sqlite3.Connection) -> None:
    asked = caught(b'{"password": "hunter2", "n": 1}', body_bytes=31)
    answer = caught(
        b"created", "text/plain", side=Side.RESPONSE, start="201", at_us=2, body_bytes=700
    )
    store.keep([asked, said("another", "other")])
    store.keep([answer])
    request, response = trace.messages(reader, "call")
    assert request.text is not None
    assert request == Kept(
        seq=1, call_id="call", side=Side.REQUEST, at_us=1, start="POST https://api.example/v1",
        headers=(("Content-Type", "application/json"),), media_type="application/json",
        body_bytes=31, is_cut=False, text=request.text,
        digest=hashlib.sha256(request.text.encode()).hexdigest(),
    )  # fmt: skip
    assert "hunter2" not in request.text
    assert (response.seq, response.side, response.start) == (3, Side.RESPONSE, "201")
    assert (response.text, response.is_cut, response.body_bytes) == ("", True, 700)
    assert trace.messages(reader, "nobody") == []


def test_equal_bodies_are_kept_once(store: TraceStore, reader: sqlite3.Connection) -> None:
    store.keep([said("the same", f"call-{n}") for n in range(5)])
    size = trace.size(reader)
    assert (size.messages, size.bodies) == (5, 1)
    assert [trace.messages(reader, f"call-{n}")[0].text for n in range(5)] == ["the same"] * 5


def test_a_digest_that_is_kept_alone_cannot_be_guessed(
    store: TraceStore, reader: sqlite3.Connection
) -> None:
    store.keep([said("4711", level="digest"), caught(b"\x00", "image/png")])
    first, second = trace.messages(reader, "call")
    assert (first.text, first.why, second.why) == (None, "digest", "binary")
    assert first.digest != hashlib.sha256(b"4711").hexdigest()
    assert len(first.digest) == 64


def test_only_the_owner_reads_the_file(store: TraceStore, tmp_path: Path) -> None:
    store.keep([said("x")])
    for path in tmp_path.glob("trace.db*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_all_of_a_batch_is_kept_or_none(
    store: TraceStore, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    other = sqlite3.connect(tmp_path / DATABASE, isolation_level=None)
    other.execute("CREATE TRIGGER t BEFORE INSERT ON message WHEN new.call_id = 'bad' "
                  "BEGIN SELECT raise(ABORT, 'no'); END")  # fmt: skip
    with pytest.raises(LedgerUnavailable):
        store.keep([said("x", "good"), said("y", "bad")])
    assert trace.size(reader).messages == 0
    other.execute("DROP TRIGGER t")
    other.close()
    store.keep([said("x", "good")])
    assert trace.size(reader).messages == 1


def test_nothing_is_kept_of_nothing(store: TraceStore, reader: sqlite3.Connection) -> None:
    store.keep([])
    assert trace.size(reader).messages == 0


# The chain


def test_each_message_is_chained_to_the_one_before(
    store: TraceStore, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    assert trace.head(tmp_path) == Head(0, GENESIS)
    store.keep([said("a"), said("b", release="r1"), caught(b"\x00", "image/png")])
    store.keep([said("a")])
    previous = GENESIS
    for seq, (columns, told) in enumerate(trace.links(reader), 1):
        previous = link(previous, columns)
        assert (columns["seq"], told) == (seq, previous)
    assert trace.head(tmp_path) == Head(4, previous)
    assert [columns["seq"] for columns, _ in trace.links(reader, after_seq=2)] == [3, 4]


def test_pruning_changes_no_link_of_what_is_left(
    store: TraceStore, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    assert trace_pruning.beginning(reader) == Head(0, GENESIS)
    store.keep([said("a", at_us=1), said("b", at_us=2), said("a", at_us=200)])
    before, rows = trace.head(tmp_path), list(trace.links(reader))
    store.retain(before_us=100, bytes_max=None)
    assert trace_pruning.beginning(reader) == Head(2, rows[1][1])
    assert (trace.head(tmp_path), list(trace.links(reader))) == (before, rows[2:])
    store.retain(before_us=300, bytes_max=None)
    assert (trace.head(tmp_path), list(trace.links(reader))) == (before, [])
    assert trace_pruning.beginning(reader) == before
    store.keep([said("c", at_us=400)])
    ((columns, told),) = trace.links(reader)
    assert (columns["seq"], told) == (4, link(before.hash, columns))


def test_the_chain_goes_on_after_a_restart(store: TraceStore, tmp_path: Path) -> None:
    store.keep([said("a")])
    again = TraceStore.open(tmp_path, KEY, lambda: 0)
    again.keep([said("b")])
    store.keep([said("c")])  # and the first one reads on where the other one ended
    again.close()
    reader = trace.open_trace(tmp_path)
    assert reader is not None
    previous = GENESIS
    for columns, told in trace.links(reader):
        previous = link(previous, columns)
        assert told == previous
    reader.close()
    assert trace.head(tmp_path).seq == 3


# Retention


def test_messages_go_by_their_age(store: TraceStore, reader: sqlite3.Connection) -> None:
    store.keep([said("old word", "a", at_us=10), said("both", "b", at_us=20)])
    store.keep([said("both", "c", at_us=200), said("new", "d", at_us=210)])
    assert trace.until_us(reader) is None
    pruned = store.retain(before_us=100, bytes_max=None)
    assert (pruned.messages, pruned.bodies) == (2, 1)
    assert pruned.kept_bytes > 0
    assert (trace.messages(reader, "a"), trace.messages(reader, "b")) == ([], [])
    (shared,) = trace.messages(reader, "c")
    assert (shared.text, shared.why) == ("both", "")
    assert trace.search(reader, "word", 10) == []
    assert trace.search(reader, "both", 10) == ["c"]
    assert trace.until_us(reader) == 20
    assert store.retain(before_us=100, bytes_max=None) == Pruned()


def test_what_is_left_has_no_hole(store: TraceStore, reader: sqlite3.Connection) -> None:
    """An upload is caught when it is over, with the time at which it came."""
    store.keep([said("a", "a", at_us=90), said("b", "b", at_us=200), said("up", "u", at_us=50)])
    assert store.retain(before_us=100, bytes_max=None).messages == 1
    assert [columns["call_id"] for columns, _ in trace.links(reader)] == ["b", "u"]


def test_the_oldest_messages_go_until_the_file_is_small_enough(
    store: TraceStore, reader: sqlite3.Connection
) -> None:
    for n in range(250):
        store.keep([said(os.urandom(1_000).hex(" "), f"call-{n}", at_us=n)])
    bytes_max = trace.size(reader).file_bytes // 2
    pruned = store.retain(before_us=None, bytes_max=bytes_max)
    left = trace.size(reader)
    assert left.file_bytes <= bytes_max
    assert left.bodies >= 60, "not many more than it needs"
    assert (left.bodies, left.messages) == (250 - pruned.bodies, 250 - pruned.messages)
    kept = [bool(trace.messages(reader, f"call-{n}")) for n in range(250)]
    assert kept == [False] * pruned.messages + [True] * left.messages


def test_heads_are_bounded_too_and_new_bodies_are_kept(
    store: TraceStore, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    """Many small messages, of which the heads alone take more than what is allowed."""
    bytes_max, headers = 1024**2, tuple((f"x-{n}", "v" * 40) for n in range(20))
    for part in range(10):
        calls = [f"call-{part}-{n}" for n in range(200)]
        store.keep([said(f"word{call}", call, headers=headers, at_us=part) for call in calls])
        store.retain(before_us=None, bytes_max=bytes_max)
        size = trace.size(reader)
        assert size.file_bytes <= bytes_max
        (newest,) = trace.messages(reader, calls[-1])
        assert newest.text == f"word{calls[-1]}"
        assert size.messages >= 200, "it keeps what there is room for"
        assert trace.search(reader, f'"word{calls[-1]}"', 5) == [calls[-1]]
    assert (tmp_path / DATABASE).stat().st_size <= 4 * bytes_max
    assert trace.head(tmp_path).seq == 2_000


def test_others_write_between_its_steps(
    store: TraceStore, reader: sqlite3.Connection, tmp_path: Path
) -> None:
    store.keep([said(f"text {n}", f"call-{n}", at_us=1) for n in range(450)])
    other = TraceStore.open(tmp_path, KEY, lambda: 0)
    steps = 0
    for _ in store.retaining(before_us=100, bytes_max=None):
        steps += 1
        other.keep([said("meanwhile", f"new-{steps}", at_us=200)])
    other.close()
    assert steps >= 3
    assert trace.size(reader).messages == steps


def test_a_body_that_was_pruned_is_kept_when_it_comes_again(
    store: TraceStore, reader: sqlite3.Connection
) -> None:
    store.keep([said("again", "a")])
    store.retain(before_us=100, bytes_max=None)
    store.keep([said("again", "b", at_us=200)])
    (new,) = trace.messages(reader, "b")
    assert new.text == "again"
    assert trace.search(reader, "again", 10) == ["b"]


def test_what_was_pruned_leaves_the_disk(store: TraceStore, tmp_path: Path) -> None:
    for n in range(20):
        store.keep([said(os.urandom(40_000).hex(" "), f"call-{n}", at_us=n)])
    connection = sqlite3.connect(tmp_path / DATABASE)
    (before,) = connection.execute("PRAGMA page_count").fetchone()
    store.retain(before_us=100, bytes_max=None)
    (after,) = connection.execute("PRAGMA page_count").fetchone()
    connection.close()
    assert after < before / 2


# Search


def test_words_are_found_newest_call_first(store: TraceStore, reader: sqlite3.Connection) -> None:
    store.keep([said("the red fox", "a"), said("the red hen", "b"), said("a fox", "c")])
    store.keep([said("red fox", "a", side=Side.RESPONSE)])
    found = {
        "fox": ["a", "c"],
        "RED Fox": ["a"],
        '"red hen"': ["b"],
        '"hen red"': [],
        "he*": ["b"],
        "fox OR": [],
        "zebra": [],
        'fox" NEAR(': [],
        "-fox": ["a", "c"],
    }
    assert {text: trace.search(reader, text, 10) for text in found} == found


@pytest.mark.parametrize(
    "media_type, body",
    [
        ("application/json", b'{"a": "first\\nfox", "b": "caf\\u00e9"}'),
        ("application/json", b'{"a": "{\\"b\\": \\"x\\\\nfox caf\\\\u00e9\\"}"}'),
        ("application/x-www-form-urlencoded", b"a=red+fox&b=caf%C3%A9"),
        ("text/plain", "fox caf\u00e9".encode()),
    ],
)
def test_words_are_found_behind_escapes(
    store: TraceStore, reader: sqlite3.Connection, media_type: str, body: bytes
) -> None:
    store.keep([caught(body, media_type)])
    assert trace.search(reader, "fox cafe", 5) == ["call"]


@pytest.mark.parametrize("text", ["", "  ", '"', "*", "- !"])
def test_a_search_without_words_is_told(reader: sqlite3.Connection, text: str) -> None:
    with pytest.raises(LedgerError, match="one word"):
        trace.search(reader, text, 10)


def test_pages_follow_each_other(store: TraceStore, reader: sqlite3.Connection) -> None:
    for n in range(40):
        store.keep([said("fox", f"call-{n:02}"), said("fox", f"call-{n:02}", side=Side.RESPONSE)])
    store.keep([said("fox", "call-03", side=Side.DOWN)])
    every = ["call-03", *(f"call-{n:02}" for n in reversed(range(40)) if n != 3)]
    found: list[str] = []
    while page := trace.search(reader, "fox", 7, found[-1] if found else None):
        found += page
    assert found == every
    with pytest.raises(LedgerError, match="no page ends"):
        trace.search(reader, "fox", 7, "nobody")


# Files that are none


def test_there_is_nothing_to_read_before_anything_was_kept(tmp_path: Path) -> None:
    assert trace.open_trace(tmp_path) is None
    assert trace.head(tmp_path) == Head(0, GENESIS)
    (tmp_path / DATABASE).touch()
    assert trace.open_trace(tmp_path) is None


def test_another_programs_file_is_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / DATABASE) as conn:
        conn.execute("CREATE TABLE theirs (a)")
    conn.close()
    with pytest.raises(LedgerError, match="another program"):
        TraceStore.open(tmp_path, KEY, lambda: 0)
    with pytest.raises(LedgerError, match="another program"):
        trace.open_trace(tmp_path)


def test_a_newer_file_is_left_alone(store: TraceStore, tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / DATABASE) as conn:
        conn.execute("PRAGMA user_version=99")
    conn.close()
    with pytest.raises(LedgerError, match="newer pullcord"):
        trace.open_trace(tmp_path)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"no database" * 1000)
    for opening in (
        lambda: TraceStore.open(tmp_path, KEY, lambda: 0),
        lambda: trace.head(tmp_path),
    ):
        with pytest.raises(LedgerUnavailable) as told:
            opening()
        assert told.value.kind is Kind.CORRUPT
        assert str(told.value).startswith("the trace is damaged; move it away: a new one is begun")
        assert "ledger" not in str(told.value).replace(str(tmp_path), "")


def test_the_last_room_of_the_disk_is_the_ledgers(
    tmp_path: Path, reader: sqlite3.Connection
) -> None:
    disk = os.statvfs(tmp_path)
    left = {"blocks": 10_000_000, "free": 0}

    def told(_: Path) -> os.statvfs_result:
        sizes = (4096, 4096, left["blocks"], left["free"], left["free"])
        return os.statvfs_result((*sizes, *tuple(disk)[5:]))

    store = TraceStore.open(tmp_path, KEY, lambda: 0, disk=told)
    for blocks, enough in ((10_000_000, 131_072), (10_000, 500)):  # 512 MiB; of a small one 5 %
        left.update(blocks=blocks, free=enough - 1)
        with pytest.raises(LedgerUnavailable, match="the disk of the trace is full") as refused:
            store.keep([said("x")])
        assert refused.value.kind is Kind.FULL
        left["free"] = enough
        store.keep([said("x")])
    store.close()
    assert trace.size(reader).messages == 2


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(LedgerUnavailable):
        TraceStore.open(tmp_path / "missing", KEY, lambda: 0)


def test_a_sqlite_without_full_text_search_traces_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.trace_schema._make_index", lambda conn: None)
    store = TraceStore.open(tmp_path, KEY, lambda: 0)
    store.keep([said("fox")])
    assert store.retain(before_us=100, bytes_max=None).bodies == 1
    reader = trace.open_trace(tmp_path)
    assert reader is not None
    with pytest.raises(LedgerError, match="FTS5"):
        trace.search(reader, "fox", 10)
    reader.close()
    store.close()


def test_an_older_sqlite_forgets_what_was_pruned_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ledger.trace_schema.sqlite3.sqlite_version", "3.42.0")
    store = TraceStore.open(tmp_path, KEY, lambda: 0)
    store.keep([said("fox", "a", at_us=1), said("fox hen", "b", at_us=200)])
    store.retain(before_us=100, bytes_max=None)
    reader = trace.open_trace(tmp_path)
    assert reader is not None
    assert trace.search(reader, "fox", 10) == ["b"]
    reader.close()
    store.close()
