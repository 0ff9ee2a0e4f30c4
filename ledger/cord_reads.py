"""How a cord moved last, as the record tells it. Read on any connection."""

from typing import NamedTuple

from ledger.queries import rows
from ledger.sqlite import sqlite3
from ledger.states import EventType

_NEWEST = """
SELECT type, actor, detail FROM event
WHERE actor IS NOT NULL AND type = ? AND rule = ? AND seq > ? ORDER BY seq DESC LIMIT 1
"""


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
