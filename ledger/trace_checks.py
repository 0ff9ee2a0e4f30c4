"""Whether the trace is as it was written: its messages are chained like the rows of the record, and
each seal tells how far they were. The oldest may have been pruned: the others go on from the last
of those, and a seal over one that is gone tells nothing more. And whether each can be found."""

from collections.abc import Iterable

from ledger import searching
from ledger.chain import GENESIS, Head, Value, link
from ledger.seal_checks import Problem, moment
from ledger.seals import Seal
from ledger.sqlite import sqlite3
from ledger.trace_pruning import beginning

MESSAGES_AT_ONCE = 1_000


def check_trace(conn: sqlite3.Connection, sealed: Iterable[Seal]) -> tuple[int, list[Problem]]:
    """How many messages fit, and the first that does not. `sealed` are the seals that cover this
    trace, in order."""
    due = _Due(sealed)
    seq, previous, fit = 0, GENESIS, 0
    while True:
        rows, begun, forged = _read(conn, seq)
        if forged is not None:
            return fit, [forged]
        if begun.seq > seq and (not rows or rows[0][0] != seq + 1):  # pruned, perhaps meanwhile
            seq, previous = begun
            unlike = due.over(seq, previous)
            if unlike is not None:
                return fit, [unlike]
            continue
        if not rows:
            break
        for number, columns, stored in rows:
            if number != seq + 1:
                gone = f"messages {seq + 1} to {number - 1} of the trace are missing"
                return fit, [Problem(gone)]
            if link(previous, columns) != stored:
                return fit, [Problem(f"message {number} of the trace was changed")]
            seq, previous, fit = number, stored, fit + 1
            unlike = due.over(seq, previous)
            if unlike is not None:
                return fit, [unlike]
    if due.seal is not None:
        what = f"the trace is cut off after message {seq}, although the seal of "
        what += f"{moment(due.seal.at_us)} covers message {due.seal.trace_seq}"
        return fit, [Problem(what)]
    return fit, []


def check_index(conn: sqlite3.Connection) -> list[Problem]:
    """Whether every text can be searched: nobody would miss the call of one that is not found."""
    found = searching.unfindable(conn)
    if found is None:
        return []
    count, seq, call_id = found
    what = f"{count} messages" if count > 1 else "1 message"
    told = f"{what} of the trace, from message {seq} on, cannot be found by text: any more, only by"
    return [Problem(f"{told} other fields; nothing builds its index anew", None, call_id)]


class _Due:
    """The seals that are still to be compared; `seal` is the next."""

    def __init__(self, sealed: Iterable[Seal]) -> None:
        self._rest = (seal for seal in sealed if seal.trace_seq)
        self.seal = next(self._rest, None)

    def over(self, seq: int, hash_: bytes) -> Problem | None:
        """Whether those over this message are not of it. One over a message that was pruned, and
        was not the last of them, tells nothing more."""
        while self.seal is not None and self.seal.trace_seq <= seq:
            if self.seal.trace_seq == seq and self.seal.trace_hash != hash_:
                return _unlike(self.seal)
            self.seal = next(self._rest, None)
        return None


_Message = tuple[int, dict[str, Value], bytes]  # its number, what its hash covers, its hash


def _read(conn: sqlite3.Connection, seq: int) -> tuple[list[_Message], Head, Problem | None]:
    """The next messages, what stands before the oldest, and whether that is forged. All of one
    state: what is pruned goes in the transaction that says so.

    Nobody signs how far the trace was pruned. But it is always the oldest that go: where an older
    message still stands, a hole or a tail that was cut off is to be hidden.
    """
    conn.execute("BEGIN")
    try:
        cursor = conn.execute(
            "SELECT * FROM message WHERE seq > ? ORDER BY seq LIMIT ?", (seq, MESSAGES_AT_ONCE)
        )
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        begun = beginning(conn)
        (standing,) = conn.execute(
            "SELECT min(seq) FROM message WHERE seq BETWEEN 1 AND ?", (begun.seq,)
        ).fetchone()
    finally:
        conn.execute("ROLLBACK")
    messages = [(int(row["seq"]), row, row.pop("hash")) for row in rows]
    if standing is None:
        return messages, begun, None
    what = f"the trace tells that it was pruned up to message {begun.seq}, although message"
    return messages, begun, Problem(f"{what} {standing} stands")


def _unlike(seal: Seal) -> Problem:
    what = f"the trace up to message {seal.trace_seq} is not what was sealed at "
    return Problem(what + moment(seal.at_us))
