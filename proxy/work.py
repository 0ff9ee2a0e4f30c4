"""What waits for the decider, one piece at a time, and which of it a power cut may not lose."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ledger.store import Ask, Outcome, Store
from policies.call import Effect
from policies.policy import Policy


@dataclass(frozen=True, slots=True)
class Admit:
    ask: Ask
    policy: Policy  # the one that identified the call
    whole: bool  # whether the request came with its headers and body


@dataclass(frozen=True, slots=True)
class Settle:
    outcome: Outcome
    durable: bool


@dataclass(frozen=True, slots=True)
class Act:
    act: Callable[[Store], Any]
    durable: bool


Work = Admit | Settle | Act


def is_durable(work: Work) -> bool:
    """Whether a power cut may not lose it: claims, their outcomes, and operators' acts."""
    if isinstance(work, Admit):
        return work.ask.call.effect is not Effect.READ
    return work.durable
