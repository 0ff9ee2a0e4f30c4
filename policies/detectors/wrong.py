"""D5, coherent but wrong: every call succeeds, and they are the wrong ones. No progress clears it.

Over all runs: distinct writes of one run within a minute; those of several runs by one tool of a
tenant within five, against what is usual there; somebody new to whom several runs write within ten
minutes (notes/detection.md, section 3). A bad release is another matter: releases.py.
"""

from dataclasses import dataclass, field

from policies.detectors.progress import WRITE, Progress
from policies.detectors.rate import Sums
from policies.detectors.step import Finding, Kind, Severity, Step, Subject

NAME = "wrong"
KNOWN_MAX = 4_096  # of each: runs, tools, recipients
SECOND_US = 1_000_000
SPAN_US = 300_000_000
USUAL_SPANS = 2_016  # spans of five minutes in seven days
SHARE = 64  # the newest span counts so much of what is usual: some five hours
MILLI = 1000


@dataclass(frozen=True, slots=True)
class Limits:
    run_writes: int = 60
    tool_writes: int = 100
    tool_times: int = 8
    tool_runs: int = 3  # one run's batch is held to its own limit
    recipient_us: int = 600_000_000
    recipient_alert_runs: int = 3
    recipient_trip_runs: int = 5


LIMITS = Limits()


@dataclass(slots=True)
class Usual:
    """Writes of one tool for a tenant: those of the span that runs and by which runs, and what a
    span usually has, in thousandths."""

    span: int
    now: int = 0
    runs: frozenset[str] = frozenset()
    usual_milli: int = 0

    def count(self, at_us: int, run: str, runs_max: int) -> None:
        span = at_us // SPAN_US
        for _ in range(min(span - self.span, USUAL_SPANS)):
            self.usual_milli += (self.now * MILLI - self.usual_milli) // SHARE
            self.now, self.runs = 0, frozenset()
        self.span = max(span, self.span)
        self.now += 1
        if len(self.runs) < runs_max:
            self.runs |= {run}


@dataclass(slots=True)
class Met:
    """A recipient: when it was first written to, by which runs, and by which calls."""

    at_us: int
    runs: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()


@dataclass(slots=True)
class Wrong:
    """Of all runs. The oldest keys are forgotten: what is forgotten begins anew."""

    limits: Limits = LIMITS
    _of_runs: dict[str, Sums] = field(default_factory=dict)
    _of_tools: dict[tuple[str, str], Usual] = field(default_factory=dict)
    _recipients: dict[bytes, Met] = field(default_factory=dict)

    def feed(self, step: Step, progress: Progress) -> Finding | None:
        """`progress`, of the step's run, has seen the step already."""
        if step.kind is not Kind.TOOL or progress.credit != WRITE:
            return None
        return self._of_run(step) or self._of_tool(step) or self._to(step)

    def _of_run(self, step: Step) -> Finding | None:
        sums = self._of_runs.get(step.run)
        if sums is None:
            sums = _kept(self._of_runs, step.run, Sums(SECOND_US, 60))
        sums.add(step.at_us, 1)
        writes = sums.within(step.at_us, 60)
        if writes <= self.limits.run_writes:
            return None
        why = f"{writes} different writes within a minute"
        return Finding(NAME, Severity.TRIP, Subject.RUN, step.run, why, (step.call_id,))

    def _of_tool(self, step: Step) -> Finding | None:
        key = (step.tenant, step.tool)
        usual = self._of_tools.get(key)
        if usual is None:
            usual = _kept(self._of_tools, key, Usual(step.at_us // SPAN_US))
        usual.count(step.at_us, step.run, self.limits.tool_runs)
        most = max(self.limits.tool_writes, self.limits.tool_times * usual.usual_milli // MILLI)
        if usual.now <= most or len(usual.runs) < self.limits.tool_runs:
            return None
        why = f"{usual.now} writes in 5 minutes, usual are {usual.usual_milli / MILLI:.1f}"
        return Finding(NAME, Severity.ALERT, Subject.TOOL, step.tool, why, (step.call_id,))

    def _to(self, step: Step) -> Finding | None:
        if not step.recipient:
            return None
        met = self._recipients.get(step.recipient)
        if met is None:
            met = _kept(self._recipients, step.recipient, Met(step.at_us))
        if step.at_us - met.at_us > self.limits.recipient_us or step.run in met.runs:
            return None
        met.runs, met.calls = (*met.runs, step.run), (*met.calls, step.call_id)
        count = len(met.runs)
        if count < self.limits.recipient_alert_runs:
            return None
        trips = count >= self.limits.recipient_trip_runs
        severity = Severity.TRIP if trips else Severity.ALERT
        why = f"{count} runs wrote to a recipient that is new within 10 minutes"
        return Finding(NAME, severity, Subject.TOOL, step.tool, why, met.calls)


def _kept[K, V](known: dict[K, V], key: K, value: V) -> V:
    """Put in; beyond KNOWN_MAX the oldest goes."""
    if len(known) >= KNOWN_MAX:
        del known[next(iter(known))]
    known[key] = value
    return value
