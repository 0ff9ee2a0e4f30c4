"""Which cord a trip pulls: the one that the policy names, else the smallest that the evidence calls
for.

One tool of one run where that is what went wrong; the whole run where that is not enough, or where
it is the run that makes no progress; a tool or a release where several runs do the same. Pure: the
times are those of the steps. State is bounded: the oldest trips are forgotten, and then a cord is
smaller than it might be.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from policies.detectors import fan_out, loop, write_spike
from policies.detectors.rules import Mode, Response, Rule
from policies.detectors.step import Finding, Severity, Step, Subject
from policies.verdict import Level, Pull, Scope, tool_of

WITHIN_US = 600_000_000  # trips belong together that come within ten minutes
RUNS = 3  # so many runs in which the same goes wrong are no chance
TRIPS_MAX = 1_024

_HALT, _FREEZE = Level.HALT, Level.FREEZE


class Cord(NamedTuple):
    """`why` is why no smaller and no larger one."""

    level: Level
    scope: Scope
    subject: str
    why: str


class Trip(NamedTuple):
    detector: str
    run: str
    tenant: str
    release: str
    tool: str
    enforced: bool
    at_us: int


@dataclass(slots=True)
class Responding:
    """Remembers which runs tripped lately, so that what is wrong with many is stopped as one."""

    _trips: deque[Trip] = field(default_factory=lambda: deque(maxlen=TRIPS_MAX))

    def cord(self, finding: Finding, rule: Rule, step: Step) -> Pull | None:
        """The cord of a trip; None of an alert. Its actor is `detector:NAME`, its reason says what
        was found and why the cord is just that wide."""
        if finding.severity is not Severity.TRIP:
            return None
        run = finding.name if finding.subject is Subject.TREE else step.run
        earlier = self._noted(finding, rule, step, run)
        if rule.then is None:
            found = _smallest(finding, step, run, earlier)
        else:
            found = _named(rule.then, finding, step, run)
        return Pull(
            found.level,
            found.scope,
            found.subject,
            f"{finding.why}; {found.why}",
            f"detector:{finding.detector}",
            step.at_us,
        )

    def _noted(self, finding: Finding, rule: Rule, step: Step, run: str) -> list[Trip]:
        """The trips before this one and itself, of those within ten minutes. A cord that was not
        pulled cannot have been too small, so where cords are pulled the others do not count."""
        while self._trips and step.at_us - self._trips[0].at_us > WITHIN_US:
            self._trips.popleft()
        enforced = rule.mode is Mode.ENFORCE
        who = (run, step.tenant, step.release)
        trip = Trip(finding.detector, *who, finding.tool, enforced, step.at_us)
        if all(one[:-1] != trip[:-1] for one in self._trips):
            self._trips.append(trip)
        return [one for one in self._trips if one.enforced or not enforced]

    def forget(self, scope: Scope, subject: str) -> None:
        """A person has released a cord: what was before counts no more for what it stood over."""
        run, tool = tool_of(subject) if scope is Scope.TOOL else ("", "")
        if scope is Scope.RUN:
            run = subject

        def stays(trip: Trip) -> bool:
            if run:
                return trip.run != run
            whose = {Scope.TENANT: trip.tenant, Scope.RELEASE: trip.release, Scope.TOOL: trip.tool}
            return scope in whose and whose[scope] != (tool or subject)

        self._trips = deque(filter(stays, self._trips), maxlen=TRIPS_MAX)


def _smallest(finding: Finding, step: Step, run: str, trips: list[Trip]) -> Cord:
    if finding.subject is Subject.RELEASE:
        return _of_release(finding.name, "it is this release that does it")
    if finding.subject is Subject.TOOL and finding.release:
        return _of_release(finding.release, "all its runs are of this release")
    if finding.subject is Subject.TOOL:
        why = f"several runs do it, so writes of {finding.name} stop for all"
        return Cord(_FREEZE, Scope.TOOL, finding.name, why)
    return _of_many(finding, step, trips) or _of_run(finding, run, trips)


def _of_many(finding: Finding, step: Step, trips: list[Trip]) -> Cord | None:
    """Where the same goes wrong in several runs at once."""
    alike = [one for one in trips if one.detector == finding.detector]
    whose = (step.tenant, step.release)
    of_release = {one.run for one in alike if (one.tenant, one.release) == whose}
    if step.release and len(of_release) >= RUNS:
        return _of_release(step.release, f"{len(of_release)} runs of it within 10 minutes")
    of_tool = {one.run for one in alike if finding.tool and one.tool == finding.tool}
    if len(of_tool) >= RUNS:
        level, what = (_FREEZE, "its writes stop") if step.is_write else (_HALT, "it is halted")
        why = f"{len(of_tool)} runs with {finding.tool} within 10 minutes, so {what} for all"
        return Cord(level, Scope.TOOL, finding.tool, why)
    return None


def _of_run(finding: Finding, run: str, trips: list[Trip]) -> Cord:
    this = (finding.detector, finding.tool)
    if finding.detector == fan_out.NAME:
        return Cord(_HALT, Scope.RUN, run, "the whole tree is halted by its root")
    if any(one.run == run and (one.detector, one.tool) != this for one in trips):
        why = "the run had tripped within 10 minutes before, so all of it is halted"
        return Cord(_HALT, Scope.RUN, run, why)
    if finding.detector == write_spike.NAME:
        return Cord(_FREEZE, Scope.RUN, run, "only this run's writes stop")
    if finding.detector == loop.NAME and finding.tool:
        why = "only this tool of this run is halted, since the loop is in it alone"
        return Cord(_HALT, Scope.TOOL, f"{run}/{finding.tool}", why)
    return Cord(_HALT, Scope.RUN, run, "it is the run that gets nowhere, so it is halted")


def _of_release(release: str, why: str) -> Cord:
    return Cord(_HALT, Scope.RELEASE, release, f"the release is halted: {why}")


def _named(then: Response, finding: Finding, step: Step, run: str) -> Cord:
    """What the policy wants, of what the finding is about."""
    why = f"{then} by the policy"
    of_run = finding.subject in (Subject.RUN, Subject.TREE)
    match then:
        case Response.THROTTLE:
            return _throttled(finding, run, why)
        case Response.FREEZE_TOOL if not of_run and finding.tool:
            return Cord(_FREEZE, Scope.TOOL, finding.tool, why)
        case Response.FREEZE_TOOL if finding.tool:
            return Cord(_FREEZE, Scope.TOOL, f"{run}/{finding.tool}", why)
        case Response.FREEZE_TOOL:
            why += ", and the evidence is of no one tool: all writes of the run stop"
            return Cord(_FREEZE, Scope.RUN, run, why)
        case Response.FREEZE_RUN:
            return Cord(_FREEZE, Scope.RUN, run, why)
        case Response.HALT_RELEASE if finding.release or step.release:
            return Cord(_HALT, Scope.RELEASE, finding.release or step.release, why)
        case Response.HALT_RELEASE:
            why += ", but the run has no release, so it is halted alone"
            return Cord(_HALT, Scope.RUN, run, why)
        case Response.HALT_TENANT:
            return Cord(_HALT, Scope.TENANT, step.tenant, why)
        case Response.HALT_RUN:
            return Cord(_HALT, Scope.RUN, run, why)


def _throttled(finding: Finding, run: str, why: str) -> Cord:
    if finding.subject is Subject.TOOL:
        return Cord(Level.THROTTLE, Scope.TOOL, finding.name, why)
    if finding.subject is Subject.RELEASE:
        return Cord(Level.THROTTLE, Scope.RELEASE, finding.name, why)
    return Cord(Level.THROTTLE, Scope.RUN, run, why)
