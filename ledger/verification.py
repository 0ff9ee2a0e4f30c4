"""Whether the record is as it was written: the chain row by row, the seals over it, the gaps in it.

On connections that cannot write, in small reads, so that whoever writes goes on. What follows the
last seal may be anybody's who can write the file; and who has the key can seal anything.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ledger import seal_checks, seals
from ledger.body_checks import check_bodies
from ledger.chain import GENESIS, Head, Stored, link, stored
from ledger.checks import check_current
from ledger.errors import was_interrupted
from ledger.row_checks import check_rows
from ledger.schema_checks import ledger_differences, trace_differences
from ledger.seal_checks import Problem
from ledger.seals import Gap, PublicKeys, Seal
from ledger.sqlite import sqlite3
from ledger.states import EventType
from ledger.trace_checks import check_index, check_trace

ROWS_AT_ONCE = 1_000
_NEAR_ROWS = 20  # how far away the place of a row that stands out of order is sought


@dataclass(slots=True)
class Verified:
    """What was looked at, and what is wrong: what all else is read through, then the first bad
    row, before all else.

    `rows` stand in the record now, `pruned` do no more; `unsealed` of them are behind the last
    seal. `copies`, `trace` and `bodies` count the copies of seals, the messages of the trace and
    their bodies; None where they were not looked at. `behind` is what the record tells of starts
    at which it did not have the newest seal, `trace_losses` how often it tells that the trace was
    behind its seal.
    """

    rows: int = 0
    last: Head = field(default_factory=Head)
    first_us: int | None = None
    last_us: int | None = None
    gaps: int = 0
    pruned: int = 0
    seals: int = 0
    last_seal: Seal | None = None
    policies: int = 0
    copies: int | None = None
    trace: int | None = None
    bodies: int | None = None
    is_newest_compared: bool = False
    trace_losses: int = 0
    behind: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def unsealed(self) -> int:
        return max(0, self.last.seq - (0 if self.last_seal is None else self.last_seal.seq))


def verify(
    conn: sqlite3.Connection,
    keys: PublicKeys,
    *,
    copies: Iterable[bytes] | None = None,
    newest: bytes | None = None,
    trace: sqlite3.Connection | None = None,
    in_place: bool = False,
) -> Verified:
    """Look at all of it. `copies` are lines of seals that were kept elsewhere, `newest` is one of
    the newest seal; a ledger that is `in_place` has its trace beside it. Some twenty seconds for a
    million rows.

    Raises LedgerError for what is no ledger, or one of another version.
    """
    found = Verified()
    try:
        check_current(conn)
        with _moment(conn):
            end, numbered = _end(conn)
            found.last_seal, identity = seals.last(conn), seals.identity(conn) or b""
        found.problems += map(Problem, ledger_differences(conn))
        found.problems += check_rows(conn, "event", "row")
        found.problems += _rows(conn, keys, identity, found, end)
        found.problems += _cut(found, end, numbered)
        found.seals, wrong = seal_checks.check_seals(conn, keys, identity, found.last_seal)
        found.problems += wrong
        found.policies, wrong = _policies(conn)
        found.problems += wrong
        if copies is not None:
            found.copies, wrong = seal_checks.check_copies(conn, keys, identity, copies)
            found.problems += wrong
        if newest is not None:
            found.problems += seal_checks.check_newest(conn, keys, identity, newest)
            found.is_newest_compared = True
        found.problems += _trace(conn, trace, found, end, in_place=in_place)
    except sqlite3.Error as error:
        if was_interrupted(error):
            raise KeyboardInterrupt from error
        found.problems.append(Problem(f"it cannot be read: {error}"))
    return found


def _trace(
    conn: sqlite3.Connection,
    trace: sqlite3.Connection | None,
    found: Verified,
    end: int,
    *,
    in_place: bool,
) -> list[Problem]:
    losses = seal_checks.told_losses(conn)
    found.trace_losses = len(losses)
    sealed, wrong = seal_checks.check_covered(seals.all_seals(conn, end), losses)
    if trace is not None:
        after_seq = losses[-1] - 1 if losses else 0  # the seal over that row covers the new trace
        wrong += [Problem(f"in the trace {each}") for each in trace_differences(trace)]
        wrong += check_rows(trace, "message", "message", " of the trace")
        found.bodies, unlike = check_bodies(trace)
        wrong += unlike
        found.trace, unlike = check_trace(trace, seals.all_seals(conn, end, after_seq))
        wrong += unlike
        wrong += check_index(trace)
    elif in_place and sealed:
        wrong.append(Problem(f"the trace is gone; {sealed} messages were sealed"))
    return wrong


@contextmanager
def _moment(conn: sqlite3.Connection) -> Iterator[None]:
    """What is read in here is of one state."""
    conn.execute("BEGIN")
    try:
        yield
    finally:
        conn.execute("ROLLBACK")


def _end(conn: sqlite3.Connection) -> tuple[int, int]:
    """The number of the newest row, and of the newest that there ever was."""
    (newest,) = conn.execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()
    row = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'event'").fetchone()
    return int(newest), max(int(newest), int(row[0]) if row else 0)


def _cut(found: Verified, end: int, numbered: int) -> list[Problem]:
    """Whether the newest rows are gone."""
    seal = found.last_seal
    if seal is not None and seal.seq > end:
        when = seal_checks.moment(seal.at_us)
        return [
            Problem(
                f"the record is cut off after row {end}, although the seal of {when} covers row "
                f"{seal.seq}",
                end + 1,
            )
        ]
    if numbered > end:
        what = f"the record is cut off after row {end}, although {numbered} rows were numbered"
        return [Problem(what, end + 1)]
    return []


def _policies(conn: sqlite3.Connection) -> tuple[int, list[Problem]]:
    """Each row of the record names its policy by the digest of the text."""
    count, wrong = 0, []
    for digest, text in conn.execute("SELECT digest, text FROM policy ORDER BY id"):
        count += 1
        if hashlib.sha256(str(text).encode()).hexdigest() != digest:
            wrong.append(Problem(f"the text of policy {digest[:12]} was changed"))
    return count, wrong[:1]


# ---------------------------------------------------------------------------------- the rows


def _rows(
    conn: sqlite3.Connection, keys: PublicKeys, identity: bytes, found: Verified, end: int
) -> list[Problem]:
    """Walk up to `end`; stops at the first bad row, for behind it nothing can be told."""
    walk = _Walk(keys, identity, found)
    while walk.at.seq < end:
        with _moment(conn):
            gap = seals.gap_at(conn, walk.at.seq + 1)
            if gap is not None and gap.first_seq <= walk.at.seq + 1:
                problem = walk.over(
                    gap, seals.standing_in(conn, gap), _seal_over(conn, gap.last_seq)
                )
            else:
                to_seq = end if gap is None else min(end, gap.first_seq - 1)
                rows = stored(conn, walk.at.seq, to_seq, ROWS_AT_ONCE)
                sealed = seals.seals(conn, walk.at.seq, to_seq, ROWS_AT_ONCE)
                problem = walk.along(rows, {seal.seq: seal for seal in sealed}, to_seq)
        if problem is not None:
            return [problem]
    return []


def _seal_over(conn: sqlite3.Connection, seq: int) -> Seal | None:
    return next(iter(seals.seals(conn, seq - 1, seq, 1)), None)


class _Walk:
    """Where the walk is, and what it has seen. Each step gives the problem that ends it."""

    def __init__(self, keys: PublicKeys, identity: bytes, found: Verified) -> None:
        self.at = Head()
        self._before = GENESIS  # the hash before the one that it is at
        self._sealed = 0  # the last row whose seal fits
        self._keys, self._identity, self._found = keys, identity, found

    def over(self, gap: Gap, inside: int | None, seal: Seal | None) -> Problem | None:
        """A gap that begins here; earlier, where somebody prunes meanwhile."""
        named = f"the gap from row {gap.first_seq} to {gap.last_seq}"
        wrong = self._keys.wrong(gap, self._identity)
        if wrong:
            return Problem(f"{named} {wrong}", gap.first_seq)
        if gap.first_seq == self.at.seq + 1 and gap.before != self.at.hash:
            return Problem(f"{named} does not fit what stands before it", gap.first_seq)
        if inside is not None:
            return Problem(f"row {inside} stands in {named}, where all was pruned", inside)
        if seal is not None and seal.hash != gap.after:
            return Problem(f"{named} does not fit the seal over its last row", gap.last_seq)
        self._found.gaps += 1
        self._found.pruned += gap.last_seq - self.at.seq
        self._go(gap.last_seq, gap.after)
        return None

    def along(self, rows: list[Stored], sealed: dict[int, Seal], to_seq: int) -> Problem | None:
        """Rows that should follow each other, up to that number at most."""
        for place, row in enumerate(rows):
            problem = self._missing(row.seq) or self._changed(rows[place : place + _NEAR_ROWS])
            problem = problem or self._unlike(row, sealed.get(row.seq))
            if problem is not None:
                return problem
            self._go(row.seq, row.hash or b"")
            self._count(row)
        return None if rows else self._missing(to_seq + 1)

    def _go(self, seq: int, hash_: bytes) -> None:
        self._before, self.at = self.at.hash, Head(seq, hash_)
        self._found.last = self.at

    def _count(self, row: Stored) -> None:
        at_us = int(row.columns["at_us"] or 0)
        self._found.rows += 1
        if row.columns["type"] == EventType.BEHIND_SEAL:
            self._found.behind.append(f"row {row.seq}: {row.columns['detail']!s}")
        self._found.last_us = at_us
        if self._found.first_us is None:
            self._found.first_us = at_us

    def _missing(self, seq: int) -> Problem | None:
        last = self.at.seq
        if seq == last + 1:
            return None
        gone = f"row {last + 1} is" if seq == last + 2 else f"rows {last + 1} to {seq - 1} are"
        before = f"row {last}" if last else "the beginning"
        return Problem(f"{gone} missing between {before} and row {seq}", last + 1)

    def _changed(self, rows: list[Stored]) -> Problem | None:
        """Whether the first of these is what was recorded here; if not, what may have been done."""
        row = rows[0]
        if row.hash is None:
            return _bad(row, "has no hash")
        if link(self.at.hash, row.columns) == row.hash:
            return None
        for other in rows[1:]:
            here = link(self.at.hash, {**other.columns, "seq": row.seq})
            if here not in (row.hash, other.hash):
                continue
            there = link(here, {**row.columns, "seq": other.seq})
            if other.seq == row.seq + 1 and there not in (row.hash, other.hash):
                return _bad(row, f"was inserted: row {other.seq} belongs here")
            return _bad(row, f"stands out of order: row {other.seq} belongs here")
        if link(self._before, {**row.columns, "seq": row.seq - 1}) == row.hash:
            return Problem(f"row {row.seq - 1} was inserted: the next belongs here", row.seq - 1)
        return _bad(row, "was changed")

    def _unlike(self, row: Stored, seal: Seal | None) -> Problem | None:
        if seal is None or seal.hash == row.hash:
            self._sealed = self._sealed if seal is None else row.seq
            return None
        when = seal_checks.moment(seal.at_us)
        what = f"rows {self._sealed + 1} to {row.seq} were written anew: not what was sealed"
        return Problem(f"{what} at {when}", self._sealed + 1)


def _bad(row: Stored, what: str) -> Problem:
    call = row.columns.get("call_id")
    return Problem(f"row {row.seq} {what}", row.seq, None if call is None else str(call))
