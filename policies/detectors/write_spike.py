"""D5's first count, the write spike: every write succeeds, and there are too many. No progress
clears it.

Distinct writes of one run within a minute; those of several runs by one tool of a tenant within
five, against what is usual there (notes/detection.md, section 3).
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from policies.detectors.kept import kept
from policies.detectors.progress import Progress
from policies.detectors.step import Finding, Severity, Step, Subject

NAME = "write_spike"
KNOWN_MAX = 4_096  # tools
SECOND_US = 1_000_000
SPAN_US = 300_000_000
USUAL_SPANS = 2_016  # spans of five minutes in seven days
SHARE = 64  # the newest span counts so much of what is usual: some five hours
MILLI = 1000


@dataclass(frozen=True, slots=True)
class Limits:
    """More different writes than these: of a run in a minute, of a tool by at least so many runs
    in five, and there also more than so many times what is usual."""

    run_writes: int = 60
    tool_writes: int = 100
    tool_times: int = 8
    tool_runs: int = 3  # one run's batch is held to its own limit


LIMITS = Limits()


@dataclass(slots=True)
class Usual:
    """Writes of one tool for a tenant: those of the span that runs and by which roots and releases
    (of these, whether there is one and no other), and what a span usually has, in thousandths."""

    span: int
    now: int = 0
    runs: frozenset[str] = frozenset()
    releases: frozenset[str] = frozenset()
    usual_milli: int = 0

    def count(self, step: Step, runs_max: int) -> None:
        span = step.at_us // SPAN_US
        if span > self.span:
            self._begin(span)
        self.now += 1
        root = step.root or step.run
        if len(self.runs) < runs_max and root not in self.runs:
            self.runs |= {root}
        if step.release not in self.releases and len(self.releases) < 2:
            self.releases |= {step.release}

    def _begin(self, span: int) -> None:
        for _ in range(min(span - self.span, USUAL_SPANS)):
            self.usual_milli += (self.now * MILLI - self.usual_milli) // SHARE
            self.now = 0
        self.span, self.runs, self.releases = span, frozenset(), frozenset()


@dataclass(slots=True)
class WriteSpike:
    """Of all runs. The keys that were not heard of for longest are forgotten."""

    limits: Limits = LIMITS
    _of_tools: OrderedDict[tuple[str, str], Usual] = field(default_factory=OrderedDict)

    def feed(self, step: Step, progress: Progress) -> Finding | None:
        """`progress`, of the step's run, has seen the step already."""
        if not progress.is_written:
            return None
        return self._of_run(step, progress) or self._of_tool(step)

    def forget(self, subject: Subject, name: str) -> None:
        if subject is Subject.TOOL:
            for usual in [usual for (_, tool), usual in self._of_tools.items() if tool == name]:
                usual.now, usual.runs = 0, frozenset()

    def _of_run(self, step: Step, progress: Progress) -> Finding | None:
        most, writes = self.limits.run_writes, progress.count_write(step.at_us)
        if not writes.may_reach(most + 1):
            return None
        count = writes.within(step.at_us, 60)
        if count <= most:
            return None
        why = f"{count} different writes within a minute"
        about = (NAME, Severity.TRIP, Subject.RUN, step.run, why, (step.call_id,))
        return Finding(*about, since_us=step.at_us - 60 * SECOND_US)

    def _of_tool(self, step: Step) -> Finding | None:
        key = (step.tenant, step.tool)
        usual = kept(self._of_tools, key, lambda: Usual(step.at_us // SPAN_US), KNOWN_MAX)
        usual.count(step, self.limits.tool_runs)
        limits = self.limits
        if usual.now <= limits.tool_writes or len(usual.runs) < limits.tool_runs:
            return None
        if usual.now <= limits.tool_times * usual.usual_milli // MILLI:
            return None
        why = f"{usual.now} writes in 5 minutes, usual are {usual.usual_milli / MILLI:.1f}"
        release = step.release if usual.releases == {step.release} else ""
        evidence = (step.call_id,)
        about = (NAME, Severity.ALERT, Subject.TOOL, step.tool, why, evidence, step.tool, release)
        return Finding(*about, since_us=usual.span * SPAN_US, runs=None)
