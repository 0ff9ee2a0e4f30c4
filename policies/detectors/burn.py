"""D4, the burn: money is spent and nothing comes of it.

Two windows must agree, so that one dear call is no burn and one that is over no longer counts
(notes/detection.md, section 3).
"""

from dataclasses import dataclass, field

from policies.detectors.progress import Progress
from policies.detectors.rate import Sums
from policies.detectors.step import Finding, Severity, Step, Subject

NAME = "burn"
SHORT_US = 5_000_000  # 60 of these are five minutes, 12 one
LONG_US = 300_000_000  # 24 of these are two hours, 3 a quarter of one


@dataclass(frozen=True, slots=True)
class Limits:
    """`idle_*`: a slow burn through the night, with no write at all."""

    trip_microusd: int = 2_000_000
    trip_tokens: int = 1_000_000
    trip_calls: int = 3  # one dear call alone is none
    fast_trip_microusd: int = 10_000_000
    fast_alert_microusd: int = 5_000_000
    idle_alert_microusd: int = 2_000_000


LIMITS = Limits()


@dataclass(slots=True)
class Burn:
    """One run's."""

    limits: Limits = LIMITS
    _spent: tuple[Sums, Sums] | None = None  # by the short bucket, and by the long
    _credits: Sums = field(default_factory=lambda: Sums(SHORT_US, 60))
    _written_us: int | None = None

    def may_find(self, step: Step, progress: Progress) -> bool:
        """Whether this much more is enough for any of the sums, whatever else would be asked."""
        microusd, tokens = step.spend_microusd, step.tokens
        if not microusd and not tokens:
            return False
        limits, since = self.limits, progress.unearned
        if since.spend_microusd + microusd >= limits.trip_microusd:
            return True
        if since.tokens + tokens >= limits.trip_tokens:
            return True
        fast = min(limits.fast_alert_microusd, limits.fast_trip_microusd) - microusd
        idle = limits.idle_alert_microusd - microusd
        if self._spent is None:
            return fast <= 0 or idle <= 0
        short, long = self._spent
        return short.may_reach(fast) or long.may_reach(idle)

    def feed(self, step: Step, progress: Progress) -> Finding | None:
        """`progress` has seen the step already."""
        at_us, limits = step.at_us, self.limits
        if self._written_us is None or progress.is_written or progress.is_told:
            self._written_us = at_us
        if progress.credit:
            self._credits.add(at_us, progress.credit)
        if not step.spend_microusd and not step.tokens:
            return None
        if self._spent is None:
            self._spent = Sums(SHORT_US, 60), Sums(LONG_US, 24)
        short, long = self._spent
        short.add(at_us, step.spend_microusd)
        long.add(at_us, step.spend_microusd)
        since = progress.unearned
        if since.calls + since.model_calls >= limits.trip_calls:
            if since.spend_microusd >= limits.trip_microusd:
                why = f"{_usd(since.spend_microusd)} since progress"
                return _found(step, Severity.TRIP, why, since.at_us + 1)
            if since.tokens >= limits.trip_tokens:
                why = f"{since.tokens} tokens since progress"
                return _found(step, Severity.TRIP, why, since.at_us + 1)
        least = min(limits.fast_alert_microusd, limits.fast_trip_microusd)
        if not short.may_reach(least) and not long.may_reach(limits.idle_alert_microusd):
            return None
        five, one = short.within(at_us, 60), short.within(at_us, 12)
        earned = self._credits.within(at_us, 60)
        steady = one * 5 >= five // 2
        if five >= limits.fast_trip_microusd and steady and earned * 1000 < five:
            why = f"{_usd(five)} in 5 minutes, little progress"
            return _found(step, Severity.TRIP, why, at_us - LONG_US)
        if five >= limits.fast_alert_microusd and steady:
            return _found(step, Severity.ALERT, f"{_usd(five)} in 5 minutes", at_us - LONG_US)
        idle_us = at_us - self._written_us
        hours, quarter = long.within(at_us, 24), long.within(at_us, 3)
        if idle_us >= 24 * LONG_US and hours >= limits.idle_alert_microusd and quarter * 8 >= hours:
            why = f"{_usd(hours)} in 2 hours without a write"
            return _found(step, Severity.ALERT, why, self._written_us + 1)
        return None


def _found(step: Step, severity: Severity, why: str, since_us: int) -> Finding:
    calls = (step.call_id,)
    return Finding(NAME, severity, Subject.RUN, step.run, why, calls, since_us=since_us)


def _usd(microusd: int) -> str:
    return f"${microusd // 1_000_000}.{microusd // 10_000 % 100:02d}"
