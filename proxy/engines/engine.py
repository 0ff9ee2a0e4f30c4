"""What every engine does, whichever library it speaks HTTP with: it takes clients in, as many as
there is room for, knows the calls under way, cuts them, and ends in order.

It holds no policy: `proxy.gate` is its only tie (design, section 2).
"""

import asyncio
import contextlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from proxy.authority import Authority
from proxy.dial import Dialer
from proxy.engines import handles
from proxy.engines.arriving import Bodies
from proxy.engines.waits import (
    ACCEPT_PAUSE_SECONDS,
    ACCEPTS_AT_ONCE,
    CUT_SECONDS,
    SWEEP_SECONDS,
    Timeouts,
)
from proxy.gate import Gate
from proxy.live import Live

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Needs:
    """What an engine is made with. `body_bytes_max` is of a request that is held to be judged,
    `bodies` are those of all engines of this process."""

    gate: Gate
    dialer: Dialer
    authority: Authority
    timeouts: Timeouts
    body_bytes_max: int
    bodies: Bodies


class Client(Protocol):
    """A connection. `is_stranger` until somebody we know has asked for something; `ended` is set
    once it is no more."""

    is_stranger: bool
    ended: asyncio.Event

    def hang_up(self) -> None:
        """After what was written to it."""

    def abort(self) -> None:
        """At once."""


class Exchange(Protocol):
    """A call that was let through. `deadline_seconds` is the loop's time; `cut_by` tells why it is
    being cut; `ended_mark` is set once it is closed on both sides and settled."""

    cut_by: str
    cutting: "asyncio.Task[None] | None"
    deadline_seconds: float
    ended_mark: asyncio.Event

    @property
    def live(self) -> Live: ...


class Engine[C: Client, E: Exchange](ABC):
    """Listens, and turns what clients and upstreams say into the gate's protocol and back."""

    def __init__(self, needs: Needs, room: handles.Room | None = None) -> None:
        self.gate = needs.gate
        self.dialer = needs.dialer
        self.timeouts = needs.timeouts
        self.body_bytes_max = needs.body_bytes_max
        self.exchanges: dict[str, E] = {}  # by the call's id
        self.bodies = needs.bodies
        self.room = room or handles.room()
        self.clients: dict[C, None] = {}  # the one that came first is first
        self.taken = 0  # clients, and those that are being taken over
        self._tasks: set[asyncio.Task[Any]] = set()
        self._listener: socket.socket | None = None

    @abstractmethod
    async def serve(self, connected: socket.socket) -> None:
        """A client that was taken in. Whoever ends serving it counts it out of `taken`."""

    @abstractmethod
    def break_off(self, exchange: E) -> None:
        """One that is being cut: in this turn of the loop what still flows of it stops."""

    @abstractmethod
    async def close(self, exchange: E) -> None:
        """What is left to close of it. It settles soon."""

    @abstractmethod
    async def abandon(self, exchange: E) -> None:
        """Settle one that has not in time."""

    @abstractmethod
    def sweep(self, now_seconds: float) -> None:
        """Refuse requests that do not end in time, and hang up on silent clients."""

    async def start(self, listener: socket.socket | None) -> None:
        """Serve on a bound socket, which must carry IPPROTO_TCP (notes/performance.md); without
        one only those clients that another engine hands over."""
        if listener is not None:
            listener.setblocking(False)
            self._listener = listener
            self._listen()
        self.spawn(self._sweep())

    async def stop(self, drain_seconds: float) -> None:
        """Stop listening, let what is in flight end, then cut the rest."""
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        await _all_set([item.ended_mark for item in self.exchanges.values()], drain_seconds)
        await self.cut([item.live for item in self.exchanges.values()], "shutdown")
        clients = list(self.clients)
        for client in clients:
            client.hang_up()
        await _all_set([client.ended for client in clients], CUT_SECONDS)
        for task in self._tasks:
            task.cancel()

    # Calls

    def cut(self, calls: Iterable[Live], reason: str) -> "asyncio.Future[Any]":
        """Close these calls at once, on both sides. Done when each is closed and settled."""
        told = [self.exchanges.get(live.call_id) for live in calls]
        found = [exchange for exchange in told if exchange is not None]
        fresh = [exchange for exchange in found if exchange.cutting is None]
        for exchange in fresh:
            exchange.cut_by = reason
        # In the next turn, when whoever was told in this one why its call ends has heard it.
        asyncio.get_running_loop().call_soon(self._break_off, fresh)
        for exchange in fresh:
            exchange.cutting = self.spawn(self._cut(exchange))
        # Whoever gives up, the cut goes on.
        waits = [asyncio.shield(exchange.cutting) for exchange in found if exchange.cutting]
        return asyncio.gather(*waits, return_exceptions=True)

    def _break_off(self, exchanges: list[E]) -> None:
        """All of them before the first is settled, whatever one of them raises."""
        for exchange in exchanges:
            try:
                self.break_off(exchange)
            except Exception:  # it is abandoned in time
                log.exception("engine.crashed", call=exchange.live.call_id)

    async def _cut(self, exchange: E) -> None:
        await self.close(exchange)
        await _all_set([exchange.ended_mark], CUT_SECONDS)
        if not exchange.ended_mark.is_set():
            log.error("engine.cut_late", call=exchange.live.call_id)
            await self.abandon(exchange)

    async def _sweep(self) -> None:
        """Cut what waits longer than its deadline, and see to the clients."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now_seconds = asyncio.get_running_loop().time()
            late = [
                exchange.live
                for exchange in self.exchanges.values()
                if exchange.deadline_seconds < now_seconds and exchange.cutting is None
            ]
            self.cut(late, "timeout")
            self.sweep(now_seconds)

    # Clients

    def takes_one_more(self) -> bool:
        """Whether there is room for a client. It was made, if need be, by hanging up on the one
        that has been silent about itself for longest."""
        if self.taken < self.room.clients:
            return True
        stranger = next((one for one in self.clients if one.is_stranger), None)
        if stranger is not None:
            stranger.is_stranger = False
            stranger.abort()
        return stranger is not None

    def _listen(self) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        """asyncio's own would try again a hundred times over when there is no room left."""
        for _ in range(ACCEPTS_AT_ONCE):
            try:
                connected, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log.error("engine.cannot_accept", error=error.strerror)
                loop = asyncio.get_running_loop()
                loop.remove_reader(listener)
                loop.call_later(ACCEPT_PAUSE_SECONDS, self._listen)
                return
            if not self.takes_one_more():
                connected.close()  # no words: writing them would take what there is no more of
                continue
            connected.setblocking(False)
            self.taken += 1
            self.spawn(self.serve(connected))

    # Tasks

    def spawn(self, work: Coroutine[Any, Any, Any]) -> "asyncio.Task[Any]":
        """Run beside the connection that asked; cancelled when the engine stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def begun(self, call: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """As `spawn`, for what tells itself that it has `ended`: a call has no turn to lose."""
        task = asyncio.get_running_loop().create_task(call)
        self._tasks.add(task)
        return task

    def ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)


async def _all_set(marks: list[asyncio.Event], wait_seconds: float) -> None:
    """Wait until each is set, no longer than that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_seconds):
            for mark in marks:
                await mark.wait()
