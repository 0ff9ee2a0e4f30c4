"""How long a call waits for its verdict: for its twin that is in flight, for its turn under a
ceiling, for a person.

Nothing here judges. Whatever was waited for, the call is judged again.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace

from ledger.records import Ask, Decision
from policies.policy import Policy
from policies.verdict import Action, Reason, Verdict
from proxy import noticing
from proxy.canary import identified
from proxy.clock import Clock
from proxy.judging import UNHEARD, Judging, unheard, unsent
from proxy.tickets import HOLD_POLL_SECONDS, Parking, Stops

SHARE_SECONDS = 30.0  # how long a duplicate waits for the first call's answer (notes/store.md)
SHARE_POLL_SECONDS = 0.05  # how often the store is asked for it when another process makes it


def _goes_on() -> None:
    return None


class Asking:
    """`open_writes` are the writes of this process that are in flight, by call id."""

    def __init__(
        self, decider: Judging, clock: Clock, open_writes: Mapping[str, asyncio.Future[None]]
    ) -> None:
        self._decider = decider
        self._clock = clock
        self._open_writes = open_writes
        self._parking = Parking(decider, clock)

    async def judged(self, ask: Ask, stops: Stops = _goes_on) -> Decision:
        """Judge; what is held waits for a person and is judged again."""
        policy = self._decider.policy
        while True:
            decision = await self._shared(ask, policy, stops)
            if decision.verdict.action is not Action.HOLD:
                return decision
            ask, policy = self._current(ask, policy)
            following = await self._parking.waited(ask, decision, stops)
            if isinstance(following, Verdict):
                return replace(decision, verdict=following)
            ask, policy = self._current(following, policy)

    def _current(self, ask: Ask, policy: Policy) -> tuple[Ask, Policy]:
        """The call as the policy in force knows it."""
        now = self._decider.policy
        if now is policy or ask.call.fault is not None:
            return ask, now
        call = identified(now, ask.request, self._decider.canary_port)
        traits = noticing.traits(ask.request, call, ask.call_id, ask.at_us)
        return replace(ask, call=call, traits=traits), now

    async def _shared(self, ask: Ask, policy: Policy, stops: Stops) -> Decision:
        """Judge; a duplicate of a write in flight waits for its answer and is judged again, and
        what a ceiling has no room for waits for its turn."""
        if not ask.may_wait:
            ask = replace(ask, may_wait=True)
        now_seconds = self._clock.monotonic_seconds()
        deadline, turn_ends = now_seconds + SHARE_SECONDS, 0.0
        while True:
            decision = await self._admitted(ask, policy)
            verdict = decision.verdict
            if verdict.reason is Reason.OVER_CEILING and verdict.wait_seconds:
                now_seconds = self._clock.monotonic_seconds()
                turn_ends = turn_ends or now_seconds + verdict.wait_seconds
                wait_seconds = max(0.0, turn_ends - now_seconds)
                decision = await self._in_turn(ask, policy, verdict, wait_seconds, stops)
            if decision.verdict.reason is not Reason.IN_FLIGHT:
                return decision
            if ask.request.streamed:  # to wait would leave its body with its client
                return await self._admitted(replace(ask, may_wait=False), policy)
            first = self._open_writes.get(decision.verdict.earlier_call)
            left_seconds = deadline - self._clock.monotonic_seconds()
            if left_seconds > 0 and first is not None:
                await asyncio.wait({first}, timeout=left_seconds)
                continue
            if left_seconds > 0 and not self._decider.alone:
                await asyncio.sleep(SHARE_POLL_SECONDS)
                continue
            return await self._admitted(replace(ask, may_wait=False), policy)

    async def _admitted(self, ask: Ask, policy: Policy) -> Decision:
        try:
            return await self._decider.admit(ask, policy)
        except asyncio.CancelledError:  # it may have been let through just before
            self.leave(ask, Reason.NOT_SENT, UNHEARD)
            raise

    async def _in_turn(
        self, ask: Ask, policy: Policy, told: Verdict, wait_seconds: float, stops: Stops
    ) -> Decision:
        """Wait for room under a ceiling, unless the agent leaves before."""
        ask = replace(ask, at_us=self._clock.now_us(), may_wait=False)
        turn = asyncio.ensure_future(self._decider.admit_in_turn(ask, policy, wait_seconds))
        try:
            while not turn.done() and stops() is None:
                await asyncio.wait({turn}, timeout=HOLD_POLL_SECONDS)
        except asyncio.CancelledError:
            self._abandon(turn, ask, Reason.NOT_SENT, UNHEARD)
            raise
        reason = stops()
        if reason is None or (turn.done() and turn.result().verdict.action is not Action.ALLOW):
            return turn.result()
        why = "the client left" if reason is Reason.NOT_SENT else "pullcord is shutting down"
        self._abandon(turn, ask, reason, why)
        return Decision(Verdict(Action.REFUSE, reason, told.rule, why), None)

    def _abandon(
        self, turn: "asyncio.Future[Decision]", ask: Ask, reason: Reason, error: str
    ) -> None:
        """Whether it waits still or was let through just now, nobody sends it."""
        if not turn.cancel():
            self.leave(ask, reason, error)

    def leave(self, ask: Ask, reason: Reason, error: str) -> None:
        """It may have been let through, and nobody sends it. Of what was not this is no news."""
        outcome = unsent(ask, self._clock.now_us(), reason, error)
        self._decider.settle(outcome, durable=True).add_done_callback(unheard)
