"""All detectors over all runs: each settled call goes in once, in order; what they find comes out.

State is bounded: of runs and of trees those that were not heard of for longest are forgotten, which
may delay a finding and never undoes one.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from policies.detectors import burn, fan_out, loop, novelty, releases, spiral, wrong
from policies.detectors.progress import Progress
from policies.detectors.step import Finding, Step

RUNS_MAX = 10_000
TREES_MAX = 10_000


class Detector(Protocol):
    def feed(self, step: Step, progress: Progress) -> Finding | None: ...


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
    wrong.NAME: Kind(wrong.Wrong, wrong.LIMITS, "fleet"),
    releases.NAME: Kind(releases.Releases, releases.LIMITS, "fleet"),
}


def _made(per: str, limits: Mapping[str, Any]) -> tuple[Detector, ...]:
    return tuple(
        kind.make(limits.get(name, kind.limits))
        for name, kind in DETECTORS.items()
        if kind.per == per
    )


@dataclass(slots=True)
class Run:
    """What is remembered of one run."""

    progress: Progress
    detectors: tuple[Detector, ...]


@dataclass(slots=True)
class Runs:
    """Made once; `limits` are other limits than the defaults, by the detector's name."""

    limits: Mapping[str, Any] = field(default_factory=dict)
    _runs: OrderedDict[str, Run] = field(default_factory=OrderedDict)
    _trees: OrderedDict[str, tuple[Detector, ...]] = field(default_factory=OrderedDict)
    _fleet: tuple[Detector, ...] = ()

    def __post_init__(self) -> None:
        self._fleet = _made("fleet", self.limits)

    def feed(self, step: Step) -> list[Finding]:
        run = self._run(step)
        run.progress.feed(step)
        detectors = run.detectors + self._fleet
        if step.depth:
            detectors += self._tree(step.root)
        found = [detector.feed(step, run.progress) for detector in detectors]
        return [one for one in found if one is not None]

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
