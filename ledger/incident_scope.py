"""Which calls belong to an incident: one filter of the ledger says so, to people and to all that
counts them.
"""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from ledger.filters import RELEASE, exactly
from ledger.open_incidents import MANY_RUNS, Incident
from ledger.watching import Found
from policies.policy import UNDO_RUN
from policies.verdict import Pull, Scope

RUNS_MAX = 64  # roots and releases of an incident; of more, all runs are meant

_FIELDS = {
    Scope.RUN: "root",
    Scope.TOOL: "tool",
    Scope.RELEASE: "release",
    Scope.TENANT: "tenant",
}


def from_us(incident: Incident) -> int:
    """From when on calls belong to it, in UTC microseconds: as a person or the detectors said, else
    since the first call that convinced one."""
    if incident.since_us is not None:
        return incident.since_us
    if incident.first_call:
        return min(_made_us(incident.first_call), incident.opened_us)
    return incident.opened_us


def terms(incident: Incident) -> tuple[str, ...]:
    """The filter of the ledger (filters.py) that all calls of an incident pass: those of its tree,
    tool, release or tenant from its beginning on, until it was closed. What undid its writes is not
    among them."""
    found = []
    kind = Scope(incident.kind)
    if kind in _FIELDS:
        found.append(exactly(_FIELDS[kind], incident.name))
    if incident.tenant and kind is not Scope.TENANT:
        found.append(exactly("tenant", incident.tenant))
    if kind in (Scope.TENANT, Scope.TOOL, Scope.GLOBAL):
        found.append(f"-run:{UNDO_RUN}")
    if kind is Scope.TOOL and MANY_RUNS not in incident.runs:
        # Others use the tool, too. Where a release is stopped for it, its word stands before it.
        found += [exactly("under", run) for run in incident.runs]
    found.append(f"since:{moment(from_us(incident))}")
    if incident.closed_us is not None:
        found.append(f"until:{moment(incident.closed_us)}")
    return tuple(found)


def since_with(before: Incident, one: Found) -> int | None:
    """Since when, with this finding in it: as early as any says; what a person said stays."""
    found = (before.since_us, one.finding.since_us)
    if before.opened_by or found == (None, None):
        return before.since_us
    return min(each for each in found if each is not None)


def runs_with(before: Incident, one: Found, pull: Pull | None) -> tuple[str, ...]:
    """Whose calls, with this finding in it: one root more where it is of another; and all of a
    release that is stopped for it. No release leaves it, and a root only for a release that the
    finding says it wrote by."""
    told, known = one.finding.runs, before.runs
    if before.opened_by or known == (MANY_RUNS,):
        return known  # as wide as the person meant it
    if before.is_many:
        return (MANY_RUNS,)
    if pull is not None and pull.scope is Scope.RELEASE:
        more: tuple[str, ...] = (f"{RELEASE}{pull.subject}",)
        if one.finding.release != pull.subject:
            more += told or ()
        elif more[0] not in known:
            known = tuple(run for run in known if run not in (told or ()))
    elif told is None:
        return (MANY_RUNS,)
    elif f"{RELEASE}{one.finding.release if told else one.step.release}" in known:
        return known
    else:
        more = told or (one.step.root or one.step.run,)
    runs = tuple(dict.fromkeys((*known, *more)))
    return runs if len(runs) <= RUNS_MAX else (MANY_RUNS,)


def _made_us(call_id: str) -> int:
    """When a call began, by its id: a UUIDv7 (RFC 9562, section 5.7) begins with milliseconds."""
    try:
        return (UUID(call_id).int >> 80) * 1_000
    except ValueError:
        return 2**62  # an id of somebody else's; then the opening counts


def moment(at_us: int) -> str:
    """As `since` of the filter takes it, to the microsecond."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")
