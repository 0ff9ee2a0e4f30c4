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
    alert_every_us: int = 60_000_000  # what makes a call in longer than this only waits
    trip_every_us: int = 4_500_000  # what makes a call in longer than this may be a poll


LIMITS = Limits()


@dataclass(slots=True)
class Novelty:
    """One run's: the newest calls, each whether it was new, and when it was."""

    limits: Limits = LIMITS
    _last: tuple[tuple[bool, int], ...] = ()
    _new: int = 0  # of these

    def feed(self, step: Step, progress: Progress) -> Finding | None:
        """`progress` has seen the step already."""
        limits = self.limits
        if progress.is_told:
            self._last, self._new = (), 0
        if step.kind is not Kind.TOOL or not step.action:
            return None
        if len(self._last) >= limits.calls_max:
            self._new -= self._last[0][0]
            self._last = self._last[1:]
        self._last = (*self._last, (progress.is_new, step.at_us))
        self._new += progress.is_new
        count, new = len(self._last), self._new
        if count < limits.calls_min or 100 * new > limits.alert_percent * count:
            return None
        every_us = (self._last[-1][1] - self._last[0][1]) // (count - 1)
        if every_us > limits.alert_every_us:
            return None
        trips = 100 * new <= limits.trip_percent * count and every_us <= limits.trip_every_us
        why = f"of its last {count} calls {new} brought something new"
        severity = Severity.TRIP if trips else Severity.ALERT
        about = (NAME, severity, Subject.RUN, step.run, why, (step.call_id,))
        return Finding(*about, since_us=self._last[0][1])
