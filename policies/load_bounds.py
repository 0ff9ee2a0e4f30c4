"""The ceilings of a policy file, and the shipped ones for what it leaves without."""

import hashlib

from policies.ceilings import MICRO, Ceiling, Count, Per, Then
from policies.schema_bounds import SHIPPED_FOR, CeilingRule
from policies.schema_parts import duration_us

_MINUTE_US = 60 * 1_000_000
_DAY_US = 86_400 * 1_000_000


def ceiling(rule: CeilingRule) -> Ceiling:
    """A rule that is not `unbounded`, compiled."""
    at_most = rule.microusd() if rule.count is Count.SPEND else rule.at_most
    if at_most is None:
        raise ValueError("a ceiling without a limit")
    within_us = None if rule.within is None else duration_us(rule.within)
    return _made(
        rule.per,
        rule.tool or "*",
        rule.count,
        int(at_most),
        within_us,
        rule.then,
        rule.wait_seconds,
    )


def _made(
    per: Per,
    tool: str,
    count: Count,
    at_most: int,
    within_us: int | None,
    then: Then,
    wait_seconds: int = 0,
    *,
    shipped: bool = False,
) -> Ceiling:
    counted = "\n".join(map(str, (per, tool, count, within_us)))
    return Ceiling(
        id=_digest("\n".join(map(str, (counted, at_most, then, wait_seconds)))),
        per=per,
        count=count,
        at_most=at_most,
        within_us=within_us,
        then=then,
        tools=(tool,),
        wait_seconds=wait_seconds,
        window=_digest(counted),
        shipped=shipped,
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:10]


SHIPPED: dict[tuple[Per, Count], Ceiling] = {
    (one.per, one.count): one
    for one in (
        _made(Per.RUN, "*", Count.CALLS, 1_200, _MINUTE_US, Then.THROTTLE, shipped=True),
        _made(Per.RUN, "*", Count.SPEND, 20 * MICRO, None, Then.THROTTLE, shipped=True),
        _made(Per.RUN, "*", Count.IN_FLIGHT, 64, None, Then.THROTTLE, shipped=True),
        _made(Per.TREE, "*", Count.SPAWNED, 1_000, None, Then.THROTTLE, shipped=True),
        _made(Per.TENANT, "*", Count.CALLS, 12_000, _MINUTE_US, Then.THROTTLE, shipped=True),
        _made(Per.TENANT, "*", Count.SPEND, 200 * MICRO, _DAY_US, Then.THROTTLE, shipped=True),
        _made(Per.TENANT, "*", Count.IN_FLIGHT, 512, None, Then.THROTTLE, shipped=True),
    )
}
"""What a run, its tree and a tenant are bound by where the policy has no such bound for all."""


def shipped(rules: list[CeilingRule]) -> tuple[Ceiling, ...]:
    """Those that the file neither states nor removes. A tree's bound is one for its runs, too, and
    that of its runs one for the tree; one that only tells bounds nothing."""
    stated = {
        (_of_runs(rule.per), rule.count)
        for rule in rules
        if rule.tool in (None, "*") and rule.then is not Then.ALERT
    }
    return tuple(one for one in SHIPPED.values() if (_of_runs(one.per), one.count) not in stated)


def _of_runs(per: Per) -> Per:
    return Per.RUN if per is Per.TREE else per


def unbounded(rules: list[CeilingRule]) -> tuple[str, ...]:
    """What the file leaves without a bound, for people: `calls per run`."""
    return tuple(f"{rule.count} per {rule.per}" for rule in rules if rule.unbounded)


if {*SHIPPED, (Per.RUN, Count.SPAWNED)} != SHIPPED_FOR:
    raise RuntimeError("a bound may be removed that is not shipped, or the other way round")
