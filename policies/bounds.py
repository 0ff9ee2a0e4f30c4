"""Which ceilings a call draws on, how much of each, and what they say to it. Pure."""

from collections.abc import Callable, Iterator, Mapping
from math import inf

from policies import ceilings
from policies.call import NOTHING, Draw, Effect, Facts, Identity, ToolCall
from policies.ceilings import CORDS, RESERVED, SEVERITY, Ceiling, Count, Per, Then
from policies.policy import CANARY, Policy
from policies.verdict import Action, Pull, Reason, Scope, Verdict, tool_of

# An enumeration's members are slow to look up, so the ones that every call asks for have names.
_ALERT = Then.ALERT

HOLD_SECONDS = 300  # how long a call waits for a person where the policy says nothing

BUDGET = "budget"
"""The window of what runs spend that were given budgets of their own."""

THROTTLE = "throttle"
"""The window of the calls of runs over which a throttle stands."""
THROTTLED_CALLS = 6  # of each run in THROTTLED_SECONDS: enough to see whether it got better
THROTTLED_SECONDS = 60


def drawn_on(policy: Policy, call: ToolCall, identity: Identity) -> list[tuple[Ceiling, str, int]]:
    """The ceilings that a call draws on, each with whose window it is and how much of it.

    Ancestors' windows count what their descendants do, so a new child opens no new allowance. Of
    a destination nobody knows here whether it is a new one. The canary draws on none: a limit
    would look like a cord that holds.
    """
    if call.tool == CANARY:
        return []
    amounts = amounts_of(call)
    drawn = [
        (ceiling, subject, amount)
        for ceiling in policy.ceilings_of[call.tool]  # a tool it does not know must not pass
        if (amount := amounts[ceiling.count])
        for subject in _SUBJECTS[ceiling.per](identity, call)
    ]
    if spend := call.worth.spend_microusd:
        drawn += [(budget(run, at_most), run, spend) for run, at_most in identity.budgets]
    return drawn


def budget(run: str, at_most_microusd: int) -> Ceiling:
    """The ceiling that a run's own budget is: of its whole life, its descendants' included."""
    return Ceiling(f"{BUDGET}:{run}", Per.RUN, Count.SPEND, at_most_microusd, window=BUDGET)


def throttled(pull: Pull, identity: Identity) -> Iterator[tuple[Ceiling, str, int]]:
    """What a run draws on over which this throttle stands. Children share their parent's calls as
    far up as it reaches: else a run that starts runs would slip out of it."""
    ceiling = Ceiling(
        f"{THROTTLE}:{pull.scope}:{pull.subject}", Per.RUN, Count.CALLS, THROTTLED_CALLS,
        THROTTLED_SECONDS * 1_000_000, window=THROTTLE,
    )  # fmt: skip
    named = pull.subject if pull.scope is Scope.RUN else tool_of(pull.subject)[0]
    for run in (identity.run, *identity.ancestors):
        yield ceiling, run, 1
        if run == named:
            return


_SUBJECTS: Mapping[Per, Callable[[Identity, ToolCall], tuple[str, ...]]] = {
    Per.GLOBAL: lambda identity, call: ("",),
    Per.TENANT: lambda identity, call: (identity.tenant,),
    Per.RUN: lambda identity, call: (identity.run, *identity.ancestors),
    Per.TREE: lambda identity, call: (identity.root,),
    Per.AGENT: lambda identity, call: (identity.agent,) if identity.agent else (),
    Per.RELEASE: lambda identity, call: (identity.release,) if identity.release else (),
    Per.TOOL: lambda identity, call: (call.tool,),
    Per.DESTINATION: lambda identity, call: (call.host,),
}


def subjects_of(per: Per, identity: Identity, call: ToolCall) -> tuple[str, ...]:
    """Whose windows a call counts on; none where its run has no agent or release."""
    return _SUBJECTS[per](identity, call)


def spawn_subjects(per: Per, child: Identity) -> tuple[str, ...]:
    """Whose count a new child adds to: those above it, and those that it belongs to."""
    if per is Per.RUN:
        return child.ancestors
    return subjects_of(per, child, ToolCall("", Effect.READ, "", b""))


_AMOUNTS: Mapping[Effect, Mapping[Count, int]] = {
    effect: {
        **dict.fromkeys(Count, 0),
        **dict.fromkeys((Count.CALLS, Count.IN_FLIGHT, Count.DESTINATIONS), 1),
        Count.WRITES: int(effect is Effect.WRITE),
        Count.STEPS: int(effect is Effect.MODEL),
    }
    for effect in Effect
}
_CALLS, _TOKENS, _SPEND, _BYTES_UP = Count.CALLS, Count.TOKENS, Count.SPEND, Count.BYTES_UP


def amounts_of(call: ToolCall) -> Mapping[Count, int]:
    """How much of everything that is counted a call is."""
    amounts, worth = _AMOUNTS[call.effect], call.worth
    if worth is NOTHING and call.operations == 1:
        return amounts
    return {
        **amounts,
        _CALLS: call.operations,
        Count.STEPS: int(call.effect is Effect.MODEL or worth.tokens > 0),
        _TOKENS: worth.tokens,
        _SPEND: worth.spend_microusd,
        _BYTES_UP: worth.bytes_up,
    }


def is_over(draw: Draw, now_us: int) -> bool:
    """Whether the ceiling has no room for it. What adds nothing always has."""
    ceiling, _, window, amount = draw
    return amount > 0 and ceilings.used(ceiling, window, now_us) + amount > ceiling.at_most


def bounded(call: ToolCall, identity: Identity, facts: Facts) -> Verdict | None:
    """What the ceilings say; the one that stops most is heard. None: there is room.

    What a person approved is not held for a person again; what nobody can look at, since its body
    is still to come, is refused instead.
    """
    now_us = facts.now_us
    over = [
        draw
        for draw in facts.drawn
        if is_over(draw, now_us)
        and draw.ceiling.then is not Then.ALERT
        and not (facts.approved and draw.ceiling.then is Then.HOLD)
    ]
    if not over:
        return None
    worst = max(over, key=lambda draw: (SEVERITY[draw.ceiling.then], _wait(draw, now_us) or inf))
    ceiling = worst.ceiling
    if ceiling.then is Then.HOLD and not call.streamed:
        rule = rule_of(ceiling)
        return Verdict(Action.HOLD, Reason.HELD, rule, str(ceiling), wait_seconds=HOLD_SECONDS)
    pull = _cord(worst, identity.run, call.tool, now_us)
    wait_seconds = min(_patience(draw) for draw in over)
    return _refused(worst, identity.run, now_us, pull, wait_seconds)


def _patience(draw: Draw) -> int:
    """How long to wait for room: not at all where it never fits, or where none ever comes back."""
    ceiling = draw.ceiling
    comes_back = ceiling.within_us is not None or ceiling.count in _GIVEN_BACK
    return ceiling.wait_seconds if comes_back and draw.amount <= ceiling.at_most else 0


_GIVEN_BACK = RESERVED | {Count.IN_FLIGHT}
"""Counts that go down when a call ends."""


def exhausted(draw: Draw, run: str, tool: str, now_us: int) -> Verdict:
    """For a running call, of this run and tool, that a ceiling has nothing left for."""
    return _refused(draw, run, now_us, _cord(draw, run, tool, now_us), 0)


def _refused(draw: Draw, run: str, now_us: int, pull: Pull | None, wait_seconds: int) -> Verdict:
    """It names whose window is full where that is a run above the one that asks."""
    ceiling = draw.ceiling
    above = ceiling.per is Per.RUN and draw.subject != run
    return Verdict(
        Action.REFUSE,
        Reason.OVER_CEILING,
        rule_of(ceiling),
        told(ceiling, draw.subject) if above else str(ceiling),
        retry_after_seconds=_wait(draw, now_us),
        limit=ceilings.limit(ceiling, draw.window, now_us, draw.amount),
        pull=pull,
        wait_seconds=wait_seconds,
    )


def rule_of(ceiling: Ceiling) -> str:
    """The line that decided: the ceiling, or the throttle that stands there as one."""
    return ceiling.id if ceiling.window == THROTTLE else f"ceiling:{ceiling.id}"


def _wait(draw: Draw, now_us: int) -> int | None:
    return ceilings.wait_seconds(draw.ceiling, draw.window, now_us, draw.amount)


def _cord(draw: Draw, run: str, tool: str, now_us: int) -> Pull | None:
    """The cord is pulled where the ceiling counted; where there is none, at the run or the tool."""
    ceiling, per = draw.ceiling, draw.ceiling.per
    level = CORDS.get(ceiling.then)
    if level is None:
        return None
    if per is Per.DESTINATION:
        scope, subject = Scope.TOOL, tool
    elif per is Per.AGENT:
        scope, subject = Scope.RUN, run
    else:
        scope, subject = ceilings.SCOPES[per], draw.subject
    return Pull(level, scope, subject, str(ceiling), f"ceiling:{ceiling.id}", now_us)


def crossed(drawn: tuple[Draw, ...], now_us: int) -> tuple[str, ...]:
    """The ceilings that only tell and that this call takes over their limit, for people."""
    found = [
        told(draw.ceiling, draw.subject)
        for draw in drawn
        if draw.ceiling.then is _ALERT
        and ceilings.used(draw.ceiling, draw.window, now_us) <= draw.ceiling.at_most
        and is_over(draw, now_us)
    ]
    return tuple(found)


def told(ceiling: Ceiling, subject: str) -> str:
    """A ceiling and whose window it is, for people: `at most 5 calls per run: run r1`."""
    return f"{ceiling}: {ceiling.per} {subject}" if subject else str(ceiling)


def own(policy: Policy, identity: Identity) -> Iterator[tuple[Ceiling, str]]:
    """The ceilings that a run may know of, each with whose window it is: its own and those of the
    runs above it, its tree's, its tenant's, its agent's and its release's. What all others use
    together is not its business.
    """
    nothing = ToolCall("", Effect.READ, "", b"")
    for ceiling in policy.ceilings:
        if ceiling.per in _OWN:
            for subject in subjects_of(ceiling.per, identity, nothing):
                yield ceiling, subject
    for run, at_most_microusd in identity.budgets:
        yield budget(run, at_most_microusd), run


_OWN = frozenset({Per.RUN, Per.TREE, Per.TENANT, Per.AGENT, Per.RELEASE})
