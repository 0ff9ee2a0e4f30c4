"""The decider as a gate sees it, wherever it is, and why a call may go unjudged."""

import asyncio
from collections.abc import Awaitable
from typing import Protocol

import structlog

from ledger.errors import Kind, LedgerUnavailable
from ledger.records import Ask, Claimant, Decision, Outcome, OwnState
from policies.call import ToolCall
from policies.policy import Policy
from policies.verdict import Pulls, Reason, Verdict

log = structlog.get_logger()

_STORE_REASONS = {
    Kind.LOCKED: Reason.STORE_LOCKED,
    Kind.FULL: Reason.STORE_FULL,
    Kind.READ_ONLY: Reason.STORE_READ_ONLY,
    Kind.CORRUPT: Reason.STORE_CORRUPT,
    Kind.MISSING: Reason.STORE_MISSING,
    Kind.OTHER: Reason.STORE_UNAVAILABLE,
}


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

    def admit(self, ask: Ask, policy: Policy) -> Awaitable[Decision]: ...
    def greet(self, ask: Ask) -> Awaitable[Reason | None]: ...
    def own_state(self, ask: Ask) -> Awaitable[OwnState | Reason]: ...
    def count(self, claimant: Claimant, call: ToolCall, now_us: int) -> Awaitable[Verdict]: ...
    def settle(self, outcome: Outcome, *, durable: bool) -> "asyncio.Future[bool]": ...


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
