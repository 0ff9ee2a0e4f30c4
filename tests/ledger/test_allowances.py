"""What is left of every window over somebody."""

import pytest

from ledger.errors import LedgerError
from ledger.tokens import Grant
from policies.call import Identity, Worth
from policies.ceilings import Count, Per
from policies.verdict import Reason
from tests.ledger.test_budgets import start
from tests.ledger.test_tokens import bearer, hashed
from tests.ledger.world import World, a_ceiling, a_policy

Window = tuple[str, str, int]


def over(world: World, per: Per, subject: str) -> list[Window]:
    found = world.store.allowances(per, subject, world.policy, world.now_us)
    return [(each.ceiling.per.value, each.subject, each.left) for each in found]


def mint(world: World, grant: Grant, secret: str) -> None:
    world.store.mint(grant, hashed(secret), actor="ann", at_us=world.now_us, policy=world.policy)


def test_a_run_is_under_every_window_that_can_refuse_it(world: World) -> None:
    world.policy = a_policy(*(a_ceiling(5, per) for per in Per))
    start(world, "root")
    start(world, "kid", "root")
    mint(world, Grant("kid", parent="root", release="l2", budget_microusd=70), "later")
    mint(world, Grant("root", "acme", budget_microusd=90), "budget")
    world.admit(world.read("a", claimant=bearer("kid")), world.read("b", claimant=bearer("root")))
    assert over(world, Per.RUN, "kid") == [
        ("global", "", 3),
        ("tenant", "acme", 3),
        ("run", "kid", 4),
        ("run", "root", 3),
        ("tree", "root", 3),
        ("agent", "biller", 3),
        ("release", "l2", 5),
        ("run", "kid", 70),
        ("run", "root", 90),
    ]
    assert world.store.root_of("kid") == "root"
    assert over(world, Per.TOOL, "read") == [("tool", "read", 3)]


def test_a_run_without_a_token_is_known_by_its_newest_call(world: World) -> None:
    world.policy = a_policy(a_ceiling(5), a_ceiling(5, Per.TENANT), a_ceiling(5, Per.AGENT))
    assert over(world, Per.RUN, "r7") == []
    world.admit(world.read("a", claimant=Identity("r7", "bolt", agent="clerk")))
    assert over(world, Per.RUN, "r7") == [
        ("run", "r7", 4),
        ("tenant", "bolt", 4),
        ("agent", "clerk", 4),
    ]
    assert world.store.root_of("r7") == "r7"


def test_the_window_of_one_ceiling_tells_when_there_is_room(world: World) -> None:
    world.policy = a_policy(a_ceiling(1), a_ceiling(1, Per.TREE, Count.CALLS, None))
    world.admit(world.read("a"))
    (of_run, of_tree) = (
        world.store.allowance(name, "r1", world.policy, world.now_us)
        for name in ("run-calls-1", "tree-calls-1")
    )
    assert of_run is not None
    assert of_tree is not None
    assert (of_run.left, of_tree.left, of_tree.wait_seconds) == (0, 0, None)
    assert of_run.wait_seconds in (59, 60, 61)
    world.wait(62)
    again = world.store.allowance("run-calls-1", "r1", world.policy, world.now_us)
    assert again is not None
    assert (again.left, again.wait_seconds) == (1, 0)
    assert world.store.allowance("gone", "r1", world.policy, world.now_us) is None


def test_a_budget_that_is_set_binds_the_next_call_of_the_same_token(world: World) -> None:
    world.policy = a_policy()
    mint(world, Grant("root", "acme", budget_microusd=100), "root")

    def spend(name: str) -> Reason:
        ask = world.read(name, claimant=bearer("root"), worth=Worth(spend_microusd=100))
        return world.decided(ask).verdict.reason

    assert (spend("a"), spend("b")) == (Reason.ALLOWED, Reason.OVER_CEILING)

    def set_budget(run: str, microusd: int | None, reason: str = "x") -> int | None:
        return world.store.set_budget(run, microusd, reason=reason, actor="ann", at_us=world.now_us)

    assert set_budget("root", 200) == 100
    assert (spend("c"), spend("d")) == (Reason.ALLOWED, Reason.OVER_CEILING)
    world.reopen()
    assert spend("e") is Reason.OVER_CEILING
    assert set_budget("root", None) == 200
    assert spend("f") is Reason.ALLOWED
    with pytest.raises(LedgerError, match="has no token"):
        set_budget("other", 1)
    with pytest.raises(LedgerError, match="a reason"):
        set_budget("root", 1, " ")
