"""What is given up of the trace: its oldest messages, whole, by their age or for room.

The chain goes on from the last that went: its number and its hash stay in the one row of `pruned`.
A message's body goes with the last message that has it. Statements only, in whose transaction and
how often is the caller's.
"""

from dataclasses import dataclass

from ledger import searching
from ledger.chain import Head
from ledger.sqlite import sqlite3

PRUNED_TOGETHER = 200  # messages in one transaction
PRUNED_BYTES = 4 * 1024 * 1024  # of bodies, the same
FREED_PAGES = 2_000  # given back to the disk behind it: more than it frees

# About what a message costs beside its body: its row, its places in the indexes, its words.
_COST = (
    "400 + length(start) + length(headers) "
    f"+ iif(why IS NULL, min(body_bytes, {searching.INDEXED_CHARS_MAX}), 0) / 2"
)
_OLDEST = f"SELECT seq, hash, at_us, digest, {_COST} FROM message ORDER BY seq LIMIT ?"  # noqa: S608
_TOLD = (
    "INSERT INTO pruned (id, seq, hash, until_us) VALUES (1, ?, ?, ?) ON CONFLICT (id) DO UPDATE "
    "SET seq = excluded.seq, hash = excluded.hash, until_us = max(until_us, excluded.until_us)"
)


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was taken out: messages, bodies, and how long these were as they were kept."""

    messages: int = 0
    bodies: int = 0
    kept_bytes: int = 0

    def __add__(self, other: "Pruned") -> "Pruned":
        return Pruned(
            self.messages + other.messages,
            self.bodies + other.bodies,
            self.kept_bytes + other.kept_bytes,
        )


def beginning(conn: sqlite3.Connection) -> Head:
    """What stands before the oldest message that is kept: the last one that was pruned, or the
    start of the chain."""
    row = conn.execute("SELECT seq, hash FROM pruned").fetchone()
    return Head() if row is None else Head(int(row[0]), bytes(row[1]))


def until_us(conn: sqlite3.Connection) -> int | None:
    """When the newest message that was pruned was caught; None where nothing was."""
    row = conn.execute("SELECT until_us FROM pruned").fetchone()
    return None if row is None else int(row[0])


def used_bytes(conn: sqlite3.Connection) -> int:
    """All that is used of the file."""
    (pages,) = conn.execute("PRAGMA page_count").fetchone()
    (free,) = conn.execute("PRAGMA freelist_count").fetchone()
    (page,) = conn.execute("PRAGMA page_size").fetchone()
    return int(pages - free) * int(page)


def prune(
    conn: sqlite3.Connection, before_us: int | None, bytes_max: int | None, *, can_search: bool
) -> Pruned:
    """Take out the next ones of those that are older than that time, or stand above those bytes.

    It ends at the first one that is young enough, so that what is left has no hole.
    """
    over = 0 if bytes_max is None else used_bytes(conn) - bytes_max
    gone, last, newest_us = Pruned(), None, 0
    for seq, told, at_us, digest, cost_bytes in conn.execute(
        _OLDEST, (PRUNED_TOGETHER,)
    ).fetchall():
        is_old = before_us is not None and at_us < before_us
        if gone.kept_bytes >= PRUNED_BYTES or (over <= 0 and not is_old):
            break
        lengths = _drop(conn, seq, digest, can_search=can_search)
        gone += Pruned(1, len(lengths), sum(lengths))
        over -= cost_bytes + sum(lengths)
        last, newest_us = (seq, told), max(newest_us, at_us)
    if last is not None:
        conn.execute(_TOLD, (*last, newest_us))
        if can_search:
            searching.shrink(conn)
    return gone


def give_back(conn: sqlite3.Connection) -> None:
    """Some of the room that is free, to the disk. Outside of a transaction."""
    conn.execute(f"PRAGMA incremental_vacuum({FREED_PAGES})").fetchall()


def _drop(conn: sqlite3.Connection, seq: int, digest: bytes, *, can_search: bool) -> list[int]:
    """A message, and its body where it was the last to have it: then how long that was."""
    if can_search:
        searching.drop(conn, seq)
    conn.execute("DELETE FROM message WHERE seq = ?", (seq,))
    return [
        int(length)
        for (length,) in conn.execute(
            "DELETE FROM body WHERE digest = ?1 "
            "AND NOT EXISTS (SELECT 1 FROM message WHERE digest = ?1) RETURNING kept_bytes",
            (digest,),
        ).fetchall()
    ]
