"""D6, the collapse of progress against cost: of the last calls hardly one brought anything new."""

from dataclasses import dataclass

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
    alert_us: int = 60_000_000  # what makes a call in longer than this only waits
    trip_us: int = 4_500_000  # what makes a call in longer than this may be a poll


LIMITS = Limits()


@dataclass(slots=True)
class Novelty:
    """One run's: the newest calls, each whether it was new, and when it was."""

    limits: Limits = LIMITS
    _last: tuple[tuple[bool, int], ...] = ()

    def feed(self, step: Step, progress: Progress) -> Finding | None:
        """`progress` has seen the step already."""
        limits = self.limits
        if progress.is_told:
            self._last = ()
        if step.kind is not Kind.TOOL:
            return None
        self._last = (*self._last, (progress.is_new, step.at_us))[-limits.calls_max :]
        count = len(self._last)
        new = sum(is_new for is_new, _ in self._last)
        if count < limits.calls_min or 100 * new > limits.alert_percent * count:
            return None
        every_us = (self._last[-1][1] - self._last[0][1]) // (count - 1)
        if every_us > limits.alert_us:
            return None
        trips = 100 * new <= limits.trip_percent * count and every_us <= limits.trip_us
        why = f"of its last {count} calls {new} brought something new"
        severity = Severity.TRIP if trips else Severity.ALERT
        return Finding(NAME, severity, Subject.RUN, step.run, why, (step.call_id,))
