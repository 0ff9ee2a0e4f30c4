"""What a running call draws beyond its reservation, and what is told when a limit is gone over."""

import pytest

from ledger.records import Drawn
from ledger.states import ClaimAfter
from policies.call import Worth
from policies.ceilings import Ceiling, Count, Per, Then
from policies.verdict import Action, Level, Reason, Scope
from tests.ledger.money import DOLLAR, budget, ended, model, spent
from tests.ledger.world import R1, World, a_ceiling, a_policy


def drawn(world: World, name: str, tokens: int, microusd: int) -> Drawn:
    return world.store.draw(name, tokens, microusd, world.policy, world.now_us)


def test_a_stream_draws_more_until_nothing_is_left(world: World) -> None:
    world.policy = a_policy(budget(DOLLAR))
    model(world, "a")
    assert drawn(world, "a", 0, 600_000) == Drawn(0, 600_000)
    assert drawn(world, "a", 0, 600_000) == Drawn(0, 300_000)
    last = drawn(world, "a", 0, 600_000)
    assert (last.tokens, last.microusd) == (0, 0)
    assert last.verdict is not None
    assert last.verdict.reason is Reason.OVER_CEILING
    assert spent(world) == DOLLAR
    world.reopen(alive=lambda worker: True)  # what was drawn stands in the record
    assert model(world, "b", Worth(spend_microusd=1)) is Action.REFUSE


def test_what_was_drawn_is_settled_with_the_rest(world: World) -> None:
    world.policy = a_policy(
        budget(DOLLAR), a_ceiling(1000, count=Count.TOKENS, within_seconds=None)
    )
    model(world, "a")
    assert drawn(world, "a", 500, 200_000) == Drawn(500, 200_000)
    world.check_memory()
    ended(world, "a", used_microusd=250_000, used_tokens=700)
    assert spent(world) == 250_000
    tokens = world.store._memory.windows.get((world.policy.ceilings[1].id, "r1"))
    assert tokens is not None
    assert sum(tokens.counts) == 700


def test_each_kind_is_granted_by_its_own_ceilings(world: World) -> None:
    world.policy = a_policy(budget(DOLLAR), a_ceiling(150, count=Count.TOKENS, within_seconds=None))
    model(world, "a")
    assert drawn(world, "a", 500, 200_000) == Drawn(50, 200_000)
    assert drawn(world, "a", 500, 200_000).verdict is not None


def test_a_stream_pulls_the_cord_of_the_ceiling_it_used_up(world: World) -> None:
    world.policy = a_policy(budget(100_000, then=Then.HALT))
    model(world, "a")
    assert drawn(world, "a", 0, 1).verdict is not None
    assert (Level.HALT, Scope.RUN, "r1") in world.store.pulls


def test_a_lowered_limit_binds_what_runs_already(world: World) -> None:
    world.policy = a_policy(Ceiling("c", Per.RUN, Count.SPEND, 5 * DOLLAR, window="w"))
    model(world, "a")
    world.policy = a_policy(Ceiling("d", Per.RUN, Count.SPEND, 100_000, window="w"), digest="d2")
    assert drawn(world, "a", 0, 1).verdict is not None


def test_a_call_that_has_ended_draws_nothing(world: World) -> None:
    world.policy = a_policy(budget(DOLLAR))
    model(world, "a")
    ended(world, "a", used_microusd=1)
    assert drawn(world, "a", 5, 5).verdict is not None
    assert drawn(world, "nobody", 5, 5).verdict is not None
    assert spent(world) == 1


def test_a_ceiling_that_asks_a_person_bounds_a_stream_that_nobody_let_pass(world: World) -> None:
    world.policy = a_policy(budget(DOLLAR, then=Then.HOLD))
    model(world, "a", Worth(spend_microusd=500_000))
    assert drawn(world, "a", 0, DOLLAR) == Drawn(0, 500_000)
    assert drawn(world, "a", 0, 1).verdict is not None
    assert spent(world) == DOLLAR


@pytest.mark.parametrize(
    "per, scope, subject",
    [
        (Per.AGENT, Scope.RUN, "r1"),
        (Per.DESTINATION, Scope.TOOL, "mail"),
        (Per.RELEASE, Scope.RELEASE, R1.release),
        (Per.GLOBAL, Scope.GLOBAL, ""),
        (Per.TREE, Scope.RUN, "r1"),
    ],
)
def test_what_a_stream_used_up_is_stopped_where_a_call_would_stop_it(
    world: World, per: Per, scope: Scope, subject: str
) -> None:
    world.policy = a_policy(budget(100_000, per, then=Then.HALT))
    model(world, "a")
    assert drawn(world, "a", 0, 1).verdict is not None
    assert list(world.store.pulls) == [(Level.HALT, scope, subject)]


def test_a_limit_that_only_tells_is_told_when_a_settlement_or_a_draw_goes_over_it(
    world: World,
) -> None:
    world.policy = a_policy(budget(DOLLAR, then=Then.ALERT))
    model(world, "a", Worth(spend_microusd=600_000))
    world.store.settle(
        world.outcome("a", after=ClaimAfter.KEPT, used_microusd=900_000), world.policy
    )
    assert world.rows("SELECT 1 FROM event WHERE type = 'ceiling.crossed'") == []
    model(world, "b")  # as much as there is room for
    assert drawn(world, "b", 0, 1) == Drawn(0, 1)
    row = ("r1", "acme", "mail", "at most 1.00 USD per run: run r1")
    crossed = "SELECT run, tenant, tool, detail FROM event WHERE type = 'ceiling.crossed'"
    assert world.rows(crossed) == [row]
    world.policy = a_policy(budget(5 * DOLLAR, Per.TENANT, then=Then.ALERT))
    model(world, "c")
    ended_over = world.outcome("c", after=ClaimAfter.KEPT, used_microusd=6 * DOLLAR)
    world.store.settle(ended_over, world.policy)
    assert world.rows(crossed)[1:] == [
        ("r1", "acme", "mail", "at most 5.00 USD per tenant: tenant acme")
    ]
