"""What an agent sends on while its call runs: messages of a WebSocket, more of a streamed body.

Each is looked at again and counted; whoever cannot be asked stops it.
"""

from dataclasses import replace

from policies import match
from policies.call import Request, Worth
from policies.ceilings import Count
from policies.verdict import Action
from proxy.canary import identified
from proxy.clock import Clock
from proxy.judging import Judging, why
from proxy.live import Live


class Parts:
    """The part of the gate that looks at them."""

    _decider: Judging
    _clock: Clock

    def may_stream(self, host: str) -> bool:
        """Whether a tool at this host has its uploads judged by their heads."""
        return match.may_stream(self._decider.policy, host)

    def streams(self, request: Request) -> bool:
        """Whether this request, of which the head alone is there, is judged by that."""
        return match.streams(self._decider.policy, request)

    def counts_parts(self, live: Live) -> bool:
        """Whether more of a streamed body must be asked for (`uploaded`) before it flows on: a
        ceiling counts its bytes, and its head did not tell their number."""
        told = live.request.header("content-length") is not None
        ceilings = self._decider.policy.ceilings_of.get(live.call.tool, ())
        return not told and any(ceiling.count is Count.BYTES_UP for ceiling in ceilings)

    async def message(self, live: Live, content: bytes) -> str | None:
        """A WebSocket message from the agent: looked at and counted like a call of its own.

        Returns the rule that stops it, and then the whole WebSocket is to be cut.
        """
        if live.catch is not None:
            live.catch.said(content)
        return await self._stop(live, len(content))

    async def uploaded(self, live: Live, size_bytes: int) -> str | None:
        """More of a streamed body came. The rule that stops it: then the call is to be cut."""
        return await self._stop(live, size_bytes, part=True)

    async def _stop(self, live: Live, size_bytes: int, *, part: bool = False) -> str | None:
        policy, call = self._decider.policy, live.call
        try:
            if policy is not live.policy:
                call = identified(policy, live.request, self._decider.canary_port)
            said = replace(call, worth=Worth(bytes_up=size_bytes), part=part)
            verdict = await self._decider.count(live.claimant, said, self._clock.now_us())
        except Exception as failure:
            return why(failure, live.call_id)
        return None if verdict.action is Action.ALLOW else verdict.rule
