"""Reads: what people ask of the record. On connections that cannot write (connection.py).

Nothing here takes part in judging a call.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ledger import cords
from ledger.errors import Kind, LedgerError, LedgerUnavailable, unavailable
from ledger.filters import ALL, Filter, Lead, Value
from ledger.sqlite import sqlite3
from policies.verdict import Pull

Row = dict[str, Any]

# The contract of `pullcord ledger query --json` (design.md, section 6), in this order.
CALL_COLUMNS = (
    *("id", "at", "tenant", "run", "parent", "root", "agent", "release", "tool", "method"),
    *("host", "path", "effect", "decision", "reason", "rule", "state", "status", "key"),
    *("replay_of", "request_digest", "response_digest", "latency_ms", "input_tokens"),
    *("output_tokens", "cost_usd", "policy"),
)

QUERY_SECONDS_MAX = 10.0
DISORDER_US = 60_000_000  # calls wait in a queue for seconds at most before they are written
_STEPS_BETWEEN_CHECKS = 10_000


class QueryError(LedgerError):
    """A question that cannot be answered as asked; the message says why."""


def calls(
    reader: sqlite3.Connection,
    chosen: Filter = ALL,
    limit: int = 100,
    after: str | None = None,
) -> Iterator[Row]:
    """Calls that the filter lets through, newest first; `after` goes on behind that call's id."""
    where, values = within(reader, chosen)
    if after is not None:
        where += " AND seq < (SELECT max(seq) FROM calls WHERE id = ?)"
        values.append(after)
    statement = (
        f"SELECT {', '.join(CALL_COLUMNS)} FROM calls "  # noqa: S608 - values are bound
        f"WHERE {where} ORDER BY seq DESC LIMIT ?"
    )
    yield from rows(reader, statement, [*values, limit])


def timely(
    reader: sqlite3.Connection,
    found: Iterator[Row],
    monotonic_seconds: Callable[[], float] = time.monotonic,
    seconds_max: float = QUERY_SECONDS_MAX,
) -> Iterator[Row]:
    """The same rows. Raises QueryError when they take longer than `seconds_max`: what no index
    leads to is looked for from the newest call back to the first."""
    deadline = monotonic_seconds() + seconds_max
    reader.set_progress_handler(lambda: int(monotonic_seconds() > deadline), _STEPS_BETWEEN_CHECKS)
    try:
        yield from found
    except LedgerUnavailable as error:
        if monotonic_seconds() <= deadline:
            raise
        raise QueryError(
            f"the query took longer than {seconds_max:g} s; narrow it by since:, run:, tenant:, "
            "tool: or release:"
        ) from error
    finally:
        reader.set_progress_handler(None, 0)


def within(reader: sqlite3.Connection, chosen: Filter) -> tuple[str, list[Value]]:
    """The filter's condition and values. Where it names a time, the rows that are too old or too
    new for it are left out by their numbers, so that they are not read one by one; and one of its
    leads is followed."""
    bounds, ends = "", list[Value]()
    if chosen.since_us is not None:
        bounds += " AND seq >= ?"
        ends.append(first_decided(reader, chosen.since_us - DISORDER_US))
    if chosen.until_us is not None:
        bounds += " AND seq < ?"
        ends.append(first_decided(reader, chosen.until_us + DISORDER_US))
    where, values = f"({chosen.where}){bounds}", [*chosen.values, *ends]
    lead = _best(reader, chosen.leads, bounds, ends)
    return (
        (where, values) if lead is None else (f"{lead.where} AND {where}", [*lead.values, *values])
    )


def _best(
    reader: sqlite3.Connection, leads: Sequence[Lead], bounds: str, ends: list[Value]
) -> Lead | None:
    """The lead to the fewest rows, as far as they are counted."""
    if len(leads) < 2 or leads[0].is_few:
        return leads[0] if leads else None

    def count(lead: Lead) -> int:
        statement = (
            "SELECT count(*) AS rows FROM (SELECT 1 FROM "  # noqa: S608 - values are bound
            "(SELECT call_id AS id, decision, release, tool, tenant, seq FROM event) "
            f"WHERE {lead.where}{bounds} LIMIT {_COUNTED_MAX})"
        )
        (row,) = rows(reader, statement, [*lead.values, *ends])
        return int(row["rows"])

    return min(leads, key=count)


_COUNTED_MAX = 2_000  # a lead to more is as good as any other such lead


def first_decided(reader: sqlite3.Connection, at_us: int) -> int:
    """The number of the first row of a call that was decided at that time or later, found by
    halving. Only rows of decisions are looked at: an outcome may be written long after its time."""
    (newest,) = rows(reader, "SELECT coalesce(max(seq), 0) AS seq FROM event", ())
    low, high = 0, newest["seq"] + 1
    while low < high:
        middle = (low + high) // 2
        decided = next(rows(reader, _NEXT_DECIDED, (middle, high)), None)
        if decided is None or decided["at_us"] >= at_us:
            high = middle
        else:
            low = decided["seq"] + 1
    return low


_NEXT_DECIDED = (
    "SELECT seq, at_us FROM event WHERE seq >= ? AND seq < ? AND decision IS NOT NULL "
    "ORDER BY seq LIMIT 1"
)


def call(reader: sqlite3.Connection, call_id: str) -> Row | None:
    """One call by its id or the start of it, with its rows of the record under `events`.

    Raises QueryError when several calls begin so.
    """
    least = call_id.lower()
    found = rows(
        reader,
        "SELECT DISTINCT call_id FROM event WHERE call_id >= ? AND call_id < ? LIMIT 2",
        [least, least + "\U0010ffff"],
    )
    ids = [row["call_id"] for row in found]
    if not ids or not least:
        return None
    if len(ids) > 1 and ids[0] != least:
        raise QueryError(f"several calls begin with {call_id}; write more of the id")
    chosen = Filter("id = ?", (ids[0],))
    row = next(calls(reader, chosen, limit=1), None)
    if row is None:
        return None
    row["events"] = list(_events(reader, "e.call_id = ?", [ids[0]], "ORDER BY e.seq"))
    return row


def tail(reader: sqlite3.Connection, after_seq: int, limit: int = 1000) -> list[Row]:
    """Rows of the record behind this number, in order. An outcome tells its call's run and tool."""
    return list(_events(reader, "e.seq > ?", [after_seq, limit], "ORDER BY e.seq LIMIT ?"))


def last_events(reader: sqlite3.Connection, limit: int = 20) -> list[Row]:
    """The newest rows of the record, newest first. The first one's `seq` is where `tail` starts."""
    return list(_events(reader, "1", [limit], "ORDER BY e.seq DESC LIMIT ?"))


def act_passes(reader: sqlite3.Connection, seq: int, chosen: Filter) -> bool:
    """Whether a row of the record that is no call's passes the filter: by its run, tenant, tool,
    release, rule and time. What only calls have, it lacks."""
    statement = f"SELECT 1 FROM ({_ACT} WHERE seq = ?) WHERE {chosen.where}"  # noqa: S608
    return next(rows(reader, statement, [seq, *chosen.values]), None) is not None


def family_passes(reader: sqlite3.Connection, run: str, chosen: Filter) -> bool:
    """Whether a run, or one of those below it, passes a filter that asks for nothing but runs."""
    statement = (
        "SELECT 1 FROM (SELECT ? AS run UNION ALL SELECT r.name FROM run r, "  # noqa: S608
        f"json_each(r.ancestors) a WHERE a.value = ?) WHERE {chosen.where}"
    )
    return next(rows(reader, statement, [run, run, *chosen.values]), None) is not None


_ACT = (
    "SELECT call_id AS id, at_us, tenant, run, parent, root, agent, release, tool, method, host, "
    "path, effect, decision, reason, rule, state, status, key, replay_of, NULL AS policy, seq "
    "FROM event"
)


def pulls(reader: sqlite3.Connection) -> list[Pull]:
    """The stored cords, the newest first."""
    found = rows(reader, "SELECT * FROM pull ORDER BY at_us DESC", ())
    return [cords.from_row(row) for row in found]


def totals(reader: sqlite3.Connection, chosen: Filter = ALL) -> list[Row]:
    """How many calls there are, and what they cost, by tool, effect, decision, reason and state."""
    grouped = "tool, effect, decision, reason, state"
    where, values = within(reader, chosen)
    return list(
        rows(
            reader,
            f"SELECT {grouped}, count(*) AS calls, total(cost_usd) AS cost_usd "  # noqa: S608
            f"FROM calls WHERE {where} GROUP BY {grouped} ORDER BY calls DESC, {grouped}",
            values,
        )
    )


def sql(
    reader: sqlite3.Connection,
    text: str,
    monotonic_seconds: Callable[[], float] = time.monotonic,
    seconds_max: float = QUERY_SECONDS_MAX,
) -> Iterator[Row]:
    """The rows of a person's own SELECT. Raises QueryError when it is anything else, or slow.

    It may read everything but hashes of tokens and sealed answers, for at most `seconds_max`.
    """
    deadline = monotonic_seconds() + seconds_max
    reader.set_authorizer(_allow_reading)
    reader.set_progress_handler(lambda: int(monotonic_seconds() > deadline), _STEPS_BETWEEN_CHECKS)
    try:
        cursor = reader.execute(text)
        if cursor.description is None:
            raise QueryError("only a SELECT is answered here")
        names = [column[0] for column in cursor.description]
        for row in cursor:
            yield dict(zip(names, row, strict=True))
    except (sqlite3.Error, sqlite3.Warning) as error:
        if monotonic_seconds() > deadline:
            raise QueryError(f"the query took longer than {seconds_max:g} s") from error
        reader.set_authorizer(None)
        if isinstance(error, sqlite3.Error):
            known = unavailable(error, database(reader))
            if known.kind is Kind.CORRUPT:
                raise known from error
        raise QueryError(f"the query is refused: {error}") from error
    finally:
        reader.set_authorizer(None)
        reader.set_progress_handler(None, 0)


_HIDDEN = {("token", "hash"), ("operator", "hash"), ("answer", "sealed"), ("hold", "arguments")}
_SHOWING = frozenset({"table_info", "table_xinfo", "table_list", "index_list", "index_info"})


def _allow_reading(
    action: int, first: str | None, second: str | None, _database: str | None, _by: str | None
) -> int:
    if action == sqlite3.SQLITE_READ and (first, second) in _HIDDEN:
        return sqlite3.SQLITE_IGNORE  # reads as NULL
    if action == sqlite3.SQLITE_FUNCTION:
        refused = second == "load_extension"
    elif action == sqlite3.SQLITE_PRAGMA:
        refused = first not in _SHOWING
    else:
        refused = action not in _READING
    return sqlite3.SQLITE_DENY if refused else sqlite3.SQLITE_OK


_READING = frozenset({sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE})

# An outcome row holds only what its decision did not know yet.
_EVENT_COLUMNS = """
    e.seq, e.type,
    strftime('%Y-%m-%dT%H:%M:%S', e.at_us / 1000000, 'unixepoch')
        || printf('.%03dZ', e.at_us / 1000 % 1000) AS at,
    e.call_id AS id, coalesce(e.tenant, d.tenant) AS tenant, coalesce(e.run, d.run) AS run,
    coalesce(e.tool, d.tool) AS tool, coalesce(e.operation, d.operation) AS operation,
    coalesce(e.method, d.method) AS method, coalesce(e.host, d.host) AS host,
    coalesce(e.path, d.path) AS path, coalesce(e.effect, d.effect) AS effect,
    e.decision, e.reason, e.rule, e.state, e.status, e.key, e.replay_of,
    e.latency_us / 1000.0 AS latency_ms, e.response_bytes, e.actor, e.detail,
    nullif(lower(hex(e.request_digest)), '') AS request_digest
"""


def _events(
    reader: sqlite3.Connection, where: str, values: Sequence[Any], rest: str
) -> Iterator[Row]:
    statement = (
        f"SELECT {_EVENT_COLUMNS} FROM event e LEFT JOIN event d "  # noqa: S608 - values are bound
        "ON d.call_id = e.call_id AND +d.type = 'call.intent' AND e.type = 'call.outcome' "
        f"WHERE {where} {rest}"
    )
    return rows(reader, statement, values)


def rows(
    reader: sqlite3.Connection, statement: str, values: Sequence[Any] | Mapping[str, Any]
) -> Iterator[Row]:
    """Each row by its columns' names. Raises LedgerUnavailable."""
    try:
        cursor = reader.execute(statement, values)
        names = [column[0] for column in cursor.description or ()]
        for row in cursor:
            yield dict(zip(names, row, strict=True))
    except sqlite3.Error as error:
        raise unavailable(error, database(reader)) from error


def database(reader: sqlite3.Connection) -> Path:
    """What this connection reads; asking it reads nothing."""
    _, _, name = reader.execute("PRAGMA database_list").fetchone()
    return Path(name)
