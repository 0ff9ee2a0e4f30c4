"""Nobody waits for ever: who waits for a turn is told when the store fails or the decider ends."""

import asyncio
import threading
from pathlib import Path

import pytest

from ledger.sqlite import sqlite3
from ledger.store import LedgerUnavailable, Store
from policies.verdict import Reason
from proxy.clock import SystemClock
from proxy.decider import Decider
from tests.proxy.test_decider import KEY, calls, done
from tests.proxy.test_waiting_room import TWO, B, World, begun


@pytest.fixture
async def world(tmp_path: Path, a_policy):
    async with begun(tmp_path, a_policy(TWO)) as made:
        yield made


async def test_while_the_store_fails_whoever_waits_is_told(world):
    await world.full()
    turn = world.waits(world.ask())
    await world.looked()
    holder = sqlite3.connect(str(world.data / "ledger.db"), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LedgerUnavailable):
        await world.decider.admit(world.ask(B, "POST"), world.policy)
    with pytest.raises(LedgerUnavailable):
        await turn
    holder.execute("ROLLBACK")
    holder.close()


def failing_commit(store):
    """The next commit fails, as on a disk that breaks at that moment."""
    commit = store._writer.commit

    def fails():
        store._writer.commit = commit
        raise sqlite3.OperationalError("disk I/O error")

    store._writer.commit = fails


@pytest.mark.parametrize("stepped_seconds", [0.0, 60.0])
async def test_whoever_was_answered_in_a_transaction_that_is_not_committed_is_told(
    world, stepped_seconds
):
    first, _ = await world.full()
    ask = world.ask()
    turn = world.waits(ask)
    await world.looked()
    world.decider._stepped_seconds = lambda: stepped_seconds
    failing_commit(world.decider._store)
    with pytest.raises(LedgerUnavailable):
        await world.decider.settle(done(first), durable=True)
    async with asyncio.timeout(10):
        with pytest.raises(LedgerUnavailable):
            await turn
    await world.looked()
    assert ask.call_id not in {row["id"] for row in calls(world.data)}
    assert not world.decider._room


async def test_what_is_written_in_the_loop_waits_while_the_thread_lets_somebody_wait(
    world, monkeypatch
):
    """The lock is free again, and somebody waits since it was looked for."""
    first, _ = await world.full()
    decider = world.decider
    writing = decider._writing

    class Late:
        """The lock, taken just after the thread has done what it had."""

        def acquire(self, blocking):
            writing.release()
            assert taken.wait(10)
            monkeypatch.undo()
            failing_commit(decider._store)
            return writing.acquire()

        __enter__, __exit__ = writing.__enter__, writing.__exit__  # the thread's may be this one

    answer_batch, taken = decider._answer, threading.Event()

    def answering(batch):
        answer_batch(batch)
        taken.set()

    monkeypatch.setattr(decider, "_answer", answering)
    decider._sharing.flush()
    writing.acquire()
    turn = world.waits(world.ask())
    while decider._queue.qsize():
        await asyncio.sleep(0.01)
    settled = decider.settle(done(first), durable=False)
    monkeypatch.setattr(decider, "is_wanted", lambda: False)  # asked before the thread wants it
    monkeypatch.setattr(decider._sharing, "_writing", Late())
    for answer in (settled, turn):
        with pytest.raises(LedgerUnavailable):
            await answer


async def test_at_the_stop_whoever_waits_is_told(tmp_path, a_policy):
    policy = a_policy(TWO)
    store = Store.open(tmp_path, KEY, SystemClock().now_us)
    world = World(Decider.start(store, policy), policy, tmp_path)
    await world.full()
    turn = world.waits(world.ask())
    await world.decider.stop()
    with pytest.raises(Exception, match=Reason.SHUTTING_DOWN):
        await turn
    store.close()
