"""One call from asked to settled. Knows no engine and no HTTP library.

The protocol, whatever the engine: `ask` for a verdict, `sent` before the first upstream byte,
`body` for each chunk of the answer, `settle` at the end; and from here the engine's `cut`.
Any exception between a request read and its verdict is a refusal (design, section 2).
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import structlog

from ledger.states import outcome_of
from ledger.store import Ask, Outcome
from policies import costs
from policies.call import NO_TRAITS, Effect, Identity, Request, ToolCall
from policies.policy import Policy
from policies.standing import standing
from policies.verdict import Action, Level, Pull, Reason, Verdict
from proxy import logs, metering, noticing, own, spending, usage_asked
from proxy.asking import Asking
from proxy.canary import claimant, identified
from proxy.clock import Clock, new_id
from proxy.head import Fault
from proxy.identity import Credentials, Mode
from proxy.judging import Judging, unheard, why
from proxy.live import Engine, Live
from proxy.long_answers import LongAnswers
from proxy.metering import Metering
from proxy.noticing import Noticing
from proxy.parts import Parts
from proxy.refuse import Refusal
from proxy.replies import NOTHING_HEARD, UNREAD, refusal, told
from proxy.spending import Spending
from proxy.tracing import Tracing

log = structlog.get_logger()

ANSWER_BYTES_MAX = 1024 * 1024  # a longer answer goes to a file


class Gate(Parts, LongAnswers):
    """Between the engines and the decider. One per process. `logs_passing` calls, too."""

    def __init__(
        self,
        decider: Judging,
        clock: Clock,
        mode: Mode,
        worker: str = "",
        tracing: Tracing | None = None,
        *,
        logs_passing: bool = False,
    ) -> None:
        self.live: dict[str, Live] = {}
        self.draining = False
        self._decider = decider
        self._clock = clock
        self._mode: Mode = mode
        self._worker = worker
        self.tracing = tracing
        self._logs_passing = logs_passing
        self._noticing = Noticing()
        self._open_writes: dict[str, asyncio.Future[None]] = {}
        self._asking = Asking(decider, clock, self._open_writes)

    # Asking

    async def ask(
        self,
        request: Request | Fault,
        credentials: Credentials | None,
        engine: Engine,
        seen: Request | None = None,
        gone: Callable[[], bool] = lambda: False,
    ) -> Live | Refusal:
        """The verdict on one request: a call that may go, or the bytes to answer with.

        For a `Fault`, `seen` is what could be read of the request: host, method and path. `gone`
        is looked at while a call waits for a person: whether its client has left.
        """
        now_us = self._clock.now_us()
        call_id = new_id(now_us)
        asked_seconds = self._clock.monotonic_seconds()
        epoch = self._decider.epoch
        policy = self._decider.policy
        heard = request if isinstance(request, Request) else seen or NOTHING_HEARD
        call = UNREAD
        try:
            if self.draining:
                return told(Reason.SHUTTING_DOWN, call_id, heard, call)
            ask = self._ask(request, heard, credentials, call_id, now_us)
            call = ask.call
            if _is_own(heard, call):
                return await own.answered(ask, self._decider)
            decision = await self._asking.judged(ask, partial(self._stops, gone))
        except Exception as failure:
            return told(why(failure, call_id), call_id, heard, call)
        identity = decision.identity
        passes = decision.verdict.action is Action.ALLOW
        catch = None
        if self.tracing is not None:
            catch = self.tracing.asked(ask, identity, policy, is_let_through=passes)
        if not passes or identity is None:
            logs.decided(ask, decision)
            detail = request.detail if isinstance(request, Fault) else ""
            return await self._answered(ask, decision, detail)
        try:
            if self._logs_passing:
                logs.decided(ask, decision)
            admitted = ask
            if policy is not self._decider.policy:  # an edit came in between: what it says counts
                policy = self._decider.policy
                call = identified(policy, heard, self._decider.canary_port)
                admitted = replace(ask, call=call)
            live = self._begun(admitted, identity, policy, engine, asked_seconds, epoch)
        except Exception as failure:
            reason = why(failure, call_id)
            self._asking.leave(ask, reason, "it could not be begun")
            return told(reason, call_id, heard, call)
        live.gone = gone if decision.approval else None
        live.catch = catch
        return live

    def _ask(
        self,
        request: Request | Fault,
        heard: Request,
        credentials: Credentials | None,
        call_id: str,
        now_us: int,
    ) -> Ask:
        """What is to be judged. Nobody's body is not parsed."""
        caller = claimant(credentials, self._mode)
        call, traits = UNREAD, NO_TRAITS
        if isinstance(request, Fault):
            call = replace(UNREAD, fault=request.reason)
        elif caller is not None:
            call = identified(self._decider.policy, request, self._decider.canary_port)
        if caller is not None and not _is_own(heard, call):
            traits = noticing.traits(heard, call, call_id, now_us)
        return Ask(call_id, now_us, caller, heard, call, True, self._worker, traits=traits)

    def _stops(self, gone: Callable[[], bool]) -> Reason | None:
        """Why a call waits for a person no longer, whatever that person says."""
        if self.draining:
            return Reason.SHUTTING_DOWN
        return Reason.NOT_SENT if gone() else None

    def _begun(
        self,
        ask: Ask,
        identity: Identity,
        policy: Policy,
        engine: Engine,
        asked_seconds: float,
        epoch: int,
    ) -> Live:
        request, call, tool = ask.request, ask.call, policy.tool(ask.call.tool)
        kept = call.effect is Effect.WRITE or costs.reads_answer(tool)
        is_model_call = costs.is_model_call(tool, request, call)
        live = Live(
            ask.call_id,
            request,
            call,
            identity,
            tool,
            policy,
            engine,
            asked_seconds,
            epoch,
            claimant=ask.claimant,
            answer=bytearray() if kept else None,
            asked=costs.asked(policy, tool, request) if is_model_call else None,
            action=ask.traits.action,
        )
        self.live[live.call_id] = live
        if live.is_write:
            self._open_writes[live.call_id] = asyncio.get_running_loop().create_future()
        return live

    async def greet(self, credentials: Credentials | None, tunnel: Request) -> Refusal | None:
        """At CONNECT only who is calling is judged; the calls inside are judged one by one."""
        ask = Ask("", self._clock.now_us(), claimant(credentials, self._mode), tunnel, UNREAD)
        try:
            refused = await self._decider.greet(ask)
        except Exception as failure:
            return told(why(failure, ""), "", tunnel, UNREAD)
        return told(refused, "", tunnel, UNREAD) if refused else None

    # On its way

    def sent(self, live: Live) -> Refusal | None:
        """Just before the first upstream byte: the last look at the cords (design, section 3.5).

        What a person approved is not sent for a client that has left meanwhile.
        """
        if live.gone is not None and live.gone():
            live.stopped, live.stopped_by = Reason.NOT_SENT, "the client left"
            return told(Reason.NOT_SENT, live.call_id, live.request, live.call)
        if live.epoch != self._decider.epoch:
            if self._decider.lost:
                live.stopped_by = Reason.DECIDER_UNREACHABLE
                reason = live.stopped = Reason.DECIDER_UNREACHABLE
                return told(reason, live.call_id, live.request, live.call)
            pull = self._stopped(live)
            if pull is not None:
                live.stopped_by = pull.rule
                reason = Reason.HALTED if pull.level is Level.HALT else Reason.FROZEN
                live.stopped = reason
                verdict = Verdict(Action.REFUSE, reason, pull.rule, pull.reason)
                return refusal(verdict, live.call_id, live.request, live.call, live.identity.run)
            live.epoch = self._decider.epoch
        live.sent = True
        return None

    def outgoing(self, live: Live) -> bytes | None:
        """The body that goes upstream where it is not the agent's own: usage is asked for, and the
        agent is given the answer through `usage_asked.WithoutUsage`."""
        if live.asked is None:
            return None
        return usage_asked.asking(live.tool, live.request, live.asked.request)

    def answering(self, live: Live, content_type: str, coding: str = "") -> None:
        """The head of the upstream's answer is known: a model call's is metered from here on, and
        of any other the beginning is kept for the detectors.

        A stream is held to what was granted. What is whole was made before its first byte came:
        to cut it would save nothing.
        """
        live.beginning = noticing.beginning(live, coding)
        if live.asked is None:
            return
        live.metering = Metering(live, content_type, coding)
        if live.metering.is_stream or (live.asked.request and live.asked.request.streams):
            live.spending = Spending(live.asked, metering.day_of(self._clock.now_us()))

    def body(self, live: Live, chunk: bytes) -> bool:
        """One chunk of the upstream's answer: counted, digested, and kept while it is short.

        True if the call came to more than it was granted: then `draw` before the chunk flows on.
        """
        live.digest.update(chunk)
        if live.catch is not None:
            live.catch.add(chunk)
        live.answer_bytes += len(chunk)
        if live.answer is None and live.beginning is not None:
            live.beginning.add(chunk)
        if live.answer is not None:
            live.answer += chunk
            if live.answer_bytes > ANSWER_BYTES_MAX:
                self.keep_long(live)
        elif live.file is not None:
            live.file.add(chunk)
        if live.metering is None or live.asked is None:
            return False
        live.metering.feed(chunk)
        if live.spending is None:
            return False
        return live.spending.is_beyond(live.metering.so_far(live.asked.input_tokens))

    async def draw(self, live: Live) -> str:
        """Ask for more, for a stream that came to more than it was granted. Empty if it may go on;
        else the rule that denies it, and then it is to be cut: whoever cannot be asked denies."""
        return await spending.drawn(live, self._decider, self._clock)

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
        if not complete:
            self._drop(live)
        if live.catch is not None:
            live.catch.settled(status, headers, is_first=not live.settled, is_over=ended)
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
            unauthorized=live.tool.key.unauthorized,
        )
        fault = fault or live.stopped or (live.lost if broken else None)
        latency_seconds = self._clock.monotonic_seconds() - live.asked_seconds
        async with self._whole(live, status if complete else None, headers) as stored:
            told = self._noticing.heard(live, status, is_over=ended)
            outcome = Outcome(
                call_id=live.call_id,
                at_us=self._clock.now_us(),
                state=state,
                claim_after=claim_after,
                status=status,
                latency_us=round(latency_seconds * 1e6),
                response_digest=live.digest.digest() if live.answer_bytes else None,
                response_bytes=live.answer_bytes,
                answer=stored,
                request_digest=live.body_digest,
                error=error,
                reason=fault.value if fault else "",
                result=told.digest,
                failed=told.failed,
            )
            outcome = metering.settled(live, outcome, is_whole=complete)
            if self._logs_passing or fault is not None:
                logs.settled(live, outcome)
            if not await self._record(live, outcome):
                fault = Reason.OUTCOME_UNKNOWN
        if fault is None:
            return None
        verdict = Verdict(Action.REFUSE, fault, rule)
        return refusal(verdict, live.call_id, live.request, live.call, live.identity.run)

    async def _record(self, live: Live, outcome: Outcome) -> bool:
        """Whether a write's outcome is durable. What the store cannot take, the decider owes."""
        future = self._decider.settle(outcome, durable=live.is_write)
        if not live.is_write:
            future.add_done_callback(unheard)  # a read's is not waited for
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
        return told(Reason.POLICY_FAILURE, "", NOTHING_HEARD, UNREAD)

    @property
    def tag_headers(self) -> tuple[str, str]:
        return self._decider.policy.tag_headers

    # Cutting

    async def sweep(self) -> list[str]:
        """After a cord or the policy moved: cut every admitted call that a halt now stands over.

        Their ids, once each is closed and settled.
        """
        halted: dict[tuple[Engine, str], list[Live]] = {}
        for live in self.live.values():
            pull = self._stopped(live)
            if pull is not None and pull.level is Level.HALT:
                halted.setdefault((live.engine, pull.rule), []).append(live)
        await asyncio.gather(*(engine.cut(calls, rule) for (engine, rule), calls in halted.items()))
        return [live.call_id for calls in halted.values() for live in calls]

    def listing(self) -> list[dict[str, Any]]:
        """What is in flight here, for people."""
        now_seconds = self._clock.monotonic_seconds()
        return [logs.in_flight(live, now_seconds) for live in self.live.values()]

    def traced(self) -> dict[str, int]:
        """How far the trace is of what was called here."""
        return self.tracing.state() if self.tracing is not None else {}

    async def cut_all(self, reason: str) -> None:
        """Cut whatever is in flight: nobody can tell any more what is halted."""
        engines = {live.engine for live in self.live.values()}
        await asyncio.gather(*(engine.cut(self.live.values(), reason) for engine in engines))

    def _stopped(self, live: Live) -> Pull | None:
        policy, pulls = self._decider.policy, self._decider.pulls
        halt = standing(policy, live.call.tool, live.identity, pulls, Level.HALT)
        if halt is None and live.is_write:
            return standing(policy, live.call.tool, live.identity, pulls, Level.FREEZE)
        return halt


def _is_own(request: Request, call: ToolCall) -> bool:
    """`http://pullcord.invalid/self`: the run's view of itself. It loosens nothing."""
    return request.host == own.HOST and call.fault is None
