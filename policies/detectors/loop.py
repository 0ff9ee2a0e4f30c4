"""D1, the tight loop: the same call with the same result, again and again, and nothing between.

A stale repeat is a call whose tool and arguments this run has sent already, whose result it was
given for them already, with no new distinct write between. Each takes T seconds of a bucket that
drains with time, so polls slower than T never fill it (notes/detection.md, section 3). Different
calls that come at once count as one: several jobs that are polled together are one poll. Calls that
are each made but a second time, as after a memory was lost, are no loop yet: a trip of the fast
ones takes one that comes again. A second count finds what a nonce in the arguments hides: one tool
that gives one result over and over, whatever it is asked, with no write between.
"""

from dataclasses import dataclass, field

from policies.detectors.newest import Newest, packed
from policies.detectors.progress import ACTIONS_MAX, EPOCH_BYTES, Progress
from policies.detectors.step import Finding, Kind, Severity, Step, Subject

NAME = "loop"
TOOLS_MAX = 64
AT_ONCE_US = 100_000  # whatever they ask
BESIDE_US = 500_000  # different calls, each so soon after the one before it,
BESIDE_IN_ALL_US = 2_000_000  # and so soon after the first of them: a loop goes on without a pause
BESIDE_MAX = 32
EVIDENCE_MAX = 8
RESULT_BYTES = 6  # a part of what the record has (newest.py)
TOLD_BYTES = RESULT_BYTES + EPOCH_BYTES


@dataclass(frozen=True, slots=True)
class Limits:
    """A bucket fires when it is `burst` repeats of `every_us` ahead of the clock. A trip takes
    repeats that come faster than any poll does, or as many slower ones as have cost
    `trip_microusd` since progress: for minutes a slow loop and a poll are the same."""

    alert_every_us: int = 20_000_000
    alert_burst: int = 5
    fast_every_us: int = 4_500_000
    fast_burst: int = 5
    trip_every_us: int = 10_000_000
    trip_burst: int = 8
    trip_microusd: int = 2_000_000
    same_result_every_us: int = 6_000_000
    same_result_alert: int = 18
    same_result_trip: int = 40


LIMITS = Limits()


@dataclass(slots=True)
class Bucket:
    """GCRA: the time up to which the repeats so far have taken the bucket."""

    every_us: int
    burst: int
    until_us: int = 0

    def take(self, at_us: int) -> bool:
        self.until_us = max(at_us, self.until_us) + self.every_us
        return self.until_us - at_us > self.burst * self.every_us

    @property
    def full_us(self) -> int:
        """`take` says yes to what comes before that, and to nothing else. No burst is 0."""
        return self.until_us - (self.burst - 1) * self.every_us


class Repeats:
    """What is remembered of a run in which something repeats: buckets, what they took lately, each
    by its tool and call, what came at once with the last that counted, and what was repeated since
    the fast bucket was empty."""

    __slots__ = ("again", "alert", "beside", "beside_us", "came_again", "evidence", "fast",
                 "full_us", "same_alert", "same_trip", "since_us", "trip")  # fmt: skip

    def __init__(self, limits: Limits) -> None:
        self.alert = Bucket(limits.alert_every_us, limits.alert_burst)
        self.fast = Bucket(limits.fast_every_us, limits.fast_burst)
        self.trip = Bucket(limits.trip_every_us, limits.trip_burst)
        self.same_alert = Bucket(limits.same_result_every_us, limits.same_result_alert)
        self.same_trip = Bucket(limits.same_result_every_us, limits.same_result_trip)
        self.evidence: list[tuple[str, str]] = []
        self.since_us = 0
        self.full_us = 0  # over what comes later than that nothing is found
        self.beside = Newest(BESIDE_MAX)
        self.beside_us = 0, 0  # the first and the last of them
        self.again = Newest(ACTIONS_MAX)
        self.came_again = False  # one of those

    def is_beside(self, step: Step) -> bool:
        """Whether it came at once with others, and none of them asked the same."""
        first_us, last_us = self.beside_us
        goes_on = step.at_us - last_us <= BESIDE_US and step.at_us - first_us <= BESIDE_IN_ALL_US
        goes_on = goes_on and len(self.beside) < BESIDE_MAX
        if goes_on and self.beside.put(step.action) is None:
            self.beside_us = first_us, step.at_us
            return True
        self.beside, self.beside_us = Newest(BESIDE_MAX), (step.at_us, step.at_us)
        self.beside.put(step.action)
        return False

    def notice(self, step: Step) -> None:
        """Before it takes the fast bucket, whether it counts or not."""
        if step.at_us > self.fast.until_us:
            self.again, self.came_again = Newest(ACTIONS_MAX), False
        if self.again.put(step.action) is not None:
            self.came_again = True

    def taken(self) -> None:
        """For one look at the next call, which somebody waits for."""
        slow, same = self.trip.full_us, max(self.same_alert.full_us, self.same_trip.full_us)
        self.full_us = max(self.alert.full_us, self.fast.full_us, slow, same)

    def note(self, step: Step) -> None:
        if step.at_us > max(self.alert.until_us, self.same_alert.until_us):
            self.evidence, self.since_us = [], step.at_us  # what was repeated before is over
        self.evidence = [*self.evidence, (step.tool, step.call_id)][-EVIDENCE_MAX:]


@dataclass(slots=True)
class Loop:
    """One run's."""

    limits: Limits = LIMITS
    _of_tool: Newest = field(default_factory=lambda: Newest(TOOLS_MAX, TOLD_BYTES))
    _batch: int = 0
    _counted: tuple[int, int] = (-1, 0)
    _repeats: Repeats | None = None

    def may_find(self, step: Step, progress: Progress) -> bool:
        """No bucket is so full that one more repeat would be too many."""
        repeats = self._repeats
        return repeats is not None and step.kind is Kind.TOOL and step.at_us < repeats.full_us

    def feed(self, step: Step, progress: Progress) -> Finding | None:
        """`progress` has seen the step already."""
        if step.kind is Kind.MODEL:
            self._batch += 1
        if step.kind is not Kind.TOOL or not step.action:
            return None
        told = packed(step.result, RESULT_BYTES) + progress.epoch.to_bytes(EPOCH_BYTES)
        alike = self._of_tool.put(step.tool, told) == told
        stale = progress.is_stale
        if not (stale or alike):
            return None
        repeats = self._repeats
        if repeats is None:
            repeats = self._repeats = Repeats(self.limits)
        if stale:
            repeats.notice(step)
        is_beside = stale and repeats.is_beside(step)
        batch, counted_us = self._counted
        if batch == self._batch and (is_beside or step.at_us - counted_us < AT_ONCE_US):
            return None
        self._counted = (self._batch, step.at_us)
        repeats.note(step)
        found = self._repeated(step, repeats, progress) if stale else _varied(step, repeats)
        repeats.taken()
        return found

    def _repeated(self, step: Step, repeats: Repeats, progress: Progress) -> Finding | None:
        alerts = repeats.alert.take(step.at_us)
        fast = repeats.fast.take(step.at_us) and repeats.came_again
        slow = repeats.trip.take(step.at_us)
        dear = progress.unmoved.spend_microusd >= self.limits.trip_microusd
        why = "the same call brought the same result again and again, with no write between"
        return _found(step, repeats, alerts, fast or (slow and dear), why)


def _varied(step: Step, repeats: Repeats) -> Finding | None:
    alerts, trips = repeats.same_alert.take(step.at_us), repeats.same_trip.take(step.at_us)
    why = "one tool gave the same result to ever new arguments, with no write between"
    return _found(step, repeats, alerts, trips, why)


def _found(step: Step, repeats: Repeats, alerts: bool, trips: bool, why: str) -> Finding | None:
    if not alerts and not trips:
        return None
    severity = Severity.TRIP if trips else Severity.ALERT
    evidence = tuple(call_id for _, call_id in repeats.evidence)
    tool = step.tool if {tool for tool, _ in repeats.evidence} == {step.tool} else ""
    about = (NAME, severity, Subject.RUN, step.run, why, evidence, tool)
    return Finding(*about, since_us=repeats.since_us)
