"""Incidents: what the detectors found, told in the record and gathered under one id for each
thing that goes wrong. Called in transactions.

A finding about a run goes to the incident of its tree; one about writes that several runs make, to
the tool's or the release's; one too many goes to an incident of the tenant, or of all of them. What
goes wrong again is told once for each detector, severity and cord; each further call only shows in
the incident's newest evidence, and not at once.
"""

from dataclasses import dataclass, replace
from typing import Any

from ledger import cords, incident_scope, open_incidents, trial_reads
from ledger.batch import Batch
from ledger.events import DETECTOR, PROGRAM
from ledger.open_incidents import (
    EVIDENCE_MAX,
    OPEN,
    TOLD_MAX,
    Incident,
    Key,
    Standing,
)
from ledger.redact import redact
from ledger.states import EventType
from ledger.steps import Forgotten
from ledger.watching import Found
from policies.detectors import fan_out, first_seen, releases, write_spike
from policies.detectors.rules import Mode
from policies.detectors.step import Severity, Subject
from policies.verdict import Level, Pull, Scope, tool_of

OBSERVED_SECONDS = 600  # what is only observed is told so often
TOGETHER_SECONDS = 600  # what follows an incident within that may belong to it
REFRESH_SECONDS = 10  # how late the evidence of a run that goes on may be
QUIET_SECONDS = 86_400  # an alert to which nothing is added for so long is over
LED_TO_IT_MAX = 5  # incidents that are named as having led to a wider one

# They look at what several runs write: it is the tool that goes wrong, whoever's call tells it.
_OF_WRITES = frozenset({write_spike.NAME, first_seen.NAME, releases.NAME})

_MANY = "too many incidents at once; what is beyond the bound is counted here"
_TOLD_AS = {
    Severity.ALERT: EventType.DETECTOR_ALERTED,
    Severity.TRIP: EventType.DETECTOR_TRIPPED,
}


def found(batch: Batch, one: Found) -> None:
    """Record a finding, pull the cord that the policy wants pulled, and open or join its
    incident. Where the run is one that goes first, nobody does any more."""
    at_us = max(one.step.at_us, one.step.ended_us)
    about = _about(one)
    if one.rule.mode is Mode.OBSERVE:
        _observed(batch, one, about.key, at_us)
        return
    pull = one.pull if one.rule.mode is Mode.ENFORCE else None
    standing, joins_many = _standing(batch, one, about, at_us, pulls=pull is not None)
    new_cord = pull is not None and _changes(batch, pull)
    told = _TOLD_AS[one.finding.severity], _actor(one), pull.rule if pull else ""
    is_repeat = told in standing.told or len(standing.told) >= TOLD_MAX
    is_repeat = is_repeat and not joins_many and not new_cord
    if not is_repeat:
        standing.told.add(told)
        _tell(batch, one, standing.incident.id, pull, at_us)
    if pull is not None and new_cord:
        reason = redact(pull.reason, batch.key)
        pull = replace(pull, reason=reason, at_us=at_us)
        batch.trip(pull, one.step.call_id, standing.incident.id)
    why = redact(f"{_actor(one)} of run {one.step.run}: {one.finding.why}", batch.key)
    for trial in trial_reads.with_run(batch.conn, batch.pulls.values(), one.step.run):
        batch.end_trial(trial.incident, why, PROGRAM, at_us, shut=True)
    _joined(batch, one, standing, pull, at_us, is_repeat=is_repeat, new_cord=new_cord)


def _changes(batch: Batch, pull: Pull) -> bool:
    return cords.tightened(batch.pulls.get(cords.name(pull)), pull) is not None


def _observed(batch: Batch, one: Found, key: Key, at_us: int) -> None:
    """A row, and nothing else: now and then, as long as it goes on."""
    what = (key, one.finding.detector, one.finding.severity)
    if batch.incidents.is_news(what, at_us, OBSERVED_SECONDS * 1_000_000):
        _row(batch, EventType.DETECTOR_OBSERVED, one, at_us, "the policy only observes")


def _tell(batch: Batch, one: Found, incident: str, pull: Pull | None, at_us: int) -> None:
    kind = _TOLD_AS[one.finding.severity]
    said = "" if one.rule.mode is Mode.ENFORCE else "the policy only alerts"
    _row(batch, kind, one, at_us, said, incident=incident, rule=pull.rule if pull else "")


def _row(
    batch: Batch,
    kind: EventType,
    one: Found,
    at_us: int,
    only: str,
    *,
    incident: str = "",
    rule: str = "",
) -> None:
    """`only` is why nothing is pulled, where a cord could have been."""
    detail = redact(one.finding.why, batch.key)
    if only and one.pull is not None:
        detail += f"; {only}, else it had pulled {one.pull.rule}"
    elif only:
        detail += f"; {only}"
    batch.journal.noted(
        kind,
        at_us=at_us,
        actor=_actor(one),
        detail=detail,
        run=one.step.run,
        tenant=one.step.tenant,
        tool=one.finding.tool or one.step.tool,
        call_id=one.step.call_id,
        rule=rule,
        release=one.step.release,
        incident=incident,
    )


def _actor(one: Found) -> str:
    return f"{DETECTOR}{one.finding.detector}"


# ---------------------------------------------------------------------------------- which one


@dataclass(frozen=True, slots=True)
class _About:
    """What a finding is about. `of_run`: nothing but its own tree of runs; `wider`: the evidence
    of several runs made it a matter of their tool or their release."""

    key: Key
    of_run: bool
    wider: bool = False


def _about(one: Found) -> _About:
    finding, step, pull = one.finding, one.step, one.pull
    if finding.subject is Subject.RELEASE:
        return _About(Key("release", "", finding.name), of_run=False)
    if finding.subject is Subject.TOOL:
        return _About(Key("tool", step.tenant, finding.name), of_run=False)
    if finding.detector in _OF_WRITES:
        return _About(Key("tool", step.tenant, step.tool), of_run=True)
    if pull is not None and one.rule.then is None:  # else it is as wide as the policy says
        if pull.scope is Scope.RELEASE:
            return _About(Key("release", "", pull.subject), of_run=False, wider=True)
        if pull.scope is Scope.TOOL and not tool_of(pull.subject)[0]:
            return _About(Key("tool", step.tenant, pull.subject), of_run=False, wider=True)
    root = finding.name if finding.subject is Subject.TREE else step.root or step.run
    return _About(Key("run", step.tenant, root), of_run=True)


def _standing(
    batch: Batch, one: Found, about: _About, at_us: int, *, pulls: bool
) -> tuple[Standing, bool]:
    """The incident to which this finding goes: its own, one that it is part of, a new one, or that
    of all that is too much; True when it is the first of its kind to go to the last."""
    memory, conn, tenant = batch.incidents, batch.conn, one.step.tenant
    standing = memory.of(about.key)
    if standing is not None and not (pulls and standing.incident.is_wide):
        return standing, False
    too_many = memory.instead(conn, tenant, at_us, pulls=pulls)
    if standing is not None and too_many is not None:
        return standing, False  # it gets its own as soon as there is room
    incident = open_incidents.open_of(conn, about.key) or _part_of(batch, one, about, at_us)
    if incident is None and too_many is not None:
        return _of_many(batch, one, about.key, too_many, at_us), True
    if incident is None:
        standing = Standing(_opened(batch, one, about, at_us))
        memory.opened(conn, standing.incident, tenant, pulls=pulls)
    else:
        standing = Standing(incident, open_incidents.told_of(conn, incident.id))
    return memory.keep(about.key, standing), False


def _of_many(batch: Batch, one: Found, key: Key, too_many: Key, at_us: int) -> Standing:
    """The incident of all that is too much. Whoever makes up names and tenants fills this one."""
    incident = open_incidents.open_of(batch.conn, too_many)
    if incident is not None:
        found = Standing(incident, open_incidents.told_of(batch.conn, incident.id))
    else:
        found = Standing(_opened(batch, one, _About(too_many, of_run=False), at_us))
    return batch.incidents.keep(key, found)


def _part_of(batch: Batch, one: Found, about: _About, at_us: int) -> Incident | None:
    """An open incident of the last minutes that this finding is one more sign of."""
    values = {**_asked(one, at_us), "of_run": about.of_run}
    return next(iter(open_incidents.found_by(batch.conn, open_incidents.PART_OF, values)), None)


def _asked(one: Found, at_us: int) -> dict[str, Any]:
    step, finding = one.step, one.finding
    alike = _OF_WRITES if finding.detector in _OF_WRITES else {finding.detector}
    over = [
        (Scope.TENANT, step.tenant),
        (Scope.RELEASE, step.release),
        (Scope.TOOL, finding.tool or step.tool),
    ]
    standing = [f"{level}:{scope}:{name}" for level in Level for scope, name in over if name]
    return {
        "since": at_us - TOGETHER_SECONDS * 1_000_000,
        "root": step.root or step.run,
        "tenant": step.tenant,
        "tool": finding.tool or step.tool,
        "release": step.release or None,
        "cords": open_incidents.as_list(standing),
        "detectors": open_incidents.as_list(sorted(alike)),
    }


def _opened(batch: Batch, one: Found, about: _About, at_us: int) -> Incident:
    step, finding, key = one.step, one.finding, about.key
    is_many = key.kind in (Scope.TENANT, Scope.GLOBAL)
    made = Incident(
        id=open_incidents.new_id(at_us),
        kind=key.kind,
        name=key.name,
        tenant=key.tenant,
        state=OPEN,
        severity=finding.severity.value,
        detector=finding.detector,
        why=_MANY if is_many else redact(finding.why, batch.key),
        rule="",
        run="" if is_many else step.run,
        root="" if is_many else step.root or step.run,
        tool="" if is_many else finding.tool or step.tool,
        release="" if is_many else step.release,
        agent="" if is_many else step.agent,
        findings=0,
        evidence=(),
        opened_us=at_us,
        updated_us=at_us,
    )
    detail = f"{about_words(made)}, by {finding.detector}: {made.why}"
    if about.wider:
        detail += _led_to_it(batch, one, at_us)
    batch.journal.noted(
        EventType.INCIDENT_OPENED,
        at_us=at_us,
        actor=PROGRAM,
        detail=detail,
        run=made.run,
        tenant=made.tenant,
        tool=made.tool,
        release=made.release,
        incident=made.id,
    )
    batch.must_last = True
    return made


def _led_to_it(batch: Batch, one: Found, at_us: int) -> str:
    """The incidents of runs that made this a wider one. They stay as they are."""
    values = {
        **_asked(one, at_us),
        "detector": one.finding.detector,
        "limit": LED_TO_IT_MAX,
    }
    runs = open_incidents.found_by(batch.conn, open_incidents.LED_TO_IT, values)
    return f"; it follows {', '.join(each.id for each in runs)}" if runs else ""


def about_words(incident: Incident) -> str:
    """What it is about, for people."""
    of = f" of tenant {incident.tenant}" if incident.tenant and not incident.is_wide else ""
    return f"{incident.kind} {incident.name}{of}"


# ---------------------------------------------------------------------------------- what it holds


def _joined(
    batch: Batch,
    one: Found,
    standing: Standing,
    pull: Pull | None,
    at_us: int,
    *,
    is_repeat: bool,
    new_cord: bool,
) -> None:
    """The incident with the finding in it. Written at once where it tells anything new; told again
    where another cord was pulled, or a trip goes on after a long quiet."""
    before = standing.incident
    runs = incident_scope.runs_with(before, one, pull)
    is_late = not 0 <= at_us - before.updated_us < REFRESH_SECONDS * 1_000_000
    if is_repeat and runs == before.runs and not is_late:
        return
    is_trip = one.finding.severity is Severity.TRIP
    raised = is_trip and before.severity != Severity.TRIP
    goes_on = is_trip and at_us - before.updated_us >= QUIET_SECONDS * 1_000_000
    first = before.findings == 0 and not before.opened_by
    # What pulls the first cord is what happened; before it there were only words. What a person
    # said of it stays.
    acts = new_cord and not before.rule
    says = (raised or acts) and not before.is_many and not before.opened_by
    calls = dict.fromkeys((*before.evidence, *filter(None, one.finding.evidence)))
    after = replace(
        before,
        severity=Severity.TRIP.value if raised else before.severity,
        detector=one.finding.detector if says else before.detector,
        why=redact(one.finding.why, batch.key) if says else before.why,
        rule=pull.rule if pull else before.rule,
        first_call=before.first_call or next(iter(calls), ""),
        since_us=incident_scope.since_with(before, one),
        runs=runs,
        findings=before.findings + (not is_repeat),
        evidence=tuple(calls)[-EVIDENCE_MAX:],
        updated_us=max(at_us, before.updated_us),
    )
    if not first and (raised or new_cord or goes_on):
        later_us = max(before.told_since_us, before.acked_us or 0) + 1
        after = replace(after, raised_us=max(at_us, later_us))
    open_incidents.write(batch.conn, after)
    standing.incident = after


def reap(batch: Batch, at_us: int, limit: int) -> int:
    """Close up to `limit` alerts that were quiet for long. The detectors keep what they know; a
    trip waits for a person."""
    values = (at_us - QUIET_SECONDS * 1_000_000, limit)
    over = open_incidents.found_by(batch.conn, open_incidents.QUIET, values)
    for one in over:
        _close(batch, one, PROGRAM, "nothing was added to it for a day", at_us, over=None)
    return len(over)


def close(
    batch: Batch, incident: Incident, actor: str, reason: str, at_us: int, waived: str = ""
) -> Incident:
    """A person says that it is over, and the detectors begin anew with what it was about. What is
    pulled stays pulled; what goes wrong again opens another one. `waived` is why there is no
    regression test."""
    if incident.is_wide or not incident.findings:  # it says of none what it was about
        return _close(batch, incident, actor, reason, at_us, over=None, waived=waived)
    kind, name = Scope(incident.kind), incident.name
    if incident.rule.partition(":")[2] == f"{Scope.RUN}:{incident.run}":
        kind = Scope.RUN  # its writes went to a tool, and it alone was stopped
    if kind is Scope.RUN and incident.detector != fan_out.NAME:
        name = incident.run  # the one of the tree that did it
    over = Forgotten(kind, name)
    closed = _close(batch, incident, actor, reason, at_us, over=over, waived=waived)
    batch.forgotten(over)
    return closed


def _close(
    batch: Batch,
    incident: Incident,
    actor: str,
    reason: str,
    at_us: int,
    *,
    over: Forgotten | None,
    waived: str = "",
) -> Incident:
    closed = replace(
        incident,
        state=open_incidents.CLOSED,
        closed_us=at_us,
        closed_by=actor,
        closed_because=redact(reason, batch.key),
        waived=redact(waived, batch.key),
    )
    told = f"; no regression test: {closed.waived}" if closed.waived else ""
    batch.end_trial(incident.id, f"the incident is closed: {closed.closed_because}", actor, at_us)
    open_incidents.write(batch.conn, closed)
    batch.incidents.drop(incident.id)
    batch.journal.noted(
        EventType.INCIDENT_CLOSED,
        at_us=at_us,
        actor=actor,
        detail=closed.closed_because + told,
        run=closed.run,
        tenant=closed.tenant,
        tool=closed.tool,
        release=closed.release,
        incident=closed.id,
        forget=over,
    )
    batch.must_last = True
    return closed
