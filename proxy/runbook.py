"""The runbook for one incident, as far as it can be told at once: which book counts, what is
recorded of its steps, what stands over the incident, and the next safest action.

Nothing here counts calls: `status` asks it each time. All of a walk is walking.py's.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ledger import incident_reads, queries
from ledger.open_incidents import CLOSED, Incident
from ledger.queries import Row
from ledger.sqlite import sqlite3
from ledger.states import EventType
from policies import load_runbook, runbook
from policies.document import MistakenFileError
from policies.load import text_of
from policies.load_runbook import Checked
from policies.policy import Policy
from policies.runbook import Book, Told, Value
from policies.verdict import Level, Pull, Scope

FILE = "runbook.yaml"
_SHIPPED = Path(__file__).with_name(FILE)  # a link to the one in config/, a file where installed

Answer = dict[str, Any]


def book(config: Path | None, checked: Checked = lambda _: "") -> Book:
    """The one beside the policy, and the shipped one where there is none. Raises
    MistakenFileError."""
    own = None if config is None else config / FILE
    path = own if own is not None and own.exists(follow_symlinks=False) else _SHIPPED
    return load_runbook.load(text_of(path), str(path), checked)


def usable(config: Path | None) -> tuple[Book, str]:
    """The one beside the policy, else the shipped one and what is wrong with the other."""
    try:
        return book(config), ""
    except MistakenFileError as error:
        return book(None), str(error)


def told(rows: Iterable[Row]) -> dict[str, Told]:
    """What is recorded of each step, by name, the last word of each: from rows of the record."""
    found = {}
    for row in rows:
        if row["type"] == EventType.INCIDENT_STEP:
            found[row["rule"]] = Told(row["detail"] or "", row["actor"] or "", row["at"])
    return found


def covering(incident: Incident, cords: Iterable[Pull], pulled_for_it: set[str]) -> list[Pull]:
    """The cords that stop what it is about. A throttle stops nothing, and a cord on one tool of a
    run only counts where it was pulled for the incident."""
    over = {(Scope.GLOBAL, ""), (Scope(incident.kind), incident.name)}
    if incident.tenant:
        over.add((Scope.TENANT, incident.tenant))
    if incident.kind == Scope.RUN and incident.release:
        over.add((Scope.RELEASE, incident.release))
    return [
        cord
        for cord in cords
        if cord.level is not Level.THROTTLE
        and ((cord.scope, cord.subject) in over or cord.rule in pulled_for_it)
    ]


def facts(incident: Incident, cords: Sequence[Pull], policy: Policy | None) -> dict[str, Value]:
    """What is known without a look at its calls. `cords` are those that stand over it."""
    found: dict[str, Value] = {
        "contained": bool(cords),
        "cords_standing": len(cords),
        "acked": incident.acked_us is not None and incident.acked_us >= incident.told_since_us,
        "closed": incident.state == CLOSED,
        "proven": bool(incident.proof),
        "waived": bool(incident.waived),
        "kind": incident.kind,
        "severity": incident.severity,
    }
    if policy is not None and incident.release:
        found["release"] = release_word([incident.release], policy)
    return found


def release_word(releases: Sequence[str], policy: Policy) -> str:
    """Whether all of them are known to be good."""
    if not releases:
        return "none"
    return "known_good" if policy.known_good.issuperset(releases) else "other"


def places(incident: Incident) -> dict[str, str]:
    """What can be filled into a command without a look at its calls."""
    found = {
        "incident": incident.id,
        "run": incident.root or incident.run,
        "tool": incident.tool,
        "tenant": incident.tenant,
        "release": incident.release,
        "call": incident.first_call,
    }
    return {**found, incident.kind: incident.name}


def standing_over(
    reader: sqlite3.Connection, incident: Incident, policy: Policy | None = None
) -> list[Pull]:
    """The cords that stand and stop it, those of the policy too where one is given."""
    cords = [*queries.pulls(reader), *(policy.pulls.values() if policy else ())]
    return covering(incident, cords, incident_reads.cords_of(reader, incident))


def next_action(
    reader: sqlite3.Connection, incident: Incident, config: Path | None = None
) -> Answer | None:
    """The first step that is not done: `what` it is, and the `command` to type. What hangs on its
    calls is for `pullcord runbook` to tell. None when the runbook is at its end."""
    found, wrong = usable(config)
    known = facts(incident, standing_over(reader, incident), None)
    recorded = told(incident_reads.rows_of(reader, incident))
    step = runbook.to_do(runbook.walk(found, known, recorded))
    walk = f"pullcord runbook {incident.id}"
    if wrong:
        source = wrong.partition(":")[0]
        return {"what": f"{source} cannot be used, so the shipped one counts", "command": walk}
    if step is None:
        return None
    if not step.is_certain or not step.step.run:
        return {"what": "go on with the runbook", "command": walk}
    return {"what": step.step.title, "command": runbook.command(step.step.run, places(incident))}
