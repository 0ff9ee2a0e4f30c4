"""The trace: what calls said and were answered, redacted, for people. One process writes it.

Redaction is in redaction.py, the file and its tables in trace_schema.py, what is given up of it in
trace_pruning.py. Nothing here is on the way of a call, and nothing here is the record: that is the
ledger's.
"""

import hashlib
import hmac
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import orjson
import zstandard

from ledger import searching, trace_pruning
from ledger.bodies import unpacked
from ledger.chain import GENESIS, Head, Value, link
from ledger.masking import Rules
from ledger.redaction import Redacted, redacted
from ledger.remembered import Remembered
from ledger.sqlite import sqlite3
from ledger.trace_pruning import Pruned, beginning, until_us, used_bytes
from ledger.trace_schema import (
    DATABASE,
    Disk,
    can_search,
    no_room,
    open_trace,
    open_writer,
    unusable,
)
from ledger.traced import Caught, Kept, Side
from policies.policy import Redaction

__all__ = [
    "Pruned", "Size", "TraceStore", "head", "links", "messages", "open_trace", "search", "size",
    "until_us",
]  # fmt: skip

search = searching.search

ZSTD_LEVEL = 3
POLICIES_MAX = 16  # of which the patterns stay compiled

PRUNED = "pruned"
DAMAGED = "damaged"  # it is not the text that was kept

_COLUMNS = (
    "seq", "call_id", "side", "at_us", "run", "tenant", "tool", "release", "start", "headers",
    "media_type", "body_bytes", "is_cut", "digest", "why",
)  # fmt: skip
_NAMES = ", ".join(_COLUMNS)
_INSERT = f"INSERT INTO message ({_NAMES}, hash) VALUES ({'?, ' * len(_COLUMNS)}?)"  # noqa: S608


@dataclass(frozen=True, slots=True)
class Size:
    """How much is kept: `kept_bytes` are the compressed bodies, `file_bytes` all that is used of
    the file."""

    messages: int = 0
    bodies: int = 0
    kept_bytes: int = 0
    file_bytes: int = 0


class TraceStore:
    """Made by `open`, for one thread. Raises TraceUnavailable when the file cannot be written."""

    def __init__(
        self,
        conn: sqlite3.Connection,
        path: Path,
        key: bytes,
        clock: Callable[[], int],
        disk: Disk = os.statvfs,
    ) -> None:
        self._conn = conn
        self._path = path
        self._disk = disk
        self._key = key
        self._clock = clock
        self._can_search = can_search(conn)
        self._zstd = zstandard.ZstdCompressor(level=ZSTD_LEVEL)
        self._rules: OrderedDict[Redaction, Rules] = OrderedDict()
        self._remembered = Remembered()

    @classmethod
    def open(
        cls, data: Path, key: bytes, clock: Callable[[], int], disk: Disk = os.statvfs
    ) -> Self:
        """`key` is `redact.redact_key` of the vault's key; `clock` tells UTC microseconds.

        Raises TraceUnavailable, and LedgerError where the file is another program's or newer.
        """
        return cls(open_writer(data), data / DATABASE, key, clock, disk)

    def close(self) -> None:
        try:
            self._conn.execute("PRAGMA optimize")
        except sqlite3.Error:
            pass  # it only refreshes statistics
        finally:
            self._conn.close()

    def keep(self, messages: Sequence[Caught]) -> None:
        """Redact and write these, in one transaction, all or none. Raises TraceUnavailable also
        where the disk has no more room than the ledger needs."""
        full = no_room(self._path.parent, self._disk)
        if full is not None:
            raise full
        ready = [(caught, self._redacted(caught)) for caught in messages]
        if not ready:
            return
        with _Transaction(self._conn, self._path):
            end = _head(self._conn)
            for caught, shown in ready:
                end = self._write(end, caught, shown)

    def retain(self, before_us: int | None, bytes_max: int | None) -> Pruned:
        """Drop the messages that were caught before `before_us`, then the oldest until the file
        needs at most `bytes_max`. The chain of those that are left goes on from the last of them.
        """
        return sum(self.retaining(before_us, bytes_max), Pruned())

    def retaining(self, before_us: int | None, bytes_max: int | None) -> Iterator[Pruned]:
        """The same in small steps, between which others may write; ends when nothing is left to
        be dropped."""
        gone = Pruned(messages=1)
        while gone.messages:
            with _Transaction(self._conn, self._path):
                gone = trace_pruning.prune(
                    self._conn, before_us, bytes_max, can_search=self._can_search
                )
            try:
                trace_pruning.give_back(self._conn)
                if not gone.messages:
                    self._conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            except sqlite3.Error as error:
                raise unusable(error, self._path) from error
            yield gone

    def _redacted(self, caught: Caught) -> Redacted:
        rules = self._rules.get(caught.redaction)
        if rules is None:
            rules = self._rules[caught.redaction] = Rules(self._key, caught.redaction)
            if len(self._rules) > POLICIES_MAX:
                self._rules.popitem(last=False)
        known = self._remembered.of(caught.run, caught.call_id)
        shown = redacted(caught, rules, known)
        if known:
            self._remembered.keep(caught.run, caught.call_id, known)
        return shown

    def _write(self, end: Head, caught: Caught, shown: Redacted) -> Head:
        digest = hmac.digest(self._key, caught.body, hashlib.sha256)
        if shown.text is not None:
            text = shown.text.encode()
            digest = hashlib.sha256(text).digest()
            self._keep_body(digest, text)
        seq = end.seq + 1
        columns: dict[str, Value] = {
            "seq": seq,
            "call_id": caught.call_id,
            "side": caught.side.value,
            "at_us": caught.at_us,
            "run": caught.run,
            "tenant": caught.tenant,
            "tool": caught.tool,
            "release": caught.release,
            "start": shown.start,
            "headers": orjson.dumps(shown.headers).decode(),
            "media_type": shown.media_type,
            "body_bytes": caught.body_bytes,
            "is_cut": int(shown.is_cut),
            "digest": digest,
            "why": shown.why or None,
        }
        told = link(end.hash, columns)
        self._conn.execute(_INSERT, (*columns.values(), told))
        if self._can_search and shown.text:
            searching.add(self._conn, seq, shown.text, shown.media_type)
        return Head(seq, told)

    def _keep_body(self, digest: bytes, text: bytes) -> None:
        if self._conn.execute("SELECT 1 FROM body WHERE digest = ?", (digest,)).fetchone():
            return
        packed = self._zstd.compress(text)
        self._conn.execute(
            "INSERT INTO body (digest, zstd, kept_bytes) VALUES (?, ?, ?)",
            (digest, packed, len(packed)),
        )


class _Transaction:
    """One that holds the write lock and is rolled back when anything fails in it."""

    def __init__(self, conn: sqlite3.Connection, path: Path) -> None:
        self._conn = conn
        self._path = path

    def __enter__(self) -> None:
        try:
            self._conn.execute("BEGIN IMMEDIATE")
        except sqlite3.Error as error:
            raise unusable(error, self._path) from error

    def __exit__(self, kind: object, error: BaseException | None, _trace: object) -> None:
        try:
            self._conn.execute("COMMIT" if error is None else "ROLLBACK")
        except sqlite3.Error as fault:
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
            raise unusable(fault, self._path) from (error or fault)
        if isinstance(error, sqlite3.Error):
            raise unusable(error, self._path) from error


def _head(conn: sqlite3.Connection) -> Head:
    row = conn.execute("SELECT seq, hash FROM message ORDER BY seq DESC LIMIT 1").fetchone()
    last = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'message'").fetchone()
    seq = 0 if last is None else int(last[0])
    end = beginning(conn) if row is None else Head(*row)
    return Head(max(seq, end.seq), end.hash)


def head(data: Path) -> Head:
    """Where the trace ends; the start of a chain where there is none. Raises TraceUnavailable."""
    conn = open_trace(data)
    if conn is None:
        return Head(0, GENESIS)
    try:
        return _head(conn)
    except sqlite3.Error as error:
        raise unusable(error, data / DATABASE) from error
    finally:
        conn.close()


def links(
    conn: sqlite3.Connection, after_seq: int = 0
) -> Iterator[tuple[Mapping[str, Value], bytes]]:
    """Each message's columns as chain.link hashes them, and the hash that stands beside them. The
    first one that is kept follows `trace_pruning.beginning`."""
    cursor = conn.execute(
        f"SELECT {_NAMES}, hash FROM message WHERE seq > ? ORDER BY seq",  # noqa: S608 - ours
        (after_seq,),
    )
    for *values, told in cursor:
        yield dict(zip(_COLUMNS, values, strict=True)), told


def messages(conn: sqlite3.Connection, call_id: str) -> list[Kept]:
    """What is kept of a call, in the order in which it was caught."""
    cursor = conn.execute(
        "SELECT m.seq, m.call_id, m.side, m.at_us, m.start, m.headers, m.media_type, "
        "m.body_bytes, m.is_cut, m.digest, m.why, b.zstd FROM message m "
        "LEFT JOIN body b ON b.digest = m.digest WHERE m.call_id = ? ORDER BY m.seq",
        (call_id,),
    )
    found = []
    for seq, call, side, at_us, start, headers, media, length, is_cut, digest, why, body in cursor:
        text = unpacked(body, digest) if body is not None and why is None else None
        found.append(
            Kept(
                seq=seq,
                call_id=call,
                side=Side(side),
                at_us=at_us,
                start=start,
                headers=tuple((name, value) for name, value in orjson.loads(headers)),
                media_type=media,
                body_bytes=length,
                is_cut=bool(is_cut),
                digest=digest.hex(),
                text=text,
                why=why or ("" if text is not None else PRUNED if body is None else DAMAGED),
            )
        )
    return found


def size(conn: sqlite3.Connection) -> Size:
    (rows,) = conn.execute("SELECT count(*) FROM message").fetchone()
    bodies, kept = conn.execute("SELECT count(*), total(kept_bytes) FROM body").fetchone()
    return Size(rows, bodies, int(kept), used_bytes(conn))
