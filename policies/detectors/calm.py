"""Whether anything may be found at once over a step, told before it is fed: a no is certain.

Whoever settles a call waits for that answer. So what can be said of most calls that a run may make
next is said after the last one, and then one look is enough.
"""

from collections.abc import Iterable
from typing import Protocol

from policies.detectors.progress import Progress
from policies.detectors.step import Finding, Kind, Step

CHEAP_MICROUSD = 50_000
CHEAP_TOKENS = 50_000

Calm = tuple[Kind, ...]
"""Kinds of calls over which nothing is found, whenever they come, if they are cheap."""


class Prompt(Protocol):
    """A detector that cannot wait."""

    def may_find(self, step: Step, progress: Progress) -> bool:
        """Whether `feed` might find anything over the step, which `progress` has not seen either.
        Never less, if the same step came earlier or cost more."""

    def feed(self, step: Step, progress: Progress) -> Finding | None: ...


def may_find(detectors: Iterable[Prompt], step: Step, progress: Progress) -> bool:
    for at in detectors:  # noqa: SIM110 - in half the time of any()
        if at.may_find(step, progress):
            return True
    return False


def is_cheap(step: Step) -> bool:
    return step.spend_microusd <= CHEAP_MICROUSD and step.tokens <= CHEAP_TOKENS


_TOOL, _MODEL = [
    Step(0, kind, "", "", "", spend_microusd=CHEAP_MICROUSD, tokens=CHEAP_TOKENS)
    for kind in (Kind.TOOL, Kind.MODEL)
]
CALMS: dict[tuple[bool, bool], Calm] = {  # one for ten thousand runs
    (False, False): (),
    (True, False): (Kind.TOOL,),
    (False, True): (Kind.MODEL,),
    (True, True): (Kind.TOOL, Kind.MODEL),
}


def calm(detectors: Iterable[Prompt], progress: Progress) -> Calm:
    """Of a run as it is now; nothing where the look fails, which is for the detectors to tell."""
    try:
        tool = not may_find(detectors, _TOOL, progress)
        return CALMS[tool, not may_find(detectors, _MODEL, progress)]
    except Exception:
        return ()
