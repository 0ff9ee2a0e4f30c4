"""Reads for the 3 a.m. screen: how much is going on, and how much each cord has refused.

On connections that cannot write, within a bound of time: a screen that is late is no help.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ledger.containment import first_since
from ledger.queries import rows
from ledger.sqlite import sqlite3
from ledger.states import EventType
from policies.verdict import Action

_STEPS_BETWEEN_CHECKS = 10_000


@dataclass(frozen=True, slots=True)
class Activity:
    """What happened since a time: runs that called or have a call in flight, calls, refusals."""

    runs: int
    calls: int
    refused: int


def activity(reader: sqlite3.Connection, since_us: int) -> Activity:
    """Raises LedgerUnavailable."""
    values = {"first": first_since(reader, since_us), "since": since_us, "refuse": Action.REFUSE}
    (count,) = rows(
        reader,
        "SELECT count(decision) AS calls, total(decision = :refuse) AS refused "
        "FROM event NOT INDEXED "
        "WHERE seq >= :first AND at_us >= :since",
        values,
    )
    (active,) = rows(
        reader,
        "SELECT count(*) AS runs FROM (SELECT run FROM event NOT INDEXED "
        "WHERE seq >= :first AND at_us >= :since AND decision IS NOT NULL AND run IS NOT NULL "
        "UNION SELECT d.run FROM open_call o CROSS JOIN event d INDEXED BY event_call "
        "ON d.call_id = o.call_id AND d.call_id IS NOT NULL AND d.type = 'call.intent')",
        values,
    )
    return Activity(active["runs"], count["calls"], int(count["refused"]))


def refused_by(reader: sqlite3.Connection, rule: str, since_us: int) -> int:
    """How many calls a rule has refused since a time. Raises LedgerUnavailable."""
    (row,) = rows(
        reader,
        "SELECT count(*) AS calls FROM event INDEXED BY event_stopped "
        "WHERE decision <> 'allow' AND decision = ? AND seq >= ? AND rule = ?",
        (Action.REFUSE, first_since(reader, since_us), rule),
    )
    return int(row["calls"])


@dataclass(frozen=True, slots=True)
class Refusing:
    """A ceiling that refused calls: how many, of how many runs, of which one if it was one."""

    rule: str
    ceiling: str
    calls: int
    runs: int
    run: str


def refusing(reader: sqlite3.Connection, since_us: int) -> list[Refusing]:
    """The ceilings that refused calls since a time, the busiest first. Raises LedgerUnavailable."""
    found = rows(
        reader,
        "SELECT rule, coalesce(max(detail), '') AS ceiling, count(*) AS calls, "
        "count(DISTINCT run) AS runs, coalesce(max(run), '') AS run FROM event NOT INDEXED "
        "WHERE seq >= ? AND at_us >= ? AND type = ? AND rule LIKE 'ceiling:%' "
        "GROUP BY rule ORDER BY calls DESC, rule",
        (first_since(reader, since_us), since_us, EventType.REFUSED),
    )
    return [Refusing(**row) for row in found]


def told(reader: sqlite3.Connection, kind: EventType, since_us: int) -> int:
    """How many rows of acts of one kind there are since a time. Raises LedgerUnavailable."""
    (row,) = rows(
        reader,
        "SELECT count(*) AS rows FROM event INDEXED BY event_act "
        "WHERE actor IS NOT NULL AND type = ? AND seq >= ? AND at_us >= ?",
        (kind, first_since(reader, since_us), since_us),
    )
    return int(row["rows"])


@contextmanager
def limited(
    reader: sqlite3.Connection,
    seconds_max: float,
    monotonic_seconds: Callable[[], float] = time.monotonic,
) -> Iterator[None]:
    """Within it a read that is not done in time raises LedgerUnavailable."""
    deadline = monotonic_seconds() + seconds_max
    reader.set_progress_handler(lambda: int(monotonic_seconds() > deadline), _STEPS_BETWEEN_CHECKS)
    try:
        yield
    finally:
        reader.set_progress_handler(None, 0)
