"""What goes on through ever new children of one root: each ends before a detector trips over it,
and the next begins where nothing is remembered of the last one.

Counted are the runs of a tree that were stuck part-way: that repeated faster than any poll a call
to which another run of the tree had the same answer; that called a model as often as alerts; that
spent half of what trips. A distinct write in the tree or a person's word to its root begins it
anew; children are spoken to by their parents. What children do at once, and what each does for the
first time, is no such thing.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from policies.detectors import burn, loop, spiral
from policies.detectors.kept import kept
from policies.detectors.newest import Newest
from policies.detectors.progress import Progress
from policies.detectors.step import Finding, Kind, Severity, Step, Subject

WITHIN_US = 1_800_000_000
LASTED_US = 60_000_000  # what is over sooner was done at once
ALERT_RUNS = 3
TRIP_RUNS = 5
REPEATS = 3  # of one call, in a row; fewer by each of so few runs are no more than a poll
KNOWN_MAX = 16  # things in which runs are stuck
REPEATING_MAX = 32  # runs
WRITES_MAX = 256

Stuck = OrderedDict[str, int]
"""Runs, each with when it was first stuck; at most TRIP_RUNS."""


@dataclass(slots=True)
class Hopping:
    """One tree's. `limits` by the name of the detector."""

    limits: dict[str, Any]
    _stuck: OrderedDict[object, Stuck] = field(default_factory=OrderedDict)
    _repeating: OrderedDict[str, tuple[object, int, int]] = field(default_factory=OrderedDict)
    _writes: Newest = field(default_factory=lambda: Newest(WRITES_MAX))

    def may_find(self, step: Step, progress: Progress) -> bool:
        """Whether the run may be stuck part-way with this step; `progress` has not seen it yet."""
        if step.kind is Kind.TOOL:
            *_, count = self._repeating.get(step.run, (None, 0, 0))
            if count >= REPEATS - 1:
                return True
        elif step.kind is Kind.MODEL:
            calls = progress.unmoved.model_calls + 1
            if calls >= self.limits[spiral.NAME].alert_calls:
                return True
        microusd, tokens = step.spend_microusd, step.tokens
        if not microusd and not tokens:
            return False
        limits, since = self.limits[burn.NAME], progress.unearned
        dear = 2 * (since.spend_microusd + microusd) >= limits.trip_microusd
        return bool(dear or 2 * (since.tokens + tokens) >= limits.trip_tokens)

    def feed(self, step: Step, progress: Progress) -> Iterator[Finding]:
        """`progress`, of the step's run, has seen the step already."""
        written = progress.is_written and self._writes.put(step.action) is None
        if written or (progress.is_told and not step.depth):
            self._stuck.clear()
            self._repeating.clear()
            return
        for detector, what in self._parts(step, progress):
            stuck = kept(self._stuck, (detector, what), Stuck, KNOWN_MAX)
            found = _judged(step, stuck, detector)
            if found is not None:
                yield found

    def forget(self, run: str) -> None:
        """A person lets it go on: what convinced counts no more."""
        if any(run in stuck for stuck in self._stuck.values()):
            self._stuck.clear()
            self._repeating.clear()

    def _parts(self, step: Step, progress: Progress) -> Iterator[tuple[str, object]]:
        """By which detectors the run is stuck part-way now, and in what."""
        if step.kind is Kind.TOOL and step.action and self._repeats(step, progress):
            yield loop.NAME, (step.action, step.result)
        limits, since = self.limits[spiral.NAME], progress.unmoved
        if step.kind is Kind.MODEL and since.model_calls >= limits.alert_calls:
            every_us = (step.at_us - since.at_us) // since.model_calls
            if (
                every_us <= limits.alert_every_us
                or 2 * since.spend_microusd >= limits.trip_microusd
            ):
                yield spiral.NAME, None
        limits, since = self.limits[burn.NAME], progress.unearned
        if step.spend_microusd or step.tokens:
            dear = 2 * since.spend_microusd >= limits.trip_microusd
            if dear or 2 * since.tokens >= limits.trip_tokens:
                yield burn.NAME, None

    def _repeats(self, step: Step, progress: Progress) -> bool:
        if progress.is_new:
            return False
        what = (step.action, step.result)
        before, at_us, count = self._repeating.pop(step.run, (None, 0, 0))
        fast = before == what and step.at_us - at_us < self.limits[loop.NAME].fast_every_us
        count = count + 1 if fast else 1
        self._repeating[step.run] = (what, step.at_us, count)
        if len(self._repeating) > REPEATING_MAX:
            self._repeating.popitem(last=False)
        return count >= REPEATS


def _judged(step: Step, stuck: Stuck, detector: str) -> Finding | None:
    """With this run among those that are stuck."""
    for run in [run for run, at_us in stuck.items() if step.at_us - at_us > WITHIN_US]:
        del stuck[run]
    if step.run not in stuck:
        if len(stuck) >= TRIP_RUNS:
            stuck.popitem(last=False)
        stuck[step.run] = step.at_us
    since_us = next(iter(stuck.values()))
    lasted_us = step.at_us - since_us
    if len(stuck) < ALERT_RUNS or lasted_us < LASTED_US:
        return None
    severity = Severity.TRIP if len(stuck) >= TRIP_RUNS else Severity.ALERT
    why = f"{len(stuck)} runs of one tree within {lasted_us // 1_000_000} s, each stuck as the last"
    tool = step.tool if detector == loop.NAME else ""
    evidence = (step.call_id,)
    about = (detector, severity, Subject.TREE, step.root, why, evidence, tool)
    return Finding(*about, since_us=since_us)
