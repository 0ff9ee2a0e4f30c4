"""The decider's side of the engine processes: it listens on a socket and answers their gates.

Who connects is told by the kernel; only the proxy's own user is answered. Nothing is judged here:
each word goes to the decider, and its answer back.
"""

import asyncio
import contextlib
import os
from collections.abc import Coroutine
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import structlog

from ledger.errors import LedgerError
from ledger.records import Ask, Claimant, Decision, Outcome, Worker
from policies.call import ToolCall
from proxy import process
from proxy.clock import Clock
from proxy.control_socket import bound, peer_uid
from proxy.decider import Decider
from proxy.fleet import ACK_SECONDS, Absent, Fleet, Link
from proxy.judging import PolicyMoved
from proxy.tickets import verbs as held_calls
from proxy.wire import Peer, Verb

log = structlog.get_logger()

SOCKET = Path("private", "decider.sock")
BEAT_SECONDS = 1.0  # how often each side says that it lives
SILENT_SECONDS = 30.0  # an engine without a beat so long is killed though nothing has moved
_LOOK_SECONDS = 0.05


class Links:
    """Made by `listen`; `close` ends every connection."""

    def __init__(self, decider: Decider, fleet: Fleet, clock: Clock) -> None:
        self._decider = decider
        self._fleet = fleet
        self._clock = clock
        self._links: dict[str, Link] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None

    @classmethod
    async def listen(
        cls, data: Path, decider: Decider, fleet: Fleet, clock: Clock, expected: list[Worker]
    ) -> Self:
        """`expected` are engines that outlived the last decider: they come back, or are killed.

        Raises ControlError.
        """
        links = cls(decider, fleet, clock)
        for worker in expected:
            links._await(worker)
        listener = bound(data / SOCKET)
        links._server = await asyncio.start_unix_server(links._serve, sock=listener)
        links._spawn(links._watch())
        return links

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self._links.values()):
            link.peer.close()
        for task in list(self._tasks):
            task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if peer_uid(writer.get_extra_info("socket")) != os.geteuid():
            log.error("worker.stranger")
            writer.close()
            return
        joined: list[Link] = []
        verbs: dict[str, Verb] = {}
        turns: dict[str, asyncio.Future[Decision]] = {}
        peer = Peer(reader, writer, verbs)
        verbs["hello"] = partial(self._hello, peer, verbs, turns, joined)
        await peer.serve()
        for waiting in list(turns.values()):
            waiting.cancel()  # nobody of it waits for a turn any more
        for link in joined:
            if self._links.get(link.worker.id) is link:
                del self._links[link.worker.id]
                if link in self._fleet.engines:  # else it was ended already
                    self._await(link.worker)

    def _hello(
        self,
        peer: Peer,
        verbs: dict[str, Verb],
        turns: "dict[str, asyncio.Future[Decision]]",
        joined: list[Link],
        worker: Worker,
    ) -> "asyncio.Future[None]":
        """Registered first, told what stands next, then it may ask."""
        link = Link(worker, peer, self._clock.monotonic_seconds())
        joined.append(link)
        verbs.update(self._verbs(link), **self._turns(link, turns))
        return self._spawn(self._joined(link))

    async def _joined(self, link: Link) -> None:
        worker = link.worker
        await self._decider.act(lambda store: store.register(worker))
        self._links[worker.id] = link
        await self._fleet.join(link)
        log.info("worker.joined", worker=worker.id, pid=worker.pid)

    def _verbs(self, link: Link) -> dict[str, Verb]:
        decider = self._decider

        def admit(ask: Ask, version: int) -> "asyncio.Future[Any]":
            if version != self._fleet.version:
                return _failed(PolicyMoved())
            ask = replace(ask, at_us=self._clock.now_us(), worker=link.worker.id)
            return decider.admit(ask, decider.policy, whole=False)

        def count(claimant: Claimant, call: ToolCall) -> "asyncio.Future[Any]":
            return decider.count(claimant, call, self._clock.now_us())

        def settle(outcome: Outcome, durable: bool) -> "asyncio.Future[bool]":
            return decider.settle(outcome, durable=durable)

        def own_act(ask: Ask, body: bytes) -> "asyncio.Future[Any]":
            return decider.own_act(replace(ask, at_us=self._clock.now_us()), body)

        def draw(call_id: str, tokens: int, microusd: int) -> "asyncio.Future[Any]":
            return decider.draw(call_id, tokens, microusd, self._clock.now_us())

        def beat() -> None:
            link.heard_seconds = self._clock.monotonic_seconds()

        return {
            "admit": admit,
            "greet": decider.greet,
            "own_state": decider.own_state,
            "own_act": own_act,
            "count": count,
            "draw": draw,
            "keep": decider.keep,
            "settle": settle,
            "trace_lost": decider.trace_lost,
            **held_calls(decider, self._clock),
            "beat": beat,
            "leave": lambda: self._spawn(self._left(link)),
        }

    def _turns(self, link: Link, turns: "dict[str, asyncio.Future[Decision]]") -> dict[str, Verb]:
        """The verbs of calls that wait for their turn, which their agents may leave."""
        decider = self._decider

        def admit_in_turn(ask: Ask, version: int, wait_seconds: float) -> "asyncio.Future[Any]":
            if version != self._fleet.version:
                return _failed(PolicyMoved())
            ask = replace(ask, at_us=self._clock.now_us(), worker=link.worker.id)
            turn = decider.admit_in_turn(ask, decider.policy, wait_seconds, whole=False)
            turns[ask.call_id] = turn
            turn.add_done_callback(lambda _: turns.pop(ask.call_id, None))
            return turn

        def gone(call_id: str) -> None:
            if call_id in turns:
                turns[call_id].cancel()

        return {"admit_in_turn": admit_in_turn, "gone": gone}

    async def _left(self, link: Link) -> None:
        """An orderly end: all its calls are settled."""
        self._links.pop(link.worker.id, None)
        self._fleet.leave(link.worker)
        await self._decider.act(lambda store: store.leave(link.worker.id))

    def _await(self, worker: Worker) -> None:
        """Its connection is gone. It comes back soon, or it is ended for good."""
        absent = Absent(worker)
        self._fleet.miss(absent)
        self._spawn(self._awaited(absent))

    async def _awaited(self, absent: Absent) -> None:
        worker, why = absent.worker, "did not come back"
        deadline = self._clock.monotonic_seconds() + ACK_SECONDS
        while self._clock.monotonic_seconds() < deadline:
            if not self._fleet.misses(absent):
                return
            if not process.lives(worker):
                why = "ended"
                break
            await asyncio.sleep(_LOOK_SECONDS)
        if self._fleet.misses(absent):
            await self._fleet.end(worker, why)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            now_seconds = self._clock.monotonic_seconds()
            for link in list(self._links.values()):
                link.peer.tell("beat")
                if now_seconds - link.heard_seconds > SILENT_SECONDS:
                    del self._links[link.worker.id]
                    self._spawn(self._fleet.end(link.worker, "is silent"))
            heard = [
                link.worker.id
                for link in self._links.values()
                if now_seconds - link.heard_seconds < 2 * BEAT_SECONDS
            ]
            with contextlib.suppress(LedgerError):  # the store's failure shows elsewhere
                await self._seen(heard, self._clock.now_us())

    def _seen(self, heard: list[str], now_us: int) -> "asyncio.Future[None]":
        return self._decider.act(lambda store: store.seen(heard, now_us), durable=False)

    def _spawn[T](self, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _failed(failure: Exception) -> "asyncio.Future[Any]":
    future = asyncio.get_running_loop().create_future()
    future.set_exception(failure)
    return future
