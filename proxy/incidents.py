"""Incidents for people: as JSON, with what to type next. Read from the record on connections that
cannot write, so that it works with every proxy dead; closed inside a transaction of whoever owns
the store.
"""

import shlex
from typing import Any

from ledger import incident_reads, queries
from ledger.events import DETECTOR
from ledger.open_incidents import OPEN, Incident
from ledger.sqlite import sqlite3
from ledger.store import Store
from policies.verdict import Pull
from proxy import operations

SHOWN_MAX = 5  # on the screen of a night

Answer = dict[str, Any]

# What stops the thing that an incident is about, where no detector has.
_STOPS = {
    "run": "halt run",
    "tool": "freeze tool",
    "release": "halt release",
    "tenant": "halt tenant",
}
_CALLS = {"run": "root", "tool": "tool", "release": "release", "tenant": "tenant"}


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


def shown(reader: sqlite3.Connection, start: str) -> Answer:
    """All of one: its rows of the record, the calls that convinced, what is pulled for it and
    stands, and what to do next. Raises as `named` does."""
    incident = named(reader, start)
    told = incident_reads.rows_of(reader, incident)
    pulled_for_it = incident_reads.cords_of(reader, incident)
    standing = [cord for cord in queries.pulls(reader) if cord.rule in pulled_for_it]
    return {
        **as_json(incident),
        "pulled": [operations.pull_as_json(cord) for cord in standing],
        "evidence": incident_reads.calls_of(reader, incident),
        "events": told,
        "next": _next(incident, standing),
    }


def closed(store: Store, incident_id: str, *, reason: str, actor: str, at_us: int) -> Answer:
    """Close one, by its whole id. Raises NotFound, OperationError, and LedgerError for one that is
    closed already."""
    operations.check_text("the reason", reason)
    if not any(each.isprintable() and not each.isspace() for each in reason):
        raise operations.OperationError("closing needs a reason that can be read: --reason TEXT")
    found = store.close_incident(incident_id, reason=reason, actor=actor, at_us=at_us)
    if found is None:
        raise operations.NotFound(f"no incident {incident_id!r}")
    about = {found.run, found.root, found.name} - {""}
    standing = [
        cord
        for cord in store.pulls.values()
        if cord.rule == found.rule
        or (cord.actor.startswith(DETECTOR) and not about.isdisjoint(cord.names.values()))
    ]
    return {**as_json(found), "pulled": [operations.pull_as_json(cord) for cord in standing]}


def as_json(incident: Incident) -> Answer:
    def moment(at_us: int | None) -> str | None:
        return None if at_us is None else operations.timestamp(at_us)

    return {
        "id": incident.id,
        "state": incident.state,
        "severity": incident.severity,
        "kind": incident.kind,
        "name": incident.name,
        "tenant": incident.tenant or None,
        "detector": incident.detector,
        "why": incident.why,
        "cord": incident.rule or None,
        "opened": moment(incident.opened_us),
        "updated": moment(incident.updated_us),
        "raised": moment(incident.raised_us),
        "closed": moment(incident.closed_us),
        "closed_by": incident.closed_by or None,
        "closed_because": incident.closed_because or None,
        "run": incident.run or None,
        "root": incident.root or None,
        "tool": incident.tool or None,
        "release": incident.release or None,
        "agent": incident.agent or None,
        "findings": incident.findings,
        "calls": list(incident.evidence),
    }


def _next(incident: Incident, standing: list[Pull]) -> list[Answer]:
    """What a person may type, the safest first."""
    steps = []
    if incident.state == OPEN and not standing and incident.kind in _STOPS:
        words = [*_STOPS[incident.kind].split(), incident.name]
        steps.append(("nothing is stopped; stop it", f"pullcord {shlex.join(words)}"))
    steps.append(("what is pulled, what is on its way", "pullcord status"))
    if incident.kind in _CALLS:
        about = f"{_CALLS[incident.kind]}:{incident.name}"
        steps.append(("its calls", f"pullcord {shlex.join(['ledger', 'query', about])}"))
    steps += [("when it is mended", operations.undo_command(cord)) for cord in standing]
    if incident.state == OPEN:
        steps.append(("when it is over", f'pullcord incident close {incident.id} --reason "..."'))
    return [{"what": what, "command": command} for what, command in steps]
