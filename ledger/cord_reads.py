"""How a cord moved last, as the record tells it. Read on any connection."""

from typing import NamedTuple

from ledger.queries import rows
from ledger.sqlite import sqlite3
from ledger.states import EventType

_NEWEST = """
SELECT type, actor, detail FROM event
WHERE actor IS NOT NULL AND type = ? AND rule = ? AND seq > ? ORDER BY seq DESC LIMIT 1
"""
_HEAD = "SELECT coalesce(max(seq), 0) AS seq FROM event"


class Move(NamedTuple):
    """Who did it, and why."""

    actor: str
    detail: str


def newest(
    reader: sqlite3.Connection, kind: EventType, rule: str, after_seq: int = 0
) -> Move | None:
    """Of one kind: pulled, narrowed or released. Raises LedgerUnavailable."""
    for row in rows(reader, _NEWEST, (kind.value, rule, after_seq)):
        return Move(row["actor"], row["detail"] or "")
    return None


def pulled(reader: sqlite3.Connection, rule: str, after_seq: int) -> Move | None:
    """Who pulled it behind this row of the record, also where it stood so already; None where
    nobody did. Raises LedgerUnavailable."""
    changed = newest(reader, EventType.PULLED, rule, after_seq)
    return changed or newest(reader, EventType.PULLED_AGAIN, rule, after_seq)


def head(reader: sqlite3.Connection) -> int:
    """The newest row of the record: what is read after this may be of later. Raises
    LedgerUnavailable."""
    (newest_row,) = rows(reader, _HEAD, ())
    return int(newest_row["seq"])
