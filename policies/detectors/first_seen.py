"""D5's second count: somebody to whom nobody wrote before, and to whom several runs write now.

An agent that was talked into something finds every call succeeding; what tells it is that run after
run of a tenant does the same to one new recipient. A run and its children count once. No progress
clears it (notes/detection.md, section 3).
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from policies.ceilings import spelled
from policies.detectors.kept import kept
from policies.detectors.progress import Progress
from policies.detectors.step import Finding, Severity, Step, Subject

NAME = "first_seen_destination"
KNOWN_MAX = 4_096  # recipients
CALLS_MAX = 16  # of a recipient, as evidence


@dataclass(frozen=True, slots=True)
class Limits:
    """So many runs that write to one recipient within so long of the first write to it."""

    within_us: int = 600_000_000
    alert_runs: int = 3
    trip_runs: int = 5


LIMITS = Limits()


@dataclass(slots=True)
class Met:
    """A recipient: when it was first written to, by which roots, with which calls and tool; of the
    releases whether there is one, and no other."""

    at_us: int
    runs: tuple[str, ...] = ()
    releases: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()
    tool: str = ""


@dataclass(slots=True)
class FirstSeen:
    """Of all runs. The recipients that were not written to for longest are forgotten."""

    limits: Limits = LIMITS
    _recipients: OrderedDict[tuple[str, bytes], Met] = field(default_factory=OrderedDict)

    def feed(self, step: Step, progress: Progress) -> Finding | None:
        """`progress`, of the step's run, has seen the step already."""
        if not progress.is_written or not step.recipient:
            return None
        met = kept(
            self._recipients, (step.tenant, step.recipient), lambda: Met(step.at_us), KNOWN_MAX
        )
        limits, root = self.limits, step.root or step.run
        if step.at_us - met.at_us > limits.within_us or root in met.runs:
            return None
        met.tool = step.tool
        met.calls = (*met.calls, step.call_id)[-CALLS_MAX:]
        if step.release not in met.releases:
            met.releases = (*met.releases, step.release)[:2]
        runs = (*met.runs, root)
        if len(runs) <= limits.trip_runs:
            met.runs = runs
        if len(runs) < min(limits.alert_runs, limits.trip_runs):
            return None
        severity = Severity.TRIP if len(runs) >= limits.trip_runs else Severity.ALERT
        some = f"{len(runs)} runs" if runs is met.runs else f"more than {limits.trip_runs} runs"
        within = spelled(limits.within_us)
        why = f"{some} wrote to a recipient within {within} of the first write to it"
        release = step.release if met.releases == (step.release,) else ""
        return Finding(
            *(NAME, severity, Subject.TOOL, step.tool, why, met.calls, step.tool, release),
            since_us=met.at_us,
            runs=tuple(sorted(runs)) if runs is met.runs else None,
        )

    def forget(self, subject: Subject, name: str) -> None:
        """A recipient that a person let pass is nobody new any more."""
        for met in self._recipients.values():
            of_it = {
                Subject.TOOL: met.tool == name,
                Subject.RELEASE: name in met.releases,
                Subject.RUN: name in met.runs,
            }
            if of_it.get(subject):
                met.at_us -= self.limits.within_us + 1
