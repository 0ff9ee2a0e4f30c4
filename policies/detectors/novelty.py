"""D6, the collapse of progress against cost: of the last calls hardly one brought anything new."""

from array import array
from dataclasses import dataclass, field

from policies.detectors.progress import Progress
from policies.detectors.step import Finding, Kind, Severity, Step, Subject

NAME = "novelty"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of the last `calls_max` tool calls, once there are `calls_min`, at most so many per cent
    brought something new."""

    calls_max: int = 20
    calls_min: int = 10
    alert_percent: int = 40
    trip_percent: int = 25
    alert_every_us: int = 60_000_000  # what makes a call in longer than this only waits
    trip_every_us: int = 4_500_000  # what makes a call in longer than this may be a poll


LIMITS = Limits()


@dataclass(slots=True)
class Novelty:
    """One run's: when the newest calls were, doubled, and one more where it was new."""

    limits: Limits = LIMITS
    _last: array[int] = field(default_factory=lambda: array("q"))
    _new: int = 0  # of these

    def feed(self, step: Step, progress: Progress) -> Finding | None:
        """`progress` has seen the step already."""
        limits, last = self.limits, self._last
        if progress.is_told:
            del last[:]
            self._new = 0
        if step.kind is not Kind.TOOL or not step.action:
            return None
        if len(last) >= limits.calls_max:
            self._new -= last.pop(0) & 1
        last.append(2 * step.at_us + progress.is_new)
        self._new += progress.is_new
        count, new = len(last), self._new
        if count < limits.calls_min or 100 * new > limits.alert_percent * count:
            return None
        since_us = last[0] // 2
        every_us = (step.at_us - since_us) // (count - 1)
        if every_us > limits.alert_every_us:
            return None
        trips = 100 * new <= limits.trip_percent * count and every_us <= limits.trip_every_us
        why = f"of its last {count} calls {new} brought something new"
        severity = Severity.TRIP if trips else Severity.ALERT
        about = (NAME, severity, Subject.RUN, step.run, why, (step.call_id,))
        return Finding(*about, since_us=since_us)
