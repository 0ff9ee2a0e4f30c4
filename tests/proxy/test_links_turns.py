"""Calls of an engine process that wait for their turn in the decider's: over a real socket."""

import asyncio
from dataclasses import replace

import pytest

from policies.call import Identity
from policies.verdict import Action, Reason
from proxy import remote as remote_module
from proxy.judging import NotJudged
from tests.proxy.test_decider import an_ask
from tests.proxy.test_links import Place, done, until
from tests.proxy.test_waiting_room import TWO

LONG_SECONDS = 20.0


@pytest.fixture
def place(tmp_path, a_policy):
    return Place(tmp_path, a_policy(TWO))


class Asker:
    """Asks as one engine's gate would."""

    def __init__(self, remote):
        self.remote, self.asked = remote, 0

    def ask(self, tenant="a"):
        self.asked += 1
        ask = an_ask(self.remote.policy, self.asked, "GET", Identity("r1", tenant))
        return replace(ask, may_wait=True)

    async def full(self):
        asks = [self.ask() for _ in range(2)]
        for ask in asks:
            decision = await self.remote.admit(ask, self.remote.policy)
            assert decision.verdict.action is Action.ALLOW
        return asks

    async def waits(self, decider, count=1):
        """That many turns, once they wait in the decider's process."""
        asks = [self.ask() for _ in range(count)]
        waiting = len(decider._room._waiting) + count
        policy = self.remote.policy
        turns = [self.remote.admit_in_turn(ask, policy, LONG_SECONDS) for ask in asks]
        tasks = [asyncio.create_task(turn) for turn in turns]
        await until(lambda: len(decider._room._waiting) == waiting)
        return asks, tasks


async def test_a_call_waits_in_the_deciders_process_for_its_turn(place):
    async with place.deciding() as (decider, _), place.engine() as (remote, _):
        await remote.ready.wait()
        asker = Asker(remote)
        first, second = await asker.full()
        asks, (turn, other) = await asker.waits(decider, 2)
        assert await remote.settle(done(first), durable=True)
        assert (await turn).verdict.action is Action.ALLOW
        assert not other.done()
        assert await remote.settle(done(second), durable=True)
        assert (await other).verdict.action is Action.ALLOW
        assert {asks[0].call_id, asks[1].call_id} <= set(place.calls())
        assert remote._asked == {}


async def test_a_decider_lets_a_call_wait_longer_than_it_may_take_to_answer(place, monkeypatch):
    monkeypatch.setattr(remote_module, "ASK_SECONDS", 0.0)
    async with place.deciding() as (decider, _), place.engine() as (remote, _):
        await remote.ready.wait()
        asker = Asker(remote)
        await asker.full()
        _, (turn,) = await asker.waits(decider)
        peer, beats = remote._peer, []
        monkeypatch.setattr(peer, "tell", lambda *told: beats.append(told))
        await until(lambda: len(beats) > 1)  # it looks at its decider before it says more
        assert remote._peer is peer
        assert not turn.done()
        turn.cancel()


async def test_whoever_leaves_waits_no_more_in_the_deciders_process_either(place):
    async with place.deciding() as (decider, _), place.engine() as (remote, _):
        await remote.ready.wait()
        asker = Asker(remote)
        first, _ = await asker.full()
        asks, (leaving, turn) = await asker.waits(decider, 2)
        leaving.cancel()
        await until(lambda: len(decider._room._waiting) == 1)
        assert await remote.settle(done(first), durable=True)
        assert (await turn).verdict.action is Action.ALLOW
        assert asks[0].call_id not in place.calls()


async def test_whose_connection_breaks_waits_no_more(place):
    async with place.deciding() as (decider, _), place.engine() as (remote, _):
        await remote.ready.wait()
        asker = Asker(remote)
        first, _ = await asker.full()
        asks, (turn,) = await asker.waits(decider)
        remote._peer.close()
        with pytest.raises(NotJudged) as told:
            await turn
        assert told.value.reason is Reason.DECIDER_UNREACHABLE
        await until(lambda: not decider._room)
        await remote.ready.wait()
        assert await remote.settle(done(first), durable=True)
        assert asks[0].call_id not in place.calls()


async def test_the_calls_of_an_engine_that_dies_wait_no_more(place):
    async with place.deciding() as (decider, _):
        async with place.engine() as (remote, child):
            await remote.ready.wait()
            asker = Asker(remote)
            await asker.full()
            _, (turn,) = await asker.waits(decider)
            child.kill()
            remote._peer.close()
            with pytest.raises(NotJudged):
                await turn
        await until(lambda: not decider._room)
        await until(lambda: set(place.calls().values()) == {"unknown"})


async def test_a_call_that_waits_is_identified_anew_when_the_policy_moved(place, a_policy):
    async with place.deciding() as (decider, fleet), place.engine() as (remote, _):
        await remote.ready.wait()
        asker = Asker(remote)
        await asker.full()
        _, (turn,) = await asker.waits(decider)
        text = TWO.replace("at_most: 2", "at_most: 3").replace("look:", "seen:")
        decider.adopt(a_policy(text))
        await fleet.sweep()
        decision = await turn
        assert (decision.verdict.action, decision.verdict.rule) == (Action.ALLOW, "tool:seen")
