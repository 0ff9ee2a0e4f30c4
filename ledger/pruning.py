"""What `ledger prune` takes out of the record, a few rows at a time, and the signed gap it leaves.

Whole calls only, and nothing that still counts: `_counts` tells what does. Nothing is taken out
that is not as it was recorded: pruning must not clear away what somebody has changed.
"""

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from ledger import claims, cords, holds, seals
from ledger.batch import Batch
from ledger.chain import GENESIS, Head, link, stored
from ledger.errors import LedgerError
from ledger.seals import Gap, PublicKeys, Signer
from ledger.sqlite import sqlite3
from ledger.states import CallState, EventType

ROWS_MAX = 1_000  # of one transaction: some tens of milliseconds, in which callers wait
WINDOW_ROWS = 500  # that one transaction looks at; a call has two of them, mostly


@dataclass(frozen=True, slots=True)
class Pruned:
    """What one step took out, or would; `next_seq` is where the next one goes on, None at the
    end."""

    rows: int = 0
    calls: int = 0
    next_seq: int | None = None

    def __add__(self, other: "Pruned") -> "Pruned":
        return Pruned(self.rows + other.rows, self.calls + other.calls, other.next_seq)


@dataclass(frozen=True, slots=True)
class Keys:
    """With what gaps are signed, and checked before they are merged."""

    signer: Signer
    public: PublicKeys


def step(
    batch: Batch, after_seq: int, before_us: int, keys: Keys, trace: Head, actor: str, at_us: int
) -> Pruned:
    """Take out rows behind a number and older than a time, in the open transaction.

    What this transaction has told until now is new, and stays. Raises LedgerError, before anything
    is written, for rows that are not as they were recorded.
    """
    conn = batch.conn
    seqs, done = planned(conn, after_seq, before_us, at_us)
    if not seqs:
        return done
    identity = seals.identity(conn)
    first = None if identity else seals.made(conn, batch.journal.head, trace, keys.signer, at_us)
    identity = identity or (first[0] if first else b"")
    gaps = [_gap(conn, one, identity, keys, actor, at_us) for one in _ranges(seqs)]
    if first is not None:
        seals.write(conn, first[1])
    for gap in gaps:
        conn.execute("DELETE FROM event WHERE seq BETWEEN ? AND ?", (gap.first_seq, gap.last_seq))
        _put(conn, gap, identity, keys)
    batch.must_last = True
    return done


# ---------------------------------------------------------------------------------- what goes


@dataclass(frozen=True, slots=True)
class _Row:
    seq: int
    type: str
    at_us: int
    call_id: str | None
    state: str | None
    rule: str | None
    key: str | None
    detail: str | None


_COLUMNS = "seq, type, at_us, call_id, state, rule, key, detail"


def planned(
    conn: sqlite3.Connection, after_seq: int, before_us: int, at_us: int
) -> tuple[list[int], Pruned]:
    """The numbers of the rows that one step takes out, and what it comes to."""
    found = conn.execute(
        f"SELECT {_COLUMNS} FROM event WHERE seq > ? "  # noqa: S608 - our own columns
        "AND seq < (SELECT max(seq) FROM event) ORDER BY seq LIMIT ?",
        (after_seq, WINDOW_ROWS),
    )
    window = [_Row(*row) for row in found]
    if not any(row.at_us < before_us for row in window):
        return [], Pruned()
    (newest,) = conn.execute("SELECT max(seq) FROM event").fetchone()
    standing = {pull.rule for pull in cords.load(conn).values()}
    seqs: list[int] = []
    calls, next_seq = 0, window[-1].seq
    for row in window:
        if row.at_us >= before_us:
            continue
        rows = [row] if row.call_id is None else _of_call(conn, row.call_id)
        if rows[0].seq != row.seq:
            continue  # the call was looked at with its first row
        if any(each.at_us >= before_us or each.seq == newest for each in rows):
            continue
        if any(_stands(conn, each, standing, at_us) for each in rows):
            continue
        if row.call_id is not None and _counts(conn, row.call_id, rows):
            continue
        if seqs and len(seqs) + len(rows) > ROWS_MAX:
            next_seq = row.seq - 1
            break
        seqs += [each.seq for each in rows]
        calls += row.type in _DECISIONS
    return sorted(seqs), Pruned(len(seqs), calls, next_seq)


def _of_call(conn: sqlite3.Connection, call_id: str) -> list[_Row]:
    found = conn.execute(
        f"SELECT {_COLUMNS} FROM event WHERE call_id = ? ORDER BY seq",  # noqa: S608
        (call_id,),
    )
    return [_Row(*row) for row in found]


_DECISIONS = frozenset({EventType.INTENT, EventType.REFUSED, EventType.REPLAYED, EventType.HELD})
_ENDED = frozenset({EventType.OUTCOME, EventType.REFUSED, EventType.REPLAYED})


def _counts(conn: sqlite3.Connection, call_id: str, rows: list[_Row]) -> bool:
    """Whether a call still counts: it is open or waits for a person, its claim still protects, or
    nobody knows how it ended. Rows of incidents that are open belong here, too, once there are
    incidents."""
    types = {row.type for row in rows}
    if types & _DECISIONS and not types & _ENDED:
        return True
    unknown = any(row.state == CallState.UNKNOWN for row in rows)
    if unknown and EventType.RESOLVED not in types:
        return True
    if conn.execute("SELECT 1 FROM open_call WHERE call_id = ?", (call_id,)).fetchone():
        return True
    if holds.named(conn, call_id) is not None or holds.let_pass(conn, call_id):
        return True
    return any(
        claims.of_call(conn, call_id, bytes.fromhex(row.key)) is not None for row in rows if row.key
    )


_TOKEN = re.compile(r"\btoken ([0-9a-f]{16})\b")  # as the rows about tokens and operators say it
_KEPT = frozenset({EventType.POLICY, EventType.PRUNED})


def _stands(conn: sqlite3.Connection, row: _Row, standing: Container[str], at_us: int) -> bool:
    """Whether what a row tells still holds: a cord, a token, an operator; which policies there
    were, and who has pruned, is never forgotten."""
    if row.type in _KEPT:
        return True
    if row.type.startswith("cord."):
        return row.rule in standing
    if row.type not in (EventType.MINTED, EventType.ENROLLED):
        return False
    found = _TOKEN.search(row.detail or "")
    return found is None or _lives(conn, found[1], at_us)


def _lives(conn: sqlite3.Connection, token: str, at_us: int) -> bool:
    return bool(
        conn.execute(
            "SELECT 1 FROM token WHERE id = ?1 AND revoked_us IS NULL "
            "AND coalesce(expires_us > ?2, 1) "
            "UNION ALL SELECT 1 FROM operator WHERE id = ?1 AND revoked_us IS NULL",
            (token, at_us),
        ).fetchone()
    )


# ---------------------------------------------------------------------------------- what stays


def _gap(
    conn: sqlite3.Connection, seqs: range, identity: bytes, keys: Keys, actor: str, at_us: int
) -> Gap:
    """What is left of rows that follow each other, not yet signed. Raises LedgerError."""
    first_seq, last_seq = seqs[0], seqs[-1]
    before = _before(conn, first_seq, identity, keys)
    rows = stored(conn, first_seq - 1, last_seq, len(seqs))
    after = before
    for row in rows:
        after = link(after, row.columns)
        if after != row.hash:
            raise LedgerError(_changed(f"row {row.seq} is not as it was recorded"))
    right = seals.gap_beginning(conn, last_seq + 1)
    if right is not None and (keys.public.wrong(right, identity) or right.before != after):
        raise LedgerError(_changed(f"the gap from row {right.first_seq} on is not signed"))
    return Gap(first_seq, last_seq, before, after, len(seqs), at_us, actor, keys.signer.key_id)


def _before(conn: sqlite3.Connection, first_seq: int, identity: bytes, keys: Keys) -> bytes:
    """The hash of what stands before a row."""
    if first_seq == 1:
        return GENESIS
    row = conn.execute("SELECT hash FROM event WHERE seq = ?", (first_seq - 1,)).fetchone()
    if row is not None and row[0] is not None:
        return bytes(row[0])
    left = seals.gap_ending(conn, first_seq - 1)
    if left is None:
        raise LedgerError(_changed(f"what stood before row {first_seq} is missing"))
    if keys.public.wrong(left, identity):
        raise LedgerError(_changed(f"the gap from row {left.first_seq} on is not signed"))
    return left.after


def _changed(what: str) -> str:
    return f"{what}, so nothing is pruned over it; look at the record: pullcord ledger verify"


def _put(conn: sqlite3.Connection, gap: Gap, identity: bytes, keys: Keys) -> None:
    """Write it down, as one with the gaps on both sides of it."""
    left = seals.gap_ending(conn, gap.first_seq - 1)
    right = seals.gap_beginning(conn, gap.last_seq + 1)
    if left is not None:
        gap = replace(gap, first_seq=left.first_seq, before=left.before, rows=left.rows + gap.rows)
    if right is not None:
        gap = replace(gap, last_seq=right.last_seq, after=right.after, rows=gap.rows + right.rows)
    seals.put_gap(conn, replace(gap, signature=keys.signer.sign(gap.text(identity))))


def _ranges(seqs: list[int]) -> Iterator[range]:
    """The numbers, in order, as runs without holes."""
    for _, run in groupby(enumerate(seqs), key=lambda pair: pair[1] - pair[0]):
        numbers = [seq for _, seq in run]
        yield range(numbers[0], numbers[-1] + 1)
