"""Rows that were taken out of the record (incident_export.py), put into a ledger in memory, where
replaying.py reads them as it reads the record. What is made of them is not known here.
"""

import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson

from ledger.errors import LedgerError
from ledger.replaying import COLUMNS, Row
from ledger.sqlite import sqlite3
from ledger.states import EventType

Line = Mapping[str, Any]
"""A row as JSON can hold it: only what is not empty, bytes as hexadecimal digits."""

_INTEGERS = frozenset({"seq", "at_us", "status", "input_tokens", "output_tokens", "cost_microusd"})
_DIGESTS = frozenset({"request_digest", "response_digest"})
_AMOUNTS = frozenset({"used_tokens", "used_microusd", "tokens", "spend_microusd", "bytes_up"})
_NUMBER_END = 2**53  # microseconds until the year 2255; no row holds more of anything
_NEEDED = frozenset({"seq", "type", "at_us"})


def row_of(line: Line) -> Row:
    """A line as a row of COLUMNS. Raises ValueError, which says what is wrong with it."""
    unknown = sorted(line.keys() - set(COLUMNS))
    if unknown:
        raise ValueError(f"no row has {unknown[0]!r}")
    missing = sorted(_NEEDED - line.keys())
    if missing:
        raise ValueError(f"it has no {missing[0]!r}")
    row = tuple(_value(column, line.get(column)) for column in COLUMNS)
    _check_seen(line.get("seen"))
    return row


def _value(column: str, value: object) -> str | int | bytes | None:
    wanted = int if column in _INTEGERS else str
    if value is None:
        return None
    if type(value) is not wanted or (isinstance(value, int) and not 0 <= value < _NUMBER_END):
        raise ValueError(f"{column!r} is no {'number' if wanted is int else 'text'} of a record")
    if column not in _DIGESTS or not isinstance(value, str):
        return value
    try:
        return bytes.fromhex(value)
    except ValueError:
        raise ValueError(f"{column!r} is no hexadecimal number") from None


def _check_seen(text: str | None) -> None:
    try:
        told = orjson.loads(text or b"{}")
    except ValueError:
        raise ValueError("'seen' is no JSON") from None
    if not isinstance(told, dict):
        raise ValueError("'seen' is no JSON object")
    for name in _AMOUNTS & told.keys():
        amount = told[name]
        if amount is not None and (type(amount) is not int or not 0 <= amount < _NUMBER_END):
            raise ValueError(f"{name!r} in 'seen' is no number of a record")


@contextmanager
def opened(found: Iterable[Row], policies: Iterable[str]) -> Iterator[sqlite3.Connection]:
    """A ledger in memory that has these rows, of which none has the number of another; `policies`
    are the digests that they may name."""
    conn = sqlite3.connect(":memory:", isolation_level=None)
    try:
        known = {digest: number for number, digest in enumerate(sorted(policies), 1)}
        for statement in _TABLES:
            conn.execute(statement)
        conn.executemany(
            "INSERT INTO policy (id, digest) VALUES (?, ?)",
            [(number, digest) for digest, number in known.items()],
        )
        place = COLUMNS.index("policy")
        conn.executemany(
            f"INSERT INTO event ({', '.join(COLUMNS)}) "  # noqa: S608 - names of ours
            f"VALUES ({', '.join('?' * len(COLUMNS))})",
            ((*row[:place], known.get(row[place]), *row[place + 1 :]) for row in found),
        )
        yield conn
    except (sqlite3.Error, ArithmeticError, struct.error) as error:
        raise LedgerError(f"its rows cannot be judged ({type(error).__name__}: {error})") from error
    finally:
        conn.close()


_TABLES = (
    "CREATE TABLE policy (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE)",
    f"CREATE TABLE event (seq INTEGER PRIMARY KEY, "
    f"{', '.join(column for column in COLUMNS if column != 'seq')})",
    "CREATE INDEX event_act ON event (type, rule) WHERE actor IS NOT NULL",
)


def costs(found: Iterable[Row]) -> Counter[str]:
    """What each call has cost, in micro-dollars, by its id."""
    kind, call, cost, seen = map(COLUMNS.index, ("type", "call_id", "cost_microusd", "seen"))
    told = Counter[str]()
    for row in found:
        if row[kind] == EventType.OUTCOME:
            used = orjson.loads(row[seen] or b"{}").get("used_microusd", 0)
            told[row[call]] += row[cost] or used or 0
    return told
