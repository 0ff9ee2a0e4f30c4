"""Reads that share a transaction in the thread of the loop: who goes on before its commit, what
closes it, and what becomes of them where it fails."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from ledger import queries
from ledger.connection import open_reader
from ledger.sqlite import sqlite3
from ledger.store import LedgerUnavailable, Store
from policies.call import Identity, Traits
from policies.verdict import Action, Level, Pull, Reason, Scope
from proxy import sharing
from proxy.clock import SystemClock, new_id
from proxy.decider import Decider
from tests.proxy.test_decider import KEY, POLICY, an_ask, done
from tests.proxy.test_waiting_room_failing import failing_commit

FAR_SECONDS = 1_000.0
HALT = Pull(Level.HALT, Scope.RUN, "r1", "", "ann", 0)


@pytest.fixture
async def world(tmp_path: Path, a_policy, monkeypatch):
    """In which nothing is committed because of the time alone, and the store is known to take
    rows."""
    monkeypatch.setattr(sharing, "LATE_SECONDS", FAR_SECONDS)
    monkeypatch.setattr(sharing, "PROVED_SECONDS", FAR_SECONDS)
    policy = a_policy(POLICY)
    store = Store.open(tmp_path, KEY, SystemClock().now_us, busy_seconds=0.05)
    decider = Decider.start(store, policy)
    decider._sharing._proved_seconds = asyncio.get_running_loop().time()
    yield decider, policy, tmp_path
    await decider.stop()
    store.close()


def states(data):
    reader = open_reader(data)
    try:
        return [row["state"] for row in queries.calls(reader, limit=100)]
    finally:
        reader.close()


async def read(decider, policy):
    ask = an_ask(policy, method="GET")
    decision = await decider.admit(ask, policy)
    assert decision.verdict.action is Action.ALLOW
    return ask


async def test_reads_go_on_before_their_rows_are_committed_together(world):
    decider, policy, data = world
    settled = [decider.settle(done(await read(decider, policy)), durable=False) for _ in range(3)]
    await read(decider, policy)
    assert states(data) == []
    assert not any(future.done() for future in settled)
    assert decider._store.open_calls == 0  # as it is committed
    decider._sharing.flush()
    assert sorted(states(data)) == ["done", "done", "done", "pending"]
    assert [await future for future in settled] == [True] * 3
    assert decider._store.open_calls == 1


async def test_they_are_committed_when_their_time_is_over(world, monkeypatch):
    decider, policy, data = world
    monkeypatch.setattr(sharing, "LATE_SECONDS", 0.001)
    assert await decider.settle(done(await read(decider, policy)), durable=False)
    assert states(data) == ["done"]
    assert not decider._writing.locked()


async def test_the_first_one_after_a_while_waits_for_its_row(world, monkeypatch):
    """Who knows whether the store still takes any?"""
    decider, policy, data = world
    decider._sharing._proved_seconds -= 2 * FAR_SECONDS
    await read(decider, policy)
    assert states(data) == ["pending"]
    await read(decider, policy)
    assert states(data) == ["pending"]
    decider._sharing._proved_seconds -= 2 * FAR_SECONDS
    monkeypatch.setattr(decider._store._writer, "commit", failed)
    with pytest.raises(LedgerUnavailable):
        await read(decider, policy)
    monkeypatch.undo()


async def test_whoever_waits_for_the_disk_finds_them_there(world):
    decider, policy, data = world
    await read(decider, policy)
    assert decider._writing.locked()
    await decider.admit(an_ask(policy), policy)
    assert states(data) == ["pending", "pending"]


async def test_whoever_is_told_anything_but_go_finds_them_there(world):
    decider, policy, data = world
    await decider.act(lambda store: store.pull(HALT))
    refused = await decider.admit(an_ask(policy, method="GET"), policy)
    assert refused.verdict.reason is Reason.HALTED
    assert states(data) == ["refused"]


async def test_a_cord_that_is_pulled_meanwhile_holds_for_the_next_one(world):
    decider, policy, _ = world
    await read(decider, policy)
    pulled = decider.act(lambda store: store.pull(HALT))
    late = decider.admit(an_ask(policy, method="GET"), policy)
    assert await pulled
    assert (await late).verdict.reason is Reason.HALTED


async def test_what_went_on_is_written_though_the_commit_failed(world, a_policy):
    """As it was told, also where it would be refused by now."""
    decider, policy, data = world
    await read(decider, policy)
    settled = decider.settle(done(await read(decider, policy)), durable=False)
    decider.adopt(a_policy(POLICY + "halted: {runs: [r1]}\n"))
    failing_commit(decider._store)
    refused = await decider.admit(an_ask(policy, method="GET"), policy)
    assert refused.verdict.reason is Reason.HALTED
    assert await settled
    assert sorted(states(data)) == ["done", "pending", "refused"]


async def test_what_went_on_is_owed_while_the_store_fails(world, monkeypatch):
    decider, policy, data = world
    first = await read(decider, policy)
    with monkeypatch.context() as patch:
        patch.setattr(decider._store._writer, "commit", failed)
        with pytest.raises(LedgerUnavailable):
            await decider.admit(an_ask(policy), policy)
        assert decider.owed == 1
        assert states(data) == []
    assert await decider.settle(done(first), durable=True)
    assert decider.owed == 0
    assert states(data) == ["done"]


def failed():
    raise sqlite3.OperationalError("disk I/O error")


async def test_a_call_that_cannot_be_written_here_takes_none_of_the_others_with_it(
    world, monkeypatch
):
    decider, policy, data = world
    await read(decider, policy)
    admit = Store.admit

    def fails_once(store, ask, *rest):
        monkeypatch.setattr(Store, "admit", admit)
        store._open_batch().broken = ZeroDivisionError()
        raise ZeroDivisionError

    monkeypatch.setattr(Store, "admit", fails_once)
    await read(decider, policy)
    decider._sharing.flush()
    await decider.act(lambda store: None)
    assert states(data) == ["pending", "pending"]


async def test_a_thread_that_wants_to_write_is_let(world):
    decider, policy, data = world
    await read(decider, policy)
    decider._wants = True
    await read(decider, policy)
    assert states(data) == ["pending", "pending"]


async def test_what_is_found_over_a_call_that_ended_is_acted_on_at_once(world, a_policy):
    """Before the run in question calls again: others do."""
    decider, *_ = world
    policy = a_policy(POLICY + "detectors: {loop: {mode: enforce, then: halt_run}}\n")
    decider.adopt(policy)
    heard = asyncio.Event()
    decider.moved = heard.set
    for number in range(40):
        ask = an_ask(policy, method="GET")
        at_us = ask.at_us + number * 10**6
        ask = replace(ask, call_id=new_id(at_us), at_us=at_us, traits=Traits(b"the same"))
        assert (await decider.admit(ask, policy)).verdict.action is Action.ALLOW
        decider.settle(replace(done(ask), at_us=at_us + 1, result=b"the same"), durable=False)
        other = an_ask(policy, method="GET", who=Identity(f"other{number}", "acme"))
        assert (await decider.admit(other, policy)).verdict.action is Action.ALLOW
        if heard.is_set():
            break
    assert [pull.rule for pull in decider.pulls.values()] == ["halt:run:r1"]


async def test_what_cannot_be_looked_at_here_is_judged_by_the_thread(world, monkeypatch):
    decider, policy, data = world
    monkeypatch.setattr(decider, "writes_first", lambda: 1 // 0)
    await read(decider, policy)
    assert states(data) == ["pending"]
    async with asyncio.timeout(5):
        while decider._writing.locked():  # by the thread, which has told already
            await asyncio.sleep(0.001)
