"""All detectors over all runs: each settled call goes in once, in order; what they find comes out.

State is bounded: of runs and of trees those that were not heard of for longest are forgotten, which
may delay a finding and never undoes one.
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
from policies.detectors.progress import Progress
from policies.detectors.releases import Releases
from policies.detectors.step import Finding, Step, Subject
from policies.verdict import Scope, tool_of

RUNS_MAX = 10_000
TREES_MAX = 10_000


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
    """How a detector is made with its limits, and of what there is one each."""

    make: Callable[[Any], Detector]
    limits: Any
    per: str


DETECTORS: Mapping[str, Kind] = {
    loop.NAME: Kind(loop.Loop, loop.LIMITS, "run"),
    spiral.NAME: Kind(spiral.Spiral, spiral.LIMITS, "run"),
    burn.NAME: Kind(burn.Burn, burn.LIMITS, "run"),
    novelty.NAME: Kind(novelty.Novelty, novelty.LIMITS, "run"),
    fan_out.NAME: Kind(fan_out.FanOut, fan_out.LIMITS, "tree"),
    write_spike.NAME: Kind(write_spike.WriteSpike, write_spike.LIMITS, "fleet"),
    first_seen.NAME: Kind(first_seen.FirstSeen, first_seen.LIMITS, "fleet"),
    releases.NAME: Kind(Releases, releases.LIMITS, "fleet"),
}


def _made(per: str, limits: Mapping[str, Any]) -> tuple[Detector, ...]:
    return tuple(
        kind.make(limits.get(name, kind.limits))
        for name, kind in DETECTORS.items()
        if kind.per == per
    )


def _name(detector: Detector | None) -> str:
    kinds = DETECTORS.items()
    return next((name for name, kind in kinds if kind.make is type(detector)), "progress")


@dataclass(slots=True)
class Run:
    """What is remembered of one run."""

    progress: Progress
    detectors: tuple[Detector, ...]


@dataclass(slots=True)
class Runs:
    """Made once; `limits` are other limits than the defaults, by the detector's name.
    `earned_milli` is what the last step earned its run (progress.py)."""

    limits: Mapping[str, Any] = field(default_factory=dict)
    earned_milli: int = 0
    _runs: OrderedDict[str, Run] = field(default_factory=OrderedDict)
    _trees: OrderedDict[str, tuple[Detector, ...]] = field(default_factory=OrderedDict)
    _fleet: tuple[Any, ...] = ()

    def __post_init__(self) -> None:
        self._fleet = _made("fleet", self.limits)

    def feed(self, step: Step) -> list[Finding]:
        """What is found. Raises DetectorError where one of them raised anything: then the run (and
        what failed, if it is of many) begins anew after this step."""
        run, self.earned_milli = self._run(step), 0
        detectors = run.detectors + self._fleet
        if step.depth:
            detectors += self._tree(step.root)
        found, at = [], None
        try:
            run.progress.feed(step)
            for at in detectors:
                one = at.feed(step, run.progress)
                if one is not None:
                    found.append(self._followed(one, step))
        except Exception as error:
            self._drop(step, at)
            raise DetectorError(_name(at), error) from error
        self.earned_milli = run.progress.credit
        return found

    def _drop(self, step: Step, failed: Detector | None) -> None:
        self._runs.pop(step.run, None)
        self._trees.pop(step.root, None)
        anew = zip(self._fleet, _made("fleet", self.limits), strict=True)
        self._fleet = tuple(new if old is failed else old for old, new in anew)

    def forget(self, scope: Scope, subject: str) -> None:
        """A person has released what stood over this: what convinced the detectors counts no more.
        For what is wider than one run all runs begin anew; that delays, and lifts nothing."""
        run, tool = tool_of(subject) if scope is Scope.TOOL else ("", "")
        if scope is Scope.RUN:
            run = subject
        if run:
            self._runs.pop(run, None)
            self._trees.pop(run, None)
        else:
            self._runs.clear()
            self._trees.clear()
        of = {Scope.RUN: Subject.RUN, Scope.RELEASE: Subject.RELEASE, Scope.TOOL: Subject.TOOL}
        if scope in of:
            one: OfMany
            for one in self._fleet:
                one.forget(Subject.RUN if run else of[scope], run or tool or subject)

    def _followed(self, finding: Finding, step: Step) -> Finding:
        """A release that followed none is no suspect: there is nothing to go back to."""
        if not finding.release or any(
            detector.followed(step.tenant, finding.release)
            for detector in self._fleet
            if isinstance(detector, Releases)
        ):
            return finding
        return replace(finding, release="")

    def _run(self, step: Step) -> Run:
        run = self._runs.get(step.run)
        if run is None:
            run = Run(Progress.begun(step.at_us), _made("run", self.limits))
            self._runs[step.run] = run
            if len(self._runs) > RUNS_MAX:
                self._runs.popitem(last=False)
        self._runs.move_to_end(step.run)
        return run

    def _tree(self, root: str) -> tuple[Detector, ...]:
        tree = self._trees.get(root)
        if tree is None:
            tree = self._trees[root] = _made("tree", self.limits)
            if len(self._trees) > TREES_MAX:
                self._trees.popitem(last=False)
        self._trees.move_to_end(root)
        return tree
