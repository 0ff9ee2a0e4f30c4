"""Spawned runs, declared steps and corrections by hand: exact, audited, refused with a reason."""

from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from ledger.errors import LedgerError, OverCeiling
from ledger.records import Ask
from ledger.tokens import Grant, Token
from policies.call import Identity, Worth
from policies.ceilings import Ceiling, Count, Per, Then
from policies.policy import Policy
from policies.standing import standing
from policies.verdict import Action, Level, Pulls, Reason, Scope, Verdict
from tests.ledger.test_tokens import bearer, hashed
from tests.ledger.world import World, a_ceiling, a_policy, a_pull


def spawned(at_most: int, per: Per = Per.TREE, then: Then = Then.THROTTLE, **rest: Any) -> Ceiling:
    return a_ceiling(at_most, per, Count.SPAWNED, rest.pop("within_seconds", None), then, **rest)


def start(world: World, run: str, parent: str = "") -> Token:
    """A root by an operator, or a child by its parent's own token."""
    grant = Grant(run, parent=parent) if parent else Grant(run, "acme", agent="biller")
    by = bearer(parent) if parent else None
    return world.store.mint(
        grant, hashed(run), actor="ann", at_us=world.now_us, by=by, policy=world.policy
    )


def runs(world: World) -> int:
    return int(world.rows("SELECT count(*) FROM run")[0][0])


# ---------------------------------------------------------------------------- spawned runs


def test_a_tree_shares_one_allowance_of_runs(world: World) -> None:
    world.policy = a_policy(spawned(10))
    start(world, "root")
    for number in range(3):
        start(world, f"c{number}", "root")
    made = 3
    for number in range(3):
        for deeper in range(4):
            with suppress(OverCeiling):
                start(world, f"g{number}{deeper}", f"c{number}")
                made += 1
    assert (made, runs(world)) == (10, 11)


def test_all_in_one_transaction_hold_it_exactly(world: World) -> None:
    world.policy = a_policy(spawned(5))
    start(world, "root")
    refused = 0
    with world.store.transaction(durable=True):
        for number in range(64):
            try:
                start(world, f"c{number}", "root")
            except OverCeiling:
                refused += 1
    assert (refused, runs(world)) == (59, 6)
    world.reopen()
    with pytest.raises(OverCeiling):
        start(world, "late", "root")


def test_another_token_for_a_known_child_is_no_new_run(world: World) -> None:
    world.policy = a_policy(spawned(1))
    start(world, "root")
    start(world, "child", "root")
    again = world.store.mint(
        Grant("child", parent="root"),
        hashed("two"),
        actor="ann",
        at_us=world.now_us,
        policy=world.policy,
    )
    assert again.identity.run == "child"


def test_a_root_counts_on_no_ceiling_of_spawned_runs(world: World) -> None:
    world.policy = a_policy(spawned(0))
    start(world, "root")
    with pytest.raises(OverCeiling):
        start(world, "child", "root")


def test_a_run_counts_its_own_descendants_and_a_tenant_all(world: World) -> None:
    world.policy = a_policy(spawned(2, Per.RUN), spawned(3, Per.TENANT))
    start(world, "a")
    start(world, "a1", "a")
    start(world, "a2", "a")
    with pytest.raises(OverCeiling, match=r"run a may start no more runs, so a3 was not made"):
        start(world, "a3", "a")
    start(world, "b")
    start(world, "b1", "b")
    with pytest.raises(OverCeiling, match="at most 3 started runs per tenant"):
        start(world, "b2", "b")


def test_a_window_of_spawned_runs_opens_again(world: World) -> None:
    world.policy = a_policy(spawned(1, within_seconds=60))
    start(world, "root")
    start(world, "one", "root")
    with pytest.raises(OverCeiling, match=r"there is room in \d+ s"):
        start(world, "two", "root")
    world.wait(62)
    start(world, "two", "root")


@pytest.mark.parametrize(
    "per, rule",
    [
        (Per.TREE, "halt:run:root"),
        (Per.RUN, "halt:run:mid"),
        (Per.AGENT, "halt:run:mid"),
        (Per.TENANT, "halt:tenant:acme"),
        (Per.GLOBAL, "halt:global"),
    ],
)
def test_its_cord_stands_though_the_child_was_never_made(world: World, per: Per, rule: str) -> None:
    start(world, "root")
    start(world, "mid", "root")
    world.policy = a_policy(spawned(0, per, Then.HALT))
    with world.store.transaction(durable=True), pytest.raises(OverCeiling, match="its cord halt"):
        start(world, "leaf", "mid")
    assert [pull.rule for pull in world.store.pulls.values()] == [rule]
    assert (
        runs(world),
        world.rows("SELECT rule, actor FROM event WHERE type = 'cord.pulled'"),
    ) == (
        2,
        [(rule, f"ceiling:{per}-spawned-0")],
    )


def test_without_a_policy_no_child_is_made(world: World) -> None:
    start(world, "root")
    world.policy = None  # type: ignore[assignment]
    with pytest.raises(LedgerError, match="no policy can be read"):
        start(world, "child", "root")
    start(world, "other")


# ---------------------------------------------------------------------------- declared steps


def stops(policy: Policy, identity: Identity, pulls: Pulls) -> Verdict | None:
    halt = standing(policy, "", identity, pulls, Level.HALT)
    return Verdict(Action.REFUSE, Reason.HALTED, halt.rule) if halt else None


def step(world: World, ask: Ask, steps: int = 1) -> Identity | Verdict | Reason:
    """As the decider does it."""
    who = world.store.acting(ask, world.policy, stops)
    if not isinstance(who, Identity):
        return who
    return world.store.step(who, steps, world.policy, world.now_us) or who


def refused(told: Identity | Verdict | Reason) -> Reason:
    assert isinstance(told, Verdict)
    assert told.action is Action.REFUSE
    return told.reason


def test_who_acts_for_itself_makes_a_call(world: World) -> None:
    """Its own, its ancestors', its tenant's; a call of a tool leaves as much less room."""
    world.policy = a_policy(
        a_ceiling(3, Per.RUN, tools=("*",)), a_ceiling(0, Per.RUN, tools=("pay",))
    )
    start(world, "root")
    start(world, "child", "root")
    assert isinstance(step(world, world.read(claimant=bearer("root"))), Identity)
    assert isinstance(step(world, world.read(claimant=bearer("child"))), Identity)
    call = world.read("a", claimant=bearer("child"))
    world.policy = replace(world.policy, ceilings_of={"read": world.policy.ceilings[:1]})
    assert world.decided(call).verdict.action is Action.ALLOW
    told = world.store.acting(world.read(claimant=bearer("root")), world.policy, stops)
    assert refused(told) is Reason.OVER_CEILING
    assert isinstance(told, Verdict)
    assert (told.retry_after_seconds, told.wait_seconds) == (61, 0)
    world.reopen()
    assert refused(step(world, world.read(claimant=bearer("root")))) is Reason.OVER_CEILING
    world.wait(62)
    assert isinstance(step(world, world.read(claimant=bearer("root"))), Identity)


def test_whom_a_halt_stops_uses_nothing_up_by_asking(world: World) -> None:
    world.policy = a_policy(a_ceiling(1))
    start(world, "root")
    world.store.pull(a_pull(Scope.RUN, "root"))
    for _ in range(3):
        assert refused(step(world, world.read(claimant=bearer("root")))) is Reason.HALTED
    assert world.rows("SELECT * FROM window") == []


def test_declared_steps_and_model_calls_share_a_ceiling(world: World) -> None:
    world.policy = a_policy(a_ceiling(5, Per.TREE, Count.STEPS, None))
    start(world, "root")
    start(world, "child", "root")
    assert isinstance(step(world, world.read(claimant=bearer("root")), 3), Identity)
    model = world.ask("m", effect="model", tool="read", claimant=bearer("child"))
    assert world.decided(model).verdict.action is Action.ALLOW
    assert refused(step(world, world.read(claimant=bearer("child")), 2)) is Reason.OVER_CEILING
    assert isinstance(step(world, world.read(claimant=bearer("child"))), Identity)
    assert refused(step(world, world.read(claimant=bearer("root")))) is Reason.OVER_CEILING
    late = world.ask("n", effect="model", tool="read", claimant=bearer("root"))
    assert world.decided(late).verdict.reason is Reason.OVER_CEILING


def test_steps_without_a_ceiling_are_free(world: World) -> None:
    start(world, "root")
    for _ in range(3):
        assert isinstance(step(world, world.read(claimant=bearer("root")), 1_000), Identity)


def test_a_ceiling_on_the_steps_of_some_tools_counts_no_declared_one(world: World) -> None:
    world.policy = a_policy(a_ceiling(0, Per.RUN, Count.STEPS, None, tools=("gpt*",)))
    start(world, "root")
    assert isinstance(step(world, world.read(claimant=bearer("root"))), Identity)


def test_a_step_over_its_ceiling_pulls_the_cord(world: World) -> None:
    world.policy = a_policy(a_ceiling(1, Per.RUN, Count.STEPS, None, Then.HALT))
    start(world, "root")
    step(world, world.read(claimant=bearer("root")))
    assert refused(step(world, world.read(claimant=bearer("root")))) is Reason.OVER_CEILING
    assert refused(step(world, world.read(claimant=bearer("root")))) is Reason.HALTED


def test_a_ceiling_that_asks_a_person_refuses_a_step_and_one_that_tells_tells(
    world: World,
) -> None:
    world.policy = a_policy(a_ceiling(1, Per.RUN, Count.STEPS, None, Then.HOLD))
    start(world, "root")
    told = step(world, world.read(claimant=bearer("root")), 2)
    assert refused(told) is Reason.OVER_CEILING
    world.policy = a_policy(a_ceiling(1, Per.TENANT, Count.STEPS, None, Then.ALERT))
    assert isinstance(step(world, world.read(claimant=bearer("root")), 2), Identity)
    (row,) = world.rows("SELECT run, detail FROM event WHERE type = 'ceiling.crossed'")
    assert row == ("root", "at most 1 step per tenant: tenant acme")


@pytest.mark.parametrize("scope, subject", [(Scope.GLOBAL, ""), (Scope.TENANT, "acme")])
def test_whom_a_halt_stops_declares_nothing(world: World, scope: Scope, subject: str) -> None:
    start(world, "root")
    world.store.pull(a_pull(scope, subject))
    assert refused(step(world, world.read(claimant=bearer("root")))) is Reason.HALTED


def test_nobody_declares_nothing(world: World) -> None:
    assert step(world, world.read(claimant=None)) is Reason.CREDENTIALS_REQUIRED
    assert step(world, world.read(claimant=bearer("guess"))) is Reason.CREDENTIALS_INVALID


# ---------------------------------------------------------------------------- corrections


def spend(world: World, name: str, microusd: int, claimant: Any) -> Reason:
    ask = world.read(name, claimant=claimant, worth=Worth(spend_microusd=microusd))
    return world.decided(ask).verdict.reason


def adjust(world: World, per: Per, subject: str, microusd: int) -> list[tuple[str, int, int]]:
    done = world.store.adjust(
        per, subject, microusd, world.policy, reason="invoice", actor="ann", at_us=world.now_us
    )
    return [
        (each.after.ceiling.id, each.before.used_microusd, each.after.used_microusd)
        for each in done
    ]


def test_what_is_given_back_can_be_spent_again_once(world: World) -> None:
    world.policy = a_policy(a_ceiling(1_000_000, Per.RUN, Count.SPEND, None))
    start(world, "root")
    assert spend(world, "a", 1_000_000, bearer("root")) is Reason.ALLOWED
    world.settle("a", complete=False, status=None)
    assert spend(world, "b", 1, bearer("root")) is Reason.OVER_CEILING
    assert adjust(world, Per.RUN, "root", -400_000) == [("run-spend_usd-1000000", 10**6, 600_000)]
    assert spend(world, "c", 400_001, bearer("root")) is Reason.OVER_CEILING
    assert spend(world, "d", 400_000, bearer("root")) is Reason.ALLOWED
    world.reopen()
    assert spend(world, "e", 1, bearer("root")) is Reason.OVER_CEILING


def test_an_adjustment_is_a_row_with_who_and_why(world: World) -> None:
    world.policy = a_policy(a_ceiling(1_000_000, Per.TENANT, Count.SPEND, None))
    adjust(world, Per.TENANT, "acme", 1_500)
    adjust(world, Per.TENANT, "acme", -500_000)
    assert world.rows("SELECT type, actor, tenant, run, detail FROM event") == [
        ("budget.adjusted", "ann", "acme", None, "tenant acme +0.0015 USD: invoice"),
        ("budget.adjusted", "ann", "acme", None, "tenant acme -0.50 USD: invoice"),
    ]


def test_it_never_falls_below_nothing(world: World) -> None:
    world.policy = a_policy(a_ceiling(1_000_000, Per.RUN, Count.SPEND, None))
    start(world, "root")
    spend(world, "a", 300_000, bearer("root"))
    assert adjust(world, Per.RUN, "root", -(10**9)) == [("run-spend_usd-1000000", 300_000, 0)]
    assert spend(world, "b", 1_000_001, bearer("root")) is Reason.OVER_CEILING


@pytest.mark.parametrize("waited_seconds", [0, 1, 30, 59])
def test_a_sliding_window_is_corrected_wherever_it_was_charged(
    world: World, waited_seconds: int
) -> None:
    world.policy = a_policy(a_ceiling(1_000_000, Per.TENANT, Count.SPEND, 60))
    start(world, "root")
    for name in "abcd":
        spend(world, name, 100_000, bearer("root"))
        world.wait(0.5)
    world.wait(waited_seconds - 2 if waited_seconds > 2 else 0)
    assert adjust(world, Per.TENANT, "acme", -250_000)[0][1:] == (400_000, 150_000)
    assert adjust(world, Per.TENANT, "acme", 50_000)[0][1:] == (150_000, 200_000)


def test_ceilings_that_share_a_window_are_corrected_once(world: World) -> None:
    world.policy = a_policy(
        a_ceiling(1_000_000, Per.RUN, Count.SPEND, None, window="w"),
        a_ceiling(2_000_000, Per.RUN, Count.SPEND, None, Then.HALT, window="w"),
    )
    assert [each[1:] for each in adjust(world, Per.RUN, "root", 300)] == [(0, 300), (0, 300)]


def test_a_runs_own_budget_is_corrected_with_it(world: World) -> None:
    world.policy = a_policy(a_ceiling(9_000_000, Per.RUN, Count.SPEND, None))
    world.store.mint(
        Grant("root", "acme", budget_microusd=500_000),
        hashed("root"),
        actor="ann",
        at_us=world.now_us,
    )
    spend(world, "a", 500_000, bearer("root"))
    assert spend(world, "b", 1, bearer("root")) is Reason.OVER_CEILING
    done = adjust(world, Per.RUN, "root", -100_000)
    assert done == [("run-spend_usd-9000000", 500_000, 400_000), ("budget:root", 500_000, 400_000)]
    assert spend(world, "c", 100_000, bearer("root")) is Reason.ALLOWED


def test_only_the_windows_of_that_subject_move(world: World) -> None:
    world.policy = a_policy(
        a_ceiling(10**6, Per.RUN, Count.SPEND, None),
        a_ceiling(10**6, Per.TENANT, Count.SPEND, None),
        a_ceiling(10**6, Per.RUN, Count.TOKENS, None),
        a_ceiling(10**6, Per.TOOL, Count.SPEND, None, tools=("read",)),
    )
    start(world, "root")
    spend(world, "a", 1_000, bearer("root"))
    assert adjust(world, Per.RUN, "root", -1_000) == [("run-spend_usd-1000000", 1_000, 0)]
    (tenant,) = world.store.spent(Per.TENANT, "acme", world.policy, world.now_us)
    (tool,) = world.store.spent(Per.TOOL, "read", world.policy, world.now_us)
    assert (tenant.used_microusd, tenant.left_microusd, tool.used_microusd) == (1000, 999_000, 1000)
    with pytest.raises(LedgerError, match="nothing to adjust"):
        adjust(world, Per.TOOL, "pay", 1)


@pytest.mark.parametrize("who", [{"reason": " "}, {"actor": ""}, {"reason": "\udce9"}])
def test_a_correction_takes_a_person_and_a_reason(world: World, who: dict[str, str]) -> None:
    world.policy = a_policy(a_ceiling(10**6, Per.RUN, Count.SPEND, None))
    named = {"reason": "invoice", "actor": "ann", **who}
    with pytest.raises(LedgerError):
        world.store.adjust(Per.RUN, "r1", 1, world.policy, at_us=world.now_us, **named)
    assert world.rows("SELECT * FROM event") == []
