"""All detectors over all runs: each settled call goes in once, in order; what they find comes out.

Those that stop a run at its next call, D1 to D4, say so `at_once`. The others may do it a moment
`later`, before the next step and when nobody waits. The same is found either way. Whoever settles a
call waits for what is found at once, and over most calls nothing can be: `may_find` knows those by
a look, and then both may be done a moment later.

State is bounded: of runs and of trees those that were not heard of for longest are forgotten, which
may delay a finding and never undoes one. What is known of a run that is only quiet is kept, packed
(resting.py).
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from policies.detectors import (
    burn,
    fan_out,
    first_seen,
    loop,
    novelty,
    releases,
    spiral,
    write_spike,
)
from policies.detectors.calm import CALMS, Calm, Prompt, calm, is_cheap, may_find
from policies.detectors.hopping import Hopping
from policies.detectors.kept import kept
from policies.detectors.progress import Progress
from policies.detectors.releases import Releases
from policies.detectors.resting import Resting
from policies.detectors.step import Finding, Severity, Step, Subject
from policies.verdict import Scope, tool_of

RUNS_MAX = 10_000
TREES_MAX = 10_000
USED_MAX = 4_096  # tools and releases of which is known who uses them


class Detector(Protocol):
    def feed(self, step: Step, progress: Progress) -> Finding | None: ...


class DetectorError(Exception):
    """A detector failed over a step."""

    def __init__(self, detector: str, cause: Exception) -> None:
        super().__init__(f"{detector} failed: {type(cause).__name__}")
        self.detector = detector


class OfMany(Detector, Protocol):
    """One over all runs."""

    def forget(self, subject: Subject, name: str) -> None:
        """A person has let this pass."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a detector is made with its limits, of what there is one each, and whether it may be fed
    a moment after the call is settled."""

    make: Callable[[Any], Detector]
    limits: Any
    per: str
    may_wait: bool = False


DETECTORS: Mapping[str, Kind] = {
    loop.NAME: Kind(loop.Loop, loop.LIMITS, "run"),
    spiral.NAME: Kind(spiral.Spiral, spiral.LIMITS, "run"),
    burn.NAME: Kind(burn.Burn, burn.LIMITS, "run"),
    novelty.NAME: Kind(novelty.Novelty, novelty.LIMITS, "run", may_wait=True),
    fan_out.NAME: Kind(fan_out.FanOut, fan_out.LIMITS, "tree"),
    write_spike.NAME: Kind(write_spike.WriteSpike, write_spike.LIMITS, "fleet", may_wait=True),
    first_seen.NAME: Kind(first_seen.FirstSeen, first_seen.LIMITS, "fleet", may_wait=True),
    releases.NAME: Kind(Releases, releases.LIMITS, "fleet", may_wait=True),
}


def _made(per: str, limits: Mapping[str, Any], *, may_wait: bool = False) -> tuple[Any, ...]:
    return tuple(
        kind.make(limits.get(name, kind.limits))
        for name, kind in DETECTORS.items()
        if kind.per == per and kind.may_wait is may_wait
    )


def _name(detector: Any) -> str:
    kinds = DETECTORS.items()
    return next((name for name, kind in kinds if kind.make is type(detector)), "progress")


@dataclass(slots=True)
class Run:
    """What is remembered of one run."""

    root: str
    progress: Progress
    at_once: tuple[Prompt, ...]
    later: tuple[Detector, ...]
    calm: Calm
    heard_us: int = 0

    def rest(self, now_us: int) -> None:
        self.progress.rest(now_us)


@dataclass(slots=True)
class Tree:
    """What is remembered of a run with its descendants."""

    detectors: tuple[Prompt, ...]
    hopping: Hopping


Used = dict[str, str | None]
"""Which tenant uses a tool or a release alone; None where several do."""
_NOBODY = "/"  # in no tenant's name


@dataclass(slots=True)
class Runs:
    """Made once; `limits` are other limits than the defaults, by the detector's name.
    `earned_milli` is what the last step earned its run (progress.py)."""

    limits: Mapping[str, Any] = field(default_factory=dict)
    earned_milli: int = 0
    _runs: Resting[Run] = field(init=False)
    _trees: OrderedDict[str, Tree] = field(default_factory=OrderedDict)
    _tools: Used = field(default_factory=dict)
    _releases: Used = field(default_factory=dict)
    _fleet: tuple[Any, ...] = ()
    _new: Run = field(init=False)  # as every run begins; never fed
    _last: tuple[Step, Run] | None = None  # of which `later` was not asked yet

    def __post_init__(self) -> None:
        self._fleet = _made("fleet", self.limits, may_wait=True)
        self._new = self._begun("", 0)
        limits = [self.limits.get(name, kind.limits) for name, kind in DETECTORS.items()]
        self._runs = Resting(self._new, (*limits, *CALMS.values()))

    def feed(self, step: Step) -> list[Finding]:
        """What is found. Raises DetectorError where one of them raised anything: then the run (and
        what failed, if it is of many) begins anew after this step."""
        found = self.at_once(step)
        return found + self.later()

    def may_find(self, step: Step) -> bool:
        """Whether anything may be found `at_once` over the step, before any other is fed: a no is
        certain. Nothing is changed."""
        known = self._runs.calm(step.run)
        is_calm = step.kind in (self._new.calm if known is None else known) and is_cheap(step)
        in_tree = step.depth > 0 or step.root in self._trees
        if is_calm and not in_tree:
            return False
        run = self._runs.get(step.run) or self._new
        if not is_calm and may_find(run.at_once, step, run.progress):
            return True
        if not in_tree:
            return False
        tree = self._trees.get(step.root)
        if tree is None or tree.hopping.may_find(step, run.progress):
            return True
        return may_find(tree.detectors, step, run.progress)

    def at_once(self, step: Step) -> list[Finding]:
        """What is found by those that cannot wait. `later` follows, before any other step. Raises
        like `feed`."""
        run, self.earned_milli = self._run(step), 0
        tree = self._tree(step) if step.depth or step.root in self._trees else None
        detectors = run.at_once if tree is None else run.at_once + tree.detectors
        found: list[Finding] = []
        at: Any = None
        try:
            run.progress.feed(step)
            for at in detectors:
                one = at.feed(step, run.progress)
                if one is not None:
                    found.append(one)
            if tree is not None:
                at = tree.hopping
                for other in tree.hopping.feed(step, run.progress):
                    _join(found, other)
        except Exception as error:
            self._drop(step, at)
            raise DetectorError(_name(at), error) from error
        run.calm = calm(run.at_once, run.progress)
        self.earned_milli = run.progress.credit
        self._last = step, run
        return [self._suspected(one, step) for one in found] if found else found

    def later(self) -> list[Finding]:
        """What the others find over the step that was fed last; nothing when asked again. Raises
        like `feed`."""
        if self._last is None:
            return []
        (step, run), self._last = self._last, None
        run.heard_us = step.ended_us or step.at_us
        if self._tools.get(step.tool, _NOBODY) not in (step.tenant, None):
            _used(self._tools, step.tool, step.tenant)
        if self._releases.get(step.release, _NOBODY) not in (step.tenant, None):
            _used(self._releases, step.release, step.tenant)
        found: list[Finding] = []
        at: Any = None
        try:
            for at in run.later + self._fleet:
                one = at.feed(step, run.progress)
                if one is not None:
                    found.append(one)
        except Exception as error:
            self._drop(step, at)
            raise DetectorError(_name(at), error) from error
        self._runs.rest(run.heard_us)
        return [self._suspected(one, step) for one in found] if found else found

    def _drop(self, step: Step, failed: Any) -> None:
        self._runs.pop(step.run)
        self._trees.pop(step.root, None)
        anew = zip(self._fleet, _made("fleet", self.limits, may_wait=True), strict=True)
        self._fleet = tuple(new if old is failed else old for old, new in anew)

    def forget(self, scope: Scope, subject: str) -> None:
        """A person has released what stood over this: what convinced the detectors counts no more.
        For what is wider than one run all runs begin anew; that delays, and lifts nothing."""
        run, tool = tool_of(subject) if scope is Scope.TOOL else ("", "")
        if scope is Scope.RUN:
            run = subject
        if run:
            self._runs.pop_tree(run)
            self._trees.pop(run, None)
            for tree in self._trees.values():
                tree.hopping.forget(run)
        else:
            self._runs.clear()
            self._trees.clear()
        of = {Scope.RUN: Subject.RUN, Scope.RELEASE: Subject.RELEASE, Scope.TOOL: Subject.TOOL}
        if scope in of:
            fleet: OfMany
            for fleet in self._fleet:
                fleet.forget(Subject.RUN if run else of[scope], run or tool or subject)
        else:
            self._fleet = _made("fleet", self.limits, may_wait=True)

    def _suspected(self, finding: Finding, step: Step) -> Finding:
        """With the release that is suspect, and whether others use what would be stopped. A release
        that followed none is no suspect: there is nothing to go back to."""
        release, is_trip = finding.release, finding.severity is Severity.TRIP
        if is_trip and finding.subject in (Subject.RUN, Subject.TREE):
            release = step.release
        if not release and not (is_trip and finding.tool):
            return finding
        if release and not any(
            detector.followed(step.tenant, release)
            for detector in self._fleet
            if isinstance(detector, Releases)
        ):
            release = ""
        return replace(
            finding,
            release=release,
            shared_tool=bool(finding.tool) and self._tools.get(finding.tool) is None,
            shared_release=bool(release) and self._releases.get(release) is None,
        )

    def _run(self, step: Step) -> Run:
        run = self._runs.get(step.run)
        if run is None:
            run = self._runs[step.run] = self._begun(step.root, step.at_us)
            if len(self._runs) > RUNS_MAX:
                self._runs.pop_oldest()
        else:
            self._runs.move_to_end(step.run)
        return run

    def _begun(self, root: str, at_us: int) -> Run:
        now, later = (_made("run", self.limits, may_wait=late) for late in (False, True))
        progress = Progress.begun(at_us)
        return Run(root, progress, now, later, calm(now, progress))

    def _tree(self, step: Step) -> Tree:
        return kept(self._trees, step.root, self._new_tree, TREES_MAX)

    def _new_tree(self) -> Tree:
        limits = {name: self.limits.get(name, kind.limits) for name, kind in DETECTORS.items()}
        return Tree(_made("tree", self.limits), Hopping(limits))


def _used(by: Used, name: str, tenant: str) -> None:
    """Names beyond those that are known are taken to be shared."""
    if name in by:
        by[name] = None
    elif len(by) < USED_MAX:
        by[name] = tenant


def _join(found: list[Finding], one: Finding) -> None:
    """A detector says one thing over a step: what is worse, and of both alike what is wider."""
    for at, other in enumerate(found):
        if other.detector == one.detector:
            if one.severity is Severity.TRIP or other.severity is Severity.ALERT:
                found[at] = one
            return
    found.append(one)
