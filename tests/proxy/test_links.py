"""An engine's gate and the decider in two processes' places: a real store, a real Unix socket.

The engine process itself is a sleeping one, so that it can be killed; its side runs in here.
"""

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager, closing
from dataclasses import replace

import pytest

from ledger import queries
from ledger.connection import open_reader
from ledger.records import Outcome, Worker
from ledger.states import CallState, ClaimAfter
from ledger.store import Store
from policies.call import Identity, Request
from policies.match import identify
from policies.verdict import Action, Level, Pull, Reason, Scope
from proxy import fleet as fleet_module
from proxy import gate as gate_module
from proxy import process
from proxy.clock import SystemClock, new_id
from proxy.decider import Decider
from proxy.fleet import Fleet
from proxy.identity import Credentials
from proxy.judging import NotJudged
from proxy.links import SOCKET, Links
from proxy.live import Live
from proxy.remote import RemoteDecider
from tests.proxy.test_decider import POLICY, an_ask

KEY = b"k" * 32
WAIT_SECONDS = 10.0
HALT = Pull(Level.HALT, Scope.RUN, "r1", "loops", "ann", 1)


class Gate:
    """Stands where a gate would: it counts its sweeps, and is as quick as it is let be."""

    def __init__(self):
        self.sweeps, self.free = 0, asyncio.Event()
        self.free.set()
        self.cut = []

    async def sweep(self):
        self.sweeps += 1
        await self.free.wait()
        return ["call-1"]

    async def cut_all(self, reason):
        self.cut.append(reason)

    def listing(self):
        return [{"id": "call-1", "seconds": 0.5}]

    def traced(self):
        return {}


class NoEngine:
    async def cut(self, calls, reason):
        """There is nothing to close."""


class Place:
    """A data directory with a decider that may end and come back, and engines that stay."""

    def __init__(self, data, policy):
        self.data, self.policy, self.clock = data, policy, SystemClock()
        (data / "private").mkdir(mode=0o700)

    @asynccontextmanager
    async def deciding(self):
        store = Store.open(self.data, KEY, self.clock.now_us, alive=process.lives)
        decider = Decider.start(store, self.policy)
        fleet = Fleet(decider, self.clock)
        links = await Links.listen(self.data, decider, fleet, self.clock, store.workers())
        try:
            yield decider, fleet
        finally:
            await links.close()
            await decider.stop()
            store.close()

    @asynccontextmanager
    async def engine(self):
        command = (sys.executable, "-c", "import sys; sys.stdin.read()")
        with subprocess.Popen(command, stdin=subprocess.PIPE) as child:
            now_us = self.clock.now_us()
            worker = Worker(new_id(now_us), child.pid, process.started(child.pid), now_us)
            remote = RemoteDecider(self.data / SOCKET, worker, self.clock, self.policy)
            remote.gate = Gate()
            running = asyncio.create_task(remote.run())
            try:
                yield remote, child
            finally:
                running.cancel()
                child.kill()

    def calls(self):
        reader = open_reader(self.data)
        try:
            return {row["id"]: row["state"] for row in queries.calls(reader, limit=1000)}
        finally:
            reader.close()


@pytest.fixture
def place(tmp_path, a_policy):
    return Place(tmp_path, a_policy(POLICY))


async def until(condition):
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)


def done(ask, **metered):
    return Outcome(
        ask.call_id,
        ask.at_us + 1,
        CallState.DONE,
        ClaimAfter.DONE,
        200,
        1,
        None,
        0,
        None,
        **metered,
    )


async def test_a_call_is_judged_over_the_socket_and_settled(place):
    async with place.deciding(), place.engine() as (remote, _):
        await remote.ready.wait()
        ask = replace(an_ask(place.policy), worker="whatever")
        decision = await remote.admit(ask, remote.policy)
        assert decision.verdict.action is Action.ALLOW
        assert await remote.settle(done(ask), durable=True)
        again = await remote.admit(replace(ask, call_id=new_id(1)), remote.policy)
        assert again.verdict.reason is not Reason.ALLOWED
    assert place.calls()[ask.call_id] == "done"


async def test_what_an_engine_has_metered_is_recorded(place):
    metered = {"input_tokens": 1000, "output_tokens": 200, "cost_microusd": 3250}
    async with place.deciding(), place.engine() as (remote, _):
        await remote.ready.wait()
        ask = an_ask(place.policy)
        await remote.admit(ask, remote.policy)
        assert await remote.settle(done(ask, **metered), durable=True)
    with closing(open_reader(place.data)) as reader:
        (row,) = queries.calls(reader)
    assert (row["input_tokens"], row["output_tokens"], row["cost_usd"]) == (1000, 200, 0.00325)


async def test_the_messages_of_a_websocket_count_their_bytes(place, a_policy):
    place.policy = a_policy(POLICY + "ceilings: [{per: run, count: bytes_up, at_most: 9}]\n")
    async with place.deciding(), place.engine() as (remote, _):
        await remote.ready.wait()
        gate = gate_module.Gate(remote, place.clock, "open")
        request = Request("GET", "https", "pay.test", 443, "/", (("upgrade", "websocket"),))
        live = await gate.ask(request, Credentials("r1", "acme"), NoEngine())
        assert isinstance(live, Live)
        assert await gate.message(live, b"12345") is None
        assert await gate.message(live, b"1234") is None
        assert (await gate.message(live, b"1") or "").startswith("ceiling:")


async def test_of_a_request_only_its_names_are_sent(place, monkeypatch):
    heard = []
    admit = Decider.admit

    def admitting(self, ask, *rest, **more):
        heard.append(ask)
        return admit(self, ask, *rest, **more)

    monkeypatch.setattr(Decider, "admit", admitting)
    async with place.deciding(), place.engine() as (remote, _):
        await remote.ready.wait()
        request = Request(
            "POST", "https", "pay.test", 443, "/?key=sk_secret", (("x", "secret"),), b"secret"
        )
        ask = replace(an_ask(place.policy), request=request)
        await remote.admit(replace(ask, call=identify(remote.policy, request)), remote.policy)
    assert b"secret" not in repr(heard).encode()
    assert heard[0].request.path == "/"


async def test_an_edit_is_in_force_in_every_engine_when_it_is_in_the_decider(place, a_policy):
    async with place.deciding() as (decider, _), place.engine() as (remote, _):
        await remote.ready.wait()
        ask = an_ask(remote.policy)
        decider.adopt(a_policy("tools: {other: {match: {host: pay.test}}}\nfrozen: [other]\n"))
        decision = await remote.admit(ask, remote.policy)
        assert decision.verdict.rule == "freeze:tool:other"


async def test_a_pulled_cord_is_done_when_every_engine_has_cut(place):
    async with place.deciding() as (decider, fleet), place.engine() as (remote, _):
        await remote.ready.wait()
        epoch = remote.epoch
        remote.gate.free.clear()
        await decider.act(lambda store: store.pull(HALT))
        sweep = asyncio.create_task(fleet.sweep())
        await until(lambda: remote.pulls)
        assert remote.epoch > epoch
        assert not sweep.done()
        remote.gate.free.set()
        swept = await sweep
        assert (swept.cut, swept.acknowledged, swept.killed) == (("call-1",), 1, ())
        decision = await remote.admit(an_ask(remote.policy), remote.policy)
        assert decision.verdict.reason is Reason.HALTED


async def test_an_engine_that_does_not_acknowledge_is_killed_and_its_calls_are_unknown(
    place, monkeypatch
):
    monkeypatch.setattr(fleet_module, "ACK_SECONDS", 0.2)
    async with place.deciding() as (decider, fleet), place.engine() as (remote, child):
        await remote.ready.wait()
        ask = an_ask(remote.policy)
        await remote.admit(ask, remote.policy)
        remote.gate.free.clear()
        await decider.act(lambda store: store.pull(HALT))
        swept = await fleet.sweep()
        assert [worker.pid for worker in swept.killed] == [child.pid]
        assert await asyncio.to_thread(child.wait) == -9
        assert place.calls()[ask.call_id] == "unknown"
        late = await remote.settle(done(ask), durable=True)
        assert late is False


async def test_an_engine_process_that_ends_leaves_its_calls_unknown(place):
    async with place.deciding(), place.engine() as (remote, child):
        await remote.ready.wait()
        ask = an_ask(remote.policy)
        await remote.admit(ask, remote.policy)
        child.kill()
        remote._peer.close()
        await until(lambda: place.calls()[ask.call_id] == "unknown")


async def test_without_a_decider_nothing_is_judged_and_nothing_admitted_may_leave(place):
    async with place.engine() as (remote, _):
        async with place.deciding():
            await remote.ready.wait()
            epoch = remote.epoch
        await until(lambda: remote.lost)
        assert remote.epoch > epoch
        with pytest.raises(NotJudged) as told:
            await remote.admit(an_ask(place.policy), place.policy)
        assert told.value.reason is Reason.DECIDER_UNREACHABLE
        with pytest.raises(NotJudged):
            await remote.count(Identity("r1", "acme"), an_ask(place.policy).call, 0)


async def test_a_call_outlives_a_decider_and_its_outcome_is_recorded_by_the_next(place):
    async with place.engine() as (remote, _):
        async with place.deciding():
            await remote.ready.wait()
            ask = an_ask(remote.policy)
            await remote.admit(ask, remote.policy)
        await until(lambda: remote.lost)
        recorded = remote.settle(done(ask), durable=True)
        async with place.deciding():
            async with asyncio.timeout(WAIT_SECONDS):
                assert await recorded
            assert place.calls()[ask.call_id] == "done"


async def test_what_was_asked_and_not_answered_was_not_sent(place, monkeypatch):
    """The decider commits and ends before its answer is out."""
    async with place.engine() as (remote, _), place.deciding():
        await remote.ready.wait()
        ask = an_ask(remote.policy)
        deliver = Decider.deliver

        def gone(self, told, moved):
            remote._peer.close()
            deliver(self, told, moved)

        with monkeypatch.context() as patch:
            patch.setattr(Decider, "deliver", gone)
            with pytest.raises(NotJudged):
                await remote.admit(ask, remote.policy)
        await until(lambda: place.calls().get(ask.call_id) == "not_sent")


async def test_whoever_stops_waiting_for_a_verdict_sends_nothing(place):
    async with place.deciding(), place.engine() as (remote, _):
        await remote.ready.wait()
        ask = an_ask(remote.policy)
        asking = asyncio.create_task(remote.admit(ask, remote.policy))
        await asyncio.sleep(0)
        asking.cancel()
        await until(lambda: place.calls().get(ask.call_id) == "not_sent")
        assert remote._asked == {}


async def test_a_halt_waits_for_an_engine_whose_connection_is_gone(place):
    async with place.deciding() as (decider, fleet), place.engine() as (remote, _):
        await remote.ready.wait()
        swept_before = remote.gate.sweeps
        remote._peer.close()
        await until(lambda: remote.lost)
        await decider.act(lambda store: store.pull(HALT))
        swept = await fleet.sweep()
        assert swept.killed == ()
        assert remote.gate.sweeps > swept_before
        assert remote.pulls


async def test_what_is_in_flight_is_listed(place):
    async with place.deciding() as (_, fleet), place.engine() as (remote, _):
        await remote.ready.wait()
        assert await fleet.calls() == remote.gate.listing()


async def test_an_orderly_end_leaves_nothing_behind(place):
    async with place.deciding() as (decider, fleet), place.engine() as (remote, _):
        await remote.ready.wait()
        ask = an_ask(remote.policy)
        await remote.admit(ask, remote.policy)
        settled = remote.settle(done(ask), durable=True)
        await remote.leave()
        assert await settled
        await until(lambda: fleet.workers == [])
        assert await decider.act(lambda store: store.workers()) == []
