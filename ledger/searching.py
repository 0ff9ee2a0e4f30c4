"""Full-text search over the trace: what was asked and answered, as it is kept, so without secrets.

Words are found whatever their case and accents, `"..."` finds words in a row, `word*` a beginning.
"""

import hashlib
import re
from urllib.parse import unquote_plus

from ledger.errors import LedgerError
from ledger.sqlite import sqlite3
from ledger.trace_schema import can_search
from policies.content import FORM

INDEXED_CHARS_MAX = 65_536  # of one text; its beginning is found, the rest can be read
WORDS_MAX = 32
MERGED_PAGES = 500  # of the index, rewritten at once

# Of JSON, also of JSON in a text of JSON, where there are more backslashes.
_ESCAPE = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|[bfnrt])?")
_TERM = re.compile(r'"([^"]*)"?|(\S+)')


def add(conn: sqlite3.Connection, seq: int, text: str, media_type: str) -> None:
    """Make a message's text findable."""
    words = _words(text[:INDEXED_CHARS_MAX], media_type)
    conn.execute("INSERT INTO searched (rowid, text) VALUES (?, ?)", (seq, words))


def _words(text: str, media_type: str) -> str:
    """The text without escapes, which would stick to the words behind them."""
    if media_type == FORM:
        text = unquote_plus(text)
    if "\\" in text:
        text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else " ", text)
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def drop(conn: sqlite3.Connection, seq: int) -> None:
    """A message's text is found no more."""
    conn.execute("DELETE FROM searched WHERE rowid = ?", (seq,))


def shrink(conn: sqlite3.Connection) -> None:
    """Give the room of dropped texts back, some pages at a time."""
    conn.execute("INSERT INTO searched (searched, rank) VALUES ('merge', ?)", (MERGED_PAGES,))


def unfindable(conn: sqlite3.Connection) -> tuple[int, int, str] | None:
    """How many messages with a text have no place in the index, and the number and the call of the
    first; None where all have one, or there is no index. A message and its place are written in one
    transaction, and go in one. Half a second for a million; what words stand there is not told."""
    if not can_search(conn):
        return None
    count, seq, call_id = conn.execute(_UNFINDABLE, (_NO_TEXT,)).fetchone()
    return (int(count), int(seq), str(call_id)) if count else None


# FTS5 has a row there for each text that it holds, in both forms of the index.
_UNFINDABLE = """
SELECT count(*), min(m.seq), m.call_id FROM message m
WHERE m.seq >= 1 AND m.why IS NULL AND m.digest <> ?
AND NOT EXISTS (SELECT 1 FROM searched_docsize s WHERE s.id = m.seq)
"""
_NO_TEXT = hashlib.sha256(b"").digest()


def search(conn: sqlite3.Connection, text: str, limit: int, after: str | None = None) -> list[str]:
    """Ids of calls that said or were answered all these words in one message, the newest first.

    `after` is the last one of the page before. Raises LedgerError for a text without words, for a
    call that is not found by it, and where this SQLite has no full-text search.
    """
    if not can_search(conn):
        raise LedgerError("the trace has no index: this SQLite was built without FTS5")
    wanted = _query(text)
    start = _NEWEST if after is None else _found_at(conn, wanted, after)
    found: dict[str, None] = {}
    below = start
    while len(found) < limit:
        rows = _page(conn, wanted, below, 2 * limit)
        for seq, call_id in rows:
            below = seq
            # A call whose newer message was on a page before was told there.
            if call_id not in found and (
                after is None or not _was_told(conn, wanted, call_id, start)
            ):
                found[call_id] = None
            if len(found) == limit:
                break
        if len(rows) < 2 * limit:
            break
    return list(found)


_NEWEST = 1 << 62


def _found_at(conn: sqlite3.Connection, wanted: str, call_id: str) -> int:
    """The newest message of a call that is found."""
    (seq,) = conn.execute(
        f"SELECT max(m.seq) FROM message m WHERE m.call_id = ? AND {_MATCHES}",  # noqa: S608 - ours
        (call_id, wanted),
    ).fetchone()
    if seq is None:
        raise LedgerError(f"no page ends with {call_id}: it holds no such words")
    return int(seq)


def _was_told(conn: sqlite3.Connection, wanted: str, call_id: str, start: int) -> bool:
    row = conn.execute(
        f"SELECT 1 FROM message m WHERE m.call_id = ? AND m.seq >= ? AND {_MATCHES} LIMIT 1",  # noqa: S608
        (call_id, start, wanted),
    ).fetchone()
    return row is not None


_MATCHES = "EXISTS (SELECT 1 FROM searched s WHERE s.rowid = m.seq AND s.searched MATCH ?)"


def _page(conn: sqlite3.Connection, wanted: str, below: int, limit: int) -> list[tuple[int, str]]:
    return conn.execute(
        "SELECT m.seq, m.call_id FROM (SELECT rowid AS seq FROM searched "
        "WHERE searched MATCH ? AND rowid < ? ORDER BY rowid DESC LIMIT ?) f "
        "JOIN message m ON m.seq = f.seq ORDER BY m.seq DESC",
        (wanted, below, limit),
    ).fetchall()


def _query(text: str) -> str:
    """Each word quoted, so that nothing a person types is an operator. All must be found."""
    terms = []
    for phrase, word in _TERM.findall(text)[:WORDS_MAX]:
        star = "*" if word.endswith("*") else ""
        plain = (phrase or word.rstrip("*")).replace('"', '""')
        if re.search(r"\w", plain):
            terms.append(f'"{plain}"{star}')
    if not terms:
        raise LedgerError("search for one word or more")
    return " AND ".join(terms)
