"""A cord that is pulled over the calls of those that go first, other than those that they pass."""

from dataclasses import replace

import pytest

from ledger.cords import CordName
from ledger.trial_reads import Health
from policies.verdict import Level, Pull, Reason, Scope
from tests.ledger.test_trials import GOOD, called, one, opened, ours, widened, world
from tests.ledger.world import World

__all__ = ["world"]


@pytest.mark.parametrize(
    "cord",
    [
        (Level.HALT, Scope.GLOBAL, ""),
        (Level.HALT, Scope.RELEASE, GOOD),
        (Level.HALT, Scope.TOOL, "pay"),
        (Level.FREEZE, Scope.TENANT, "acme"),
        (Level.HALT, Scope.RUN, "top"),
    ],
    ids=str,
)
@pytest.mark.parametrize("how", ["pulled", "written into the policy"])
def test_a_cord_pulled_meanwhile_over_its_calls_is_a_finding(
    world: World, cord: CordName, how: str
) -> None:
    opened(world)
    called(world, "a", one("r9", GOOD, "top"))
    stop = Pull(*cord, "this one is bad too", "bob", world.now_us)
    if how == "pulled":
        world.store.pull(stop)
    else:
        world.policy = replace(world.policy, pulls={cord: stop})
    course, _ = world.store.widen_trial(
        ours(world).id, world.policy, reason="x", actor="ann", at_us=world.now_us
    )
    said = f"{stop.rule} was pulled over run r9, by bob: this one is bad too"
    assert (course.health, course.found) == (Health.BAD, (said,))


@pytest.mark.parametrize(
    "cord",
    [
        (Level.HALT, Scope.TENANT, "globex"),
        (Level.HALT, Scope.TOOL, "mail"),
        (Level.HALT, Scope.RUN, "r8"),
        (Level.FREEZE, Scope.TOOL, "pay"),
    ],
    ids=str,
)
def test_a_cord_over_no_call_of_it_says_nothing(world: World, cord: CordName) -> None:
    world.store.pull(Pull(Level.FREEZE, Scope.TOOL, "pay", "", "ann", world.now_us))
    opened(world)
    read = world.read("a", claimant=one("r9"))
    assert world.decided(read).verdict.reason is Reason.ALLOWED
    world.settle("a")
    world.store.pull(Pull(*cord, "", "bob", world.now_us), tells=True)
    world.policy = replace(world.policy, pulls={cord: Pull(*cord, "", "policy:1", 0)})
    assert widened(world)[0] is Health.GOOD
