"""Whether the trace is as it was written: its messages are chained like the rows of the record, and
each seal tells how far they were. Bodies that were pruned leave their message behind."""

from collections.abc import Iterable

from ledger.chain import GENESIS, link
from ledger.seal_checks import Problem, moment
from ledger.seals import Seal
from ledger.sqlite import sqlite3

MESSAGES_AT_ONCE = 1_000


def check_trace(conn: sqlite3.Connection, sealed: Iterable[Seal]) -> tuple[int, list[Problem]]:
    """How many messages fit, and the first that does not. `sealed` are all seals, in order."""
    due = (seal for seal in sealed if seal.trace_seq)
    seal = next(due, None)
    seq, previous = 0, GENESIS
    while True:
        cursor = conn.execute(
            "SELECT * FROM message WHERE seq > ? ORDER BY seq LIMIT ?", (seq, MESSAGES_AT_ONCE)
        )
        names = [column[0] for column in cursor.description]
        rows = cursor.fetchall()
        if not rows:
            break
        for row in rows:
            columns = dict(zip(names, row, strict=True))
            stored = columns.pop("hash")
            if columns["seq"] != seq + 1:
                gone = f"messages {seq + 1} to {columns['seq'] - 1} of the trace are missing"
                return seq, [Problem(gone)]
            if link(previous, columns) != stored:
                return seq, [Problem(f"message {columns['seq']} of the trace was changed")]
            seq, previous = seq + 1, stored
            while seal is not None and seal.trace_seq == seq:
                if seal.trace_hash != stored:
                    what = f"the trace up to message {seq} is not what was sealed at "
                    return seq, [Problem(what + moment(seal.at_us))]
                seal = next(due, None)
    if seal is not None:
        what = f"the trace is cut off after message {seq}, although the seal of "
        return seq, [Problem(f"{what}{moment(seal.at_us)} covers message {seal.trace_seq}")]
    return seq, []
