"""Reads for whoever pulls a cord: what it would stop, and the proof that it did.

On connections that cannot write. The record is read from the cord's own row on, or by an index:
never all of it. Nothing here takes part in judging a call.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ledger.queries import QueryError, Row, rows
from ledger.records import Worker
from ledger.sqlite import sqlite3
from ledger.states import CallState, EventType
from policies.call import Effect
from policies.policy import UNDO_RUN
from policies.verdict import Level, Pull, Scope, tool_of

ERROR_CHARACTERS = 200  # an engine cuts a longer error, and so the name of a cord in it


@dataclass(frozen=True, slots=True)
class Blast:
    """What a cord on a scope would stop. `runs` are active ones; calls and writes in flight."""

    runs: tuple[str, ...]
    calls: int
    writes: int


@dataclass(frozen=True, slots=True)
class Proof:
    """What the record says about a cord since it was pulled; of a freeze, about writes only.

    `admitted_after` is how many calls were let through after it (0 is the promise). The others
    are calls that were in flight then: those `cut` by it, those whose outcome is `unknown` (the
    writes among them once more), those that are `still_open`.
    """

    pulled_us: int
    seq: int
    admitted_after: int
    cut: tuple[Row, ...]
    unknown: tuple[str, ...]
    unknown_writes: tuple[str, ...]
    still_open: tuple[str, ...]


# The intent `d` of a call that a scope covers. An operator's, by which a tenant's writes are
# undone, is none that the tenant's cord stops. A parent that was never minted a token for is known
# by the call alone, one between parent and root by the run alone.
_WITHIN = {
    Scope.GLOBAL: "1",
    Scope.TENANT: f"d.tenant = :subject AND d.run IS NOT '{UNDO_RUN}'",
    Scope.RELEASE: "d.release = :subject",
    Scope.TOOL: "d.tool = :subject",
    Scope.RUN: (
        "(d.run = :subject OR d.parent = :subject OR d.root = :subject OR EXISTS (SELECT 1 "
        "FROM run, json_each(run.ancestors) a WHERE run.name = d.run AND a.value = :subject))"
    ),
}
# A valid token `t` of a run `r` that a scope covers. No token tells which tools its run uses.
_GRANTED = {
    Scope.GLOBAL: "1",
    Scope.TENANT: "r.tenant = :subject",
    Scope.RELEASE: "coalesce(t.release, r.release) = :subject",
    Scope.TOOL: "0",
    Scope.RUN: (
        "(r.name = :subject OR EXISTS "
        "(SELECT 1 FROM json_each(r.ancestors) a WHERE a.value = :subject))"
    ),
}


def _where(scope: Scope, subject: str) -> tuple[str, str, dict[str, str]]:
    """Which intents and which tokens a cord covers, and the values that both name."""
    run, tool = tool_of(subject) if scope is Scope.TOOL else ("", "")
    if not run:
        return _WITHIN[scope], _GRANTED[scope], {"subject": subject}
    values = {"subject": run, "tool": tool}
    return f"d.tool = :tool AND {_WITHIN[Scope.RUN]}", _GRANTED[scope], values


_CALL = (
    "d.call_id AS id, d.at_us, d.run, d.tenant, d.release, d.parent, d.root, d.tool, d.effect, "
    "d.method, d.host"
)
# CROSS JOIN keeps the order: the few open calls first, each with its intent by the index.
_OPEN = (
    "open_call o CROSS JOIN event d INDEXED BY event_call "
    "ON d.call_id = o.call_id AND d.call_id IS NOT NULL AND d.type = 'call.intent'"
)


def open_calls(reader: sqlite3.Connection) -> list[Row]:
    """The calls in flight as the record knows them, the oldest first, each with its worker."""
    found = rows(
        reader,
        f"SELECT {_CALL}, o.worker FROM {_OPEN} ORDER BY d.seq",  # noqa: S608 - words of ours
        (),
    )
    return list(found)


def blast(reader: sqlite3.Connection, scope: Scope, subject: str, since_us: int) -> Blast:
    """What a cord on this scope would stop now.

    A run is active when it has a call in flight, has called since `since_us`, or has a token that
    was valid then and was not revoked.
    """
    within, granted, names = _where(scope, subject)
    values: dict[str, str | int] = {**names, "since": since_us}
    with snapshot(reader):
        values["first"] = first_since(reader, since_us)
        flying = list(
            rows(
                reader,
                f"SELECT d.run, d.effect FROM {_OPEN} WHERE {within}",  # noqa: S608 - words of ours
                values,
            )
        )
        called = rows(
            reader,
            "SELECT DISTINCT d.run FROM event d NOT INDEXED "  # noqa: S608 - words of ours
            "WHERE d.seq >= :first AND d.at_us >= :since AND d.decision IS NOT NULL "
            f"AND d.run IS NOT NULL AND {within}",
            values,
        )
        able = rows(
            reader,
            "SELECT DISTINCT r.name AS run FROM token t "  # noqa: S608 - words of ours
            "JOIN run r ON r.name = t.run WHERE t.revoked_us IS NULL "
            f"AND (t.expires_us IS NULL OR t.expires_us > :since) AND {granted}",
            values,
        )
        runs = {row["run"] for found in (flying, called, able) for row in found}
    writes = sum(row["effect"] == Effect.WRITE for row in flying)
    return Blast(tuple(sorted(runs)), len(flying), writes)


def is_known(reader: sqlite3.Connection, scope: Scope, subject: str) -> bool:
    """Whether a run has called or has a token; other scopes are taken as they are."""
    run = Pull(Level.HALT, scope, subject, "", "", 0).names.get(Scope.RUN)
    if run is None:
        return True
    found = rows(
        reader,
        "SELECT 1 FROM run WHERE name = :run UNION ALL "
        "SELECT 1 FROM event WHERE run = :run AND type LIKE 'call.%' LIMIT 1",
        {"run": run},
    )
    return next(found, None) is not None


def proof(reader: sqlite3.Connection, level: Level, scope: Scope, subject: str) -> Proof:
    """What the record shows of a cord since it was last pulled. QueryError when it never was."""
    rule = Pull(level, scope, subject, "", "", 0).rule
    within, _, names = _where(scope, subject)
    if level is Level.FREEZE:
        within += f" AND d.effect = '{Effect.WRITE}'"
    with snapshot(reader):
        pulled = next(
            rows(
                reader,
                "SELECT seq, at_us FROM event WHERE actor IS NOT NULL AND type = ? AND rule = ? "
                "ORDER BY seq DESC LIMIT 1",
                (EventType.PULLED, rule),
            ),
            None,
        )
        if pulled is None:
            raise QueryError(f"the record has no {rule} that was pulled")
        values = {**names, "seq": pulled["seq"]}
        (after,) = rows(
            reader,
            "SELECT count(*) AS calls FROM event d NOT INDEXED "  # noqa: S608 - words of ours
            f"WHERE d.seq > :seq AND d.type = 'call.intent' AND {within}",
            values,
        )
        ended = list(
            rows(
                reader,
                f"SELECT {_CALL}, e.state, e.status, e.detail "  # noqa: S608 - words of ours
                "FROM event e NOT INDEXED CROSS JOIN event d INDEXED BY event_call "
                "ON d.call_id = e.call_id AND d.call_id IS NOT NULL AND d.type = 'call.intent' "
                "WHERE e.seq > :seq AND e.type = 'call.outcome' AND d.seq < :seq "
                f"AND {within} ORDER BY e.seq",
                values,
            )
        )
        still_open = rows(
            reader,
            f"SELECT d.call_id AS id FROM {_OPEN} "  # noqa: S608 - words of ours
            f"WHERE d.seq < :seq AND {within} ORDER BY d.seq",
            values,
        )
        unknown = [row for row in ended if row["state"] == CallState.UNKNOWN]
        return Proof(
            pulled_us=pulled["at_us"],
            seq=pulled["seq"],
            admitted_after=after["calls"],
            cut=tuple(row for row in ended if _names(row["detail"], rule)),
            unknown=tuple(row["id"] for row in unknown),
            unknown_writes=tuple(row["id"] for row in unknown if row["effect"] == Effect.WRITE),
            still_open=tuple(row["id"] for row in still_open),
        )


def worker_rows(reader: sqlite3.Connection) -> list[Worker]:
    """The registered engine processes, by id."""
    found = rows(reader, "SELECT id, pid, started, seen_us FROM worker ORDER BY id", ())
    return [Worker(**row) for row in found]


def last_drill(reader: sqlite3.Connection) -> Row | None:
    """The newest drill of the record: when, by whom, and what came of it."""
    found = rows(
        reader,
        "SELECT seq, at_us, actor, detail FROM event WHERE actor IS NOT NULL AND type = ? "
        "AND rule IS NULL ORDER BY seq DESC LIMIT 1",
        (EventType.DRILLED,),
    )
    return next(found, None)


@contextmanager
def snapshot(reader: sqlite3.Connection) -> Iterator[None]:
    """Several reads of one and the same state."""
    if reader.in_transaction:
        yield
        return
    list(rows(reader, "BEGIN", ()))
    try:
        yield
    finally:
        list(rows(reader, "ROLLBACK", ()))


def first_since(reader: sqlite3.Connection, since_us: int) -> int:
    """The number of the first row since a time, found by halving: rows come in order of time."""
    (ends,) = rows(
        reader,
        # One by one: SQLite takes an end from the index only when it is asked for alone.
        "SELECT (SELECT min(seq) FROM event) AS low, (SELECT max(seq) FROM event) AS high",
        (),
    )
    if ends["low"] is None:
        return 0
    low, high = ends["low"], ends["high"] + 1
    while low < high:
        middle = (low + high) // 2
        (row,) = rows(
            reader, "SELECT at_us FROM event WHERE seq >= ? ORDER BY seq LIMIT 1", (middle,)
        )
        if row["at_us"] < since_us:
            low = middle + 1
        else:
            high = middle
    return int(low)


def _names(detail: str | None, rule: str) -> bool:
    """Whether an outcome's words are, or hold, the name of this cord and not of a longer one."""
    if not detail:
        return False
    if len(detail) >= ERROR_CHARACTERS and rule.startswith(detail):
        return True
    return re.search(rf"(?<![\w.~:/-]){re.escape(rule)}(?![\w.~:/-])", detail) is not None
