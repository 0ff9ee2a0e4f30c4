"""The decider on a real store: batches, the policy in force, failures, what is owed."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from ledger import queries
from ledger.connection import open_reader
from ledger.errors import Kind
from ledger.records import Ask, Outcome
from ledger.sqlite import sqlite3
from ledger.states import CallState, ClaimAfter
from ledger.store import LedgerError, LedgerUnavailable, Store
from policies.call import Identity, Request, Traits
from policies.match import identify
from policies.verdict import Action, Level, Pull, Reason, Scope
from proxy.clock import SystemClock, new_id
from proxy.decider import Decider
from proxy.judging import NotJudged

KEY = b"k" * 32
R1 = Identity("r1", "acme")
POLICY = """
tools:
  pay: {match: {host: pay.test, method: POST}}
  look: {match: {host: pay.test, method: GET}}
"""

SPIKE = f"{POLICY}detectors: {{write_spike: {{mode: enforce, limits: {{run_writes: 1}}}}}}\n"


def an_ask(policy, number=0, method="POST", who=R1):
    body = b'{"n": %d}' % number if method == "POST" else b""
    request = Request(method, "https", "pay.test", 443, "/", (), body)
    now_us = SystemClock().now_us()
    return Ask(new_id(now_us), now_us, who, request, identify(policy, request))


def done(ask):
    return Outcome(
        ask.call_id, ask.at_us + 1, CallState.DONE, ClaimAfter.DONE, 200, 1, None, 0, None
    )


@pytest.fixture
async def world(tmp_path: Path, a_policy):
    policy = a_policy(POLICY)
    store = Store.open(tmp_path, KEY, SystemClock().now_us, busy_seconds=0.05)
    decider = Decider.start(store, policy)
    yield decider, policy, tmp_path
    await decider.stop()
    store.close()


def calls(data):
    reader = open_reader(data)
    try:
        return list(queries.calls(reader, limit=1000))
    finally:
        reader.close()


async def test_many_callers_are_answered_each_with_its_own_verdict(world):
    decider, policy, data = world
    asks = [an_ask(policy, number % 40) for number in range(80)]
    decisions = await asyncio.gather(*(decider.admit(ask, policy) for ask in asks))
    actions = [decision.verdict.action for decision in decisions]
    assert actions.count(Action.ALLOW) == 40
    assert [d.verdict.reason for d in decisions].count(Reason.IN_FLIGHT) == 40
    assert len(calls(data)) == 80


@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_a_call_that_nobody_waits_for_any_more_is_settled_as_not_sent(world, method):
    decider, policy, data = world
    ask = an_ask(policy, method=method)
    decider.admit(ask, policy).cancel()
    await asyncio.sleep(0)
    await decider.act(lambda store: None)
    (row,) = calls(data)
    assert (row["state"], row["reason"]) == ("not_sent", "not_sent")
    again = await decider.admit(replace(ask, call_id=new_id(ask.at_us + 1)), policy)
    assert again.verdict.action is Action.ALLOW


async def test_a_message_of_a_tool_that_is_in_the_policy_no_more_fails_alone(world, a_policy):
    decider, policy, _ = world
    ask, other = an_ask(policy), "tools: {other: {match: {host: pay.test}}}\n"
    decider.adopt(a_policy(other))
    counted = decider.count(R1, ask.call, ask.at_us)
    judged = decider.admit(ask, policy)
    with pytest.raises(NotJudged):
        await counted
    assert (await judged).verdict.action is Action.ALLOW


async def test_a_policy_adopted_while_a_call_waits_is_the_one_that_judges_it(world, a_policy):
    decider, policy, _ = world
    ask = an_ask(policy)
    epoch = decider.epoch
    decider.adopt(a_policy(POLICY + "frozen: [pay]\n"))
    decision = await decider.admit(ask, policy)
    assert decision.verdict.reason is Reason.FROZEN
    assert decider.epoch == epoch + 1


async def test_a_call_identified_under_an_old_policy_is_identified_again(world, a_policy):
    decider, policy, _ = world
    decider.adopt(a_policy("tools: {other: {match: {host: pay.test}}}\nfrozen: [other]\n"))
    decision = await decider.admit(an_ask(policy), policy)
    assert decision.verdict.rule == "freeze:tool:other"


async def test_a_pulled_cord_moves_the_epoch_before_its_caller_goes_on(world):
    decider, policy, _ = world
    epoch = decider.epoch
    cord = Pull(Level.HALT, Scope.RUN, "r1", "", "ann", 0)
    assert await decider.act(lambda store: store.pull(cord))
    assert decider.epoch == epoch + 1
    assert decider.pulls
    assert (await decider.admit(an_ask(policy), policy)).verdict.reason is Reason.HALTED


async def test_while_the_store_fails_all_are_told_and_settlements_are_owed_until_it_is_back(world):
    decider, policy, data = world
    ask = an_ask(policy)
    await decider.admit(ask, policy)
    holder = sqlite3.connect(str(data / "ledger.db"), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    for method in ("GET", "POST"):
        with pytest.raises(LedgerUnavailable) as told:
            await decider.admit(an_ask(policy, 7, method), policy)
        assert told.value.kind is Kind.LOCKED
    with pytest.raises(LedgerUnavailable):
        await decider.settle(done(ask), durable=True)
    assert decider.failure is not None
    assert decider.owed == 1
    holder.execute("ROLLBACK")
    holder.close()
    again = await decider.admit(replace(ask, call_id=new_id(ask.at_us + 5)), policy)
    assert again.verdict.reason is not Reason.IN_FLIGHT
    assert decider.owed == 0
    assert decider.failure is None
    assert {call["id"]: call["state"] for call in calls(data)}[ask.call_id] == "done"


async def test_what_is_owed_is_settled_without_another_caller(world):
    decider, policy, data = world
    ask = an_ask(policy)
    await decider.admit(ask, policy)
    holder = sqlite3.connect(str(data / "ledger.db"), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LedgerUnavailable):
        await decider.settle(done(ask), durable=True)
    holder.execute("ROLLBACK")
    holder.close()
    async with asyncio.timeout(10):
        while decider.owed:
            await asyncio.sleep(0.05)
    assert calls(data)[0]["state"] == "done"


async def test_a_store_that_is_back_is_known_to_be_without_a_call(world):
    decider, policy, data = world
    holder = sqlite3.connect(str(data / "ledger.db"), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LedgerUnavailable):
        await decider.admit(an_ask(policy), policy)
    holder.execute("ROLLBACK")
    holder.close()
    async with asyncio.timeout(10):
        while decider.failure is not None:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("durable", [True, False])
async def test_the_next_call_meets_what_detectors_found_that_may_wait(tmp_path, a_policy, durable):
    """A cord that moves by it is heard of, too."""
    policy = a_policy(
        f"{POLICY}detectors: {{write_spike: {{mode: enforce, limits: {{run_writes: 1}}}}}}\n"
    )
    store = Store.open(tmp_path, KEY, SystemClock().now_us)
    decider, heard = Decider.start(store, policy), asyncio.Event()
    decider.moved = heard.set
    for number in range(2):
        traits = Traits(bytes([number]) * 8)
        ask = replace(an_ask(policy, number), traits=traits)
        assert (await decider.admit(ask, policy)).verdict.action is Action.ALLOW
        await decider.settle(done(ask), durable=durable)
    assert (await decider.admit(an_ask(policy, 2), policy)).verdict.reason is Reason.FROZEN
    assert heard.is_set()
    await decider.stop()
    store.close()


async def test_without_another_call_it_is_acted_on_just_the_same(tmp_path, a_policy):
    policy = a_policy(SPIKE)
    store = Store.open(tmp_path, KEY, SystemClock().now_us)
    decider, heard = Decider.start(store, policy), asyncio.Event()
    decider.moved = heard.set
    for number in range(2):
        ask = replace(an_ask(policy, number), traits=Traits(bytes([number]) * 8))
        await decider.admit(ask, policy)
        await decider.settle(done(ask), durable=True)
    async with asyncio.timeout(1):
        await heard.wait()
    assert [pull.rule for pull in decider.pulls.values()] == ["freeze:run:r1"]
    await decider.stop()
    store.close()


async def test_what_may_wait_waits_for_the_writer_once_however_many_calls_end(world, monkeypatch):
    decider, policy, _ = world
    asked, later = [], asyncio.get_running_loop().call_later

    def call_later(seconds, act):
        asked.append(act)
        return later(seconds, act)

    monkeypatch.setattr(decider._loop, "call_later", call_later)
    ask = an_ask(policy)
    await decider.admit(ask, policy)
    await asyncio.to_thread(decider._writing.acquire)
    try:
        settled = decider.settle(done(ask), durable=True)
        monkeypatch.setattr(Store, "is_behind", True)
        for _ in range(3):
            decider._follow_here()
    finally:
        decider._writing.release()
    await settled
    monkeypatch.undo()
    assert asked == [decider._follow_late]
    async with asyncio.timeout(5):
        while decider._store.is_behind or decider._follows_late:
            await asyncio.sleep(0.005)


async def test_a_bug_in_a_batch_refuses_it_and_ends_nothing(world):
    decider, policy, _ = world
    with pytest.raises(ZeroDivisionError):
        await decider.act(lambda store: 1 // 0)
    assert (await decider.admit(an_ask(policy), policy)).verdict.action is Action.ALLOW


async def test_a_wrong_request_is_told_to_its_caller_alone(world):
    decider, policy, _ = world
    release = decider.act(
        lambda store: store.release(Level.HALT, Scope.RUN, "r1", reason=" ", actor="ann", at_us=0)
    )
    admitted = decider.admit(an_ask(policy), policy)
    with pytest.raises(LedgerError, match="with a reason"):
        await release
    assert (await admitted).verdict.action is Action.ALLOW


async def test_what_queued_before_the_stop_is_still_answered(tmp_path, a_policy):
    policy = a_policy(POLICY)
    store = Store.open(tmp_path, KEY, SystemClock().now_us)
    decider = Decider.start(store, policy)
    pending = decider.admit(an_ask(policy), policy)
    await decider.stop()
    assert (await pending).verdict.action is Action.ALLOW
    store.close()


async def test_a_cord_that_waits_for_a_failing_store_stands_already(world):
    decider, *_ = world
    cord = Pull(Level.HALT, Scope.RUN, "r1", "", "file:HALT", 0)
    epoch = decider.epoch
    decider.stand([cord])
    assert decider.epoch == epoch + 1
    assert decider.pulls == {(Level.HALT, Scope.RUN, "r1"): cord}
    decider.stand([cord])
    assert decider.epoch == epoch + 1
    decider.stand([])
    assert decider.pulls == {}


async def test_of_a_stored_and_a_waiting_cord_the_stricter_stands(world):
    decider, *_ = world
    name = (Level.HALT, Scope.RUN, "r1")
    first = Pull(*name, "first", "ann", 0, until_us=2**50)
    await decider.act(lambda store: store.pull(first))
    again = Pull(*name, "again", "bob", 1)
    decider.stand([again])
    assert decider.pulls[name] == again
    await decider.act(lambda store: store.pull(again))
    decider.stand([Pull(*name, "third", "eve", 2)])
    assert decider.pulls[name].reason == "again"


async def test_a_canary_identified_anew_is_bound_to_the_drill_s_port_still(world, a_policy):
    decider, policy, _ = world
    request = Request("POST", "http", "canary.pullcord.invalid", 9, "/", (), b"")
    now_us = SystemClock().now_us()
    ask = Ask(new_id(now_us), now_us, R1, request, identify(policy, request))
    decider.canary_port = 8
    decider.adopt(a_policy(POLICY + "frozen: [pay]\n"))
    decision = await decider.admit(ask, policy)
    assert decision.verdict.reason is Reason.DESTINATION_UNLISTED
