"""Whether the trace is as it was written: its messages are chained like the rows of the record, and
each seal tells how far they were. The oldest may have been pruned: the others go on from the last
of those, and a seal over one that is gone tells nothing more."""

from collections.abc import Iterable

from ledger.chain import GENESIS, link
from ledger.seal_checks import Problem, moment
from ledger.seals import Seal
from ledger.sqlite import sqlite3
from ledger.trace_pruning import beginning

MESSAGES_AT_ONCE = 1_000


def check_trace(conn: sqlite3.Connection, sealed: Iterable[Seal]) -> tuple[int, list[Problem]]:
    """How many messages fit, and the first that does not. `sealed` are the seals that cover this
    trace, in order."""
    due = (seal for seal in sealed if seal.trace_seq)
    seal = next(due, None)
    seq, previous, fit = 0, GENESIS, 0
    while True:
        cursor = conn.execute(
            "SELECT * FROM message WHERE seq > ? ORDER BY seq LIMIT ?", (seq, MESSAGES_AT_ONCE)
        )
        names = [column[0] for column in cursor.description]
        rows = cursor.fetchall()
        begun = beginning(conn) if not rows or rows[0][0] != seq + 1 else None
        if begun is not None and begun.seq > seq:  # pruned, perhaps meanwhile
            seq, previous = begun
            while seal is not None and seal.trace_seq < seq:
                seal = next(due, None)
            while seal is not None and seal.trace_seq == seq:
                if seal.trace_hash != previous:
                    return fit, [_unlike(seal)]
                seal = next(due, None)
            continue
        if not rows:
            break
        for row in rows:
            columns = dict(zip(names, row, strict=True))
            stored = columns.pop("hash")
            if columns["seq"] != seq + 1:
                gone = f"messages {seq + 1} to {columns['seq'] - 1} of the trace are missing"
                return fit, [Problem(gone)]
            if link(previous, columns) != stored:
                return fit, [Problem(f"message {columns['seq']} of the trace was changed")]
            seq, previous, fit = seq + 1, stored, fit + 1
            while seal is not None and seal.trace_seq == seq:
                if seal.trace_hash != stored:
                    return fit, [_unlike(seal)]
                seal = next(due, None)
    if seal is not None:
        what = f"the trace is cut off after message {seq}, although the seal of "
        return fit, [Problem(f"{what}{moment(seal.at_us)} covers message {seal.trace_seq}")]
    return fit, []


def _unlike(seal: Seal) -> Problem:
    what = f"the trace up to message {seal.trace_seq} is not what was sealed at "
    return Problem(what + moment(seal.at_us))
