"""One call from asked to settled. Knows no engine and no HTTP library.

The protocol, whatever the engine: `ask` for a verdict, `sent` before the first upstream byte,
`body` for each chunk of the answer, `settle` at the end; and from here the engine's `cut`.
Any exception between a request read and its verdict is a refusal (design, section 2).
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog

from ledger.states import outcome_of
from ledger.store import Answer, Ask, Claimant, Decision, Outcome
from policies.call import Effect, Identity, Request, ToolCall
from policies.decide import standing
from policies.policy import UNLISTED, Tool
from policies.prices import Prices
from policies.verdict import Action, Level, Pull, Reason, Verdict
from proxy import logs, own
from proxy.canary import claimant, identified
from proxy.clock import Clock, new_id
from proxy.head import Fault
from proxy.identity import Credentials, Mode
from proxy.judging import Judging, why
from proxy.metering import Metering
from proxy.refuse import Refusal, decision_header, refuse, replay_headers

log = structlog.get_logger()

SHARE_SECONDS = 30.0  # how long a duplicate waits for the first call's answer (notes/store.md)
SHARE_POLL_SECONDS = 0.05  # how often the store is asked for it when another process makes it
ANSWER_BYTES_MAX = 1024 * 1024  # a longer answer is not kept for replay


class Engine(Protocol):
    def cut(self, calls: Iterable["Live"], reason: str) -> Awaitable[None]:
        """Close these calls at once, both ways. Done when each is closed and settled."""


@dataclass(eq=False, slots=True)
class Live:
    """A call that was admitted and is not settled yet. `answer` collects what a write is told;
    `stopped_by` is the cord that kept it from being sent."""

    call_id: str
    request: Request
    call: ToolCall
    identity: Identity
    tool: Tool
    engine: Engine
    asked_seconds: float
    epoch: int
    sent: bool = False
    settled: bool = False
    stopped: Reason | None = None
    digest: Any = field(default_factory=hashlib.sha256)
    claimant: Claimant = None
    stopped_by: str = ""
    answer_bytes: int = 0
    answer: bytearray | None = None
    metering: Metering | None = None

    @property
    def is_write(self) -> bool:
        return self.call.effect is Effect.WRITE

    @property
    def decision(self) -> str:
        return decision_header(Action.ALLOW, Reason.ALLOWED, self.call_id)


class Gate:
    """Between the engines and the decider. One per process."""

    def __init__(
        self,
        decider: Judging,
        clock: Clock,
        mode: Mode,
        worker: str = "",
        prices: Prices | None = None,
    ) -> None:
        self.live: dict[str, Live] = {}
        self.draining = False
        self._decider = decider
        self._clock = clock
        self._mode: Mode = mode
        self._worker = worker
        self._prices = prices
        self._open_writes: dict[str, asyncio.Future[None]] = {}

    # Asking

    async def ask(
        self,
        request: Request | Fault,
        credentials: Credentials | None,
        engine: Engine,
        seen: Request | None = None,
    ) -> Live | Refusal:
        """The verdict on one request: a call that may go, or the bytes to answer with.

        For a `Fault`, `seen` is what could be read of the request: host, method and path.
        """
        now_us = self._clock.now_us()
        call_id = new_id(now_us)
        asked_seconds = self._clock.monotonic_seconds()
        epoch = self._decider.epoch
        policy = self._decider.policy
        heard = request if isinstance(request, Request) else seen or _NOTHING_HEARD
        call = _UNREAD
        try:
            if self.draining:
                return _told(Reason.SHUTTING_DOWN, call_id, heard, call)
            caller = claimant(credentials, self._mode)
            if isinstance(request, Fault):
                call = replace(_UNREAD, fault=request.reason)
            elif caller is not None:  # nobody's body is not parsed
                call = identified(policy, request, self._decider.canary_port)
            ask = Ask(call_id, now_us, caller, heard, call, worker=self._worker)
            if heard.host == own.HOST and call.fault is None:
                return await self._own(ask)
            decision = await self._judged(ask)
        except Exception as failure:
            return _told(why(failure, call_id), call_id, heard, call)
        logs.decided(ask, decision)
        identity = decision.identity
        if decision.verdict.action is not Action.ALLOW or identity is None:
            detail = request.detail if isinstance(request, Fault) else ""
            return _answer(ask, decision, detail)
        if policy is not self._decider.policy:  # an edit came in between: what it says counts
            policy = self._decider.policy
            call = identified(policy, heard, self._decider.canary_port)
        live = Live(
            call_id,
            heard,
            call,
            identity,
            policy.tool(call.tool),
            engine,
            asked_seconds,
            epoch,
            claimant=caller,
            answer=bytearray() if call.effect is Effect.WRITE else None,
        )
        self.live[call_id] = live
        if live.is_write:
            self._open_writes[call_id] = asyncio.get_running_loop().create_future()
        return live

    async def greet(self, credentials: Credentials | None, tunnel: Request) -> Refusal | None:
        """At CONNECT only who is calling is judged; the calls inside are judged one by one."""
        ask = Ask("", self._clock.now_us(), claimant(credentials, self._mode), tunnel, _UNREAD)
        try:
            refused = await self._decider.greet(ask)
        except Exception as failure:
            return _told(why(failure, ""), "", tunnel, _UNREAD)
        return _told(refused, "", tunnel, _UNREAD) if refused else None

    async def _judged(self, ask: Ask) -> Decision:
        """Judge; a duplicate of a write in flight waits for its answer and is judged again."""
        policy = self._decider.policy
        deadline = self._clock.monotonic_seconds() + SHARE_SECONDS
        while True:
            decision = await self._decider.admit(replace(ask, may_wait=True), policy)
            if decision.verdict.reason is not Reason.IN_FLIGHT:
                return decision
            first = self._open_writes.get(decision.verdict.earlier_call)
            left_seconds = deadline - self._clock.monotonic_seconds()
            if left_seconds > 0 and first is not None:
                await asyncio.wait({first}, timeout=left_seconds)
                continue
            if left_seconds > 0 and not self._decider.alone:
                await asyncio.sleep(SHARE_POLL_SECONDS)
                continue
            return await self._decider.admit(ask, policy)

    async def _own(self, ask: Ask) -> Refusal:
        """`http://pullcord.invalid/self`: the run's view of itself. It loosens nothing."""
        state = await self._decider.own_state(ask)
        if isinstance(state, Reason):
            return _told(state, ask.call_id, ask.request, ask.call)
        return own.answer(ask.request, ask.call_id, state)

    # On its way

    def sent(self, live: Live) -> Refusal | None:
        """Just before the first upstream byte: the last look at the cords (design, section 3.5)."""
        if live.epoch != self._decider.epoch:
            if self._decider.lost:
                live.stopped_by = Reason.DECIDER_UNREACHABLE
                reason = live.stopped = Reason.DECIDER_UNREACHABLE
                return _told(reason, live.call_id, live.request, live.call)
            pull = self._stopped(live)
            if pull is not None:
                live.stopped_by = pull.rule
                reason = Reason.HALTED if pull.level is Level.HALT else Reason.FROZEN
                live.stopped = reason
                verdict = Verdict(Action.REFUSE, reason, pull.rule, pull.reason)
                return _refusal(verdict, live.call_id, live.request, live.call, live.identity.run)
            live.epoch = self._decider.epoch
        live.sent = True
        return None

    def answering(self, live: Live, content_type: str) -> None:
        """The head of the upstream's answer is known: a model call's is metered from here on."""
        if live.call.effect is Effect.MODEL:
            live.metering = Metering(live, content_type, self._prices)

    def body(self, live: Live, chunk: bytes) -> None:
        """One chunk of the upstream's answer: counted, digested, and kept while it is short."""
        live.digest.update(chunk)
        live.answer_bytes += len(chunk)
        if live.answer is not None and live.is_write:
            if live.answer_bytes <= ANSWER_BYTES_MAX:
                live.answer += chunk
            else:
                live.answer = None
        if live.metering is not None:
            live.metering.feed(chunk)

    async def message(self, live: Live) -> str | None:
        """A WebSocket message from the agent: looked at and counted like a call of its own.

        Returns the rule that stops it, and then the whole WebSocket is to be cut.
        """
        try:
            verdict = await self._decider.count(live.claimant, live.call, self._clock.now_us())
        except Exception as failure:
            return why(failure, live.call_id)
        return None if verdict.action is Action.ALLOW else verdict.rule

    async def settle(
        self,
        live: Live,
        *,
        status: int | None,
        headers: tuple[tuple[str, str], ...] = (),
        complete: bool,
        ended: bool = True,
        fault: Reason | None = None,
        left: bool = False,
        rule: str = "",
        error: str = "",
    ) -> Refusal | None:
        """How a call turned out, recorded once. For a write it returns when that is durable.

        With `ended` False its answer still flows, and a halt still cuts it. `fault` and `rule` are
        why the engine broke it off, where it knows; `left` when the agent did, who has had what it
        wanted of a read. Returns what the agent is told in place of an answer: when none came, or
        when a write's outcome could not be recorded. The record says the same.
        """
        if ended:
            self.live.pop(live.call_id, None)
        if live.settled:
            return None
        live.settled = True
        broken = not (complete or (left and not live.is_write))
        state, claim_after = outcome_of(
            live.call.effect,
            sent=live.sent,
            status=status,
            complete=not broken,
            forwarded_key=live.call.key is not None,
        )
        fault = fault or live.stopped
        if fault is None and broken:
            lost = Reason.OUTCOME_UNKNOWN if live.is_write else Reason.UPSTREAM_FAILED
            fault = lost if live.sent else Reason.NOT_SENT
        latency_seconds = self._clock.monotonic_seconds() - live.asked_seconds
        answer = None
        if status is not None and complete and live.answer is not None:
            answer = Answer(status, headers, bytes(live.answer))
        outcome = Outcome(
            call_id=live.call_id,
            at_us=self._clock.now_us(),
            state=state,
            claim_after=claim_after,
            status=status,
            latency_us=round(latency_seconds * 1e6),
            response_digest=live.digest.digest() if live.answer_bytes else None,
            response_bytes=live.answer_bytes,
            answer=answer,
            error=error,
            reason=fault.value if fault else "",
        )
        if live.metering is not None:
            outcome = live.metering.metered(outcome)
        logs.settled(live, outcome)
        if not await self._record(live, outcome):
            fault = Reason.OUTCOME_UNKNOWN
        if fault is None:
            return None
        verdict = Verdict(Action.REFUSE, fault, rule)
        return _refusal(verdict, live.call_id, live.request, live.call, live.identity.run)

    async def _record(self, live: Live, outcome: Outcome) -> bool:
        """Whether a write's outcome is durable. What the store cannot take, the decider owes."""
        future = self._decider.settle(outcome, durable=live.is_write)
        if not live.is_write:
            future.add_done_callback(_seen)
            return True
        try:
            await future
        except Exception as failure:
            log.error("outcome.owed", call=live.call_id, error=str(failure))
            return False
        finally:
            self._open_writes.pop(live.call_id).set_result(None)
        return True

    def failure(self) -> Refusal:
        """For an engine whose own hook raised."""
        return _told(Reason.POLICY_FAILURE, "", _NOTHING_HEARD, _UNREAD)

    @property
    def tag_headers(self) -> tuple[str, str]:
        return self._decider.policy.tag_headers

    # Cutting

    async def sweep(self) -> list[str]:
        """After a cord or the policy moved: cut every admitted call that a halt now stands over.

        Their ids, once each is closed and settled.
        """
        halted = [(live, self._stopped(live)) for live in self.live.values()]
        cut = [(live, pull) for live, pull in halted if pull and pull.level is Level.HALT]
        await asyncio.gather(*(live.engine.cut([live], pull.rule) for live, pull in cut))
        return [live.call_id for live, _ in cut]

    def listing(self) -> list[dict[str, Any]]:
        """What is in flight here, for people."""
        now_seconds = self._clock.monotonic_seconds()
        return [_told_live(live, now_seconds) for live in self.live.values()]

    async def cut_all(self, reason: str) -> None:
        """Cut whatever is in flight: nobody can tell any more what is halted."""
        cuts = [live.engine.cut([live], reason) for live in list(self.live.values())]
        await asyncio.gather(*cuts)

    def _stopped(self, live: Live) -> Pull | None:
        policy, pulls = self._decider.policy, self._decider.pulls
        halt = standing(policy, live.call.tool, live.identity, pulls, Level.HALT)
        if halt is None and live.is_write:
            return standing(policy, live.call.tool, live.identity, pulls, Level.FREEZE)
        return halt


def _told_live(live: Live, now_seconds: float) -> dict[str, Any]:
    return {
        "id": live.call_id,
        "run": live.identity.run,
        "tenant": live.identity.tenant,
        "tool": live.call.tool,
        "effect": live.call.effect.value,
        "method": live.request.method,
        "host": live.request.host,
        "sent": live.sent,
        "seconds": round(max(0.0, now_seconds - live.asked_seconds), 1),
    }


_NOTHING_HEARD = Request("", "", "", 0, "/")
_UNREAD = ToolCall(UNLISTED, Effect.WRITE, "", b"")


def _told(reason: Reason, call_id: str, request: Request, call: ToolCall) -> Refusal:
    """A refusal that no line of the policy gave."""
    return _refusal(Verdict(Action.REFUSE, reason, "pullcord"), call_id, request, call, "")


def _refusal(verdict: Verdict, call_id: str, request: Request, call: ToolCall, run: str) -> Refusal:
    return refuse(verdict, call_id, call.dialect, call.rpc_id, run=run, request=request)


def _answer(ask: Ask, decision: Decision, detail: str) -> Refusal:
    """The bytes for a verdict that lets nothing through: a refusal, or the stored answer."""
    verdict, stored = decision.verdict, decision.answer
    if verdict.action is Action.REPLAY and stored is not None:
        headers = replay_headers(stored.headers, verdict, ask.call_id)
        return Refusal(stored.status, headers, stored.body)
    if verdict.action is Action.REPLAY:
        verdict = replace(verdict, action=Action.REFUSE, reason=Reason.DONE_BUT_NOT_STORED)
    if detail and not verdict.detail:
        verdict = replace(verdict, detail=detail)
    run = decision.identity.run if decision.identity else ""
    return _refusal(verdict, ask.call_id, ask.request, ask.call, run)


def _seen(future: "asyncio.Future[bool]") -> None:
    """A read's outcome is not waited for; the decider keeps what fails."""
    if not future.cancelled():
        future.exception()
