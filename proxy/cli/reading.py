"""What several commands read: the pulled cords, the ledger on a connection that cannot write."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.cli.terminal import Failure, escaped, loud
from proxy.control_client import Unreachable, ask

if TYPE_CHECKING:
    from ledger.sqlite import sqlite3

# As ledger/connection.py has them, which is slow to import.
DATABASE = "ledger.db"
LOCK = "ledger.lock"

Cord = dict[str, Any]
"""A pulled cord as `proxy.operations.pull_as_json` has it."""


@contextmanager
def reader(data: Path) -> "Iterator[sqlite3.Connection]":
    """A connection to the ledger that cannot write. Raises Failure when there is no ledger."""
    if not (data / DATABASE).exists():
        raise Failure(_no_ledger(data), 2)

    from ledger.connection import open_reader

    connection = open_reader(data)
    try:
        yield connection
    finally:
        connection.close()


def _no_ledger(data: Path) -> str:
    if (data / LOCK).exists():  # it stays where a ledger has been
        return f"the ledger {data / DATABASE} is gone; it was removed or moved: put it back"
    return f"there is no ledger in {data} yet; pullcord up makes it"


def cords_on_disk(data: Path) -> list[Cord]:
    """The stored cords, for when no proxy answers; none when there is no ledger yet."""
    if not (data / DATABASE).exists():
        return []

    from ledger.queries import pulls
    from proxy.operations import pull_as_json

    with reader(data) as connection:
        return [pull_as_json(cord) for cord in pulls(connection)]


def standing(data: Path) -> list[Cord]:
    """All cords that stand: as the proxy says, with the policy's own, else the stored ones and
    those that wait in the file HALT."""
    try:
        cords: list[Cord] = ask(data, "GET", "/v1/status")["pulled"]
    except Unreachable:
        from proxy.clock import SystemClock
        from proxy.screen import status_on_disk

        cords = status_on_disk(data, SystemClock().now_us())["pulled"]
    return cords


def told_cord(cord: Cord) -> str:
    """One cord on one line, made harmless for a terminal."""
    where = escaped(f"{cord['scope']} {cord['subject']}".strip())
    few = " (6 calls a minute of each run pass)" if cord["level"] == "throttle" else ""
    name = f"{loud(cord['level'].upper())} {where}{few}"
    if cord["actor"].startswith("policy:"):
        return f"{name}  by the policy, {escaped(cord['reason'])}"
    why = f'  "{escaped(cord["reason"])}"' if cord["reason"] else ""
    since = f" since {cord['at']}" if cord["at"] else ""
    until = f" until {cord['until']}" if cord["until"] else ""
    passing = [*cord["but_releases"], *filter(None, [_first(cord.get("trial"))])]
    but = f"  but for {escaped(', '.join(passing))}" if passing else ""
    return f"{name}{why}  by {escaped(cord['actor'])}{since}{until}{but}"


def _first(trial: dict[str, Any] | None) -> str:
    """Who goes first past a cord."""
    if trial is None:
        return ""
    runs = [*(f"run {run}" for run in trial["runs"])]
    left = trial["places"]
    runs += [f"the next {left} runs that come" if left > 1 else "the next run that comes"][:left]
    return f"{' and '.join(runs) or 'no run'} of {trial['release']}"


def preview(data: Path, level: str, scope: str, subject: str) -> dict[str, Any]:
    """What a cord would stop now, or a release let flow: as the proxy says, else the ledger."""
    cord = {"level": level, "scope": scope, "subject": subject}
    try:
        told: dict[str, Any] = ask(data, "POST", "/v1/pull", {**cord, "dry_run": True})
        return told
    except Unreachable:
        from policies.verdict import Level, Scope
        from proxy import pulling
        from proxy.clock import SystemClock

        now_us = SystemClock().now_us()
        with reader(data) as connection:
            return pulling.preview(connection, Level(level), Scope(scope), subject, now_us)


def run_totals(data: Path, run: str, since_us: int) -> dict[str, int]:
    """What a run has called since then: all calls, writes let through, replays, refusals."""
    from ledger.filters import parse
    from ledger.queries import totals
    from proxy.operations import timestamp

    terms = [f"run:{run}", f"since:{timestamp(since_us)}"]
    with reader(data) as connection:
        rows = totals(connection, parse(terms, 0))

    def count(**wanted: str) -> int:
        return sum(row["calls"] for row in rows if wanted.items() <= row.items())

    return {
        "calls": count(),
        "writes": count(effect="write", decision="allow"),
        "replayed": count(decision="replay"),
        "refused": count(decision="refuse"),
    }
