"""What happened in an incident, in order, and when it turned: from the record only, by its indexes.

Which calls belong to it is defined elsewhere (incident_scope.py), and so are its cords
(incident_reads.py).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ledger import incident_cords, incident_figures, queries
from ledger.filters import parse
from ledger.incident_calls import DECISIONS
from ledger.incident_reads import Pulled, pulled_over
from ledger.incident_scope import from_us, terms
from ledger.open_incidents import Incident
from ledger.queries import DISORDER_US, Row, first_decided, rows
from ledger.sqlite import sqlite3
from ledger.states import EventType
from policies.verdict import Action, Scope

COLUMNS = ("at", "seq", "type", "id", "run", "tool", "rule", "actor", "detail")
"""What each row of a timeline has. `id` is of a call; `detail` says it in words."""

_AT = (
    "strftime('%Y-%m-%dT%H:%M:%S', at_us / 1000000, 'unixepoch') "
    "|| printf('.%03dZ', at_us / 1000 % 1000) AS at"
)
_EVENT = f"SELECT {_AT}, seq, type, call_id AS id, run, tool, rule, actor, detail FROM event"  # noqa: S608
_CALL = (
    "SELECT at, seq, id, run, tool, rule, method, host, path, effect, decision, reason, state, "
    "status FROM calls"
)
_TYPES: Mapping[str, EventType] = {
    Action.ALLOW: EventType.INTENT,
    Action.REFUSE: EventType.REFUSED,
    Action.REPLAY: EventType.REPLAYED,
    Action.HOLD: EventType.HELD,
}
# What people do besides pulling cords.
_ACTS = (
    *(EventType.REVOKED, EventType.ADJUSTED, EventType.RESOLVED, EventType.VERIFIED),
    *(EventType.HOLD_APPROVED, EventType.HOLD_REJECTED),
)


@dataclass(frozen=True, slots=True)
class Milestones:
    """When an incident turned, UTC microseconds; None for what has not come, or is not known.

    `first_bad_us`: the first call that belongs to it, where it is known since when it went wrong;
    else the one that first convinced a detector.
    `first_cord_us`: its first cord was pulled; `contained_us`: the one behind which nothing of it
    was let through any more (incident_cords.py); `recovered_us`: the last of its cords was
    released, or let a release pass. Where one did, a release that stays stopped does not count.
    """

    first_bad_us: int | None
    detected_us: int | None
    first_cord_us: int | None
    contained_us: int | None
    recovered_us: int | None
    closed_us: int | None


def milestones(reader: sqlite3.Connection, incident: Incident) -> Milestones:
    """Raises LedgerUnavailable."""
    cords = pulled_over(reader, incident)
    first_bad = incident_figures.first_bad(reader, incident)
    stood = incident_cords.stood(cords)
    contained = incident_cords.containment(reader, incident, stood)
    return Milestones(
        first_bad_us=first_bad.at_us if first_bad else None,
        detected_us=_detected_us(reader, incident),
        first_cord_us=stood[0].pull.at_us if stood else None,
        contained_us=contained.cord.pull.at_us if contained and contained.is_whole else None,
        recovered_us=_recovered_us(cords),
        closed_us=incident.closed_us,
    )


def _recovered_us(cords: Sequence[Pulled]) -> int | None:
    """A cord that was pulled again while it stood is pulled whole again."""
    if any(one.narrowed_us is not None for one in cords):
        cords = [one for one in cords if not one.is_of_release]
    found = [one.resumed_us for one in cords]
    resumed = [at_us for at_us in found if at_us is not None]
    return max(resumed) if resumed and len(resumed) == len(found) else None


def _detected_us(reader: sqlite3.Connection, incident: Incident) -> int:
    if incident.opened_by:
        return incident.opened_us
    query = "SELECT at_us FROM event WHERE incident = ? AND type IN (?, ?) ORDER BY seq LIMIT 1"
    kinds = (EventType.DETECTOR_ALERTED, EventType.DETECTOR_TRIPPED)
    found = next(rows(reader, query, (incident.id, *kinds)), None)
    return incident.opened_us if found is None else int(found["at_us"])


# ---------------------------------------------------------------------------------- the timeline


def timeline(reader: sqlite3.Connection, incident: Incident, limit: int) -> list[Row]:
    """The newest `limit` rows of its story, the oldest of them first: its own rows of the record,
    cords and acts of people over it, policies that came into force, its first and its last call,
    each write, and the refusals, one row for each reason. Raises LedgerUnavailable."""
    parts = (
        _refusals(reader, incident),
        _calls(reader, incident, limit),
        _acts(reader, incident, limit),
        _cords(reader, pulled_over(reader, incident)),
        rows(
            reader, f"{_EVENT} WHERE incident = ? ORDER BY seq DESC LIMIT ?", (incident.id, limit)
        ),
    )
    found = {row["seq"]: row for part in parts for row in part}
    newest = sorted(found)[-limit:] if limit > 0 else []
    return [{name: found[seq][name] for name in COLUMNS} for seq in newest]


def _within(
    reader: sqlite3.Connection, incident: Incident, *more: str
) -> tuple[str, list[str | int]]:
    """Which of its calls, as a condition; the times among its terms need no clock."""
    return queries.within(reader, parse([*terms(incident), *more], 0))


def _calls(reader: sqlite3.Connection, incident: Incident, limit: int) -> Iterable[Row]:
    """Each write, the last call, the first."""
    where, values = _within(reader, incident, "effect:write", "decision:allow")
    query = f"{_CALL} WHERE {where} ORDER BY seq DESC LIMIT ?"
    found = {row["seq"]: _told(row) for row in rows(reader, query, [*values, limit])}
    where, values = _within(reader, incident)
    for which, order in (("last", "DESC"), ("first", "ASC")):
        query = f"{_CALL} WHERE {where} ORDER BY seq {order} LIMIT 1"
        for row in rows(reader, query, values):
            found[row["seq"]] = _told(row, f"the {which} call: ")
    return found.values()


def _told(row: Row, which: str = "") -> Row:
    status = "" if row["status"] is None else f", {row['status']}"
    why = f", {row['reason']}" if row["decision"] == Action.REFUSE else ""
    what = f"{row['effect']} {row['method']} {row['host']}{row['path']}"
    detail = f"{which}{what}: {row['state']}{status}{why}"
    return {**row, "type": _TYPES[row["decision"]].value, "actor": None, "detail": detail}


def _refusals(reader: sqlite3.Connection, incident: Incident) -> Iterator[Row]:
    """Each reason where its first one stands."""
    where, values = _within(reader, incident, "decision:refuse")
    query = (
        "SELECT reason, count(*) AS calls, min(seq) AS first, max(at_us) AS last_us "  # noqa: S608
        f"FROM ({DECISIONS}) WHERE {where} GROUP BY reason"
    )
    for one in list(rows(reader, query, values)):
        for row in rows(reader, f"{_EVENT} WHERE seq = ?", (one["first"],)):
            until = f" until {_moment(one['last_us'])}" if one["calls"] > 1 else ""
            detail = f"{one['calls']} refused, {one['reason']}{until}"
            yield {**row, "actor": None, "detail": detail}


def _cords(reader: sqlite3.Connection, cords: Sequence[Pulled]) -> Iterator[Row]:
    """Pulled, pulled again, narrowed, released: each cord up to its end."""
    seqs = {each for one in cords for each in (one.seq, one.released_seq) if each is not None}
    for seq in sorted(seqs):
        yield from rows(reader, f"{_EVENT} WHERE seq = ?", (seq,))
    moved = f"{_EVENT} WHERE actor IS NOT NULL AND type = ? AND rule = ? AND seq > ? AND seq < ?"
    for one in cords:
        end = 2**62 if one.released_seq is None else one.released_seq
        for kind in (EventType.NARROWED, EventType.PULLED_AGAIN):
            yield from rows(reader, moved, (kind, one.rule, one.seq, end))


def _acts(reader: sqlite3.Connection, incident: Incident, limit: int) -> Iterator[Row]:
    """What people did with its runs, its tool, its tenant; policies that came into force."""
    end_us = 2**62 if incident.closed_us is None else incident.closed_us
    values = {
        "first": first_decided(reader, from_us(incident) - DISORDER_US),
        "from_us": from_us(incident),
        "end_us": end_us,
        "name": incident.name,
        "tenant": incident.tenant,
        "limit": limit,
    }
    during = "actor IS NOT NULL AND seq >= :first AND at_us BETWEEN :from_us AND :end_us"
    yield from rows(
        reader,
        f"{_EVENT} WHERE {during} AND type = '{EventType.POLICY}' ORDER BY seq DESC LIMIT :limit",
        values,
    )
    kinds = ", ".join(f"'{kind}'" for kind in _ACTS)
    yield from rows(
        reader,
        f"{_EVENT} e WHERE {during} AND type IN ({kinds}) AND incident IS NULL "
        f"AND :tenant IN ('', coalesce(tenant, :tenant)) AND {_OVER[Scope(incident.kind)]} "
        "ORDER BY seq DESC LIMIT :limit",
        values,
    )


_OVER = {
    Scope.RUN: (
        "(run = :name OR EXISTS (SELECT 1 FROM run r, json_each(r.ancestors) a "
        "WHERE r.name = e.run AND a.value = :name) OR EXISTS (SELECT 1 FROM event d "
        "INDEXED BY event_run WHERE d.run = e.run AND d.root = :name))"
    ),
    Scope.TOOL: "tool = :name",
    Scope.RELEASE: (
        "(release = :name OR EXISTS (SELECT 1 FROM event d "
        "WHERE d.call_id = e.call_id AND d.release = :name))"
    ),
    Scope.TENANT: "tenant = :name",
    Scope.GLOBAL: "1",
}


def _moment(at_us: int) -> str:
    at = datetime.fromtimestamp(at_us // 1_000 / 1_000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
