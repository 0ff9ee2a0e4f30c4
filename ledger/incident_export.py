"""The rows that a replay of an incident needs, taken out of the record; exported_rows.py puts them
into a ledger in memory again.

They hold no bodies. Digests of bodies are keyed, so that nobody can guess what they were made of;
what people wrote and who they are is left out. Equal things stay equal. What is made of the rows
is not known here.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from ledger.containment import snapshot
from ledger.cords import CordName, name
from ledger.errors import LedgerError
from ledger.filters import parse
from ledger.incident_scope import from_us, terms
from ledger.open_incidents import Incident
from ledger.queries import first_decided, rows, within
from ledger.replaying import COLUMNS, pull_of
from ledger.sqlite import sqlite3
from ledger.states import EventType
from policies.call import Effect
from policies.policy import DRILL_TENANT, UNDO_RUN
from policies.verdict import Action, Scope

CALLS_MAX = 5_000  # of an incident: what comes later is more of the same
WARM_UP_CALLS_MAX = 2_000  # of its runs, before it: the newest
WARM_UP_SECONDS_MAX = 86_400
HEALTHY_RUNS_MAX = 20  # beside it
HEALTHY_CALLS_MAX = 200  # of each
LOOKED_AT_MAX = 20_000  # calls of a tool, among which healthy runs are looked for
TOOLS_MAX = 10  # by which healthy runs are found

Line = dict[str, Any]
"""A row as JSON can hold it: only what is not empty, bytes as hexadecimal digits."""

_DIGESTS = frozenset({"request_digest", "response_digest"})
_OURS = ("ceiling:", "detector:", "policy:")
_SOMEBODY = "operator"
_DRILL = "drill"  # the actor of cords that contain nothing

_OF_CALLS = (
    *(EventType.INTENT, EventType.REFUSED, EventType.REPLAYED, EventType.HELD),
    *(EventType.OUTCOME, EventType.HOLD_APPROVED),
)
_OF_RUNS = (EventType.SPAWNED, EventType.PROGRESSED, EventType.ENDED)
_CORDS = (EventType.PULLED, EventType.NARROWED, EventType.RELEASED)
_ENDS = frozenset({EventType.RELEASED.value, EventType.NARROWED.value})


@dataclass(frozen=True, slots=True)
class Exported:
    """`rows` begin with the warm-up; `first` is the number of the first one of the incident itself,
    `before` the digest of the policy that judged it. Calls of `tools` went wrong, those of runs of
    `releases`; empty: whatever their release. `policies` are the texts of all that judged, by
    digest. `left_out`: how many of its calls came too late to be taken."""

    rows: tuple[Line, ...]
    healthy: tuple[Line, ...]
    policies: Mapping[str, str]
    first: int
    before: str
    tools: tuple[str, ...]
    releases: tuple[str, ...]
    calls: int
    left_out: int
    healthy_runs: int


def exported(
    reader: sqlite3.Connection,
    incident: Incident,
    key: bytes,
    tools: tuple[str, ...] = (),
    releases: tuple[str, ...] = (),
) -> Exported:
    """`key` is `redact.redact_key` of the vault's key; a person may say which `tools` and
    `releases` it went wrong with. The rows end where people let go on what was stopped for it.
    Raises LedgerError where no such call of the incident is in the record, and for an incident
    that only counts what was too much: its calls are those of healthy runs as well."""
    if incident.mixed:
        raise LedgerError(
            f"incident {incident.id} {incident.mixed}, so "
            "that healthy runs are part of it; open one over a run or a tool that went wrong: "
            'pullcord incident open --run R --since WHEN --reason "..." (or --tool NAME '
            "--tenant T), and export that"
        )
    with snapshot(reader):
        return _Export(reader, incident, key).made(tools, releases)


class _Export:
    def __init__(self, reader: sqlite3.Connection, incident: Incident, key: bytes) -> None:
        self._reader = reader
        self._incident = incident
        self._key = key
        known = rows(reader, "SELECT id, digest, text FROM policy", ())
        self._policies = {row["id"]: (str(row["digest"]), str(row["text"])) for row in known}
        self._start_us = from_us(incident)
        warm_us = self._start_us - WARM_UP_SECONDS_MAX * 1_000_000
        self._oldest = first_decided(reader, warm_us)
        self._ill: frozenset[str] | None = None

    def made(self, tools: tuple[str, ...], releases: tuple[str, ...]) -> Exported:
        incident = self._incident
        calls, left_out = self._calls_of_it()
        first = min(call["seq"] for call in calls)
        end = self._end(first, _names_of(calls) | _names(incident))
        if end is not None:
            calls = [call for call in calls if call["seq"] < end] or calls[:1]
        warm = self._before_it(first)
        told = self._rows_of(warm + calls, self._oldest, end)
        told += self._cords(told, first, end)
        told.sort(key=lambda row: int(row["seq"]))
        releases = self._releases(calls, releases)
        bad = [call for call in calls if not releases or call["release"] in releases]
        tools = self._tools(bad, tools)
        healthy, healthy_runs = self._healthy(bad, tools, end)
        used = {row["policy"] for row in (*told, *healthy) if row["policy"] is not None}
        began = next(row for row in told if row["seq"] == first)
        return Exported(
            tuple(map(self._line, told)),
            tuple(map(self._line, healthy)),
            dict(self._policies[one] for one in sorted(used)),
            first,
            self._policies[began["policy"]][0],
            tools,
            releases,
            len(calls),
            left_out,
            healthy_runs,
        )

    # The incident's own calls, and those before them

    def _calls_of_it(self) -> tuple[list[Line], int]:
        where, values = within(self._reader, parse(terms(self._incident), 0))
        found = self._calls(where, values, "ORDER BY seq", CALLS_MAX + 1)
        if not found:
            raise LedgerError(
                f"no call of incident {self._incident.id} is in the ledger, so that there is "
                "nothing to make a test of; were they pruned?"
            )
        if len(found) <= CALLS_MAX:
            return found, 0
        counted = rows(self._reader, f"SELECT count(*) AS n FROM calls WHERE {where}", values)  # noqa: S608 - bound
        return found[:CALLS_MAX], int(next(counted)["n"]) - CALLS_MAX

    def _before_it(self, first: int) -> list[Line]:
        """The same runs, tool, release or tenant in the time before."""
        same = [one for one in terms(self._incident) if not one.startswith(("since:", "until:"))]
        chosen = parse(same, 0)
        where, values = within(self._reader, chosen)
        # A lead to few rows is followed, whatever else could be; `+` keeps SQLite from the range.
        seq = "+seq" if any(lead.is_few for lead in chosen.leads) else "seq"
        where += f" AND {seq} >= ? AND {seq} < ?"
        values += [self._oldest, first]
        return self._calls(where, values, "ORDER BY seq DESC", WARM_UP_CALLS_MAX)[::-1]

    def _calls(self, where: str, values: list[Any], order: str, limit: int) -> list[Line]:
        statement = (
            "SELECT id, seq, tool, effect, run, root, parent, tenant, release FROM calls "  # noqa: S608
            f"WHERE {where} AND coalesce(tenant, '') <> ? AND coalesce(run, '') <> ? "
            f"{order} LIMIT ?"
        )
        return list(rows(self._reader, statement, [*values, DRILL_TENANT, UNDO_RUN, limit]))

    def _rows_of(self, calls: list[Line], oldest: int, end: int | None) -> list[Line]:
        """All rows of these calls, and what their runs did beside them."""
        found = {row["seq"]: row for row in self._events("call_id", calls, "id", _OF_CALLS)}
        last = end or max(found, default=0) + 1
        for column, of in (("run", "run"), ("root", "root")):
            for row in self._events(column, calls, of, _OF_RUNS):
                if oldest <= row["seq"] < last:
                    found[row["seq"]] = row
        return [found[seq] for seq in sorted(found)]

    def _events(
        self, column: str, calls: Iterable[Line], of: str, kinds: Iterable[EventType]
    ) -> Iterator[Line]:
        """Rows of these kinds whose column is what the calls have there."""
        names = sorted({call[of] for call in calls if call[of]})
        # An index leads to each of them; that of roots holds only runs that others started.
        only = " AND root IS NOT NULL AND root <> run" if column == "root" else ""
        statement = (
            f"SELECT {', '.join(COLUMNS)} FROM event "  # noqa: S608 - names of ours
            f"WHERE {column} IN (SELECT value FROM json_each(?)) AND {column} IS NOT NULL{only} "
            "AND +type IN (SELECT value FROM json_each(?))"
        )
        values = (orjson.dumps(names).decode(), orjson.dumps([str(one) for one in kinds]).decode())
        yield from rows(self._reader, statement, values)

    def _releases(self, calls: list[Line], wanted: tuple[str, ...]) -> tuple[str, ...]:
        """Where many runs are part of it: as a person says, else those of what convinced."""
        found, incident = set(wanted), self._incident
        used = {call["release"] for call in calls if call["release"]}
        _check("release", found, used)
        if not found and incident.kind not in (Scope.RUN, Scope.RELEASE):
            convinced = {*incident.evidence, incident.first_call}
            found = {call["release"] for call in calls if call["id"] in convinced} & used
        return tuple(sorted(found))

    def _tools(self, calls: list[Line], wanted: tuple[str, ...]) -> tuple[str, ...]:
        """As a person says; else those of the calls that convinced; else those that were used
        most, of writes, else of model calls, else of reads."""
        incident, used = self._incident, {call["tool"] for call in calls}
        _check("tool", set(wanted), used)
        convinced = {*incident.evidence, incident.first_call}
        found = set(wanted) or {call["tool"] for call in calls if call["id"] in convinced}
        if not found and incident.kind == Scope.TOOL:
            found = {incident.name} & used
        for effect in (Effect.WRITE, Effect.MODEL, Effect.READ):
            if not found:
                counts = Counter(call["tool"] for call in calls if call["effect"] == effect)
                most = max(counts.values(), default=0)
                found = {tool for tool, count in counts.items() if 2 * count >= most}
        return tuple(sorted(found))

    # Cords

    def _end(self, first: int, names: frozenset[str]) -> int | None:
        """The row by which somebody let go on what was stopped since it began; None for none."""
        pulled = set[CordName]()
        for row in self._cord_rows(first):
            pull = pull_of(tuple(row[column] for column in COLUMNS))
            if pull is None or not _is_over(pull.names.values(), names):
                continue
            if row["type"] in _ENDS and name(pull) in pulled:
                return int(row["seq"])
            pulled.add(name(pull))
        return None

    def _cords(self, told: list[Line], first: int, end: int | None) -> list[Line]:
        """Those that stood over these calls when the first of them came, and those that were moved
        before the incident began. Of later ones only what the policy itself pulled: what people
        stopped by hand, no policy has stopped."""
        names, warm = _names_of(told), min(int(row["seq"]) for row in told)
        stand: dict[CordName, Line] = {}
        moved = []
        for row in self._cord_rows(0):
            pull = pull_of(tuple(row[column] for column in COLUMNS))
            if pull is None or not _is_over(pull.names.values(), names):
                continue
            if row["seq"] < warm:
                stand.pop(name(pull), None)
                if row["type"] != EventType.RELEASED:
                    stand[name(pull)] = row
            elif end is not None and row["seq"] >= end:
                break
            elif row["seq"] < first or pull.actor.startswith(_OURS):
                moved.append(row)
        return [*stand.values(), *moved]

    def _cord_rows(self, since: int) -> Iterator[Line]:
        statement = (
            f"SELECT {', '.join(COLUMNS)} FROM event "  # noqa: S608 - names of ours
            f"WHERE actor IS NOT NULL AND actor <> '{_DRILL}' "
            "AND type IN (SELECT value FROM json_each(?)) AND seq >= ? ORDER BY seq"
        )
        kinds = orjson.dumps([str(one) for one in _CORDS]).decode()
        return rows(self._reader, statement, (kinds, since))

    # Healthy runs

    def _healthy(
        self, calls: list[Line], tools: tuple[str, ...], end: int | None
    ) -> tuple[list[Line], int]:
        """Runs that used the same tools at that time, that the incident did not touch and of which
        no call was ever refused: those of its tenant first."""
        touched = {call[column] for call in calls for column in ("run", "root", "parent")}
        last = end or max(int(call["seq"]) for call in calls) + 1
        found, count = list[Line](), 0
        for run, tenant in self._beside(tools, last):
            if count == HEALTHY_RUNS_MAX:
                break
            if run in touched or self._is_ill(run):
                continue
            where = "run = ? AND +tenant = ? AND +seq >= ? AND +seq < ?"
            some = self._calls(
                where, [run, tenant, self._oldest, last], "ORDER BY seq", HEALTHY_CALLS_MAX
            )
            roots = {call["root"] for call in some}
            if touched.isdisjoint(roots) and not any(map(self._is_named, roots)):
                found += self._rows_of(some, self._oldest, last)
                count += 1
        once = {row["seq"]: row for row in found}
        return [once[seq] for seq in sorted(once)], count

    def _beside(self, tools: tuple[str, ...], last: int) -> list[tuple[str, str]]:
        statement = (
            "SELECT run, tenant, min(seq) AS seq FROM (SELECT run, tenant, seq FROM event "
            "INDEXED BY event_tool WHERE tool = ? AND seq >= ? AND seq < ? "
            "AND type = 'call.intent' ORDER BY seq DESC LIMIT ?) "
            "WHERE run <> ? AND tenant <> ? GROUP BY run, tenant"
        )
        found: dict[tuple[str, str], int] = {}
        for tool in tools[:TOOLS_MAX]:
            values = (tool, self._oldest, last, LOOKED_AT_MAX, UNDO_RUN, DRILL_TENANT)
            for row in rows(self._reader, statement, values):
                one = (str(row["run"]), str(row["tenant"]))
                found[one] = min(found.get(one, last), row["seq"])
        mine = self._incident.tenant
        return sorted(found, key=lambda one: (one[1] != mine, found[one]))

    def _is_named(self, run: str | None) -> bool:
        """Whether an incident names it, open or closed."""
        if self._ill is None:
            known = rows(self._reader, "SELECT kind, name, run, root, runs FROM incident", ())
            self._ill = frozenset(
                one
                for row in known
                for one in (
                    *(row["run"], row["root"], row["name"] if row["kind"] == "run" else ""),
                    *orjson.loads(row["runs"]),
                )
            )
        return run in self._ill

    def _is_ill(self, run: str) -> bool:
        if self._is_named(run):
            return True
        statement = "SELECT 1 FROM event WHERE run = ? AND decision IN (?, ?)"
        values = (run, Action.REFUSE, Action.HOLD)
        return next(rows(self._reader, statement, values), None) is not None

    # As it is told

    def _line(self, row: Line) -> Line:
        told = {column: row[column] for column in COLUMNS if row[column] is not None}
        for column in _DIGESTS & told.keys():
            told[column] = self._keyed(told[column], 32)
        if "key" in told:  # the beginning of a digest, too
            told["key"] = self._keyed(told["key"].encode(), 8)
        if "policy" in told:
            told["policy"] = self._policies[told["policy"]][0]
        if "actor" in told and not told["actor"].startswith(_OURS):
            told["actor"] = _SOMEBODY
        if told["type"] != EventType.NARROWED:
            told.pop("detail", None)
        return told

    def _keyed(self, digest: bytes, size: int) -> str:
        return hashlib.blake2b(digest, key=self._key, digest_size=size).hexdigest()


def _check(what: str, wanted: set[str], used: set[str]) -> None:
    unknown = sorted(wanted - used)
    if unknown:
        there = ", ".join(sorted(used)) or "none"
        raise LedgerError(f"no call of this incident has the {what} {unknown[0]}; there: {there}")


def _names_of(calls: Iterable[Line]) -> frozenset[str]:
    """All that a cord over these calls may name."""
    columns = ("run", "root", "parent", "tenant", "release", "tool")
    return frozenset(call[column] for call in calls for column in columns if call[column])


def _names(incident: Incident) -> frozenset[str]:
    return frozenset({incident.name, incident.run, incident.root} - {""})


def _is_over(subjects: Iterable[str], names: frozenset[str]) -> bool:
    """Whether a cord of these subjects, none for the global one, may stand over such calls."""
    return names.issuperset(subjects)
