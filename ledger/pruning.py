"""What `ledger prune` takes out of the record, a few rows at a time, and the signed gap it leaves.

Whole calls only, and nothing that still counts: `_counts`, `_stands` and `_OpenIncidents` tell
what does. Nothing is taken out that is not as it was recorded: pruning must not clear away what
somebody has changed.
"""

import re
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from itertools import groupby

import orjson

from ledger import claims, cords, holds, seals
from ledger.batch import Batch
from ledger.chain import GENESIS, Head, link, stored
from ledger.errors import LedgerError
from ledger.seals import Gap, PublicKeys, Signer
from ledger.sqlite import sqlite3
from ledger.states import CallState, EventType

ROWS_MAX = 1_000  # of one transaction: some tens of milliseconds, in which callers wait
WINDOW_ROWS = 500  # that one transaction looks at; a call has two of them, mostly
AHEAD_ROWS = 20_000  # that it looks through for the next old one, where none of those is old


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
    empty = Gap(0, 0, GENESIS, GENESIS, 0, at_us, actor, keys.signer.key_id)
    ranges = list(_ranges(seqs))
    gaps = _gaps(conn, ranges, empty, identity, keys.public)
    if first is not None:
        seals.write(conn, first[1])
    for one in ranges:
        conn.execute("DELETE FROM event WHERE seq BETWEEN ? AND ?", (one[0], one[-1]))
    for gap in gaps:
        seals.put_gap(conn, replace(gap, signature=keys.signer.sign(gap.text(identity))))
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
    incident: str | None


_COLUMNS = "seq, type, at_us, call_id, state, rule, key, detail, incident"


class _OpenIncidents:
    """What those that are open stand on: their own rows, and the calls that convinced a detector
    with all of their rows."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._calls: set[str] = set()
        self._ids: set[str] = set()
        for one, calls in conn.execute("SELECT id, evidence FROM incident WHERE state = 'open'"):
            self._ids.add(one)
            self._calls.update(orjson.loads(calls))

    def need(self, row: _Row) -> bool:
        return row.incident in self._ids or row.call_id in self._calls


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
        return [], Pruned(next_seq=_next_old(conn, after_seq, before_us))
    (newest,) = conn.execute("SELECT max(seq) FROM event").fetchone()
    standing = {pull.rule for pull in cords.load(conn).values()}
    incidents = _OpenIncidents(conn)
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
        if any(_stands(conn, each, standing, at_us) or incidents.need(each) for each in rows):
            continue
        if row.call_id is not None and _counts(conn, row.call_id, rows):
            continue
        if seqs and len(seqs) + len(rows) > ROWS_MAX:
            next_seq = row.seq - 1
            break
        seqs += [each.seq for each in rows]
        calls += row.type in _DECISIONS
    return sorted(seqs), Pruned(len(seqs), calls, next_seq)


def _next_old(conn: sqlite3.Connection, after_seq: int, before_us: int) -> int | None:
    """Where to go on when the next rows are new: older ones may stand behind those of a clock that
    was ahead. None at the end."""
    looked, to_seq, old_seq = conn.execute(
        "SELECT count(*), max(seq), min(CASE WHEN at_us < ?1 THEN seq END) FROM "
        "(SELECT seq, at_us FROM event WHERE seq > ?2 AND seq < (SELECT max(seq) FROM event) "
        "ORDER BY seq LIMIT ?3)",
        (before_us, after_seq, AHEAD_ROWS),
    ).fetchone()
    if old_seq is not None:
        return int(old_seq) - 1
    return int(to_seq) if looked == AHEAD_ROWS else None


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
    nobody knows how it ended."""
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
_KEPT = frozenset(
    {EventType.POLICY, EventType.PRUNED, EventType.BEHIND_SEAL, EventType.TRACE_BEHIND}
)


def _stands(conn: sqlite3.Connection, row: _Row, standing: Container[str], at_us: int) -> bool:
    """Whether what a row tells still holds: a cord, a token, an operator; which policies there
    were, who has pruned, and what was missing of what was sealed, is never forgotten."""
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


def _gaps(
    conn: sqlite3.Connection, ranges: list[range], empty: Gap, identity: bytes, known: PublicKeys
) -> list[Gap]:
    """What is left of rows, in order, as one with the gaps beside them; not yet signed. Nothing
    becomes part of a gap that was not checked here. Raises LedgerError."""
    made: list[Gap] = []
    for seqs in ranges:
        first_seq, last_seq = seqs[0], seqs[-1]
        if made and made[-1].last_seq == first_seq - 1:
            left: Gap | None = made.pop()
        else:
            left = seals.gap_ending(conn, first_seq - 1)
            _check(conn, left, identity, known)
        gap = _gap(conn, seqs, empty, left)
        right = seals.gap_beginning(conn, last_seq + 1)
        if right is not None:
            _check(conn, right, identity, known)
            if right.before != gap.after or not _fits_behind(conn, right):
                raise LedgerError(_changed(f"{_named(right)} does not fit what stands beside it"))
            rows = gap.rows + right.rows
            gap = replace(gap, last_seq=right.last_seq, after=right.after, rows=rows)
        made.append(gap)
    return made


def _gap(conn: sqlite3.Connection, seqs: range, empty: Gap, left: Gap | None) -> Gap:
    """What is left of rows that follow each other, and of the gap before them."""
    first_seq, last_seq = seqs[0], seqs[-1]
    within = seals.gap_at(conn, first_seq)
    if within is not None and within.first_seq <= last_seq:
        raise LedgerError(_changed(f"{_named(within)} is over rows that stand"))
    begin = left or replace(empty, first_seq=first_seq, before=_before(conn, first_seq))
    after = begin.before if left is None else left.after
    for row in stored(conn, first_seq - 1, last_seq, len(seqs)):
        after = link(after, row.columns)
        if after != row.hash:
            raise LedgerError(_changed(f"row {row.seq} is not as it was recorded"))
    first_seq, before, rows = begin.first_seq, begin.before, begin.rows + len(seqs)
    return replace(
        empty, first_seq=first_seq, last_seq=last_seq, before=before, after=after, rows=rows
    )


def _check(conn: sqlite3.Connection, gap: Gap | None, identity: bytes, known: PublicKeys) -> None:
    """A gap that is about to become part of another one. Raises LedgerError."""
    if gap is None:
        return
    if known.wrong(gap, identity):
        raise LedgerError(_changed(f"{_named(gap)} is not signed"))
    if seals.standing_in(conn, gap) is not None:
        raise LedgerError(_changed(f"{_named(gap)} is over rows that stand"))


def _before(conn: sqlite3.Connection, first_seq: int) -> bytes:
    """The hash of the row before one that no gap ends at."""
    if first_seq == 1:
        return GENESIS
    row = conn.execute("SELECT hash FROM event WHERE seq = ?", (first_seq - 1,)).fetchone()
    if row is None or row[0] is None:
        raise LedgerError(_changed(f"what stood before row {first_seq} is missing"))
    return bytes(row[0])


def _fits_behind(conn: sqlite3.Connection, gap: Gap) -> bool:
    """Whether the row behind a gap, where one is, follows the last of those that are gone."""
    after_seq = gap.last_seq
    rows = stored(conn, after_seq, after_seq + 1, 1)
    return all(link(gap.after, row.columns) == row.hash for row in rows)


def _named(gap: Gap) -> str:
    return f"the gap from row {gap.first_seq} on"


def _changed(what: str) -> str:
    return f"{what}, so nothing is pruned over it; look at the record: pullcord ledger verify"


def _ranges(seqs: list[int]) -> Iterator[range]:
    """The numbers, in order, as runs without holes."""
    for _, run in groupby(enumerate(seqs), key=lambda pair: pair[1] - pair[0]):
        numbers = [seq for _, seq in run]
        yield range(numbers[0], numbers[-1] + 1)
