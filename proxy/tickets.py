"""A call that waits for a person: its ticket, what the person is shown, and the wait itself.

Nothing here judges. Whatever the person said, the call is judged again; a ticket is bound to one
exact request, so that an approval lets exactly what was shown pass.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from ledger.holds import RETRY_SECONDS
from ledger.records import Arguments, Ask, Decision, Hold
from ledger.states import HoldState
from policies.call import Identity, Request
from policies.match import DEFAULT_PORT
from policies.policy import Policy
from policies.verdict import Action, Reason, Verdict
from proxy import exact, logs
from proxy.clock import Clock

if TYPE_CHECKING:
    from proxy.decider import Decider
    from proxy.judging import Judging

PARKED_PER_RUN_MAX = 32  # calls of one run that wait in one process, on whatever tickets
PARKED_PER_TREE_MAX = 64  # of a run and all that it started
PARKED_PER_TENANT_MAX = 128
PARKED_MAX = 512  # of all
HOLD_POLL_SECONDS = 0.25  # how often a call that waits looks at its ticket, its client, the cords

Stops = Callable[[], Reason | None]
"""Why a call waits no longer, whatever its ticket says; None while it waits on."""


class Tickets(Protocol):
    """The tickets as a gate needs them. What is given back fails as `Judging` does."""

    def hold(
        self, ask: Ask, shown: Arguments, rule: str, wait_seconds: int
    ) -> Awaitable[Hold | None]:
        """The open ticket for this request, or a new one; None: there is no room for one."""

    def held(self, ticket: str, at_us: int) -> Awaitable[Hold | None]:
        """How it stands now."""

    def left(self, call_id: str, at_us: int, reason: Reason, why: str) -> Awaitable[None]:
        """A call waits no longer and was not sent."""


class LocalTickets:
    """Those of the store in this process."""

    def __init__(self, decider: "Decider") -> None:
        self._decider = decider

    def hold(
        self, ask: Ask, shown: Arguments, rule: str, wait_seconds: int
    ) -> "asyncio.Future[Hold | None]":
        return self._decider.act(lambda store: store.hold(ask, shown, rule, wait_seconds))

    def held(self, ticket: str, at_us: int) -> "asyncio.Future[Hold | None]":
        return self._decider.act(lambda store: store.held(ticket, at_us), durable=False)

    def left(self, call_id: str, at_us: int, reason: Reason, why: str) -> "asyncio.Future[None]":
        return self._decider.act(
            lambda store: store.left(call_id, at_us, reason, why), durable=False
        )


class RemoteTickets:
    """Those of the decider in another process."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self._call = call

    def hold(
        self, ask: Ask, shown: Arguments, rule: str, wait_seconds: int
    ) -> Awaitable[Hold | None]:
        request = ask.request  # what is shown is all that it needs of the rest
        bare = Request(request.method, request.scheme, request.host, request.port, request.path)
        return self._call("hold", replace(ask, request=bare), shown, rule, wait_seconds)

    def held(self, ticket: str, at_us: int) -> Awaitable[Hold | None]:
        return self._call("held", ticket)

    def left(self, call_id: str, at_us: int, reason: Reason, why: str) -> Awaitable[None]:
        return self._call("left", call_id, reason, why)


def verbs(decider: "Decider", clock: Clock) -> "dict[str, Callable[..., asyncio.Future[Any]]]":
    """What the decider does for `RemoteTickets`, by its own clock."""
    tickets = decider.tickets

    def hold(ask: Ask, shown: Arguments, rule: str, wait_seconds: int) -> "asyncio.Future[Any]":
        return tickets.hold(replace(ask, at_us=clock.now_us()), shown, rule, wait_seconds)

    return {
        "hold": hold,
        "held": lambda ticket: tickets.held(ticket, clock.now_us()),
        "left": lambda call_id, reason, why: tickets.left(call_id, clock.now_us(), reason, why),
    }


class Parking:
    """Where the calls of one process wait."""

    def __init__(self, decider: "Judging", clock: Clock) -> None:
        self._decider = decider
        self._clock = clock
        self._parked: Counter[tuple[str, ...]] = Counter()  # by run, tree and tenant

    async def waited(self, ask: Ask, decision: Decision, stops: Stops) -> Ask | Verdict:
        """What to ask next, once a person has decided or a cord or the policy moved; or why the
        call waits no longer, and then nothing of it was sent."""
        tickets, waited_on = self._decider.tickets, ask.approval
        held, policy = decision.verdict, self._decider.policy
        digest = bound_to(ask, policy)
        now_us = self._clock.now_us()
        ask = replace(ask, at_us=now_us, bound_to=digest, approval="", may_wait=False)
        shown = arguments(ask.request, policy.tag_headers)
        hold = await tickets.hold(ask, shown, held.rule, held.wait_seconds)
        if hold is None:
            return ask  # it is refused now, with the reason
        places = _places(decision.identity or Identity(hold.run, hold.tenant))
        if any(self._parked[place] >= most for place, most in places.items()):
            return await self._left(ask, held, Reason.OVER_CEILING)
        if hold.ticket != waited_on:
            logs.held(ask, hold)
        self._parked.update(places.keys())
        try:
            await self._parked_until(hold, stops)
        finally:
            self._parked.subtract(places.keys())
            self._parked += Counter()  # forgets the runs of which none waits
        reason = stops()
        if reason is not None:
            return await self._left(ask, held, reason)
        return replace(ask, at_us=self._clock.now_us(), approval=hold.ticket)

    async def _parked_until(self, hold: Hold, stops: Stops) -> None:
        """Until there is something new to be judged, or nobody who waits."""
        epoch = self._decider.epoch
        now: Hold | None = hold
        while now is not None and now.state is HoldState.WAITING:
            if self._decider.epoch != epoch or stops() is not None:
                return
            await asyncio.sleep(HOLD_POLL_SECONDS)
            now = await self._decider.tickets.held(hold.ticket, self._clock.now_us())

    async def _left(self, ask: Ask, held: Verdict, reason: Reason) -> Verdict:
        await self._decider.tickets.left(ask.call_id, self._clock.now_us(), reason, _WHY[reason])
        seconds = RETRY_SECONDS if reason is Reason.OVER_CEILING else None
        return Verdict(Action.REFUSE, reason, held.rule, _WHY[reason], retry_after_seconds=seconds)


_WHY = {
    Reason.NOT_SENT: "the client left",
    Reason.SHUTTING_DOWN: "it waited for a person",
    Reason.OVER_CEILING: "too many calls wait for a person here",
}


def _places(who: Identity) -> dict[tuple[str, ...], int]:
    """What a call that waits takes one place of, each with how many there are."""
    return {
        (): PARKED_MAX,
        ("tenant", who.tenant): PARKED_PER_TENANT_MAX,
        ("tree", who.tenant, who.root): PARKED_PER_TREE_MAX,
        ("run", who.tenant, who.run): PARKED_PER_RUN_MAX,
    }


def bound_to(ask: Ask, policy: Policy) -> bytes:
    """What an approval is bound to: the exact request. A key names the try, not what is asked."""
    return exact.bound_to(ask.request, policy.tag_headers, policy.tool(ask.call.tool).key.header)


def arguments(request: Request, tag_headers: tuple[str, str]) -> Arguments:
    """All that a person must see before letting this pass, credentials too: whoever keeps it masks
    them, by a key that is not known here."""
    port = "" if request.port == DEFAULT_PORT.get(request.scheme) else f":{request.port}"
    host = f"[{request.host}]" if ":" in request.host else request.host
    url = f"{request.scheme}://{host}{port}{request.target}"
    shown = exact.headers(request, tag_headers)
    return Arguments(request.method, url, shown, request.body)
