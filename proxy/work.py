"""What waits for the decider, one piece at a time, and which of it a power cut may not lose."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ledger.store import Ask, Decision, Outcome, Store
from policies.call import Effect
from policies.policy import Policy
from policies.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Admit:
    ask: Ask
    policy: Policy  # the one that identified the call
    whole: bool  # whether the request came with its headers and body
    told: Verdict | None = None  # it has gone on by this, and is only to be written


@dataclass(eq=False, slots=True)
class Turn:
    """A call that waits for its turn under a ceiling. Seconds are the loop's: since when it asks,
    and until when it waits. Whoever cancels `answer` has left."""

    admit: Admit
    since_seconds: float
    until_seconds: float
    answer: "asyncio.Future[Decision]"

    def at_us(self, now_seconds: float) -> int:
        """UTC as of now, not as of when it came."""
        return self.admit.ask.at_us + round((now_seconds - self.since_seconds) * 1e6)


@dataclass(frozen=True, slots=True)
class Settle:
    outcome: Outcome
    durable: bool


@dataclass(frozen=True, slots=True)
class Act:
    act: Callable[[Store], Any]
    durable: bool


Work = Admit | Turn | Settle | Act

Item = tuple[Work, "asyncio.Future[Any]"]
"""A piece of work, and who waits for it."""


def is_durable(work: Work) -> bool:
    """Whether a power cut may not lose it: claims, their outcomes, and operators' acts."""
    if isinstance(work, Turn):
        work = work.admit
    if isinstance(work, Admit) and work.ask.call.worth.spend_microusd:
        return True
    if isinstance(work, Admit):
        return work.ask.call.effect is not Effect.READ or bool(work.ask.approval)
    return work.durable


def is_proof(item: Item) -> bool:
    """Whether its commit shows that the ledger can be written: a look at it does not."""
    work, _ = item
    return not isinstance(work, Act) or work.durable


def is_owed(work: Work) -> bool:
    """Whether it has happened already, so that the store has to take it, now or later."""
    return isinstance(work, Settle) or (isinstance(work, Admit) and work.told is not None)
