"""What follows from a step of a run: the detectors are fed with it, and what they find is acted on
in the transaction that records it, so that the next call that is judged meets it.
"""

from ledger import incidents, steps
from ledger.batch import Batch
from ledger.records import Outcome
from policies.detectors.step import Step


def follow(batch: Batch, step: Step) -> None:
    """The row of the step has been told, or is told next."""
    for one in batch.fed(step):
        incidents.found(batch, one)


def settled(batch: Batch, step: Step | None, outcome: Outcome) -> None:
    """A call has ended. One that was never sent is no step."""
    done = None if step is None else steps.ended(step, outcome, batch.key)
    if done is not None:
        follow(batch, done)
