"""What a gate asks of the store beside verdicts: each is one act in a batch's transaction."""

import asyncio
from collections.abc import Callable
from typing import Any

import orjson

from ledger.events import PROGRAM
from ledger.states import EventType
from ledger.store import Answer, Ask, Claimant, Drawn, OwnState, Store
from policies.call import ToolCall
from policies.decide import decide
from policies.policy import Policy
from policies.verdict import Reason, Verdict
from proxy.judging import NotJudged, OwnTold
from proxy.own_acts import done


class Questions:
    """The part of the decider that only passes them on."""

    policy: Policy
    _stepped_seconds: Callable[[], float]

    def act[T](self, act: Callable[[Store], T], *, durable: bool = True) -> "asyncio.Future[T]":
        """Run a function on the store, inside the batch's transaction."""
        raise NotImplementedError

    def greet(self, ask: Ask) -> "asyncio.Future[Reason | None]":
        """Why this claimant may not call at all; None when it may."""
        return self.act(lambda store: store.refused(ask), durable=False)

    def own_state(self, ask: Ask) -> "asyncio.Future[OwnState | Reason]":
        policy = self.policy
        return self.act(lambda store: store.own_state(ask, policy), durable=False)

    def own_act(self, ask: Ask, body: bytes) -> "asyncio.Future[OwnTold]":
        """What a run may do for itself: mint for its children, declare steps."""
        policy = self.policy  # what mints is made durable all the same
        return self._judged(lambda store: done(store, ask, body, policy))

    def count(self, claimant: Claimant, call: ToolCall, now_us: int) -> "asyncio.Future[Verdict]":
        """One more message of an admitted call."""
        policy = self.policy

        def counted(store: Store) -> Verdict | NotJudged:
            if call.tool not in policy.ceilings_of:
                return NotJudged(Reason.POLICY_FAILURE, "its tool is in the policy no more")
            return store.count(claimant, call, policy, decide, now_us)

        return self._judged(counted)

    def draw(self, call_id: str, tokens: int, microusd: int, at_us: int) -> "asyncio.Future[Drawn]":
        """A running call asks for more than it reserved."""
        policy = self.policy
        return self._judged(lambda store: store.draw(call_id, tokens, microusd, policy, at_us))

    def keep(self, call_id: str, answer: Answer) -> "asyncio.Future[bool]":
        """A long answer has come whole; its call was settled before."""
        return self.act(lambda store: store.keep(call_id, answer), durable=False)

    def trace_lost(
        self, messages: int, runs: tuple[str, ...], since_us: int, until_us: int, why: str
    ) -> "asyncio.Future[None]":
        """So many messages of these runs are missing from the trace: a row of the record."""
        told = {"messages": messages, "since_us": since_us, "why": why, "runs": runs}
        detail = orjson.dumps(told).decode()
        run = runs[0] if len(runs) == 1 else ""

        def noted(store: Store) -> None:
            store.note(EventType.TRACE_LOST, actor=PROGRAM, at_us=until_us, detail=detail, run=run)

        return self.act(noted, durable=False)

    def _judged(self, act: Callable[[Store], Any]) -> "asyncio.Future[Any]":
        """What judges by the time: nothing while the clock is wrong."""

        def acted(store: Store) -> Any:
            stepped_seconds = self._stepped_seconds()
            if stepped_seconds:
                return NotJudged(Reason.CLOCK_STEPPED, f"by {stepped_seconds:+.0f} s")
            return act(store)

        return self.act(acted, durable=False)
