"""The engines that act on the decider's word: in this process, or each in one of its own.

Whatever moves a cord or the policy is told to every engine, and is not done before each has cut
what is halted and said so. One that stays silent is killed, so that it cannot wake and send, and
its open calls become `unknown` (design, section 4).
"""

import asyncio
import os
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import structlog

from ledger.errors import LedgerUnavailable
from ledger.records import Worker
from proxy import process
from proxy.clock import Clock
from proxy.decider import Decider
from proxy.gate import Gate
from proxy.wire import Peer, Standing

log = structlog.get_logger()

ACK_SECONDS = 5.0  # an engine that has not cut by then is killed (design, section 4)
LISTING_SECONDS = 1.0  # how long an engine may take to say what is in flight
FORSAKE_SECONDS = 1.0  # how often the store is asked again to record that an engine ended
GONE_SECONDS = 2.0  # how long a process that was killed may take to vanish

LiveCall = dict[str, Any]
"""A call in flight, as the control API shows it."""

Traced = dict[str, int]
"""How the trace of an engine's calls goes: `behind` messages wait, so many were `lost`."""


class Engine(Protocol):
    """One engine process as the decider sees it."""

    @property
    def worker(self) -> Worker: ...

    def moved(self, standing: Standing) -> "asyncio.Future[list[str]]":
        """Told at once, in order; done when it has cut and settled. The ids of the calls cut."""

    def calls(self) -> Awaitable[list[LiveCall]]:
        """What is in flight there."""

    def traced(self) -> Awaitable[Traced]:
        """How far its trace is."""


@dataclass(frozen=True, slots=True)
class Swept:
    """What a pulled cord did: calls cut, engines that acknowledged, engines that were killed."""

    cut: tuple[str, ...] = ()
    acknowledged: int = 0
    killed: tuple[Worker, ...] = ()


class InProcess:
    """The one engine of a proxy without workers."""

    def __init__(self, gate: Gate, worker: Worker) -> None:
        self.worker = worker
        self.gate = gate

    def moved(self, standing: Standing) -> "asyncio.Future[list[str]]":
        return asyncio.ensure_future(self.gate.sweep())

    async def calls(self) -> list[LiveCall]:
        return self.gate.listing()

    async def traced(self) -> Traced:
        return self.gate.traced()


class Link:
    """An engine in a process of its own, at the other end of a connection."""

    def __init__(self, worker: Worker, peer: Peer, heard_seconds: float) -> None:
        self.worker = worker
        self.peer = peer
        self.heard_seconds = heard_seconds
        self._version = -1

    def moved(self, standing: Standing) -> "asyncio.Future[list[str]]":
        known = standing.version == self._version
        self._version = standing.version
        return self.peer.call("moved", replace(standing, text=None) if known else standing)

    async def calls(self) -> list[LiveCall]:
        return list(await self.peer.call("calls"))

    async def traced(self) -> Traced:
        return dict(await self.peer.call("traced"))


class Absent:
    """An engine process that lives, as far as is known, and whose connection is gone."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._told: list[asyncio.Future[list[str]]] = []

    def moved(self, standing: Standing) -> "asyncio.Future[list[str]]":
        future: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._told.append(future)
        return future

    async def calls(self) -> list[LiveCall]:
        return []

    async def traced(self) -> Traced:
        return {}

    def back(self, cut: list[str]) -> None:
        """It came back, was told what stands, and has cut what was halted meanwhile."""
        for future in self._told:
            if not future.done():
                future.set_result(cut)


class Fleet:
    """All engines. Every method is for the decider's loop."""

    def __init__(self, decider: Decider, clock: Clock) -> None:
        self._decider = decider
        self._clock = clock
        self._engines: dict[str, Engine] = {}
        self._policy = decider.policy
        self._version = 0
        self._sweeps: set[asyncio.Task[Swept]] = set()
        decider.moved = self._moved

    @property
    def engines(self) -> list[Engine]:
        return list(self._engines.values())

    @property
    def workers(self) -> list[Worker]:
        return [engine.worker for engine in self._engines.values()]

    @property
    def version(self) -> int:
        """Moves with the policy; an engine's question under another one is not judged."""
        self._notice()
        return self._version

    async def join(self, engine: Engine) -> None:
        """Tell an engine what stands; from then on it is told whatever moves."""
        before = self._engines.get(engine.worker.id)
        self._engines[engine.worker.id] = engine
        cut = await engine.moved(self._standing())
        if isinstance(before, Absent):
            before.back(cut)

    def leave(self, worker: Worker) -> None:
        self._engines.pop(worker.id, None)

    def miss(self, absent: Absent) -> None:
        """A halt waits for it like for the others."""
        self._engines[absent.worker.id] = absent

    def misses(self, absent: Absent) -> bool:
        return self._engines.get(absent.worker.id) is absent

    async def sweep(self) -> Swept:
        """Returns when every engine has cut what is halted now, or was killed."""
        self._tell()
        swept = await asyncio.gather(*self._sweeps)  # what moved just before is swept already
        return Swept(
            tuple({call_id: None for one in swept for call_id in one.cut}),
            max(one.acknowledged for one in swept),
            tuple({worker: None for one in swept for worker in one.killed}),
        )

    async def calls(self) -> list[LiveCall]:
        """What is in flight in all engines that answer within a second."""
        told = await _in_time([engine.calls() for engine in self._engines.values()])
        return [call for calls in told for call in calls]

    async def traced(self) -> Traced:
        """How far the trace is, of all engines that answer within a second."""
        told = await _in_time([engine.traced() for engine in self._engines.values()])
        return {name: sum(each.get(name, 0) for each in told) for name in ("behind", "lost")}

    # What moved

    def _moved(self) -> None:
        """Called by the decider in the turn in which something moved, before it answers anyone."""
        self._tell()

    def _tell(self) -> None:
        standing = self._standing()
        told = [(engine, engine.moved(standing)) for engine in self._engines.values()]
        sweep = asyncio.get_running_loop().create_task(self._acknowledged(told))
        self._sweeps.add(sweep)
        sweep.add_done_callback(self._sweeps.discard)

    def _notice(self) -> None:
        if self._decider.policy is not self._policy:
            self._policy = self._decider.policy
            self._version += 1

    def _standing(self) -> Standing:
        self._notice()
        policy, pulls = self._policy, dict(self._decider.pulls)
        return Standing(
            self._version,
            policy.source,
            policy.text,
            dict(policy.pulls),
            pulls,
            self._decider.canary_port,
        )

    async def _acknowledged(self, told: list[tuple[Engine, "asyncio.Future[list[str]]"]]) -> Swept:
        if not told:
            return Swept()
        await asyncio.wait([future for _, future in told], timeout=ACK_SECONDS)
        cut: list[str] = []
        silent: list[Engine] = []
        for engine, future in told:
            if future.done() and future.exception() is None:
                cut += future.result()
            else:
                silent.append(engine)
        await asyncio.gather(*(self.end(engine.worker, "did not acknowledge") for engine in silent))
        killed = tuple(e.worker for e in silent if e.worker.pid != os.getpid())
        return Swept(tuple(cut), len(told) - len(silent), killed)

    async def end(self, worker: Worker, why: str) -> None:
        """Kill an engine process, see it gone, and call its open calls `unknown`.

        The engine of this very process is not killed: what it has not cut, the proof shows.
        """
        if worker.pid == os.getpid():
            log.error("engine.late", why=why)
            return
        if self._engines.pop(worker.id, None) is None:
            return  # it is being ended already
        process.kill(worker)
        deadline = self._clock.monotonic_seconds() + GONE_SECONDS
        while process.lives(worker):
            if self._clock.monotonic_seconds() > deadline:
                break
            await asyncio.sleep(0.01)
        log.error("worker.ended", worker=worker.id, pid=worker.pid, why=why)
        while True:
            try:
                await self._forsake(worker, why)
                return
            except LedgerUnavailable:
                await asyncio.sleep(FORSAKE_SECONDS)  # nothing passes meanwhile

    async def _forsake(self, worker: Worker, why: str) -> None:
        now_us = self._clock.now_us()
        await self._decider.act(lambda store: store.forsake(worker.id, now_us, why))


async def _in_time[Told](asked: list[Awaitable[Told]]) -> list[Told]:
    """What those say that answer within LISTING_SECONDS."""
    if not asked:
        return []
    tasks = [asyncio.ensure_future(each) for each in asked]
    done, late = await asyncio.wait(tasks, timeout=LISTING_SECONDS)
    for task in late:
        task.cancel()
    return [task.result() for task in tasks if task in done and task.exception() is None]
