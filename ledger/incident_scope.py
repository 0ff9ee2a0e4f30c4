"""Which calls belong to an incident, and what they did. From the record only: each figure comes
with the filter that lists its calls.
"""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from ledger.open_incidents import MANY_RUNS, Incident
from ledger.watching import Found
from policies.policy import UNDO_RUN
from policies.verdict import Pull, Scope

RUNS_MAX = 64  # roots of an incident; of more, all runs are meant

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
        found.append(f"{_FIELDS[kind]}:{incident.name}")
    if incident.tenant and kind is not Scope.TENANT:
        found.append(f"tenant:{incident.tenant}")
    if kind in (Scope.TENANT, Scope.TOOL, Scope.GLOBAL):
        found.append(f"-run:{UNDO_RUN}")
    if kind is Scope.TOOL and MANY_RUNS not in incident.runs:
        # Others use the tool, too. A name with a colon is no run's, but a release's with its word.
        found += [run if ":" in run else f"under:{run}" for run in incident.runs]
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
    """Whose calls, with this finding in it: one root more where it is of another; all of a release
    that is stopped for it."""
    told = one.finding.runs
    if before.opened_by or before.runs == (MANY_RUNS,):
        return before.runs  # as wide as the person meant it
    if pull is not None and pull.scope is Scope.RELEASE:
        return (f"{Scope.RELEASE}:{pull.subject}",)
    if before.is_many or told is None:
        return (MANY_RUNS,)
    if before.runs and ":" in before.runs[0]:
        return before.runs
    runs = tuple(dict.fromkeys((*before.runs, *(told or (one.step.root or one.step.run,)))))
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
