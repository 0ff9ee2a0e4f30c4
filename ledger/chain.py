"""The hash chain over the record: each row's hash covers its columns and the hash before it.

A row's hash is the SHA-256 of the hash before it and of the row's columns as one JSON object:
sorted names, no spaces, UTF-8, bytes in hex, without the columns that are empty and without the
hash itself; the policy by its digest. So a column that a later schema adds changes no old hash.
What no chain can show, that its end was cut off, the seals show (seals.py).
"""

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from ledger.sqlite import sqlite3

GENESIS = bytes(32)
"""What stands before the first row."""

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


def hash_all(conn: sqlite3.Connection) -> None:
    """Chain the rows of a ledger that was made before there was a chain."""
    cursor = conn.execute(
        "SELECT e.*, p.digest AS policy_digest FROM event e "
        "LEFT JOIN policy p ON p.id = e.policy ORDER BY e.seq"
    )
    names = [column[0] for column in cursor.description]
    previous = GENESIS
    while rows := cursor.fetchmany(1000):
        hashed = []
        for row in rows:
            columns = dict(zip(names, row, strict=True))
            previous = link(previous, chained(columns))
            hashed.append((previous, columns["seq"]))
        conn.executemany("UPDATE event SET hash = ? WHERE seq = ?", hashed)


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
