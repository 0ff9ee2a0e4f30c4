"""What calls reserve and occupy: estimated before, settled after, kept where nobody knows."""

import pytest

from ledger.states import CallState, ClaimAfter
from policies.call import Identity, Worth
from policies.ceilings import Ceiling, Count, Per, Then
from policies.verdict import Action, Level, Reason, Scope
from tests.ledger.money import DOLLAR, TEN_CENTS, budget, ended, model, spent
from tests.ledger.world import R1, World, a_ceiling, a_policy, a_worker

CHILD = Identity("c1", "acme", ("r1",))


def test_estimates_are_reserved_so_that_parallel_calls_cannot_overspend(world: World) -> None:
    world.policy = a_policy(budget(DOLLAR))
    asks = [world.ask(f"m{n}", effect="model", tool="mail", worth=TEN_CENTS) for n in range(64)]
    verdicts = [decision.verdict for decision in world.admit(*asks)]
    assert [verdict.action for verdict in verdicts] == [Action.ALLOW] * 10 + [Action.REFUSE] * 54
    assert verdicts[-1].reason is Reason.OVER_CEILING
    assert verdicts[-1].retry_after_seconds is None  # a life: no wait brings money
    assert spent(world) == DOLLAR


def test_what_was_not_used_is_free_again(world: World) -> None:
    world.policy = a_policy(budget(DOLLAR))
    model(world, "a", Worth(spend_microusd=900_000))
    assert model(world, "b", Worth(spend_microusd=200_000)) is Action.REFUSE
    ended(world, "a", used_microusd=300_000, used_tokens=5)
    assert spent(world) == 300_000
    assert model(world, "c", Worth(spend_microusd=700_000)) is Action.ALLOW
    assert model(world, "d", Worth(spend_microusd=1)) is Action.REFUSE


def test_what_was_used_beyond_the_estimate_is_charged(world: World) -> None:
    world.policy = a_policy(budget(DOLLAR))
    model(world, "a", Worth(spend_microusd=100_000))
    ended(world, "a", used_microusd=1_200_000)
    assert spent(world) == 1_200_000
    assert model(world, "b", Worth(spend_microusd=1)) is Action.REFUSE


@pytest.mark.parametrize(
    "state, used, kept",
    [
        (CallState.NOT_SENT, {}, 0),
        (CallState.UNKNOWN, {}, 100_000),
        (CallState.UNKNOWN, {"used_microusd": 40_000}, 40_000),
        (CallState.DONE, {}, 100_000),
        (CallState.DONE, {"used_microusd": 0}, 0),
    ],
)
def test_an_unknown_outcome_keeps_its_reservation(
    world: World, state: CallState, used: dict[str, int], kept: int
) -> None:
    world.policy = a_policy(budget(DOLLAR))
    model(world, "a")
    ended(world, "a", state, **used)
    assert spent(world) == kept


def test_a_crash_keeps_what_was_reserved_and_frees_what_was_occupied(world: World) -> None:
    world.policy = a_policy(
        budget(DOLLAR), a_ceiling(1, count=Count.IN_FLIGHT, within_seconds=None)
    )
    assert model(world, "a") is Action.ALLOW
    assert model(world, "b") is Action.REFUSE  # one at a time
    world.reopen()
    assert model(world, "c", Worth(spend_microusd=950_000)) is Action.REFUSE
    assert model(world, "d") is Action.ALLOW
    assert spent(world) == 200_000


def test_a_worker_that_lives_keeps_its_places_over_a_restart(world: World) -> None:
    world.policy = a_policy(a_ceiling(2, count=Count.IN_FLIGHT, within_seconds=None))
    world.store.register(a_worker())
    assert model(world, "a", worker="w1") is Action.ALLOW
    world.reopen(alive=lambda worker: True)
    assert model(world, "b", worker="w1") is Action.ALLOW
    assert model(world, "c", worker="w1") is Action.REFUSE
    ended(world, "a")
    assert model(world, "d", worker="w1") is Action.ALLOW
    world.check_memory()


def test_a_dead_worker_frees_its_places_and_no_claim(world: World) -> None:
    world.policy = a_policy(a_ceiling(1, count=Count.IN_FLIGHT, within_seconds=None))
    world.store.register(a_worker())
    assert world.decided(world.ask("a", worker="w1")).verdict.action is Action.ALLOW
    other = world.ask("b", body="y")
    assert world.decided(other).verdict.reason is Reason.OVER_CEILING
    world.store.forsake("w1", world.now_us, "killed")
    assert world.decided(world.ask("c", body="y")).verdict.action is Action.ALLOW
    world.settle("c")
    assert world.decided(world.ask("d", body="x")).verdict.reason is Reason.OUTCOME_UNKNOWN
    world.check_memory()


def test_places_are_exact_within_one_transaction(world: World) -> None:
    world.policy = a_policy(a_ceiling(3, count=Count.IN_FLIGHT, within_seconds=None))
    reads = [world.read(f"r{n}") for n in range(5)]
    with world.store.transaction(durable=False):
        first = [world.store.admit(ask, world.policy, world.judge) for ask in reads]
        world.store.settle(world.outcome("r0", after=ClaimAfter.KEPT))
        again = world.store.admit(world.read("r9"), world.policy, world.judge)
        full = world.store.admit(world.read("r8"), world.policy, world.judge)
    allowed = [decision.verdict.action is Action.ALLOW for decision in first]
    assert allowed == [True, True, True, False, False]
    assert again.verdict.action is Action.ALLOW
    assert full.verdict.reason is Reason.OVER_CEILING
    assert full.verdict.retry_after_seconds == 1
    world.check_memory()


def test_a_rolled_back_transaction_leaves_no_place_taken(world: World) -> None:
    world.policy = a_policy(
        a_ceiling(1, count=Count.IN_FLIGHT, within_seconds=None), budget(DOLLAR)
    )
    with world.failing():
        ask = world.ask("a", effect="model", tool="mail", worth=TEN_CENTS)
        world.store.admit(ask, world.policy, world.judge)
    assert world.store._memory.in_flight == {}
    assert model(world, "b") is Action.ALLOW
    assert spent(world) == 100_000


# The tree


def test_children_draw_on_the_allowance_above_them(world: World) -> None:
    world.policy = a_policy(budget(DOLLAR))
    for n in range(6):
        model(world, f"c{n}", claimant=CHILD)
    for n in range(3):
        model(world, f"r{n}")
    sibling = Identity("c2", "acme", ("r1",))
    assert model(world, "s0", claimant=sibling) is Action.ALLOW
    assert model(world, "s1", claimant=sibling) is Action.REFUSE
    assert (spent(world), spent(world, "c1"), spent(world, "c2")) == (DOLLAR, 600_000, 100_000)


def test_a_tree_is_its_root(world: World) -> None:
    world.policy = a_policy(budget(DOLLAR, Per.TREE))
    grandchild = Identity("g1", "acme", ("c1", "r1"))
    for n in range(10):
        assert model(world, f"g{n}", claimant=grandchild) is Action.ALLOW
    assert model(world, "r0") is Action.REFUSE
    assert model(world, "other", claimant=Identity("r2", "acme")) is Action.ALLOW


def test_the_cord_is_pulled_at_the_smallest_run_that_used_it_up(world: World) -> None:
    world.policy = a_policy(a_ceiling(2, then=Then.HALT))
    for n in range(2):
        model(world, f"c{n}", claimant=CHILD)
    verdict = world.decided(world.read("c9", claimant=CHILD)).verdict
    assert verdict.pull is not None
    assert (verdict.pull.scope, verdict.pull.subject) == (Scope.RUN, "c1")
    verdict = world.decided(world.read("r9")).verdict
    assert verdict.pull is not None
    assert verdict.pull.subject == "r1"


def test_own_budgets_bind_with_those_above(world: World) -> None:
    child = Identity("c1", "acme", ("r1",), budgets=(("c1", 300_000), ("r1", 500_000)))
    parent = Identity("r1", "acme", budgets=(("r1", 500_000),))
    for n in range(3):
        assert model(world, f"c{n}", claimant=child) is Action.ALLOW
    refused = world.decided(
        world.ask("c3", effect="model", tool="mail", worth=TEN_CENTS, claimant=child)
    )
    assert refused.verdict.rule == "ceiling:budget:c1"
    for n in range(2):
        assert model(world, f"r{n}", claimant=parent) is Action.ALLOW
    assert model(world, "r2", claimant=parent) is Action.REFUSE


# What else is counted


def test_each_kind_counts_its_own(world: World) -> None:
    counted = {
        Count.CALLS: 2, Count.WRITES: 1, Count.STEPS: 1, Count.TOKENS: 100, Count.BYTES_UP: 7,
    }  # fmt: skip
    world.policy = a_policy(*(a_ceiling(10**6, count=count) for count in counted))
    model(world, "a", Worth(tokens=100, spend_microusd=5))
    world.decided(world.ask("b", worth=Worth(bytes_up=7)))
    for ceiling in world.policy.ceilings:
        window = world.store._memory.windows.get((ceiling.id, "r1"))
        assert window is not None
        assert sum(window.counts) == counted[ceiling.count]


def test_destinations_count_once_each(world: World) -> None:
    world.policy = a_policy(a_ceiling(2, count=Count.DESTINATIONS, within_seconds=None))
    hosts = ["a.example", "b.example", "a.example", "c.example", "b.example"]
    asks = [world.read(f"r{n}", host=host) for n, host in enumerate(hosts)]
    verdicts = [decision.verdict.action for decision in world.admit(*asks)]
    assert verdicts == [Action.ALLOW] * 3 + [Action.REFUSE, Action.ALLOW]
    world.reopen()
    assert world.decided(world.read("r8", host="c.example")).verdict.action is Action.REFUSE
    assert world.decided(world.read("r9", host="a.example")).verdict.action is Action.ALLOW
    mine = Identity("r2", "acme")
    other = world.read("r10", host="c.example", claimant=mine)
    assert world.decided(other).verdict.action is Action.ALLOW


def test_new_destinations_in_a_window(world: World) -> None:
    world.policy = a_policy(a_ceiling(1, count=Count.DESTINATIONS))
    assert world.decided(world.read("a", host="a.example")).verdict.action is Action.ALLOW
    assert world.decided(world.read("b", host="b.example")).verdict.action is Action.REFUSE
    world.wait(62)
    assert world.decided(world.read("c", host="b.example")).verdict.action is Action.ALLOW
    assert world.decided(world.read("d", host="a.example")).verdict.action is Action.ALLOW


@pytest.mark.parametrize(
    "per, same, other",
    [
        (Per.AGENT, Identity("r2", "bolt", agent="biller"), Identity("r3", "acme", agent="x")),
        (Per.RELEASE, Identity("r2", "bolt", release=R1.release), Identity("r3", "acme")),
    ],
)
def test_agents_and_releases_share_over_runs(
    world: World, per: Per, same: Identity, other: Identity
) -> None:
    world.policy = a_policy(a_ceiling(1, per))
    assert world.decided(world.read("a")).verdict.action is Action.ALLOW
    assert world.decided(world.read("b", claimant=same)).verdict.action is Action.REFUSE
    assert world.decided(world.read("c", claimant=other)).verdict.action is Action.ALLOW


def test_a_ceiling_that_only_tells_lets_pass_and_tells_once(world: World) -> None:
    world.policy = a_policy(a_ceiling(2, then=Then.ALERT))
    for n in range(5):
        assert world.decided(world.read(f"r{n}")).verdict.action is Action.ALLOW
    rows = world.rows("SELECT run, tenant, detail FROM event WHERE type = 'ceiling.crossed'")
    assert rows == [("r1", "acme", "at most 2 calls per run within 60 s: run r1")]


def test_a_model_without_a_price_is_told_once(world: World) -> None:
    unknown = Worth(spend_microusd=5, model="new-model", priced=False)
    model(world, "a", unknown)
    model(world, "b", unknown)
    assert world.rows("SELECT detail FROM event WHERE type = 'model.unpriced'") == [("new-model",)]


def test_the_harshest_ceiling_is_heard(world: World) -> None:
    world.policy = a_policy(
        a_ceiling(1), a_ceiling(1, Per.TENANT, then=Then.FREEZE), a_ceiling(1, Per.GLOBAL)
    )
    world.decided(world.read("a"))
    verdict = world.decided(world.read("b")).verdict
    assert verdict.pull is not None
    assert (verdict.pull.level, verdict.pull.subject) == (Level.FREEZE, "acme")


def test_another_limit_for_the_same_goes_on_counting(world: World) -> None:
    loose, tight = (
        Ceiling(f"c{n}", Per.RUN, Count.SPEND, n * DOLLAR, window="spend") for n in (5, 1)
    )
    world.policy = a_policy(loose)
    model(world, "a", Worth(spend_microusd=2 * DOLLAR))
    world.policy = a_policy(tight, digest="d2")
    assert model(world, "b", Worth(spend_microusd=1)) is Action.REFUSE


def test_ceilings_of_the_same_count_share_one_window(world: World) -> None:
    warn = Ceiling("warn", Per.RUN, Count.CALLS, 1, then=Then.ALERT, window="calls")
    stop = Ceiling("stop", Per.RUN, Count.CALLS, 3, window="calls")
    world.policy = a_policy(warn, stop)
    actions = [world.decided(world.read(f"r{n}")).verdict.action for n in range(4)]
    assert actions == [Action.ALLOW] * 3 + [Action.REFUSE]
    assert len(world.rows("SELECT 1 FROM event WHERE type = 'ceiling.crossed'")) == 1


def test_who_may_wait_for_room_leaves_no_row(world: World) -> None:
    world.policy = a_policy(a_ceiling(1, wait_seconds=5))
    world.decided(world.read("a"))
    verdict = world.decided(world.read("b", may_wait=True)).verdict
    assert (verdict.reason, verdict.wait_seconds) == (Reason.OVER_CEILING, 5)
    assert world.calls("id:b") == []
    world.decided(world.read("b"))
    assert world.shown("b")["reason"] == "over_ceiling"


def test_a_harder_ceiling_beside_it_ends_the_waiting(world: World) -> None:
    world.policy = a_policy(a_ceiling(1, wait_seconds=5), a_ceiling(1, Per.TENANT))
    world.decided(world.read("a"))
    assert world.decided(world.read("b", may_wait=True)).verdict.wait_seconds == 0


def test_a_run_without_agent_or_release_meets_no_ceiling_of_theirs(world: World) -> None:
    world.policy = a_policy(a_ceiling(0, Per.AGENT), a_ceiling(0, Per.RELEASE))
    nobody = world.read("a", claimant=Identity("r9", "acme"))
    assert world.decided(nobody).verdict.action is Action.ALLOW
    assert world.decided(world.read("b")).verdict.action is Action.REFUSE


def test_a_message_that_crosses_a_limit_tells_it(world: World) -> None:
    world.policy = a_policy(a_ceiling(1, then=Then.ALERT))
    ask = world.ask("ws")
    world.decided(ask)
    world.store.count(R1, ask.call, world.policy, world.judge, world.now_us)
    assert len(world.rows("SELECT 1 FROM event WHERE type = 'ceiling.crossed'")) == 1


def test_a_counter_that_is_full_stays_full_and_fails_nobody(world: World) -> None:
    world.policy = a_policy(
        a_ceiling(5, within_seconds=None, then=Then.ALERT),
        budget(5, Per.TENANT, then=Then.ALERT),
    )
    for n in range(5):
        model(world, f"m{n}", Worth(spend_microusd=2**62))
    calls, spend = world.policy.ceilings
    known = world.store._memory.windows
    window = known.get((calls.id, "r1"))
    assert window is not None
    known[calls.id, "r1"] = window._replace(counts=(2**32 - 1,))
    model(world, "b", Worth(spend_microusd=1))
    full = [known.get(name) for name in ((calls.id, "r1"), (spend.id, "acme"))]
    assert [one and one.counts for one in full] == [(2**32 - 1,), (2**64 - 1,)]


def test_a_model_is_news_again_when_its_telling_was_rolled_back(world: World) -> None:
    unknown = Worth(spend_microusd=5, model="new-model", priced=False)
    with world.failing():
        ask = world.ask("a", effect="model", tool="mail", worth=unknown)
        world.store.admit(ask, world.policy, world.judge)
    model(world, "b", unknown)
    assert world.rows("SELECT detail FROM event WHERE type = 'model.unpriced'") == [("new-model",)]


def test_a_secret_in_the_place_of_a_models_name_is_not_recorded(world: World) -> None:
    secret = "sk-proj-" + "Ab3dEf6hIj9kLm2n" * 2
    model(world, "a", Worth(spend_microusd=5, model=secret, priced=False))
    ((told,),) = world.rows("SELECT detail FROM event WHERE type = 'model.unpriced'")
    assert secret[8:24] not in told
