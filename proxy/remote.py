"""The decider in another process, as the gate of an engine process sees it.

While the connection is gone every call is refused, and none that was admitted before leaves: what
was halted meanwhile cannot be known here. What ended meanwhile is told when it is back; what was
asked and never answered is told to have been sent nowhere.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any, Protocol

import structlog

from ledger.errors import Kind, LedgerUnavailable
from ledger.records import Answer, Ask, Claimant, Decision, Drawn, Outcome, OwnState, Worker
from policies.call import Request, ToolCall
from policies.load import load
from policies.policy import Policy
from policies.verdict import Pulls, Reason, Verdict
from proxy import noticing
from proxy.canary import identified
from proxy.clock import Clock
from proxy.control_socket import address
from proxy.fleet import LiveCall, Traced
from proxy.judging import UNHEARD, NotJudged, OwnTold, PolicyMoved, unsent
from proxy.links import BEAT_SECONDS
from proxy.tickets import RemoteTickets
from proxy.wire import Peer, PeerGone, Standing

log = structlog.get_logger()

ASK_SECONDS = 10.0  # a decider that has not answered by then is taken for gone
MUTE_SECONDS = 5.0  # so is one that has said nothing for so long
ALONE_SECONDS = 5.0  # calls in flight are cut when it has been gone for so long
SETTLE_SECONDS = 8.0  # an agent waits so long for its write's outcome to be recorded
RETRY_SECONDS = 0.05


class Sweeper(Protocol):
    """The gate, as the decider moves it."""

    async def sweep(self) -> list[str]: ...
    async def cut_all(self, reason: str) -> None: ...
    def listing(self) -> list[LiveCall]: ...
    def traced(self) -> Traced: ...


class RemoteDecider:
    """`run` keeps the connection until cancelled; `gate` must be set before."""

    alone = False

    def __init__(self, path: Path, worker: Worker, clock: Clock, policy: Policy) -> None:
        self.policy = policy
        self.pulls: Pulls = {}
        self.epoch = 0
        self.canary_port = 0
        self.lost = True
        self.tickets = RemoteTickets(self._call)
        self.ready = asyncio.Event()
        self.gate: Sweeper | None = None
        self._path = path
        self._worker = worker
        self._clock = clock
        self._version = -1
        self._peer: Peer | None = None
        self._heard_seconds = 0.0
        self._asked: dict[str, tuple[Ask, float]] = {}
        self._owed: dict[str, tuple[Outcome, bool]] = {}
        self._told: dict[str, asyncio.Future[bool]] = {}
        self._loop = asyncio.get_running_loop()

    # What a gate asks

    async def admit(self, ask: Ask, policy: Policy) -> Decision:
        return await self._admitted(ask, policy, None)

    async def admit_in_turn(self, ask: Ask, policy: Policy, wait_seconds: float) -> Decision:
        until_seconds = self._clock.monotonic_seconds() + wait_seconds
        return await self._admitted(ask, policy, until_seconds)

    async def _admitted(self, ask: Ask, policy: Policy, until_seconds: float | None) -> Decision:
        """The verdict; of a call that waits until then it may come late, and the decider lives."""
        whole = ask
        while True:
            if policy is not self.policy:
                policy = self.policy
                if whole.call.fault is None:
                    call = identified(policy, whole.request, self.canary_port)
                    traits = noticing.traits(whole.request, call, ask.call_id, whole.at_us)
                    whole = replace(whole, call=call, traits=traits)
            if self.lost:
                raise NotJudged(Reason.DECIDER_UNREACHABLE)
            now_seconds = self._clock.monotonic_seconds()
            due_seconds = inf if until_seconds is not None else now_seconds
            self._asked[ask.call_id] = (whole, due_seconds)
            try:
                asked = (_bare(whole), self._version)
                decision: Decision = await (
                    self._call("admit", *asked)
                    if until_seconds is None
                    else self._call("admit_in_turn", *asked, max(0.0, until_seconds - now_seconds))
                )
            except PolicyMoved:
                continue
            except NotJudged as failure:
                if failure.reason is not Reason.DECIDER_UNREACHABLE:
                    self._asked.pop(ask.call_id, None)
                raise  # else whether it was admitted is not known: see `_disown`
            except asyncio.CancelledError:
                self._asked.pop(ask.call_id, None)
                if until_seconds is not None and self._peer is not None:
                    self._peer.tell("gone", ask.call_id)
                self._leave_unsent(ask)
                raise
            except Exception:
                self._asked.pop(ask.call_id, None)
                raise
            self._asked.pop(ask.call_id, None)
            return decision

    async def greet(self, ask: Ask) -> Reason | None:
        reason: Reason | None = await self._call("greet", _bare(ask))
        return reason

    async def own_state(self, ask: Ask) -> OwnState | Reason:
        state: OwnState | Reason = await self._call("own_state", _bare(ask))
        return state

    async def own_act(self, ask: Ask, body: bytes) -> OwnTold:
        told: OwnTold = await self._call("own_act", _bare(ask), body)
        return told

    async def count(self, claimant: Claimant, call: ToolCall, now_us: int) -> Verdict:
        verdict: Verdict = await self._call("count", claimant, call)
        return verdict

    async def draw(self, call_id: str, tokens: int, microusd: int, at_us: int) -> Drawn:
        drawn: Drawn = await self._call("draw", call_id, tokens, microusd)
        return drawn

    async def keep(self, call_id: str, answer: Answer) -> bool:
        kept: bool = await self._call("keep", call_id, answer)
        return kept

    async def trace_lost(
        self, messages: int, runs: tuple[str, ...], since_us: int, until_us: int, why: str
    ) -> None:
        await self._call("trace_lost", messages, runs, since_us, until_us, why)

    def settle(self, outcome: Outcome, *, durable: bool) -> "asyncio.Future[bool]":
        """Kept until the decider has taken it, whoever waits for it."""
        told: asyncio.Future[bool] = self._loop.create_future()
        self._owed[outcome.call_id] = (outcome, durable)
        self._told[outcome.call_id] = told
        self._offer(outcome, durable)
        if durable:
            self._loop.call_later(SETTLE_SECONDS, self._give_up, outcome.call_id, told)
        return told

    async def leave(self) -> None:
        """An orderly end: every outcome has been taken, or is owed no longer than this waits."""
        owed = list(self._told.values())
        if owed:
            await asyncio.wait(owed, timeout=SETTLE_SECONDS)
        if self._peer is not None and not self._owed:
            with contextlib.suppress(PeerGone):
                await self._peer.call("leave")

    def _call(self, verb: str, *args: Any) -> Awaitable[Any]:
        if self.lost or self._peer is None:
            raise NotJudged(Reason.DECIDER_UNREACHABLE)
        return self._answered(self._peer.call(verb, *args))

    async def _answered(self, reply: "asyncio.Future[Any]") -> Any:
        try:
            return await reply
        except PeerGone:
            raise NotJudged(Reason.DECIDER_UNREACHABLE, "it went away meanwhile") from None

    def _offer(self, outcome: Outcome, durable: bool) -> None:
        if self._peer is not None:
            reply = self._peer.call("settle", outcome, durable)
            reply.add_done_callback(lambda done: self._taken(outcome.call_id, done))

    def _taken(self, call_id: str, done: "asyncio.Future[bool]") -> None:
        if done.cancelled() or isinstance(done.exception(), PeerGone):
            return  # offered again when it is back
        self._owed.pop(call_id, None)
        told = self._told.pop(call_id, None)
        failure = done.exception()
        if told is None or told.done():
            return
        if failure is not None:  # the decider owes it to the store from now on
            told.set_exception(failure)
        else:
            told.set_result(done.result())

    def _give_up(self, call_id: str, told: "asyncio.Future[bool]") -> None:
        if not told.done():
            self._told.pop(call_id, None)
            told.set_exception(LedgerUnavailable(Kind.OTHER, "nobody records outcomes"))

    # The connection

    async def run(self) -> None:
        watching = self._loop.create_task(self._watch())
        try:
            while True:
                try:
                    with address(self._path) as name:
                        reader, writer = await asyncio.open_unix_connection(name)
                except OSError:
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                await self._joined(Peer(reader, writer, self._verbs()))
                log.error("worker.alone")
                await asyncio.sleep(RETRY_SECONDS)
        finally:
            watching.cancel()

    async def _joined(self, peer: Peer) -> None:
        """From hello to the end of the connection."""
        self._peer = peer
        self._heard()
        reply = peer.call("hello", self._worker)
        for outcome, durable in list(self._owed.values()):
            self._offer(outcome, durable)
        try:
            await peer.serve()
        finally:
            self._peer = None
            self.lost = True
            self.epoch += 1
            self.ready.clear()
            reply.cancel()
            self._disown()

    def _disown(self) -> None:
        """What was asked and not answered may have been admitted; it will not be sent."""
        asked, self._asked = self._asked, {}
        for ask, _ in asked.values():
            self._leave_unsent(ask)

    def _leave_unsent(self, ask: Ask) -> None:
        outcome = unsent(ask, self._clock.now_us(), Reason.DECIDER_UNREACHABLE, UNHEARD)
        self._owed[ask.call_id] = (outcome, True)
        self._offer(outcome, durable=True)

    def _verbs(self) -> dict[str, Callable[..., Any]]:
        return {
            "moved": self._moved,
            "calls": self._calls,
            "traced": self._traced,
            "beat": self._heard,
        }

    def _heard(self) -> None:
        self._heard_seconds = self._clock.monotonic_seconds()

    def _calls(self) -> list[LiveCall]:
        return self.gate.listing() if self.gate else []

    def _traced(self) -> Traced:
        return self.gate.traced() if self.gate else {}

    def _moved(self, standing: Standing) -> "asyncio.Task[list[str]]":
        """In force from this line on; done when what is halted now has been cut."""
        self._heard()
        if standing.text is not None:
            policy = load(standing.text, standing.source)
            self.policy = replace(policy, pulls=standing.written)
        self._version = standing.version
        self.pulls = standing.pulls
        self.canary_port = standing.canary_port
        self.epoch += 1
        self.lost = False
        self.ready.set()
        return self._loop.create_task(self._swept())

    async def _swept(self) -> list[str]:
        return await self.gate.sweep() if self.gate else []

    async def _watch(self) -> None:
        """Say that we live; notice a decider that does not, and what that means."""
        lost_since: float | None = None
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            now_seconds = self._clock.monotonic_seconds()
            if self._peer is not None:
                self._peer.tell("beat")
                oldest = min((at for _, at in self._asked.values()), default=now_seconds)
                mute = now_seconds - self._heard_seconds > MUTE_SECONDS
                if mute or now_seconds - oldest > ASK_SECONDS:
                    self._peer.close()
            if not self.lost:
                lost_since = None
            elif lost_since is None:
                lost_since = now_seconds
            elif now_seconds - lost_since > ALONE_SECONDS and self.gate is not None:
                await self.gate.cut_all("decider unreachable")


def _bare(ask: Ask) -> Ask:
    """Without what only the engine needs: the decider judges names and digests."""
    request = ask.request
    bare = Request(request.method, request.scheme, request.host, request.port, request.path)
    return replace(ask, request=bare)
