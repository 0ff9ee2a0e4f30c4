"""Which cord a trip pulls: the one that the policy names, else the smallest that the evidence calls
for.
"""

from policies.detectors.rules import Rule
from policies.detectors.step import Finding, Severity, Step
from policies.verdict import Level, Pull, Scope


class Responding:
    """Remembers which runs tripped lately, so that what is wrong with many is stopped as one."""

    def cord(self, finding: Finding, rule: Rule, step: Step) -> Pull | None:
        """The cord of a trip; None of an alert."""
        if finding.severity is not Severity.TRIP:
            return None
        actor = f"detector:{finding.detector}"
        return Pull(Level.HALT, Scope.RUN, step.run, finding.why, actor, step.at_us)
