"""What the calls of a filter come to, by one of their columns. For people, on connections that
cannot write.
"""

from collections.abc import Iterator

from ledger.filters import Filter
from ledger.queries import Row, rows, within
from ledger.sqlite import sqlite3

BY = (
    *("tenant", "run", "root", "agent", "release", "tool", "host", "effect", "decision", "reason"),
    *("rule", "state", "policy"),
)
"""The columns."""

# As the view `runs` counts: reads, writes and model calls are those that were let through.
_COUNTS = """
    count(*) AS calls,
    count(*) FILTER (WHERE decision = 'allow' AND effect = 'read') AS reads,
    count(*) FILTER (WHERE decision = 'allow' AND effect = 'write') AS writes,
    count(*) FILTER (WHERE decision = 'allow' AND effect = 'model') AS models,
    count(*) FILTER (WHERE state = 'unknown') AS unknown,
    count(*) FILTER (WHERE state = 'refused') AS refused,
    count(*) FILTER (WHERE state = 'replayed') AS replayed
"""
# Micro-dollars are whole numbers in the record: what the view divided comes back as it was.
_MICROUSD = "coalesce(sum(CAST(round(cost_usd * 1000000) AS INTEGER)), 0)"


def sums(reader: sqlite3.Connection, chosen: Filter, by: str, limit: int) -> Iterator[Row]:
    """One row for each value of a column of `BY`, those with most writes first. Raises
    LedgerUnavailable."""
    if by not in BY:
        raise ValueError(f"calls are not summed by {by!r}")
    where, values = within(reader, chosen)
    statement = (
        f"SELECT {by}, {_COUNTS}, {_MICROUSD} AS cost_microusd "  # noqa: S608 - values are bound
        f"FROM calls WHERE {where} GROUP BY {by} ORDER BY writes DESC, calls DESC, "
        f"{by} IS NULL, {by} LIMIT ?"
    )
    yield from rows(reader, statement, [*values, limit])
