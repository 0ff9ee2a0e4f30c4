"""What the detectors say of traces: how many runs, by which call, after how long, at what cost."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from policies.detectors.runs import Runs
from policies.detectors.step import Kind, Severity
from tests.eval.traces import Class, Trace


@dataclass(frozen=True, slots=True)
class First:
    """When something was first said of a run: tool calls, time and money from the onset on."""

    calls: int
    seconds: float
    spend_microusd: int


@dataclass(slots=True)
class Told:
    """By run of a class: what each detector first said, and what any of them did."""

    runs: int = 0
    by: dict[tuple[str, Severity], list[First]] = field(default_factory=dict)

    def told(self, detector: str, severity: Severity) -> list[First]:
        return self.by.get((detector, severity), [])


ANY = "any"


def told(traces: Iterable[Trace], limits: Mapping[str, Any]) -> dict[Class, Told]:
    found: dict[Class, Told] = {known: Told() for known in Class}
    for trace in traces:
        of_class = found[trace.known]
        of_class.runs += 1
        for key, first in _firsts(trace, limits).items():
            of_class.by.setdefault(key, []).append(first)
    return found


def _firsts(trace: Trace, limits: Mapping[str, Any]) -> dict[tuple[str, Severity], First]:
    firsts: dict[tuple[str, Severity], First] = {}
    runs, calls, spent, begun_us = Runs(limits), 0, 0, trace.steps[0].at_us
    for step in trace.steps:
        if step.kind is Kind.TOOL:
            calls += 1
            if calls == trace.onset + 1:
                spent, begun_us = 0, step.at_us
        spent += step.spend_microusd
        for finding in runs.feed(step):
            seconds = (step.at_us - begun_us) / 1_000_000
            if trace.known is Class.LOOP and calls <= trace.onset:
                continue  # said too early, it was no word about the loop
            first = First(calls - trace.onset, seconds, spent)
            # What is ground to stop something is ground to tell somebody.
            severities = {finding.severity, Severity.ALERT}
            for name in (finding.detector, ANY):
                for severity in severities:
                    firsts.setdefault((name, severity), first)
    return firsts
