"""The detectors over one ledger: each settled call is fed once, in the order of the record, inside
the transaction that records it.

What they remember is not stored. After a start, an edit of their limits, or a transaction that
failed after they were fed, it is made again from the newest rows; a trip may come later by that,
and none is lifted.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ledger.sqlite import sqlite3
from policies.detectors.response import Responding
from policies.detectors.rules import Mode, Rule
from policies.detectors.runs import Runs
from policies.detectors.step import Finding, Step
from policies.verdict import Pull


class Found(NamedTuple):
    """What a detector said over a step, what the policy says of that detector, and the cord that a
    trip pulls, or would pull if the policy let it; None of an alert."""

    finding: Finding
    rule: Rule
    step: Step
    pull: Pull | None


class Watch:
    """Part of the store's memory; only its thread calls."""

    def __init__(self) -> None:
        self._runs = Runs()
        self._responding = Responding()

    def feed(self, conn: sqlite3.Connection, step: Step, rules: Mapping[str, Rule]) -> list[Found]:
        """What is found over one settled call, of detectors that are not off."""
        found = []
        for finding in self._runs.feed(step):
            rule = rules[finding.detector]
            if rule.mode is not Mode.OFF:
                pull = self._responding.cord(finding, rule, step)
                found.append(Found(finding, rule, step, pull))
        return found

    def lost(self) -> None:
        """The transaction in which calls were fed has failed: they will be fed again."""
