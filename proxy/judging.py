"""The decider as a gate sees it, wherever it is, and why a call may go unjudged."""

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Protocol

import structlog

from ledger.errors import Kind, LedgerUnavailable
from ledger.records import Answer, Ask, Claimant, Decision, Drawn, Outcome, OwnState
from ledger.states import CallState, ClaimAfter
from policies.call import ToolCall
from policies.policy import Policy
from policies.verdict import Pulls, Reason, Verdict

if TYPE_CHECKING:
    from proxy.tickets import Tickets

log = structlog.get_logger()

_STORE_REASONS = {
    Kind.LOCKED: Reason.STORE_LOCKED,
    Kind.FULL: Reason.STORE_FULL,
    Kind.READ_ONLY: Reason.STORE_READ_ONLY,
    Kind.CORRUPT: Reason.STORE_CORRUPT,
    Kind.MISSING: Reason.STORE_MISSING,
    Kind.OTHER: Reason.STORE_UNAVAILABLE,
}


OwnTold = tuple[int, str] | Verdict | Reason
"""What a run's act for itself came to: a status and JSON, a refusal, or why nobody may ask."""


class NotJudged(Exception):
    """A call that nobody could judge, for this reason; nothing of it is recorded."""

    def __init__(self, reason: Reason, cause: str = "") -> None:
        super().__init__(cause or reason)
        self.reason = reason


class PolicyMoved(Exception):
    """The call was identified under a policy that is in force no more, and only its asker has it
    whole: identify it again, ask again."""


class Judging(Protocol):
    """The decider as a gate needs it, in this process (decider.py) or in another (remote.py).

    What it gives back fails with LedgerUnavailable or NotJudged.
    """

    @property
    def policy(self) -> Policy: ...
    @property
    def pulls(self) -> Pulls: ...

    @property
    def epoch(self) -> int:
        """Moves whenever a cord or the policy did, and when nobody can tell."""

    @property
    def alone(self) -> bool:
        """Whether every call in flight is of this process."""

    @property
    def lost(self) -> bool:
        """Whether nobody can tell which cords stand."""

    @property
    def canary_port(self) -> int:
        """Where a drill's canary may go; 0 while no drill runs."""

    @property
    def tickets(self) -> "Tickets":
        """Where calls wait for a person."""

    def admit(self, ask: Ask, policy: Policy) -> Awaitable[Decision]:
        """Whoever cancels it has left: if it was let through it is settled as not sent."""

    def admit_in_turn(self, ask: Ask, policy: Policy, wait_seconds: float) -> Awaitable[Decision]:
        """For a call that was told to wait for room under a ceiling: answered when its turn has
        come, or when it has waited so long. Whoever cancels it has left: it waits no more, and if
        it was let through just then it is settled as not sent."""

    def greet(self, ask: Ask) -> Awaitable[Reason | None]: ...
    def own_state(self, ask: Ask) -> Awaitable[OwnState | Reason]: ...
    def own_act(self, ask: Ask, body: bytes) -> Awaitable[OwnTold]: ...
    def count(self, claimant: Claimant, call: ToolCall, now_us: int) -> Awaitable[Verdict]: ...
    def draw(self, call_id: str, tokens: int, microusd: int, at_us: int) -> Awaitable[Drawn]: ...
    def keep(self, call_id: str, answer: Answer) -> Awaitable[bool]:
        """The answer of a call that is settled; False if it is not kept."""

    def settle(self, outcome: Outcome, *, durable: bool) -> "asyncio.Future[bool]": ...


UNHEARD = "nobody waited for its verdict"


def unsent(ask: Ask, at_us: int, reason: Reason, error: str) -> Outcome:
    """How a call ends that may have been let through, and that nobody sends."""
    return Outcome(
        call_id=ask.call_id,
        at_us=at_us,
        state=CallState.NOT_SENT,
        claim_after=ClaimAfter.RELEASED,
        latency_us=max(0, at_us - ask.at_us),
        error=error,
        reason=reason.value,
    )


def unheard(settled: "asyncio.Future[bool]") -> None:
    """Called back where nobody waits for it: what the store cannot take now the decider keeps."""
    if not settled.cancelled():
        settled.exception()


def why(failure: Exception, call_id: str) -> Reason:
    """The reason code of what kept a call from being judged; all of it is in the log."""
    if isinstance(failure, LedgerUnavailable):
        log.error("store.unavailable", call=call_id or None, kind=failure.kind)
        return _STORE_REASONS[failure.kind]
    if isinstance(failure, NotJudged):
        log.error("call.unjudged", call=call_id or None, reason=failure.reason, why=str(failure))
        return failure.reason
    log.error("call.not_judged", call=call_id or None, exc_info=failure)
    return Reason.POLICY_FAILURE
