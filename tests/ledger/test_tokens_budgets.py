"""Tokens with a budget, and tokens that may only read: for the run and for what it starts."""

import pytest

from ledger.errors import LedgerError
from policies.call import Worth
from policies.verdict import Reason
from tests.ledger.test_tokens import bearer, mint, own, told
from tests.ledger.world import World


def spend(microusd: int) -> Worth:
    return Worth(spend_microusd=microusd)


def test_a_budget_binds_the_run_and_what_it_starts(world: World) -> None:
    mint(world, "r1", tenant="acme", budget_microusd=5_000_000)
    mint(world, "mid", parent="r1")
    mint(world, "leaf", parent="mid", budget_microusd=1_000_000)
    found = told(world, bearer("leaf"))[1]
    assert found is not None
    assert found.budgets == (("leaf", 1_000_000), ("r1", 5_000_000))
    world.reopen()
    assert told(world, bearer("leaf"))[1] == found
    assert told(world, bearer("mid"))[1].budgets == (("r1", 5_000_000),)  # type: ignore[union-attr]


def test_an_operator_changes_a_budget_and_it_counts_at_once(world: World) -> None:
    mint(world, "r1", tenant="acme", budget_microusd=5_000_000)
    mint(world, "child", parent="r1")
    assert told(world, bearer("child"))[1].budgets == (("r1", 5_000_000),)  # type: ignore[union-attr]
    mint(world, "r1", "again", budget_microusd=250_000)
    assert told(world, bearer("child"))[1].budgets == (("r1", 250_000),)  # type: ignore[union-attr]
    mint(world, "r1", "third")
    kept = {token.identity.run: token.budget_microusd for token in world.store.tokens()}
    assert kept == {"r1": 250_000, "child": None}
    minted = "SELECT detail FROM event WHERE type = 'token.minted'"
    details = [row[0] for row in world.rows(minted)]
    assert details[2].endswith(", budget of r1 0.25 USD (was 5.00)")


def test_spend_over_a_budget_is_refused_across_the_tree(world: World) -> None:
    mint(world, "r1", tenant="acme", budget_microusd=1_000_000)
    mint(world, "child", by=bearer("r1"), budget_microusd=50_000_000)
    for name in "abcd":
        mint(world, name, by=bearer("child"))
    asks = [
        world.read(f"{name}{round_}", claimant=bearer(name), worth=spend(100_000))
        for round_ in range(4)
        for name in "abcd"
    ]
    reasons = [decision.verdict.reason for decision in world.admit(*asks)]
    assert reasons.count(Reason.ALLOWED) == 10
    assert set(reasons[10:]) == {Reason.OVER_CEILING}
    assert world.decided(asks[-1]).verdict.rule == "ceiling:budget:r1"


def test_a_run_gives_its_children_budgets_and_never_more_later(world: World) -> None:
    by = own(world)
    mint(world, "child", by=by, budget_microusd=2_000_000)
    assert mint(world, "child", "less", by=by, budget_microusd=1_000_000).budget_microusd == 10**6
    with pytest.raises(LedgerError, match=r"has a budget of 1\.00 USD, and its parent may only"):
        mint(world, "child", "more", by=by, budget_microusd=1_000_001)
    assert mint(world, "child", "same", by=by).budget_microusd == 1_000_000


def test_a_run_cannot_touch_its_own_budget(world: World) -> None:
    by = own(world, budget_microusd=1)
    with pytest.raises(LedgerError, match="name a new run"):
        mint(world, "r1", "more", by=by, budget_microusd=10**9)
    assert told(world, by)[1].budgets == (("r1", 1),)  # type: ignore[union-attr]


def test_a_token_that_may_only_read_refuses_writes_and_mints_its_like(world: World) -> None:
    token = mint(world, "r1", tenant="acme", read_only=True)
    assert token.identity.read_only
    child = mint(world, "child", by=bearer("r1"), read_only=False)
    assert child.identity.read_only
    world.reopen()
    assert told(world, bearer("child"))[1].read_only  # type: ignore[union-attr]
    (row, _) = world.rows("SELECT detail FROM event WHERE type = 'token.minted' ORDER BY seq")
    assert row[0] == f"token {token.id}, read-only"


def test_a_run_may_mint_a_child_that_only_reads(world: World) -> None:
    by = own(world)
    assert mint(world, "child", by=by, read_only=True).identity.read_only
    assert not told(world, by)[1].read_only  # type: ignore[union-attr]
