"""Incidents for people: as JSON, with what to type next. Read from the record on connections that
cannot write, so that it works with every proxy dead. What people do about them is in
incident_acts.py.
"""

import shlex
from pathlib import Path
from typing import Any

from ledger import incident_reads, incident_scope, queries
from ledger.incident_acts import PUBLIC, wants_proof
from ledger.incident_timeline import Milestones, milestones, timeline
from ledger.open_incidents import OPEN, Incident
from ledger.queries import Row
from ledger.sqlite import sqlite3
from ledger.states import EventType
from policies.verdict import Pull
from proxy import operations

SHOWN_MAX = 5  # on the screen of a night

Answer = dict[str, Any]


def listed(reader: sqlite3.Connection, *, closed: bool = False) -> Answer:
    """The open ones, or all of them, the newest first."""
    found = incident_reads.listed(reader, incident_reads.LISTED_MAX, closed=closed)
    return {"incidents": [as_json(one) for one in found]}


def on_screen(reader: sqlite3.Connection) -> Answer:
    """How many are open, and the newest of them; `released` where no cord that was pulled for it
    stands any more."""
    newest = incident_reads.listed(reader, SHOWN_MAX)
    open_ = len(newest) if len(newest) < SHOWN_MAX else incident_reads.count_open(reader)
    standing = {cord.rule for cord in queries.pulls(reader)} if newest else set()
    told = []
    for one in newest:
        cords = incident_reads.cords_of(reader, one)
        told.append({**as_json(one), "released": bool(cords) and cords.isdisjoint(standing)})
    return {"open": open_, "newest": told}


def named(reader: sqlite3.Connection, start: str) -> Incident:
    """The incident whose id begins so. Raises NotFound, OperationError, and LedgerError where
    several do."""
    if not start or set(start.lower()) - set("0123456789abcdef-"):
        raise operations.OperationError(f"{start!r} is no id of an incident")
    found = incident_reads.named(reader, start)
    if found is None:
        raise operations.NotFound(
            f"no incident begins with {start!r}; pullcord incident list --all shows them all"
        )
    return found


def shown(reader: sqlite3.Connection, start: str, config: Path | None = None) -> Answer:
    """All of one: its rows of the record, its notes, when it turned, what happened in it (the
    newest), the calls that convinced, what is pulled over it and stands, and what to do next.
    Raises as `named` does. The runbook is the one in `config`."""
    from proxy.runbook import next_action  # its file needs what is slow to import

    incident = named(reader, start)
    told = incident_reads.rows_of(reader, incident)
    pulled_over_it = incident_reads.cords_of(reader, incident)
    standing = [cord for cord in queries.pulls(reader) if cord.rule in pulled_over_it]
    return {
        **as_json(incident),
        "pulled": [operations.pull_as_json(cord) for cord in standing],
        "milestones": turned(milestones(reader, incident)),
        "notes": _notes(told),
        "evidence": incident_reads.calls_of(reader, incident),
        "events": told,
        "timeline": timeline(reader, incident, incident_reads.ROWS_MAX),
        "next": _next(incident, standing, next_action(reader, incident, config)),
    }


def _notes(told: list[Row]) -> list[Answer]:
    noted = [row for row in told if row["type"] == EventType.INCIDENT_NOTED]
    return [
        {
            "at": row["at"],
            "actor": row["actor"],
            "text": row["detail"],
            "public": row["rule"] == PUBLIC,
        }
        for row in noted
    ]


def turned(when: Milestones) -> Answer:
    """Each time, and how long after the first bad call it came, in seconds."""

    def seconds(at_us: int | None) -> float | None:
        if at_us is None or when.first_bad_us is None:
            return None
        return round((at_us - when.first_bad_us) / 1e6, 3)

    return {
        "first_bad": _moment(when.first_bad_us),
        "detected": _moment(when.detected_us),
        "first_cord": _moment(when.first_cord_us),
        "contained": _moment(when.contained_us),
        "recovered": _moment(when.recovered_us),
        "closed": _moment(when.closed_us),
        "detect_seconds": seconds(when.detected_us),
        "first_cord_seconds": seconds(when.first_cord_us),
        "contain_seconds": seconds(when.contained_us),
        "recover_seconds": seconds(when.recovered_us),
    }


def _moment(at_us: int | None) -> str | None:
    return None if at_us is None else operations.timestamp(at_us)


def as_json(incident: Incident) -> Answer:
    return {
        "id": incident.id,
        "state": incident.state,
        "severity": incident.severity,
        "kind": incident.kind,
        "name": incident.name,
        "tenant": incident.tenant or None,
        "detector": incident.detector or None,
        "opened_by": incident.opened_by or None,
        "why": incident.why,
        "cord": incident.rule or None,
        "opened": _moment(incident.opened_us),
        "since": _moment(incident.since_us),
        "updated": _moment(incident.updated_us),
        "raised": _moment(incident.raised_us),
        "owner": incident.owner or None,
        "acked": _moment(incident.acked_us),
        "acked_by": incident.acked_by or None,
        "closed": _moment(incident.closed_us),
        "closed_by": incident.closed_by or None,
        "closed_because": incident.closed_because or None,
        "run": incident.run or None,
        "root": incident.root or None,
        "tool": incident.tool or None,
        "release": incident.release or None,
        "agent": incident.agent or None,
        "proof": incident.proof or None,
        "waived": incident.waived or None,
        "findings": incident.findings,
        "first_call": incident.first_call or None,
        "calls": list(incident.evidence),
    }


def _next(incident: Incident, standing: list[Pull], action: Answer | None) -> list[Answer]:
    """What a person may type, the safest first: what the runbook says of it, then where to look."""
    steps = []
    if action is not None and incident.state == OPEN:
        steps.append((action["what"], action["command"]))
    steps.append(("all that is to be done", f"pullcord runbook {incident.id}"))
    if action is None or action["command"] != "pullcord status":
        steps.append(("what is pulled, what is on its way", "pullcord status"))
    calls = shlex.join(["ledger", "query", *incident_scope.terms(incident)])
    steps.append(("its calls", f"pullcord {calls}"))
    steps += [("when it is mended", operations.undo_command(cord)) for cord in standing]
    if incident.state == OPEN and wants_proof(incident):
        test = f"pullcord incident export-test {incident.id} --out tests/incidents/NAME --prove"
        steps.append(("so that it can be closed", test))
    elif incident.state == OPEN:
        steps.append(("when it is over", f'pullcord incident close {incident.id} --reason "..."'))
    return [{"what": what, "command": command} for what, command in steps]
