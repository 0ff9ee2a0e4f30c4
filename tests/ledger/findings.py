"""Findings as the detectors tell them, told to a real store, and what became of them."""

from typing import Any

from ledger import incident_reads, incidents
from ledger.connection import open_reader
from ledger.open_incidents import Incident
from ledger.watching import Found
from policies.detectors.rules import Mode, Response, Rule
from policies.detectors.step import Finding, Kind, Severity, Step, Subject
from policies.verdict import Level, Pull, Scope
from tests.ledger.world import World

ALERT, TRIP = Severity.ALERT, Severity.TRIP
RUN, TOOL, RELEASE, TREE = Subject.RUN, Subject.TOOL, Subject.RELEASE, Subject.TREE


def a_found(
    at_us: int,
    severity: Severity = TRIP,
    mode: Mode = Mode.ENFORCE,
    detector: str = "loop",
    *,
    run: str = "r1",
    root: str = "",
    tenant: str = "acme",
    tool: str = "pay",
    release: str = "",
    subject: Subject = RUN,
    name: str = "",
    cord: tuple[Scope, str] | None = None,
    then: Response | None = None,
    call: str = "c1",
    why: str = "it goes round",
    since_us: int | None = None,
    any_run: bool = False,
) -> Found:
    step = Step(at_us, Kind.TOOL, call, run, root or run, tenant, release=release, tool=tool)
    finding = Finding(
        *(detector, severity, subject, name or run, why, (call,)),
        since_us=since_us,
        runs=None if any_run else (),
    )
    pull = None
    if severity is TRIP:
        scope, over = cord or (Scope.RUN, run)
        pull = Pull(Level.HALT, scope, over, why, f"detector:{detector}", at_us)
    return Found(finding, Rule(mode, None, then), step, pull)


def tell(world: World, *found: Found) -> None:
    with world.store.transaction(durable=False):
        for one in found:
            incidents.found(world.store._open_batch(), one)


def told(world: World, severity: Severity = TRIP, mode: Mode = Mode.ENFORCE, **rest: Any) -> None:
    tell(world, a_found(world.now_us, severity, mode, **rest))


def listed(world: World, *, closed: bool = False) -> list[Incident]:
    reader = open_reader(world.data)
    try:
        return incident_reads.listed(reader, 100, closed=closed)
    finally:
        reader.close()


def the_one(world: World) -> Incident:
    (found,) = listed(world)
    return found


def types(world: World) -> list[str]:
    return [kind for (kind,) in world.rows("SELECT type FROM event ORDER BY seq")]


def close(world: World, incident: Incident) -> Incident | None:
    waived = "no test" if incident.severity == TRIP else ""
    return world.store.close_incident(
        incident.id, reason="mended", waived=waived, actor="ann", at_us=world.now_us
    )
