"""Short ways to call models and to look at what counts as spent."""

from typing import Any

from ledger.states import CallState, ClaimAfter
from policies.call import Worth
from policies.ceilings import Ceiling, Count, Per
from policies.verdict import Action
from tests.ledger.world import World, a_ceiling

DOLLAR = 1_000_000
TEN_CENTS = Worth(tokens=100, spend_microusd=100_000)


def budget(at_most: int, per: Per = Per.RUN, **rest: Any) -> Ceiling:
    return a_ceiling(at_most, per, Count.SPEND, rest.pop("within_seconds", None), **rest)


def model(world: World, name: str, worth: Worth = TEN_CENTS, **rest: Any) -> Action:
    ask = world.ask(name, effect="model", tool="mail", worth=worth, **rest)
    return world.decided(ask).verdict.action


def ended(world: World, name: str, state: CallState = CallState.DONE, **rest: Any) -> None:
    after = ClaimAfter.KEPT
    assert world.store.settle(world.outcome(name, state, after, **rest))


def spent(world: World, subject: str = "r1", per: str = "run") -> int:
    """Micro-dollars in the window of the one spend ceiling, as a new reader finds them."""
    world.check_memory()
    ceiling = next(one for one in world.policy.ceilings if one.count is Count.SPEND)
    found = world.store._memory.windows.get((ceiling.window or ceiling.id, subject))
    return 0 if found is None else sum(found.counts)
