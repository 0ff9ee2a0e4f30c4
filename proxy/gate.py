"""One call from asked to settled. Knows no engine and no HTTP library.

The protocol, whatever the engine: `ask` for a verdict, `sent` before the first upstream byte,
`body` for each chunk of the answer, `settle` at the end; and from here the engine's `cut`.
Any exception between a request read and its verdict is a refusal (design, section 2).
"""

import asyncio
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import structlog

from ledger.states import outcome_of
from ledger.store import Answer, Ask, Decision, LedgerUnavailable, Outcome
from policies.call import Effect, Identity, Request, ToolCall
from policies.decide import decide, standing
from policies.match import identify
from policies.policy import UNLISTED, Tool
from policies.verdict import Action, Level, Pull, Reason, Verdict
from proxy import own
from proxy.clock import Clock, new_id
from proxy.decider import Decider
from proxy.head import Fault
from proxy.identity import Credentials, Mode, claimant
from proxy.refuse import Refusal, decision_header, refuse

log = structlog.get_logger()

SHARE_SECONDS = 30.0  # how long a duplicate waits for the first call's answer (notes/store.md)
ANSWER_BYTES_MAX = 1024 * 1024  # a longer answer is not kept for replay


class Engine(Protocol):
    def cut(self, calls: Iterable["Live"], reason: str) -> None:
        """Close these calls at once, both ways."""


@dataclass(eq=False, slots=True)
class Live:
    """A call that was admitted and is not settled yet. `answer` collects what a write is told."""

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
    digest: Any = field(default_factory=hashlib.sha256)
    answer_bytes: int = 0
    answer: bytearray | None = None

    @property
    def is_write(self) -> bool:
        return self.call.effect is Effect.WRITE

    @property
    def decision(self) -> str:
        return decision_header(Action.ALLOW, Reason.ALLOWED, self.call_id)


class Gate:
    """Between the engines and the decider. One per process."""

    def __init__(self, decider: Decider, clock: Clock, mode: Mode) -> None:
        self.live: dict[str, Live] = {}
        self.draining = False
        self._decider = decider
        self._clock = clock
        self._mode: Mode = mode
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
            call = _faulty(request) if isinstance(request, Fault) else identify(policy, request)
            ask = Ask(call_id, now_us, claimant(credentials, self._mode), heard, call)
            if heard.host == own.HOST and call.fault is None:
                return await self._own(ask)
            decision = await self._judged(ask)
        except LedgerUnavailable as failure:
            log.error("store.unavailable", call=call_id, kind=failure.kind)
            return _told(Reason.STORE_UNAVAILABLE, call_id, heard, call)
        except Exception:
            log.exception("call.not_judged", call=call_id)
            return _told(Reason.POLICY_FAILURE, call_id, heard, call)
        _log_decided(ask, decision)
        identity = decision.identity
        if decision.verdict.action is not Action.ALLOW or identity is None:
            detail = request.detail if isinstance(request, Fault) else ""
            return _answer(ask, decision, detail)
        if policy is not self._decider.policy:  # an edit came in between: what it says counts
            policy = self._decider.policy
            call = identify(policy, heard)
        live = Live(
            call_id,
            heard,
            call,
            identity,
            policy.tool(call.tool),
            engine,
            asked_seconds,
            epoch,
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
            refused = await self._decider.act(lambda store: store.refused(ask), durable=False)
        except LedgerUnavailable as failure:
            log.error("store.unavailable", kind=failure.kind)
            return _told(Reason.STORE_UNAVAILABLE, "", tunnel, _UNREAD)
        except Exception:
            log.exception("tunnel.not_judged")
            return _told(Reason.POLICY_FAILURE, "", tunnel, _UNREAD)
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
            if first is not None and left_seconds > 0:
                await asyncio.wait({first}, timeout=left_seconds)
                continue
            return await self._decider.admit(ask, policy)

    async def _own(self, ask: Ask) -> Refusal:
        """`http://pullcord.invalid/self`: the run's view of itself. It loosens nothing."""
        policy = self._decider.policy
        state = await self._decider.act(lambda store: store.own_state(ask, policy), durable=False)
        if isinstance(state, Reason):
            return _told(state, ask.call_id, ask.request, ask.call)
        return own.answer(ask.request, ask.call_id, state)

    # On its way

    def sent(self, live: Live) -> Refusal | None:
        """Just before the first upstream byte: the last look at the cords (design, section 3.5)."""
        if live.epoch != self._decider.epoch:
            pull = self._stopped(live)
            if pull is not None:
                reason = Reason.HALTED if pull.level is Level.HALT else Reason.FROZEN
                verdict = Verdict(Action.REFUSE, reason, pull.rule, pull.reason)
                return _refusal(verdict, live.call_id, live.request, live.call, live.identity.run)
            live.epoch = self._decider.epoch
        live.sent = True
        return None

    def body(self, live: Live, chunk: bytes) -> None:
        """One chunk of the upstream's answer: counted, digested, and kept while it is short."""
        live.digest.update(chunk)
        live.answer_bytes += len(chunk)
        if live.answer is not None and live.is_write:
            if live.answer_bytes <= ANSWER_BYTES_MAX:
                live.answer += chunk
            else:
                live.answer = None

    async def message(self, live: Live) -> str | None:
        """A WebSocket message from the agent: looked at and counted like a call of its own.

        Returns the rule that stops it, and then the whole WebSocket is to be cut.
        """
        policy, now_us = self._decider.policy, self._clock.now_us()
        try:
            verdict = await self._decider.act(
                lambda store: store.count(live.identity, live.call, policy, decide, now_us),
                durable=False,
            )
        except Exception:
            log.exception("message.not_judged", call=live.call_id)
            return "store"
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
        rule: str = "",
        error: str = "",
    ) -> Refusal | None:
        """How a call turned out, recorded once. For a write it returns when that is durable.

        With `ended` False its answer still flows, and a halt still cuts it. `fault` and `rule` are
        why the engine broke it off, where it knows. Returns what the agent is told in place of an
        answer: when none came, or when a write's outcome could not be recorded.
        """
        if ended:
            self.live.pop(live.call_id, None)
        if live.settled:
            return None
        live.settled = True
        state, claim_after = outcome_of(
            live.call.effect,
            sent=live.sent,
            status=status,
            complete=complete,
            forwarded_key=live.call.key is not None,
        )
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
        )
        _log_settled(live, outcome)
        recorded = await self._record(live, outcome)
        if not recorded:
            fault = Reason.OUTCOME_UNKNOWN
        elif complete:
            return None
        elif fault is None:
            broken = Reason.OUTCOME_UNKNOWN if live.is_write else Reason.UPSTREAM_FAILED
            fault = broken if live.sent else Reason.NOT_SENT
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

    def sweep(self) -> int:
        """After a cord or the policy moved: cut every admitted call that a halt now stands over."""
        calls = 0
        for live in list(self.live.values()):
            pull = self._stopped(live)
            if pull is not None and pull.level is Level.HALT:
                live.engine.cut([live], pull.rule)
                calls += 1
        return calls

    def _stopped(self, live: Live) -> Pull | None:
        policy, pulls = self._decider.policy, self._decider.pulls
        halt = standing(policy, live.call.tool, live.identity, pulls, Level.HALT)
        if halt is None and live.is_write:
            return standing(policy, live.call.tool, live.identity, pulls, Level.FREEZE)
        return halt


_NOTHING_HEARD = Request("", "", "", 0, "/")
_UNREAD = ToolCall(UNLISTED, Effect.WRITE, "", b"")


def _faulty(fault: Fault) -> ToolCall:
    return replace(_UNREAD, fault=fault.reason)


def _told(
    reason: Reason,
    call_id: str,
    request: Request,
    call: ToolCall,
) -> Refusal:
    """A refusal that no line of the policy gave."""
    return _refusal(Verdict(Action.REFUSE, reason, "pullcord"), call_id, request, call, "")


def _refusal(verdict: Verdict, call_id: str, request: Request, call: ToolCall, run: str) -> Refusal:
    return refuse(verdict, call_id, call.dialect, call.rpc_id, run=run, request=request)


def _answer(ask: Ask, decision: Decision, detail: str) -> Refusal:
    """The bytes for a verdict that lets nothing through: a refusal, or the stored answer."""
    verdict, stored = decision.verdict, decision.answer
    if verdict.action is Action.REPLAY and stored is not None:
        headers = (
            *((name, value) for name, value in stored.headers if name.lower() not in _PER_ANSWER),
            ("Idempotent-Replayed", "true"),
            ("Pullcord-Decision", decision_header(verdict.action, verdict.reason, ask.call_id)),
        )
        return Refusal(stored.status, headers, stored.body)
    if verdict.action is Action.REPLAY:
        verdict = replace(verdict, action=Action.REFUSE, reason=Reason.DONE_BUT_NOT_STORED)
    if detail and not verdict.detail:
        verdict = replace(verdict, detail=detail)
    run = decision.identity.run if decision.identity else ""
    return _refusal(verdict, ask.call_id, ask.request, ask.call, run)


_PER_ANSWER = frozenset(("pullcord-decision", "content-length", "transfer-encoding", "connection"))


def _log_decided(ask: Ask, decision: Decision) -> None:
    identity = decision.identity
    log.info(
        "call.decided",
        call=ask.call_id,
        run=identity.run if identity else None,
        tenant=identity.tenant if identity else None,
        tool=ask.call.tool,
        effect=ask.call.effect,
        host=ask.request.host,
        decision=decision.verdict.action,
        reason=decision.verdict.reason,
        rule=decision.verdict.rule,
    )


def _log_settled(live: Live, outcome: Outcome) -> None:
    log.info(
        "call.settled",
        call=live.call_id,
        run=live.identity.run,
        tenant=live.identity.tenant,
        tool=live.call.tool,
        state=outcome.state,
        status=outcome.status,
        latency_ms=round(outcome.latency_us / 1e3, 1),
        error=outcome.error or None,
    )


def _seen(future: "asyncio.Future[bool]") -> None:
    """A read's outcome is not waited for; the decider keeps what fails."""
    if not future.cancelled():
        future.exception()
