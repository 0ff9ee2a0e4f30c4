"""Cords as rows: read, latched, made tighter, narrowed, dropped. Called inside transactions.

What a cord means for a call is judged elsewhere (policies/decide.py).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import orjson

from ledger.errors import LedgerError
from ledger.redact import check_storable
from ledger.sqlite import sqlite3
from policies.verdict import Level, Pull, Scope, Trial

CordName = tuple[Level, Scope, str]

_COLUMNS = ("level", "scope", "subject", "reason", "actor", "at_us", "until_us", "but_releases")


def name(pull: Pull) -> CordName:
    return pull.level, pull.scope, pull.subject


def named(rule: str) -> CordName:
    """The cord that the rule of a pull names."""
    level, _, over = rule.partition(":")
    scope, _, subject = over.partition(":")
    return Level(level), Scope(scope), subject


def tried_for(pulls: Iterable[Pull], incident: str) -> list[Pull]:
    """The cords past which some runs go first for this incident."""
    return [pull for pull in pulls if pull.trial and pull.trial.incident == incident]


def load(conn: sqlite3.Connection) -> dict[CordName, Pull]:
    rows = conn.execute(f"SELECT {', '.join(_COLUMNS)} FROM pull")  # noqa: S608 - names of ours
    pulls = [from_row(dict(zip(_COLUMNS, row, strict=True))) for row in rows]
    return {name(pull): pull for pull in pulls}


def from_row(row: Mapping[str, Any]) -> Pull:
    """A cord from its row; one of before step 0002 has no end and lets no release pass."""
    releases, trial = _passing(orjson.loads(row.get("but_releases", "[]")))
    return Pull(
        level=Level(row["level"]),
        scope=Scope(row["scope"]),
        subject=row["subject"],
        reason=row["reason"],
        actor=row["actor"],
        at_us=row["at_us"],
        until_us=row.get("until_us"),
        but_releases=releases,
        trial=trial,
    )


def _passing(kept: Any) -> tuple[tuple[str, ...], Trial | None]:
    """Who passes it: the column holds a list of releases, or both where some runs go first."""
    if isinstance(kept, list):
        return tuple(kept), None
    trial = kept["trial"]
    names = {name: tuple(trial.get(name, ())) for name in ("runs", "cords", "roots")}
    return tuple(kept["releases"]), Trial(**{**trial, **names})


def _kept(pull: Pull) -> Any:
    if pull.trial is None:
        return pull.but_releases
    return {"releases": pull.but_releases, "trial": pull.trial}


def check(pull: Pull) -> None:
    """Raises LedgerError for a cord that cannot be kept as it is."""
    check_releases(pull.scope, pull.but_releases)
    check_storable(pull.subject, pull.reason, pull.actor, *pull.but_releases)


def check_releases(scope: Scope, releases: tuple[str, ...]) -> None:
    if "" in releases:
        raise LedgerError("a release has a name; calls without one never pass a cord")
    if releases and scope is Scope.RELEASE:
        raise LedgerError("a cord on a release lets no other release pass; release it instead")


def tightened(standing: Pull | None, pull: Pull) -> Pull | None:
    """What stands when `pull` comes over `standing`: the most restrictive of both.

    None when `standing` is that already.
    """
    if standing is None:
        return pull
    ends = (standing.until_us, pull.until_us)
    until_us = None if ends[0] is None or ends[1] is None else max(ends[0], ends[1])
    both = tuple(item for item in standing.but_releases if item in pull.but_releases)
    if (until_us, both, None) == (standing.until_us, standing.but_releases, standing.trial):
        return None
    return replace(pull, until_us=until_us, but_releases=both, trial=None)


def narrowed(standing: Pull, releases: tuple[str, ...]) -> Pull:
    """The same cord, which lets these releases pass too; all of a release go where some went
    first."""
    passing = tuple(dict.fromkeys((*standing.but_releases, *releases)))
    first = standing.trial
    over = first is not None and first.release in passing
    return replace(standing, but_releases=passing, trial=None if over else first)


_ALL, _FIRST = " may pass: ", " may pass by "
_RUNS = re.compile(r"(?:no run|run (?P<runs>[A-Za-z0-9._~, -]+)) and (?P<places>\d+) more: ")
IS_WHOLE = (
    f"instr(detail, '{_ALL}') > 0 AND (instr(detail, '{_FIRST}') = 0 "
    f"OR instr(detail, '{_ALL}') < instr(detail, '{_FIRST}'))"
)
"""Of the row of a narrowing, in SQL: whether all of a release may pass."""


def told_narrowed(releases: tuple[str, ...], reason: str) -> str:
    """For the row of a narrowing; `narrowed_to` reads it."""
    return f"{', '.join(releases)}{_ALL}{reason}"


def told_tried(trial: Trial, reason: str) -> str:
    """The same where some runs go first."""
    runs = f"run {', '.join(trial.runs)}" if trial.runs else "no run"
    return f"{trial.release}{_FIRST}{runs} and {trial.places} more: {reason}"


def narrowed_to(detail: str) -> tuple[tuple[str, ...], Trial | None]:
    """The releases that the row of a narrowing names, or the runs of one that go first."""
    release, _, first = detail.partition(_FIRST)
    found = _RUNS.match(first)
    if found is None or _ALL in release:
        return tuple(detail.partition(_ALL)[0].split(", ")), None
    runs = tuple((found["runs"] or "").split(", ")) if found["runs"] else ()
    return (), Trial("", release, runs, int(found["places"]), 0)


def write(conn: sqlite3.Connection, pull: Pull) -> None:
    conn.execute(
        f"INSERT OR REPLACE INTO pull ({', '.join(_COLUMNS)}) "  # noqa: S608 - names of ours
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            pull.level,
            pull.scope,
            pull.subject,
            pull.reason,
            pull.actor,
            pull.at_us,
            pull.until_us,
            orjson.dumps(_kept(pull)).decode(),
        ),
    )


def drop(conn: sqlite3.Connection, cord: CordName) -> None:
    conn.execute("DELETE FROM pull WHERE level = ? AND scope = ? AND subject = ?", cord)
