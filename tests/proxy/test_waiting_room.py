"""Calls that wait for their turn under a ceiling: the decider on a real store."""

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from ledger.store import Store
from policies.call import Identity, Worth
from policies.ceilings import Per
from policies.verdict import Action, Level, Pull, Reason, Scope
from proxy.clock import SystemClock, new_id
from proxy.decider import Decider
from proxy.turns import Turns
from tests.proxy.test_decider import KEY, POLICY, an_ask, calls, done

TWO = POLICY + "ceilings: [{per: global, count: in_flight, at_most: 2, wait_seconds: 20}]\n"
LONG_SECONDS = 20.0
A, B = Identity("ra", "a"), Identity("rb", "b")
HALT = Pull(Level.HALT, Scope.RUN, "rb", "", "ann", 0)


class World:
    def __init__(self, decider, policy, data):
        self.decider, self.policy, self.data = decider, policy, data
        self.asked = 0

    def ask(self, who=A, method="GET", **changed):
        self.asked += 1
        return replace(an_ask(self.policy, self.asked, method, who), may_wait=True, **changed)

    async def admitted(self, ask):
        decision = await self.decider.admit(ask, self.policy)
        assert decision.verdict.action is Action.ALLOW
        return ask

    def waits(self, ask, wait_seconds=LONG_SECONDS):
        return self.decider.admit_in_turn(ask, self.policy, wait_seconds)

    async def settled(self, ask):
        assert await self.decider.settle(done(ask), durable=True)

    async def looked(self):
        """Whatever was asked until now has been done."""
        await self.decider.act(lambda store: None, durable=False)
        await asyncio.sleep(0)

    async def full(self):
        return [await self.admitted(self.ask()) for _ in range(2)]


@asynccontextmanager
async def begun(tmp_path: Path, policy):
    store = Store.open(tmp_path, KEY, SystemClock().now_us, busy_seconds=0.05)
    decider = Decider.start(store, policy)
    async with asyncio.timeout(15):
        yield World(decider, policy, tmp_path)
    await decider.stop()
    store.close()


@pytest.fixture
async def world(tmp_path: Path, a_policy):
    async with begun(tmp_path, a_policy(TWO)) as made:
        yield made


async def test_what_must_wait_leaves_no_trace_until_its_turn_comes(world):
    first, _ = await world.full()
    ask = world.ask()
    told = (await world.decider.admit(ask, world.policy)).verdict
    assert (told.reason, told.wait_seconds) == (Reason.OVER_CEILING, 20)
    turn = world.waits(ask)
    await world.looked()
    assert not turn.done()
    assert len(calls(world.data)) == 2
    await world.settled(first)
    assert (await turn).verdict.action is Action.ALLOW
    assert len(calls(world.data)) == 3


async def test_tenants_take_turns_and_nobody_passes_the_ceiling(world):
    running = await world.full()
    asks = [world.ask(A, method) for method in ("GET", "POST") * 10] + [world.ask(B)]
    turns = [world.waits(ask) for ask in asks]
    order = []
    while running:
        await world.settled(running.pop(0))
        await world.looked()
        new = [at for at, turn in enumerate(turns) if turn.done() and at not in order]
        assert len(new) <= 1
        order += new
        running += [asks[at] for at in new]
        assert all(turns[at].result().verdict.action is Action.ALLOW for at in new)
    assert order == [0, 20, *range(1, 20)]


async def test_a_newcomer_overtakes_nobody_but_is_judged_as_it_stands_if_it_may_not_wait(
    world, a_policy
):
    first, second = await world.full()
    turn = world.waits(world.ask())
    newcomer, hurried = world.ask(B), replace(world.ask(B), may_wait=False)
    settled = world.decider.settle(done(first), durable=True)
    later = world.decider.admit(newcomer, world.policy)
    refused = world.decider.admit(hurried, world.policy)
    assert await settled
    assert (await turn).verdict.action is Action.ALLOW
    assert (await later).verdict.wait_seconds == 20
    assert (await refused).verdict.reason is Reason.OVER_CEILING
    assert [row["id"] for row in calls(world.data)].count(newcomer.call_id) == 0
    assert [row["id"] for row in calls(world.data)].count(hurried.call_id) == 1
    await world.settled(second)
    assert (await world.decider.admit(newcomer, world.policy)).verdict.action is Action.ALLOW


async def test_one_that_needs_more_than_there_is_holds_up_its_own_tenant_alone(tmp_path, a_policy):
    policy = a_policy(
        "tools: {pay: {match: {host: pay.test}, effect: write}}\n"
        "ceilings: [{per: global, count: bytes_up, at_most: 100, within: 1m, wait_seconds: 20}]\n"
    )
    async with begun(tmp_path, policy) as world:

        def worth(size, who=A):
            ask = world.ask(who, "POST")
            return replace(ask, call=replace(ask.call, worth=Worth(bytes_up=size)))

        await world.admitted(worth(90))
        large = world.waits(worth(50))
        await world.looked()
        assert (await world.decider.admit(worth(4, B), policy)).verdict.action is Action.ALLOW
        assert (await world.waits(worth(1, B))).verdict.action is Action.ALLOW
        small = worth(5)
        told = (await world.decider.admit(small, policy)).verdict
        assert (told.reason, told.wait_seconds) == (Reason.OVER_CEILING, 20)
        behind = world.waits(small)
        await world.looked()
        assert not (behind.done())
        assert not (large.done())
        large.cancel()
        assert (await behind).verdict.action is Action.ALLOW
        never = (await world.decider.admit(worth(101), policy)).verdict
        assert (never.reason, never.wait_seconds) == (Reason.OVER_CEILING, 0)


async def test_room_that_is_too_small_for_one_goes_to_another_that_needs_less(tmp_path, a_policy):
    policy = a_policy(
        POLICY + "ceilings: [{per: global, count: spend_usd, at_most: 1.00, wait_seconds: 20}]\n"
    )
    async with begun(tmp_path, policy) as world:
        first = await world.admitted(spending(world, "r1", "a", 900_000))
        wide = world.waits(spending(world, "r2", "b", 800_000))
        small = world.waits(spending(world, "r3", "c", 400_000))
        await world.looked()
        places = world.decider._room._turns._places.values()
        assert [place.amount for place in places] == [800_000, 400_000]
        half = replace(done(first), used_microusd=500_000)
        assert await world.decider.settle(half, durable=True)
        assert (await small).verdict.action is Action.ALLOW
        assert not wide.done()


async def test_a_window_that_moves_on_lets_the_next_one_pass(tmp_path, a_policy):
    ceiling = "ceilings: [{per: tenant, count: calls, at_most: 1, within: 20s, wait_seconds: 30}]\n"
    policy = a_policy(POLICY + ceiling)
    async with begun(tmp_path, policy) as world:
        loop, passed_seconds = asyncio.get_running_loop(), [0.0]
        world.decider._room._clock = lambda: loop.time() + passed_seconds[0]
        await world.admitted(world.ask())
        turn = world.waits(world.ask(), 30)
        for passed in (0.0, 10.0, 19.5):
            passed_seconds[0] = passed
            await world.looked()
            assert not turn.done()
        passed_seconds[0] = 22.0
        assert (await turn).verdict.action is Action.ALLOW
        first_at, second_at = (datetime.fromisoformat(row["at"]) for row in calls(tmp_path)[::-1])
        assert 20 < (second_at - first_at).total_seconds() < 25


async def test_a_wait_that_ends_in_vain_is_a_recorded_refusal(world):
    await world.full()
    ask = world.ask(B)
    verdict = (await world.waits(ask, 0.05)).verdict
    assert (verdict.reason, verdict.retry_after_seconds) == (Reason.OVER_CEILING, 1)
    assert verdict.limit is not None
    (row,) = [row for row in calls(world.data) if row["id"] == ask.call_id]
    assert (row["state"], row["status"]) == ("refused", 429)


async def test_who_leaves_frees_its_place_without_a_trace(world):
    first, _ = await world.full()
    left, stays = world.ask(), world.ask()
    leaving, turn = world.waits(left), world.waits(stays)
    await world.looked()
    leaving.cancel()
    await world.settled(first)
    assert (await turn).verdict.action is Action.ALLOW
    assert left.call_id not in {row["id"] for row in calls(world.data)}


async def test_who_leaves_when_it_was_just_let_through_is_settled_as_not_sent(world, monkeypatch):
    first, _ = await world.full()
    ask = world.ask()
    turn = world.waits(ask)
    await world.looked()
    deliver = Decider.deliver

    def late(self, told, moved):
        turn.cancel()
        deliver(self, told, moved)

    with monkeypatch.context() as patch:
        patch.setattr(Decider, "deliver", late)
        await world.settled(first)
    await world.looked()
    await world.looked()
    (row,) = [row for row in calls(world.data) if row["id"] == ask.call_id]
    assert (row["state"], row["reason"]) == ("not_sent", "not_sent")


async def test_a_halt_refuses_whom_it_covers_at_once_wherever_they_stand(world):
    await world.full()
    others = [world.waits(world.ask(A)) for _ in range(3)]
    halted = [world.waits(world.ask(B, method)) for method in ("GET", "POST")]
    await world.looked()
    assert await world.decider.act(lambda store: store.pull(HALT))
    reasons = [(await turn).verdict.reason for turn in halted]
    assert reasons == [Reason.HALTED] * 2
    assert not any(turn.done() for turn in others)


async def test_a_policy_that_leaves_more_room_lets_them_pass(world, a_policy):
    await world.full()
    turns = [world.waits(world.ask(who)) for who in (A, A, B)]
    await world.looked()
    world.decider.adopt(a_policy(TWO.replace("at_most: 2", "at_most: 4")))
    assert (await turns[0]).verdict.action is Action.ALLOW
    assert (await turns[2]).verdict.action is Action.ALLOW
    await world.looked()
    assert not turns[1].done()


async def test_beyond_so_many_who_wait_one_is_refused_at_once(world, monkeypatch):
    few = Turns(waiters_max=2, tenant_waiters_max=1)
    monkeypatch.setattr(world.decider._room, "_turns", few)
    await world.full()
    kept = [world.waits(world.ask(A)), world.waits(world.ask(B))]
    for who in (A, B, Identity("rc", "c")):
        verdict = (await world.waits(world.ask(who))).verdict
        assert (verdict.reason, verdict.limit is None) == (Reason.OVER_CEILING, False)
    assert not any(turn.done() for turn in kept)


async def test_a_twin_of_a_write_whose_turn_came_is_told_that_it_is_in_flight(world):
    first, second = await world.full()
    ask = world.ask(A, "POST")
    twin = replace(ask, call_id=new_id(ask.at_us + 1))
    turns = [world.waits(ask), world.waits(twin)]
    await world.settled(first)
    assert (await turns[0]).verdict.action is Action.ALLOW
    await world.settled(second)
    assert (await turns[1]).verdict.reason is Reason.IN_FLIGHT
    assert twin.call_id not in {row["id"] for row in calls(world.data)}


async def test_more_than_a_batch_tries_pass_all_the_same(world, a_policy, monkeypatch):
    monkeypatch.setattr("proxy.sitting.TRIES_MAX", 3)
    await world.full()
    turns = [world.waits(world.ask(A)) for _ in range(20)]
    await world.looked()
    world.decider.adopt(a_policy(TWO.replace("at_most: 2", "at_most: 40")))
    await world.looked()
    assert {(await turn).verdict.action for turn in turns} == {Action.ALLOW}


async def test_for_a_life_only_what_a_call_gives_back_is_waited_for(tmp_path, a_policy):
    policy = a_policy(
        POLICY + "ceilings:\n"
        "  - {per: tenant, count: spend_usd, at_most: 1.00, wait_seconds: 20}\n"
        "  - {per: run, count: calls, at_most: 2, wait_seconds: 20}\n"
    )
    async with begun(tmp_path, policy) as world:
        first = await world.admitted(spending(world, "r1"))
        turn = world.waits(spending(world, "r2"))
        await world.looked()
        assert not turn.done()
        cheaper = replace(done(first), used_microusd=300_000)
        assert await world.decider.settle(cheaper, durable=True)
        assert (await turn).verdict.action is Action.ALLOW
        last = Identity("r3", "a")
        await world.admitted(world.ask(last))
        await world.admitted(world.ask(last))
        verdict = (await world.waits(world.ask(last))).verdict
        assert (verdict.reason, verdict.wait_seconds) == (Reason.OVER_CEILING, 0)


async def test_a_budget_that_is_adjusted_lets_the_next_one_pass(tmp_path, a_policy):
    policy = a_policy(
        POLICY + "ceilings: [{per: tenant, count: spend_usd, at_most: 1.00, wait_seconds: 20}]\n"
    )
    async with begun(tmp_path, policy) as world:
        first = await world.admitted(spending(world, "r1"))
        turn = world.waits(spending(world, "r2"))
        await world.looked()
        assert not turn.done()
        said = {"reason": "it was a test", "actor": "ann", "at_us": first.at_us}
        await world.decider.act(
            lambda store: store.adjust(Per.TENANT, "a", -300_000, policy, **said)
        )
        assert (await turn).verdict.action is Action.ALLOW


def spending(world, run, tenant="a", microusd=600_000):
    ask = world.ask(Identity(run, tenant))
    return replace(ask, call=replace(ask.call, worth=Worth(spend_microusd=microusd)))
