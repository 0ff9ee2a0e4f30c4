"""The hash chain over the record: each row's hash covers its columns and the hash before it.

A row's hash is the SHA-256 of the hash before it and of the row's columns as one JSON object:
sorted names, no spaces, UTF-8, bytes in hex, without the columns that are empty and without the
hash itself; the policy by its digest. So a column that a later schema adds changes no old hash.
What no chain can show, that its end was cut off, the seals show (seals.py).
"""

import hashlib
from bisect import bisect_left
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from ledger.pieces import Progress, piece, untold
from ledger.sqlite import sqlite3

GENESIS = bytes(32)
"""What stands before the first row."""

ROWS_IN_A_PIECE = 20_000  # some 20 MB of the write-ahead log, some tenths of a second

Value = str | int | bytes | None


class Head(NamedTuple):
    """The newest row of the record: its number and its hash."""

    seq: int = 0
    hash: bytes = GENESIS


def link(previous: bytes, columns: Mapping[str, Value]) -> bytes:
    """The hash of a row that stands after the one whose hash is `previous`."""
    told = orjson.dumps(
        {name: value for name, value in columns.items() if value is not None},
        default=_hex,
        option=orjson.OPT_SORT_KEYS,
    )
    return hashlib.sha256(previous + told).digest()


def _hex(value: Any) -> str:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(type(value).__name__)


def head(conn: sqlite3.Connection) -> Head:
    """Where the record ends. The number goes on also where the newest rows are gone."""
    row = conn.execute("SELECT seq, hash FROM event ORDER BY seq DESC LIMIT 1").fetchone()
    last = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchone()
    seq = 0 if last is None else int(last[0])
    return Head(seq) if row is None else Head(max(seq, int(row[0])), row[1] or GENESIS)


def hash_all(conn: sqlite3.Connection, progress: Progress = untold) -> None:
    """Chain the rows of a ledger that was made before there was a chain, in pieces that last.

    The first row without a hash is where it goes on. Some fifteen seconds for a million rows.
    """
    digests: dict[Value, Value] = dict(conn.execute("SELECT id, digest FROM policy").fetchall())
    at, last = _chained_to(conn)
    while True:
        progress(at.seq, last, "rows")
        cursor = conn.execute(
            "SELECT * FROM event WHERE seq > ? ORDER BY seq LIMIT ?", (at.seq, ROWS_IN_A_PIECE)
        )
        names = [column[0] for column in cursor.description]
        hashed = []
        for row in cursor:
            columns = dict(zip(names, row, strict=True))
            columns["policy"] = digests.get(columns["policy"])
            del columns["hash"]
            at = Head(columns["seq"], link(at.hash, columns))
            hashed.append((at.hash, at.seq))
        if not hashed:
            return
        with piece(conn):
            conn.executemany("UPDATE event SET hash = ? WHERE seq = ?", hashed)


def _chained_to(conn: sqlite3.Connection) -> tuple[Head, int]:
    """The last row of those that are chained already, and the number of the newest row.

    All with a hash stand before all without: so few looks are enough.
    """
    (last,) = conn.execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()

    def is_bare(seq: int) -> int:
        looked = "SELECT hash IS NULL FROM event WHERE seq >= ? ORDER BY seq LIMIT 1"
        return int(conn.execute(looked, (seq,)).fetchone()[0])

    bare = bisect_left(range(last + 1), 1, key=is_bare) if last else 0
    row = conn.execute(
        "SELECT seq, hash FROM event WHERE seq < ? ORDER BY seq DESC LIMIT 1", (bare,)
    ).fetchone()
    return (Head() if row is None else Head(*row)), last


class Stored(NamedTuple):
    """A row as it stands in the record: `columns` is what its hash covers, if it is untouched."""

    seq: int
    hash: bytes | None
    columns: dict[str, Value]


def stored(conn: sqlite3.Connection, after_seq: int, to_seq: int, limit: int) -> list[Stored]:
    """The rows behind a number, up to another one, in order."""
    cursor = conn.execute(
        "SELECT e.*, p.digest AS policy_digest FROM event e LEFT JOIN policy p ON p.id = e.policy "
        "WHERE e.seq > ? AND e.seq <= ? ORDER BY e.seq LIMIT ?",
        (after_seq, to_seq, limit),
    )
    names = [column[0] for column in cursor.description]
    rows = [dict(zip(names, row, strict=True)) for row in cursor]
    return [Stored(row["seq"], row["hash"], chained(row)) for row in rows]


def chained(columns: Mapping[str, Value]) -> dict[str, Value]:
    """What is hashed of a stored row that was read with `policy_digest` beside its columns."""
    told = dict(columns)
    told.pop("hash", None)
    told["policy"] = told.pop("policy_digest")
    return told
