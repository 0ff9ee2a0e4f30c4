"""A call in flight, as all who handle it know it, and what its engine must be able to do.

Plain state: the gate (gate.py) writes it, its engine and those who meter it read it.
"""

import hashlib
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from ledger.answer_writer import AnswerWriter
from ledger.records import Claimant
from policies import costs
from policies.call import Effect, Identity, Request, ToolCall
from policies.policy import Policy, Tool
from policies.verdict import Action, Reason
from proxy.catching import Catch
from proxy.metering import Metering
from proxy.noticing import Beginning
from proxy.refuse import decision_header
from proxy.spending import Spending


class Engine(Protocol):
    def cut(self, calls: Iterable["Live"], reason: str) -> Awaitable[None]:
        """Close these calls at once, both ways. Done when each is closed and settled."""


@dataclass(eq=False, slots=True)
class Live:
    """A call that was admitted and is not settled yet. `policy` is the one that identified it.

    `body_digest` is of a body that was streamed, once all of it came.
    `answer` collects what a write is told, or what tells the call's cost, and `file` what of it is
    too long; `stopped_by` is the cord that kept it from being sent. `asked` is what a model is
    asked for, `catch` what the trace gets of the answer, `beginning` what the detectors get of one
    that is not kept. `action` is what they know the call by.
    """

    call_id: str
    request: Request
    call: ToolCall
    identity: Identity
    tool: Tool
    policy: Policy
    engine: Engine
    asked_seconds: float
    epoch: int
    sent: bool = False
    settled: bool = False
    stopped: Reason | None = None
    gone: Callable[[], bool] | None = None
    digest: Any = field(default_factory=hashlib.sha256)
    body_digest: bytes | None = None
    claimant: Claimant = None
    stopped_by: str = ""
    answer_bytes: int = 0
    answer: bytearray | None = None
    file: AnswerWriter | None = None
    asked: costs.Asked | None = None
    metering: Metering | None = None
    spending: Spending | None = None
    catch: Catch | None = None
    beginning: Beginning | None = None
    action: bytes = b""

    @property
    def is_write(self) -> bool:
        return self.call.effect is Effect.WRITE

    @property
    def is_read_here(self) -> bool:
        """Whether its answer says what it cost, so that it must not come in a coding."""
        return self.asked is not None or costs.reads_answer(self.tool)

    @property
    def lost(self) -> Reason:
        """What its caller is told where no answer came, or half of one."""
        if not self.sent:
            return Reason.NOT_SENT
        return Reason.OUTCOME_UNKNOWN if self.is_write else Reason.UPSTREAM_FAILED

    @property
    def decision(self) -> str:
        return decision_header(Action.ALLOW, Reason.ALLOWED, self.call_id)
