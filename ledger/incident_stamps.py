"""The releases that the runs of an incident were started with, and the models that they asked.
Reads for people, on connections that cannot write.

A release pins one prompt, one model and one set of tools. What the record holds of models is the
name that each call asked for.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ledger.filters import parse
from ledger.incident_scope import terms
from ledger.open_incidents import Incident
from ledger.queries import rows, within
from ledger.sqlite import sqlite3

COMPARED_MAX = 10_000  # newest model calls of one release among which its usual models are told

_MODEL = "json_extract((SELECT seen FROM event WHERE event.seq = calls.seq), '$.model')"
_RUNS = """
SELECT run, release, count(*) FILTER (WHERE effect = 'write') AS writes, count(*) AS calls,
count(*) FILTER (WHERE decision = 'allow') AS passed FROM calls
WHERE {} AND run IS NOT NULL GROUP BY run, release ORDER BY writes DESC, calls DESC, run
"""
_ASKED = f"""
SELECT DISTINCT run, release, {_MODEL} AS model FROM calls
WHERE {{}} AND effect = 'model' AND decision = 'allow' AND run IS NOT NULL
"""  # noqa: S608 - words of ours
_OF_RELEASE = """
SELECT DISTINCT run, model FROM (
    SELECT run, json_extract(seen, '$.model') AS model FROM event
    WHERE release = ? AND +effect = 'model' AND decision = 'allow' ORDER BY seq DESC LIMIT ?
) WHERE run IS NOT NULL AND model IS NOT NULL
"""


@dataclass(frozen=True, slots=True)
class Stamp:
    """A run and what it was started with, empty for nothing. `passed` are the calls that were let
    through; `usual` the models that most runs of that release ask; `contradicts`: this one asked
    others."""

    run: str
    release: str
    calls: int
    writes: int
    models: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()
    passed: int = 0

    @property
    def contradicts(self) -> bool:
        return bool(self.usual) and bool(set(self.models) - set(self.usual))


def stamps(reader: sqlite3.Connection, incident: Incident) -> list[Stamp]:
    """Of each run of the incident and each release that it called as, those with most writes
    first. Raises LedgerUnavailable."""
    where, values = within(reader, parse(terms(incident), 0))
    asked: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows(reader, _ASKED.format(where), values):
        if row["model"]:
            asked[row["run"], row["release"] or ""].add(row["model"])
    usual = {release: _usual(reader, release) for release in {release for _, release in asked}}
    return [
        Stamp(
            row["run"],
            row["release"] or "",
            row["calls"],
            row["writes"],
            tuple(sorted(asked[row["run"], row["release"] or ""])),
            usual.get(row["release"] or "", ()),
            row["passed"],
        )
        for row in rows(reader, _RUNS.format(where), values)
    ]


def started_as(reader: sqlite3.Connection, run: str) -> str | None:
    """The release that a run was started with, empty for none; None for one that nobody started.
    Raises LedgerUnavailable."""
    for row in rows(reader, "SELECT release FROM run WHERE name = ?", (run,)):
        return str(row["release"])
    return None


def _usual(reader: sqlite3.Connection, release: str) -> tuple[str, ...]:
    """What most runs of a release ask; nothing where no set of models is that of most, or one run
    alone is known."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    if release:
        for row in rows(reader, _OF_RELEASE, (release, COMPARED_MAX)):
            found[row["run"]].add(row["model"])
    return _most(found.values()) if len(found) > 1 else ()


def _most(sets: Iterable[set[str]]) -> tuple[str, ...]:
    counted: Sequence[tuple[frozenset[str], int]] = Counter(map(frozenset, sets)).most_common(2)
    if len(counted) == 2 and counted[0][1] == counted[1][1]:
        return ()
    return tuple(sorted(counted[0][0]))
