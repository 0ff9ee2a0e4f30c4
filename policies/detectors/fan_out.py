"""D3, the fan-out: runs start runs, faster, more at once or deeper than a tree of them needs.

By the root's tree: each run in it counts there, however deep (notes/detection.md, section 3).
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, field

from policies.detectors.progress import Progress
from policies.detectors.step import Finding, Kind, Severity, Step, Subject

NAME = "fan_out"
WINDOW_US = 300_000_000
LIVE_MAX = 64  # runs of a tree that are remembered as live; a trip comes long before


@dataclass(frozen=True, slots=True)
class Limits:
    """Spawns within five minutes, live descendants, depth with so many descendants, all of them.
    A run is live while something of it came within five minutes and it has not ended."""

    alert_spawns: int = 9
    trip_spawns: int = 15
    trip_live: int = 20
    trip_depth: int = 3
    trip_depth_descendants: int = 8
    trip_descendants: int = 200


LIMITS = Limits()


@dataclass(slots=True)
class FanOut:
    """One tree's. A step of kind SPAWN is the child's first: `run` and `depth` are its own."""

    limits: Limits = LIMITS
    _spawned: deque[tuple[int, str]] = field(default_factory=deque)
    _live: OrderedDict[str, int] = field(default_factory=OrderedDict)
    _descendants: int = 0
    _depth: int = 0

    def may_find(self, step: Step, progress: Progress) -> bool:
        return step.kind is Kind.SPAWN

    def feed(self, step: Step, progress: Progress) -> Finding | None:
        if step.depth == 0:
            return None
        if step.kind is Kind.END:
            self._live.pop(step.run, None)
            return None
        if step.kind is Kind.SPAWN or step.run in self._live:
            self._live[step.run] = step.at_us
            self._live.move_to_end(step.run)
            if len(self._live) > LIVE_MAX:
                self._live.popitem(last=False)
        if step.kind is not Kind.SPAWN:
            return None
        self._descendants += 1
        self._depth = max(self._depth, step.depth)
        self._spawned.append((step.at_us, step.call_id))
        while step.at_us - self._spawned[0][0] > WINDOW_US or len(self._spawned) > LIVE_MAX:
            self._spawned.popleft()
        return self._judged(step)

    def _judged(self, step: Step) -> Finding | None:
        limits, spawns = self.limits, len(self._spawned)
        since_us = step.at_us - WINDOW_US
        live = sum(at_us > since_us for at_us in self._live.values())
        deep = self._depth >= limits.trip_depth
        wrong = ""
        if spawns >= limits.trip_spawns:
            wrong = f"{spawns} runs started in 5 minutes"
        elif live >= limits.trip_live:
            wrong = f"{live} runs live at once"
        elif deep and self._descendants >= limits.trip_depth_descendants:
            wrong = f"{self._descendants} runs, {self._depth} deep"
        elif self._descendants >= limits.trip_descendants:
            wrong = f"{self._descendants} runs in all"
        evidence = tuple(call_id for _, call_id in self._spawned)[-8:]
        if wrong:
            return _found(step, Severity.TRIP, wrong, evidence, self._spawned[0][0])
        if spawns >= limits.alert_spawns:
            why = f"{spawns} runs started in 5 minutes"
            return _found(step, Severity.ALERT, why, evidence, self._spawned[0][0])
        return None


def _found(
    step: Step, severity: Severity, why: str, evidence: tuple[str, ...], since_us: int
) -> Finding:
    return Finding(NAME, severity, Subject.TREE, step.root, why, evidence, since_us=since_us)
