"""Which cord a trip pulls: the one that the policy names, else the smallest that the evidence calls
for.

One tool of one run where that is what went wrong; the whole run where that is not enough, or where
it is the run that makes no progress; the root of its tree where several runs of the tree trip; a
tool or a release where several trees do the same. What one tree does stops nothing wider than the
tree, and what one tenant does nothing that others use. Pure: the times are those of the steps.
State is bounded: trips that are too old to count are forgotten, and of too many the oldest; then a
cord is smaller than it might be.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from policies.detectors import fan_out, loop, write_spike
from policies.detectors.rules import Mode, Response, Rule
from policies.detectors.step import Finding, Severity, Step, Subject
from policies.verdict import Level, Pull, Scope, tool_of

WITHIN_US = 600_000_000  # trips belong together that come within ten minutes
RUNS = 3  # so many runs of a tree, or trees, in which the same goes wrong are no chance
TRIPS_MAX = 8_192  # things that several trips may have in common
ALIKE_MAX = 16  # trips that are remembered of each

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
    root: str
    tenant: str
    release: str
    tool: str
    at_us: int

    @property
    def tree(self) -> tuple[str, str]:
        return self.tenant, self.root


class Common(NamedTuple):
    """What trips may have in common: a tool or a release, a tree or a run. With `enforced` these
    are trips that pulled cords."""

    what: Scope | Subject
    name: str
    within: str  # the detector, or a root's tenant
    enforced: bool


Alike = tuple[tuple[object, Trip], ...]
"""Trips that have something in common, the newest last: of each member the newest, of at most so
many. Nearly always it is one, of which there are thousands."""


@dataclass(slots=True)
class Responding:
    """Remembers which runs tripped lately, so that what is wrong with many is stopped as one."""

    _trips: OrderedDict[Common, Alike] = field(default_factory=OrderedDict)

    def cord(self, finding: Finding, rule: Rule, step: Step) -> Pull | None:
        """The cord of a trip; None of an alert. Its actor is `detector:NAME`, its reason says what
        was found and why the cord is just that wide."""
        if finding.severity is not Severity.TRIP:
            return None
        run = finding.name if finding.subject is Subject.TREE else step.run
        root = step.root or step.run
        who = (run, root, step.tenant, step.release)
        trip = Trip(finding.detector, *who, finding.tool, step.at_us)
        enforced = rule.mode is Mode.ENFORCE
        self._note(trip, finding, enforced)
        if rule.then is None:
            found = self._smallest(trip, finding, step, enforced)
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

    def _note(self, trip: Trip, finding: Finding, enforced: bool) -> None:
        """A cord that was not pulled cannot have been too small, so where cords are pulled the
        trips that pulled none do not count."""
        for counts in (True, False) if enforced else (False,):
            for common, member in _commons(trip, finding, counts):
                others = [one for one in self._trips.pop(common, ()) if one[0] != member]
                self._trips[common] = (*others, (member, trip))[-ALIKE_MAX:]
                if len(self._trips) > TRIPS_MAX:
                    self._trips.popitem(last=False)
        self._let_go(trip.at_us)

    def _let_go(self, now_us: int) -> None:
        """Of what tripped longest ago, which comes first, the newest trip is the last."""
        while now_us - next(iter(self._trips.values()))[-1][1].at_us > WITHIN_US:
            self._trips.popitem(last=False)

    def _alike(self, common: Common, trip: Trip) -> list[Trip]:
        """Those of the last ten minutes, of each member the newest; this trip is one."""
        known = self._trips.get(common, ())
        return [one for _, one in known if trip.at_us - one.at_us <= WITHIN_US]

    def forget(self, scope: Scope, subject: str) -> None:
        """A person has released a cord: what was before counts no more for what it stood over."""
        run, tool = tool_of(subject) if scope is Scope.TOOL else ("", "")
        if scope is Scope.RUN:
            run = subject

        def stays(trip: Trip) -> bool:
            if run:
                return run not in (trip.run, trip.root)
            whose = {Scope.TENANT: trip.tenant, Scope.RELEASE: trip.release, Scope.TOOL: trip.tool}
            return scope in whose and whose[scope] != (tool or subject)

        left = {
            common: tuple(one for one in alike if stays(one[1]))
            for common, alike in self._trips.items()
        }
        self._trips = OrderedDict((common, alike) for common, alike in left.items() if alike)

    def _smallest(self, trip: Trip, finding: Finding, step: Step, enforced: bool) -> Cord:
        of_tool, of_release, of_tree, of_run = [
            self._alike(common, trip) for common, _ in _commons(trip, finding, enforced)
        ]
        if finding.subject in (Subject.RELEASE, Subject.TOOL):
            return _of_many(trip, finding, of_tool, of_release)
        if finding.release and _is_wide(of_release, finding.shared_release):
            why = f"{len(of_release)} runs of it within 10 minutes"
            return _of_release(finding.release, why)
        if finding.tool and _is_wide(of_tool, finding.shared_tool):
            level, what = (_FREEZE, "its writes stop") if step.is_write else (_HALT, "it is halted")
            why = f"{len(of_tool)} runs with {finding.tool} within 10 minutes, so {what} for all"
            return Cord(level, Scope.TOOL, finding.tool, why)
        if len(of_tree) >= RUNS:
            why = f"{len(of_tree)} runs of its tree within 10 minutes, so the root is halted"
            return Cord(_HALT, Scope.RUN, trip.root, why)
        return _of_run(trip, finding, of_run)


def _commons(trip: Trip, finding: Finding, enforced: bool) -> Iterator[tuple[Common, object]]:
    """What a trip is one of, and as which one it counts there."""
    yield Common(Scope.TOOL, finding.tool, trip.detector, enforced), trip.tree
    yield Common(Scope.RELEASE, finding.release, trip.detector, enforced), trip.tree
    yield Common(Subject.TREE, trip.root, trip.tenant, enforced), trip.run
    yield Common(Scope.RUN, trip.run, trip.tenant, enforced), (trip.detector, trip.tool)


def _is_wide(alike: list[Trip], is_shared: bool) -> bool:
    """Whether so many trees did it that more than these may be stopped; what other tenants use,
    too, only where several of them are among those."""
    return len(alike) >= RUNS and (not is_shared or _of_tenants(alike))


def _of_tenants(alike: list[Trip]) -> bool:
    return len({trip.tenant for trip in alike}) > 1


def _of_many(trip: Trip, finding: Finding, of_tool: list[Trip], of_release: list[Trip]) -> Cord:
    """Of a finding that several trees of a tenant are in already."""
    if finding.subject is Subject.RELEASE:
        if not finding.shared_release or _of_tenants(of_release):
            return _of_release(finding.name, "it is this release that does it")
        why = f"other tenants use release {finding.name}, too, so it is halted for this tree alone"
        return Cord(_HALT, Scope.RUN, trip.root, why)
    if finding.release and (not finding.shared_release or _of_tenants(of_release)):
        return _of_release(finding.release, "all its runs are of this release")
    if not finding.shared_tool or _of_tenants(of_tool):
        why = f"several runs do it, so writes of {finding.name} stop for all"
        return Cord(_FREEZE, Scope.TOOL, finding.name, why)
    why = f"other tenants use {finding.name}, too, so its writes stop for this tree alone"
    return Cord(_FREEZE, Scope.TOOL, f"{trip.root}/{finding.name}", why)


def _of_run(trip: Trip, finding: Finding, trips: list[Trip]) -> Cord:
    this, run = (trip.detector, trip.tool), trip.run
    if finding.detector == fan_out.NAME:
        return Cord(_HALT, Scope.RUN, run, "the whole tree is halted by its root")
    if finding.subject is Subject.TREE:
        return Cord(_HALT, Scope.RUN, run, "several runs of the tree do it, so its root is halted")
    if any((one.detector, one.tool) != this for one in trips):
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
