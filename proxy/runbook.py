"""The runbook for one incident, as far as it can be told at once: which book counts, what is
recorded of its steps, what stands over the incident, and the next safest action.

Nothing here counts calls: `status` asks it each time. All of a walk is walking.py's.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ledger import incident_reads, queries
from ledger.open_incidents import CLOSED, MANY_RUNS, Incident
from ledger.queries import Row
from ledger.sqlite import sqlite3
from ledger.states import EventType
from policies import load_runbook, runbook
from policies.document import MistakenFileError
from policies.load import PolicyError, load_file, text_of
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


def usable(config: Path | None, checked: Checked = lambda _: "") -> tuple[Book, str]:
    """The one beside the policy, else the shipped one and what is wrong with the other."""
    try:
        return book(config, checked), ""
    except MistakenFileError as error:
        return book(None, checked), str(error)


def told(rows: Iterable[Row]) -> dict[str, Told]:
    """What is recorded of each step, by name, the last word of each: from rows of the record."""
    found = {}
    for row in rows:
        if row["type"] == EventType.INCIDENT_STEP:
            found[row["rule"]] = Told(row["detail"] or "", row["actor"] or "", row["at"])
    return found


class _Part(NamedTuple):
    """What has to be stopped: the cords that would do it, by scope and subject, each alone; and the
    release by which it calls, empty where that is not known."""

    by: frozenset[tuple[Scope, str]]
    release: str


def covering(
    incident: Incident, standing: Iterable[Pull], policy: Policy | None = None
) -> tuple[Pull, ...]:
    """The cords that stop all that it is about, of those that stand and those of the policy; none
    where any part of it may go on. Pure.

    Whoever pulled it, a cord counts for what it stands over: one on a run below the root, or on one
    tool of an incident's run, leaves the rest of the tree running. A throttle stops nothing, nor
    does a drill. One that lets the release pass by which it calls is none for it.
    """
    cords = [*standing, *(policy.pulls.values() if policy else ())]
    cords = [
        cord
        for cord in cords
        if cord.level is not Level.THROTTLE and cord.actor != incident_reads.DRILL
    ]
    found: dict[int, Pull] = {}
    for part in _parts(incident):
        over = {
            place: cord
            for place, cord in enumerate(cords)
            if (cord.scope, cord.subject) in part.by and not _passes(part.release, cord, policy)
        }
        if not over:
            return ()
        found |= over
    return tuple(found[place] for place in sorted(found))


def _parts(incident: Incident) -> list[_Part]:
    """Each of its runs, where it is about some runs of a tool; else it is one thing."""
    kind, name = Scope(incident.kind), incident.name
    wide = {(Scope.GLOBAL, "")} | ({(Scope.TENANT, incident.tenant)} if incident.tenant else set())
    release = name if kind is Scope.RELEASE else incident.release
    if kind is not Scope.GLOBAL:
        wide.add((kind, name))
    if kind is Scope.RUN:
        wide |= {(Scope.RUN, incident.root)} | _of_release(release)
    if kind is not Scope.TOOL or not incident.runs or MANY_RUNS in incident.runs:
        return [_Part(frozenset(wide - {(Scope.RUN, "")}), release)]
    return [_part(incident, run, wide) for run in incident.runs]


def _part(incident: Incident, run: str, wide: set[tuple[Scope, str]]) -> _Part:
    """A root, or all runs of a release, in an incident of a tool. Of the releases of several roots
    only that of the first call is known."""
    kind, _, name = run.partition(":")
    if name:
        return _Part(frozenset(wide | {(Scope(kind), name)}), name)
    release = incident.release if incident.runs == (run,) else ""
    own = {(Scope.RUN, run), (Scope.TOOL, f"{run}/{incident.name}")}
    return _Part(frozenset(wide | own | _of_release(release)), release)


def _of_release(release: str) -> set[tuple[Scope, str]]:
    return {(Scope.RELEASE, release)} if release else set()


def _passes(release: str, cord: Pull, policy: Policy | None) -> bool:
    """Without a policy every release that it names may be a good one."""
    good = policy is None or release in policy.known_good
    return bool(release) and release in cord.but_releases and good


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
) -> tuple[Pull, ...]:
    """The cords that stand and stop it, those of the policy too where one is given."""
    return covering(incident, queries.pulls(reader), policy)


def next_action(
    reader: sqlite3.Connection, incident: Incident, config: Path | None = None
) -> Answer | None:
    """The first step that is not done: `what` it is, and the `command` to type. What hangs on its
    calls is for `pullcord runbook` to tell. None when the runbook is at its end."""
    found, wrong = usable(config)
    cords = standing_over(reader, incident)
    if not cords:  # what the policy stops, stands too
        cords = standing_over(reader, incident, _policy(config))
    known = facts(incident, cords, None)
    recorded = told(incident_reads.rows_of(reader, incident))
    step = runbook.to_do(runbook.walk(found, known, recorded))
    if step is None:
        return None
    ours = (
        f" ({wrong.partition(':')[0]} cannot be used, so the shipped one counts)" if wrong else ""
    )
    if not step.is_certain or not step.step.run:
        what, command = "go on with the runbook", f"pullcord runbook {incident.id}"
    else:
        what, command = step.step.title, runbook.command(step.step.run, places(incident))
    return {"what": f"{what}{ours}", "command": command}


def _policy(config: Path | None) -> Policy | None:
    """The one that the runbook lies beside; None where that cannot be used."""
    try:
        return None if config is None else load_file(config / "policy.yaml")
    except PolicyError:
        return None
