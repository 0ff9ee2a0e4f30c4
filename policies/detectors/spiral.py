"""D2, the spiral: a model is called again and again, and nothing comes of it.

Counted are model calls, money and time since progress, which a new human message begins anew; what
assistants and tools say does not (notes/detection.md, section 3). An agent that wanders always
finds something new, so it is told by the calls since it last wrote, was spoken to, or marked
progress, among which it asked again what it had asked before.
"""

from dataclasses import dataclass

from policies.detectors.progress import Progress, Since
from policies.detectors.step import Finding, Kind, Severity, Step, Subject

NAME = "spiral"


@dataclass(frozen=True, slots=True)
class Limits:
    alert_calls: int = 6
    trip_calls: int = 10
    trip_microusd: int = 500_000
    trip_lasted_us: int = 60_000_000
    alert_every_us: int = 60_000_000  # who asks a model less often than that only waits
    trip_every_us: int = 15_000_000  # who asks it less often than that may wait for something
    wander_calls: int = 20
    wander_repeats: int = 2


LIMITS = Limits()


@dataclass(slots=True)
class Spiral:
    """One run's; all that it needs is in its progress."""

    limits: Limits = LIMITS

    def may_find(self, step: Step, progress: Progress) -> bool:
        if step.kind is not Kind.MODEL:
            return False
        limits, wandered = self.limits, progress.unwritten.model_calls + 1
        return progress.unmoved.model_calls + 1 >= limits.alert_calls or (
            wandered >= limits.wander_calls and progress.repeats >= limits.wander_repeats
        )

    def feed(self, step: Step, progress: Progress) -> Finding | None:
        """`progress` has seen the step already."""
        if step.kind is not Kind.MODEL:
            return None
        return self._stuck(step, progress.unmoved) or self._wandering(step, progress)

    def _stuck(self, step: Step, since: Since) -> Finding | None:
        limits = self.limits
        if since.model_calls < limits.alert_calls:
            return None
        lasted_us = step.at_us - since.at_us
        every_us = lasted_us // since.model_calls
        dear = since.spend_microusd >= limits.trip_microusd
        fast = lasted_us >= limits.trip_lasted_us and every_us <= limits.trip_every_us
        if every_us > limits.alert_every_us and not dear:
            return None
        trips = since.model_calls >= limits.trip_calls and (dear or fast)
        why = f"{since.model_calls} model calls in {lasted_us // 1_000_000} s without progress"
        return _found(step, Severity.TRIP if trips else Severity.ALERT, why, since)

    def _wandering(self, step: Step, progress: Progress) -> Finding | None:
        calls, repeats = progress.unwritten.model_calls, progress.repeats
        if calls < self.limits.wander_calls or repeats < self.limits.wander_repeats:
            return None
        why = f"{calls} model calls without a write, {repeats} calls asked again"
        return _found(step, Severity.ALERT, why, progress.unwritten)


def _found(step: Step, severity: Severity, why: str, since: Since) -> Finding:
    about = (NAME, severity, Subject.RUN, step.run, why, (step.call_id,))
    return Finding(*about, since_us=since.at_us + 1)
