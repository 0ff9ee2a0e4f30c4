"""What an engine catches of its calls for the trace, on its way to the process that keeps it.

Catching is an append: nothing here parses, redacts or compresses, and nothing here can stop a call
or make it wait. What does not fit into memory, or meets no tracer, is dropped, counted and told.
"""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import Any, Literal, Self

import structlog

from ledger.errors import LedgerError
from ledger.records import Ask
from ledger.traced import Side
from policies.call import Identity
from policies.policy import Policy
from proxy.catching import CHUNK_BYTES, Catch, Fields, Of
from proxy.clock import Clock
from proxy.control_socket import address, peer_uid
from proxy.wire import Peer, PeerGone

log = structlog.get_logger()

SOCKET = Path("private", "tracer.sock")

HELD_BYTES_MAX = 64 * 1024 * 1024  # what is caught and not kept yet, all calls of a process
HELD_MESSAGES_MAX = 20_000  # the same; each costs more than its bytes
BATCH_BYTES_MAX = 1024 * 1024  # sent at once, unless one message is longer
BATCH_MESSAGES_MAX = 500
GATHER_SECONDS = 0.05  # what is caught within it goes together
KEEP_SECONDS = 30.0  # a tracer that has not kept a batch by then is taken for gone
RETRY_SECONDS = 0.1
LOST_SECONDS = 2.0  # a loss is told when it has lasted so long
LOST_AGAIN_SECONDS = 60.0  # and as long as it lasts, this often
LOST_RUNS_MAX = 10  # so many runs are named
CLOSE_SECONDS = 2.0  # what is not kept so long after the last call is lost
_HOUR_SECONDS = 3_600.0

Level = Literal["full", "digest", "none"]
Message = tuple[Any, ...]
"""What `ledger.traced.Caught` is made of, in its order, as plain values: they cross a socket."""


@dataclass(eq=False, slots=True)
class Lost:
    """Messages that are missing from the trace, whole or their bodies."""

    since_us: int
    why: str
    messages: int = 0
    runs: dict[str, None] = field(default_factory=dict)

    def name(self, *runs: str) -> None:
        """As far as there is room."""
        for run in runs:
            if len(self.runs) < LOST_RUNS_MAX:
                self.runs[run] = None


Tell = Callable[[int, tuple[str, ...], int, int, str], Awaitable[Any]]
"""Records a loss: how many messages, of which runs, since when and until when, why."""


class Tracing:
    """Of one engine process. From `start` to `close` what is caught is sent to the tracer. `first`
    is set when the first message was caught."""

    def __init__(
        self,
        clock: Clock,
        level: Level = "none",
        path: Path = SOCKET,
        body_bytes_max: int = BATCH_BYTES_MAX,
        tell: Tell | None = None,
    ) -> None:
        self.body_bytes_max = body_bytes_max
        self.first = asyncio.Event()
        self._clock = clock
        self._level = level
        self._path = path
        self._tell = tell
        self._held_bytes = 0
        self._waiting: deque[tuple[Message, int]] = deque()
        self._sending: list[tuple[Message, int]] = []
        self._awake = asyncio.Event()
        self._moved = asyncio.Event()  # what waited was kept, or given up
        self._running: asyncio.Task[None] | None = None
        self._lost: Lost | None = None
        self._lost_messages = 0
        self._lost_seconds = -inf
        self._telling: asyncio.Task[None] | None = None
        self._told_seconds = -inf
        self._closing = False
        self._failed = False

    @property
    def behind(self) -> int:
        """Messages that the tracer has not kept yet."""
        return len(self._waiting) + len(self._sending)

    def state(self) -> dict[str, int]:
        """For people: what waits, and what was lost in the last hour, or in the one before its last
        loss."""
        now_seconds = self._clock.monotonic_seconds()
        lost = self._lost_messages if now_seconds - self._lost_seconds < _HOUR_SECONDS else 0
        return {"behind": self.behind, "lost": lost}

    # What is caught. None of these raises, waits, or keeps a call from going on.

    def asked(
        self, ask: Ask, identity: Identity | None, policy: Policy, *, is_let_through: bool
    ) -> Catch | None:
        """A judged call's request; gives what catches its answer. Nothing of strangers is kept."""
        if identity is None:
            return None
        try:
            level = policy.tool(ask.call.tool).trace or self._level
            if level == "none":
                return None
            request = ask.request
            of = (
                *(ask.call_id, ask.at_us, identity.run, identity.tenant, ask.call.tool),
                *(identity.release, level, policy.redaction),
            )
            host = f"[{request.host}]" if ":" in request.host else request.host
            port = "" if request.port == _PORTS.get(request.scheme) else f":{request.port}"
            start = f"{request.method} {request.scheme}://{host}{port}{request.target}"
            if request.streamed and is_let_through:
                return Catch(self, of, (start, request.headers))
            body = request.body
            self.caught(of, Side.REQUEST, start, request.headers, body, len(body), ask.at_us)
            return Catch(self, of)
        except Exception as failure:
            self._broken(failure)
            return None

    def caught(
        self,
        of: Of,
        side: Side,
        start: str,
        fields: Fields,
        body: bytes,
        body_bytes: int,
        at_us: int | None = None,
    ) -> None:
        call_id, _, run, tenant, tool, release, level, redaction = of
        at_us = self._clock.now_us() if at_us is None else at_us
        head_bytes = len(start) + sum([len(name) + len(value) for name, value in fields])
        size_bytes = head_bytes + 8 * CHUNK_BYTES
        if len(self._waiting) >= HELD_MESSAGES_MAX or not self.hold(size_bytes):
            self.lost(run, at_us, "the tracer is away or behind")
            return
        if len(body) > self.body_bytes_max:
            body = body[: self.body_bytes_max]
        if body and not self.hold(len(body)):
            self.lost(run, at_us, "the tracer is away or behind")
            body = b""
        redacted = (redaction.headers, redaction.keys, redaction.patterns)
        message = (
            *(call_id, side.value, at_us, run, tenant, tool, release, level),
            *(start, fields, body, body_bytes, redacted),
        )
        self._waiting.append((message, size_bytes + len(body)))
        if not self._awake.is_set():
            self._awake.set()
            self.first.set()

    def hold(self, size_bytes: int) -> bool:
        """Whether there is room for so much more; then it is taken."""
        if self._held_bytes + size_bytes > HELD_BYTES_MAX:
            return False
        self._held_bytes += size_bytes
        return True

    def release(self, size_bytes: int) -> None:
        self._held_bytes -= size_bytes

    # What is lost

    def lost(self, run: str, at_us: int, why: str) -> None:
        """A message that was caught at that time is missing, or its body."""
        if self._lost is None:
            self._lost = Lost(at_us, why)
        self._lost.since_us = min(self._lost.since_us, at_us)
        self._lost.messages += 1
        now_seconds = self._clock.monotonic_seconds()
        if now_seconds - self._lost_seconds > _HOUR_SECONDS:
            self._lost_messages = 0
        self._lost_messages, self._lost_seconds = self._lost_messages + 1, now_seconds
        self._lost.name(run)
        if self._telling is None and not self._closing:
            log.error("trace.losing", why=why)
            self._telling = asyncio.get_running_loop().create_task(self._told())

    async def _told(self) -> None:
        """One row for each burst, and one a minute of a burst that does not end."""
        try:
            while self._lost is not None:
                since_seconds = self._clock.monotonic_seconds() - self._told_seconds
                await asyncio.sleep(max(LOST_SECONDS, LOST_AGAIN_SECONDS - since_seconds))
                await self._tell_lost()
        finally:
            self._telling = None

    async def _tell_lost(self) -> None:
        lost, self._lost = self._lost, None
        if lost is None or self._tell is None:
            return
        self._told_seconds = self._clock.monotonic_seconds()
        log.error("trace.lost", messages=lost.messages, why=lost.why)
        now_us, runs = self._clock.now_us(), tuple(lost.runs)
        try:
            await self._tell(lost.messages, runs, lost.since_us, now_us, lost.why)
        except Exception as failure:  # whoever cannot record it now is told again
            log.error("trace.loss_untold", error=str(failure))
            self._untold(lost)

    def _untold(self, lost: Lost) -> None:
        later = self._lost
        if later is not None:
            lost.messages += later.messages
            lost.since_us = min(lost.since_us, later.since_us)
            lost.name(*later.runs)
        self._lost = lost

    def _broken(self, failure: Exception) -> None:
        """By a bug of ours, which must not reach the call: told once."""
        if not self._failed:
            self._failed = True
            log.error("trace.failed", exc_info=failure)

    # On its way

    @contextlib.asynccontextmanager
    async def going(self) -> AsyncIterator[Self]:
        """From its start to its end."""
        self.start()
        try:
            yield self
        finally:
            await self.close()

    def start(self) -> None:
        self._running = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        while True:
            await self._awake.wait()
            if not self._waiting:
                self._awake.clear()
                continue
            try:
                with address(self._path) as name:
                    reader, writer = await asyncio.open_unix_connection(name)
            except OSError:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            if peer_uid(writer.get_extra_info("socket")) != os.geteuid():
                log.error("trace.stranger")
                writer.close()
                await asyncio.sleep(LOST_SECONDS)
                continue
            peer = Peer(reader, writer, {})
            serving = asyncio.create_task(peer.serve())
            serving.add_done_callback(lambda _: self._awake.set())
            try:
                await self._send(peer, serving)
            finally:
                self._drop("the tracer went away")
                peer.close()
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving

    async def _send(self, peer: Peer, serving: "asyncio.Task[None]") -> None:
        """Until the connection ends. What was sent and not answered is given up: it may be the
        very thing that the tracer died of."""
        while True:
            await self._awake.wait()
            if len(self._waiting) < BATCH_MESSAGES_MAX and not self._closing:
                await asyncio.sleep(GATHER_SECONDS)
            if serving.done():
                return  # it ended while nothing was under way
            batch = [message for message, _ in self._taken()]
            if not batch:
                self._awake.clear()
                continue
            try:
                async with asyncio.timeout(KEEP_SECONDS):
                    await peer.call("keep", batch)
            except (PeerGone, TimeoutError):
                return
            except (LedgerError, RuntimeError) as failure:
                self._drop(str(failure))
            self._kept()

    def _taken(self) -> list[tuple[Message, int]]:
        size_bytes = 0
        while self._waiting and len(self._sending) < BATCH_MESSAGES_MAX:
            size_bytes += self._waiting[0][1]
            if self._sending and size_bytes > BATCH_BYTES_MAX:
                break
            self._sending.append(self._waiting.popleft())
        return self._sending

    def _kept(self) -> None:
        sent, self._sending = self._sending, []
        self.release(sum(size_bytes for _, size_bytes in sent))
        self._moved.set()

    def _drop(self, why: str) -> None:
        for message, _ in self._sending:
            self.lost(message[3], message[2], why)
        self._kept()

    async def close(self) -> None:
        """After the last call: let the tracer keep what waits, and tell what is lost."""
        self._closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                while self.behind and self._running is not None:
                    await self._moved.wait()
                    self._moved.clear()
        for task in (self._running, self._telling):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        while self._waiting:
            self._taken()
            self._drop("pullcord ended before the tracer had kept it")
        await self._tell_lost()


_PORTS = {"https": 443, "http": 80}
