"""`ledger query|show|tail`: the record, read on a connection that cannot write."""

import contextlib
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import click

from proxy.cli import exporting, filtering, keeping, resolving, tracing, trusting
from proxy.cli.places import data_directory, data_option
from proxy.cli.reading import reader
from proxy.cli.terminal import Failure, escaped, loud, say, say_json, say_table, warn

if TYPE_CHECKING:
    from ledger.sqlite import sqlite3

NOT_FOUND = 4
POLL_SECONDS = 0.3  # what a person takes for at once; a poll reads one index
SHOWN_BEFORE = 10  # rows of the past that `tail` starts with
LOOKED_BACK = 500  # among how many of the newest rows those are sought
CALLS_MAX = 100_000  # they are read into memory before the first is shown
CALLS = 50  # how many, unless told otherwise

Row = dict[str, Any]


@click.group()
def ledger() -> None:
    """Read the record of calls, settle what is unknown in it, keep it."""


@ledger.command(context_settings=filtering.SETTINGS)
@filtering.argument
@click.option(
    "--limit",
    type=click.IntRange(1, CALLS_MAX),
    help=f"At most so many calls; {CALLS} if left out.",
)
@click.option("--after", metavar="ID", help="Go on behind this call: the next page.")
@click.option(
    "--by",
    metavar="FIELD",
    callback=filtering.column,
    help="What they come to, by run, tool, state or another field.",
)
@click.option("--sql", metavar="SELECT", help="A query of your own; it can only read.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@data_option
def query(
    filters: tuple[str, ...],
    limit: int | None,
    after: str | None,
    by: str | None,
    sql: str | None,
    as_json: bool,
    data: str | None,
) -> None:
    """Calls that the filters let through, newest first.

    A filter is FIELD:VALUE, with * for any text and - before it for "not", for example
    tool:stripe.* state:unknown since:2h -run:r1. Named twice, a field may have either value.
    text:WORD finds the newest calls that said or were answered it.
    """
    from ledger import queries, sums

    if sql is not None and filters:
        raise click.UsageError("--sql stands alone; put the filters into its WHERE")
    if sql is not None and (limit is not None or after is not None):
        raise click.UsageError("--sql stands alone; write LIMIT into it")
    if sql is not None and by is not None:
        raise click.UsageError("--sql stands alone; write GROUP BY into it")
    if by is not None and after is not None:
        raise click.UsageError("--by sums up all calls; leave --after out")
    limit = limit or CALLS
    with reader(data_directory(data)) as connection:
        if sql is not None:
            _say_rows(list(queries.sql(connection, sql)), as_json)
            return
        if after is not None:
            after = _known(connection, after)
        chosen = tracing.chosen(connection, data_directory(data), filters)
        if by is None:
            found = queries.calls(connection, chosen, limit, after)
        else:
            found = sums.sums(connection, chosen, by, limit)
        rows = list(queries.timely(connection, found))
    if by is not None:
        _say_rows([_summed(row) for row in rows], as_json)
        if len(rows) == limit:
            warn(f"there may be more: --limit {min(limit * 10, CALLS_MAX)}")
        return
    if as_json:
        _say_rows(rows, as_json)
        return
    _say_calls(rows)
    if len(rows) == limit:
        warn(f"there may be more; the next {limit}: --after {rows[-1]['id']}")


@ledger.command()
@click.argument("call_id", metavar="ID")
@click.option("--before", is_flag=True, help="Show what its run last asked a model before it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_option
def show(call_id: str, before: bool, as_json: bool, data: str | None) -> None:
    """One call by its ID, or the start of it, what happened to it, what it said and was answered.

    Secrets in requests and answers are masked before they are kept; equal ones have equal marks.
    """
    from ledger.queries import call

    directory = data_directory(data)
    with reader(directory) as connection:
        row = call(connection, call_id)
        if row is not None and before:
            row = _asked_before(connection, row)
        if row is None:
            raise _no_such(call_id)
        traced = tracing.of_call(connection, directory, row)
    if as_json:
        say_json({**row, **tracing.as_json(traced)})
        return
    events = row.pop("events")
    for name, value in row.items():
        if value is not None:
            say(f"{name:<16} {escaped(str(value))}")
    for event in events:
        say(_event_line(event))
        if event["type"] == "call.outcome" and event["request_digest"]:
            say(f"{'':<16} body sent, SHA-256: {event['request_digest']}")
    tracing.say_traced(traced)


@ledger.command(context_settings=filtering.SETTINGS)
@filtering.argument
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@data_option
def tail(filters: tuple[str, ...], as_json: bool, data: str | None) -> None:
    """Follow the record until Ctrl-C: the last rows, then each new one.

    Filters choose calls, and what else is told of the same run, tenant, tool or rule. A cord that
    is pulled or released is always shown, unless it is another run's than those named.
    """
    with reader(data_directory(data)) as connection, contextlib.suppress(KeyboardInterrupt):
        for row in _followed(connection, filters):
            if as_json:
                say_json(row)
            else:
                say(_event_line(row))


def _known(connection: "sqlite3.Connection", name: str) -> str:
    """The id that begins so. Raises Failure."""
    from ledger.queries import call

    row = call(connection, name)
    if row is None:
        raise _no_such(name)
    return str(row["id"])


def _asked_before(connection: "sqlite3.Connection", row: Row) -> Row | None:
    """The last call to a model that the same run made before a call. Raises Failure."""
    from ledger import queries
    from ledger.filters import parse

    if row["run"] is not None:
        chosen = parse([f"run:{row['run']}", "effect:model", "decision:allow"], 0)
        asked = next(queries.calls(connection, chosen, 1, row["id"]), None)
        if asked is not None:
            return queries.call(connection, asked["id"])
    raise Failure(f"no call of its run to a model came before {row['id']}", NOT_FOUND)


def _no_such(name: str) -> Failure:
    return Failure(f"the ledger has no call {name!r}; pullcord ledger query lists them", NOT_FOUND)


def _followed(connection: "sqlite3.Connection", filters: tuple[str, ...]) -> Iterator[Row]:
    from ledger import queries

    filtering.parsed(filters)  # a mistake is told before the first row
    newest = queries.last_events(connection, LOOKED_BACK)
    seq = newest[0]["seq"] if newest else 0
    wanted = [row for row in newest if _is_wanted(connection, row, filters)]
    yield from reversed(wanted[:SHOWN_BEFORE])
    while True:
        rows = queries.tail(connection, seq)
        for row in rows:
            seq = row["seq"]
            if _is_wanted(connection, row, filters):
                yield row
        if not rows:
            time.sleep(POLL_SECONDS)


def _is_wanted(connection: "sqlite3.Connection", row: Row, filters: tuple[str, ...]) -> bool:
    from ledger import queries
    from ledger.filters import of_call

    if not filters:
        return True
    if row["type"].startswith("cord."):
        named = [term for term in filters if term.startswith("run:")]
        if not named or row["run"] is None:
            return True
        return queries.family_passes(connection, row["run"], filtering.parsed(named))
    if row["id"] is None:
        return queries.act_passes(connection, row["seq"], filtering.parsed(filters))
    # Both rows of a call are wanted when the call as it is now passes.
    chosen = of_call(filtering.parsed(filters), row["id"])
    return next(queries.calls(connection, chosen, 1), None) is not None


def _say_rows(rows: list[Row], as_json: bool) -> None:
    if as_json:
        for row in rows:
            say_json(row)
    elif rows:
        say_table(list(rows[0]), [list(row.values()) for row in rows])


def _summed(row: Row) -> Row:
    from policies.ceilings import MICRO

    microusd = row.pop("cost_microusd")
    return {**row, "cost_usd": f"{Decimal(microusd) / MICRO:.6f}"}


_TITLES = ("id", "at", "run", "tool", "effect", "decision", "reason", "state", "status", "ms")
_STOPPED = ("refuse", "hold")  # where a call was, the rule that did it is shown
_METERED = ("in", "out", "usd")  # shown where a call's answer told its tokens


def _say_calls(rows: list[Row]) -> None:
    metered = any(row["input_tokens"] is not None for row in rows)
    stopped = any(row["decision"] in _STOPPED for row in rows)

    def cells(row: Row) -> tuple[object, ...]:
        rule = (row["rule"] if row["decision"] in _STOPPED else None,) if stopped else ()
        return (*_call_cells(row), *rule, *(_metered_cells(row) if metered else ()))

    titles = (*_TITLES, *(("rule",) if stopped else ()), *(_METERED if metered else ()))
    say_table(titles, [cells(row) for row in rows])


def _metered_cells(row: Row) -> tuple[object, ...]:
    cost_usd = row["cost_usd"]
    cost = None if cost_usd is None else f"{cost_usd:.6f}"
    return (row["input_tokens"], row["output_tokens"], cost)


def _call_cells(row: Row) -> tuple[object, ...]:
    names = (row["id"], _when(row), row["run"], row["tool"], row["effect"], row["decision"])
    latency = row["latency_ms"]
    ended = None if latency is None else f"{latency:.1f}"
    return (*names, row["reason"], row["state"], row["status"], ended)


def _when(row: Row) -> str:
    """Month, day and time of an RFC 3339 moment."""
    return str(row["at"][5:19]).replace("T", " ")


def _event_line(row: Row) -> str:
    """One row of the record: when, who, which tool, what, why."""
    kind = row["type"].removeprefix("call.")
    latency = None if row["latency_ms"] is None else f"{row['latency_ms']:.1f} ms"
    place = f"{row['method']} {row['host']}{row['path']}" if row["method"] else None
    reason = row["reason"] if row["reason"] not in (None, "allowed") else None
    words = (row["run"], row["tool"], kind, row["state"], row["status"], latency, reason)
    rule = row["rule"] if kind not in ("intent", "outcome") else None
    more = (rule, row["detail"], row["actor"] and f"by {row['actor']}", place)
    shown = "  ".join(escaped(str(word)) for word in (*words, *more) if word not in (None, ""))
    line = f"{_when(row)}  {shown}"
    return loud(line) if row["type"] == "cord.pulled" else line


for _command in (
    resolving.resolve,
    exporting.export,
    keeping.backup,
    keeping.check,
    trusting.verify,
    trusting.prune,
):
    ledger.add_command(_command)
