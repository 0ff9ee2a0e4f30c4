"""What the record tells of calls that are missing from the trace: losses, and what the policy
said."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import orjson

from ledger.queries import rows
from ledger.sqlite import sqlite3
from ledger.states import EventType

LOSSES_MAX = 10_000  # rows that are looked at, the newest

# What stands before the runs, where there were so many that the row was cut short.
_CUT = re.compile(r'\{"messages":(\d{1,18}),"since_us":(\d{1,18}),"why":"([^"\\]*)')


@dataclass(frozen=True, slots=True)
class Loss:
    """Of what was caught between these times so many messages are not in the trace."""

    since_us: int
    until_us: int
    messages: int
    why: str


def losses(reader: sqlite3.Connection, from_us: int = 0) -> Iterator[Loss]:
    """The newest first, down to a time. Raises LedgerUnavailable."""
    found = rows(
        reader,
        "SELECT at_us, detail FROM event INDEXED BY event_act "
        "WHERE actor IS NOT NULL AND type = ? ORDER BY seq DESC LIMIT ?",
        (EventType.TRACE_LOST, LOSSES_MAX),
    )
    for row in found:
        if row["at_us"] < from_us:
            return
        yield _loss(row["detail"] or "", row["at_us"])


def _loss(detail: str, at_us: int) -> Loss:
    try:
        told = orjson.loads(detail)
        return Loss(int(told["since_us"]), at_us, int(told["messages"]), str(told["why"]))
    except (ValueError, KeyError, TypeError):
        cut = _CUT.match(detail)
    if cut is None:  # its end alone is known
        return Loss(at_us, at_us, 0, "")
    return Loss(int(cut[2]), at_us, int(cut[1]), cut[3])


def policy_text(reader: sqlite3.Connection, digest: str) -> str | None:
    """A policy that was in force. Raises LedgerUnavailable."""
    found = rows(reader, "SELECT text FROM policy WHERE digest = ?", (digest,))
    return next((str(row["text"]) for row in found), None)
