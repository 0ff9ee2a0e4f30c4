"""What follows from a step of a run: the detectors are fed with it, and what they find is acted on
in the transaction that records it, so that the next call that is judged meets it. What those find
that may wait is acted on in the next one.
"""

from collections.abc import Iterable

from ledger import incidents, steps
from ledger.batch import Batch
from ledger.records import Outcome
from ledger.watching import Found
from policies.detectors.step import Step


def follow(batch: Batch, step: Step) -> None:
    """The row of the step has been told, or is told next."""
    found = batch.fed(step)
    if found:
        act_on(batch, found)


def act_on(batch: Batch, found: Iterable[Found]) -> None:
    for one in found:
        incidents.found(batch, one)


def settled(batch: Batch, step: Step | None, outcome: Outcome) -> None:
    """A call has ended. One that was never sent is no step."""
    if step is not None and steps.end(step, outcome, batch.key):
        follow(batch, step)
