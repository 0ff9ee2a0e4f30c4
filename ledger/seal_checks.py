"""Whether the seals themselves are whole: each signed, each behind the one before it, and the same
as the copies that were kept elsewhere."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ledger import seals
from ledger.errors import LedgerError
from ledger.seals import PublicKeys, Seal
from ledger.sqlite import sqlite3
from ledger.states import EventType


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong; at which row of the record and in which call, where it is one's."""

    what: str
    seq: int | None = None
    call_id: str | None = None


def moment(at_us: int) -> str:
    """RFC 3339, UTC; whatever was written there."""
    try:
        at = datetime(1970, 1, 1) + timedelta(microseconds=at_us)  # noqa: DTZ001 - UTC, as written
    except OverflowError:
        return "an impossible time"
    return f"{at.isoformat(timespec='milliseconds')}Z"


def check_seals(
    conn: sqlite3.Connection, keys: PublicKeys, identity: bytes, newest: Seal | None
) -> tuple[int, list[Problem]]:
    """How many good ones there are, and the first that is not."""
    count, previous = 0, identity
    for seal in seals.all_seals(conn, 0 if newest is None else newest.seq):
        named = f"the seal over row {seal.seq}"
        wrong = keys.wrong(seal, identity)
        if wrong and not count:
            wrong += ", or seals before it were taken away"  # the first tells whose they are
        if not wrong and seal.previous != previous:
            wrong = "does not follow the one before it: seals between them were taken away"
        if wrong:
            return count, [Problem(f"{named} {wrong}", seal.seq)]
        count, previous = count + 1, seal.signature
    return count, []


def told_losses(conn: sqlite3.Connection) -> list[int]:
    """The rows of the record that tell that the trace ended before what was sealed of it."""
    found = conn.execute(
        "SELECT seq FROM event WHERE actor IS NOT NULL AND type = ? ORDER BY seq",
        (EventType.TRACE_BEHIND,),
    )
    return [int(seq) for (seq,) in found]


def check_covered(sealed: Iterable[Seal], losses: Sequence[int]) -> tuple[int, list[Problem]]:
    """How many messages the seals say that there are, and the first seal by which there were less
    than before, without a row that tells it. `sealed` are all seals, in order."""
    left, most = list(reversed(losses)), 0
    for seal in sealed:
        while left and left[-1] <= seal.seq:
            left.pop()
            most = 0
        if seal.trace_seq < most:
            what = f"the seal over row {seal.seq} covers the trace up to message {seal.trace_seq}, "
            return most, [Problem(f"{what}one before it up to message {most}", seal.seq)]
        most = seal.trace_seq
    return most, []


def check_copies(
    conn: sqlite3.Connection, keys: PublicKeys, identity: bytes, lines: Iterable[bytes]
) -> tuple[int, list[Problem]]:
    """How many copies fit, and the first that does not."""
    count = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        wrong = unlike(conn, keys, identity, line)
        if wrong:
            return count, [Problem(f"line {number} of the copies: {wrong}")]
        count += 1
    if not count:
        return 0, [Problem("there is no copy of a seal among the copies that were given")]
    return count, []


def check_newest(
    conn: sqlite3.Connection, keys: PublicKeys, identity: bytes, line: bytes
) -> list[Problem]:
    """The newest seal, as it was kept outside of the ledger."""
    wrong = unlike(conn, keys, identity, line)
    return [Problem(f"the newest seal, kept beside the keys: {wrong}")] if wrong else []


def unlike(conn: sqlite3.Connection, keys: PublicKeys, identity: bytes, line: bytes) -> str:
    """Why a copy of a seal does not fit the ledger; empty when it does."""
    try:
        whose, copy = seals.from_line(line)
    except LedgerError as error:
        return str(error)
    over = f"a seal of {moment(copy.at_us)} over row {copy.seq}"
    wrong = keys.wrong(copy, whose)
    if wrong:
        return f"{over} {wrong}"
    if identity and whose != identity:
        return f"{over} is another ledger's"
    (newest,) = conn.execute("SELECT coalesce(max(seq), 0) FROM event").fetchone()
    if copy.seq > newest:
        return f"{over}, and the record is cut off after row {newest}"
    own = next(iter(seals.seals(conn, copy.seq - 1, copy.seq, 1)), None)
    if own is None:
        return f"{over} is not in the ledger any more"
    if own.signature != copy.signature:
        return f"{over}, and the ledger has another one in its place"
    return ""
