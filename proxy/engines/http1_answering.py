"""An upstream's answer on its way to the client: counted, held where it must be, settled.

The upstream tells of it in the loop's turn and is heard at once, unless something has to be waited
for: then it is not read, what it has told already queues, and `steps` waits.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from policies.verdict import Reason
from proxy import head
from proxy.engines import http1_wire as wire
from proxy.engines.flowing import Held, way_of
from proxy.engines.waits import ANSWER_HELD_BYTES_MAX
from proxy.held import OneBehind
from proxy.refuse import Refusal

if TYPE_CHECKING:
    from proxy.engines.http1 import Http1Engine
    from proxy.engines.http1_client import Client
    from proxy.engines.http1_request import Incoming
    from proxy.engines.http1_upstream import Upstream
    from proxy.live import Live

DRAWN_BYTES_MAX = 65_535  # of a stream that is held to what was granted: it passes that by so much

Step = Callable[[], Awaitable[None]]

_TRANSFER, _LENGTH, _CONNECTION = b"transfer-encoding", b"content-length", b"connection"
_HELD_BACK = (_TRANSFER, _CONNECTION)  # of one connection: ours to the client has its own


class _End:
    """All of the answer came."""


class _Failed:
    """It broke off."""


class Answering:
    """What an exchange does with the answer. `answering` once its head is on its way to the client;
    after that only a cut can end it."""

    client: "Client"
    engine: "Http1Engine"
    request: "Incoming"
    live: "Live"
    upstream: "Upstream | None"
    usage_asked: bool
    is_left: bool
    cut_by: str

    def __init__(self) -> None:
        self.answering = False
        self.is_last = False  # its client was told that no other follows
        self.is_over = False
        self.status: int | None = None
        self.fields: head.Headers = ()
        self.why = ""  # it failed
        self._held: Held | None = None
        self._kept: list[bytes] | None = None  # all of it, while it may not flow at all
        self._kept_bytes = 0
        self._settles_last = False
        self._draws = False
        self._chunked = False
        self._is_busy = False
        self._queue: deque[bytes | type[_End] | type[_Failed]] = deque()
        self._step: Step | None = None
        self._woken: asyncio.Future[None] | None = None
        self._undrawn = b""
        self._is_denied = False  # the cut that follows ends it
        self._failure: Exception | None = None

    # What the upstream tells

    def headed(self, status: int, fields: head.Headers, *, to_its_end: bool) -> None:
        if self.is_over:
            return
        try:
            self._headed(status, fields)
        except Exception as failure:
            self.broke(failure)

    def chunk(self, data: bytes) -> None:
        if self._draws and len(data) > DRAWN_BYTES_MAX:
            for place in range(0, len(data), DRAWN_BYTES_MAX):
                self.chunk(data[place : place + DRAWN_BYTES_MAX])
            return
        if self._is_busy:
            self._queue.append(data)
            return
        try:
            self._take(data)
        except Exception as failure:
            self.broke(failure)

    def ended(self, trailers: head.Headers) -> None:
        """HTTP/1 is given no trailers here."""
        if self._is_busy:
            self._queue.append(_End)
        else:
            self._do(self._finish)

    def failed(self, why: str, *, unprocessed: bool = False) -> None:
        self.why = why
        if unprocessed and self.status is None:
            self.live.sent = False  # so the write may be made again
        if self._is_busy:
            self._queue.append(_Failed)
        else:
            self._do(self._broken_off)

    # Waiting

    async def steps(self) -> None:
        """Until the answer is over, whatever becomes of it."""
        while not self.is_over:
            step, self._step = self._step, None
            if step is None:
                self._woken = asyncio.get_running_loop().create_future()
                await self._woken
                self._woken = None
                continue
            await step()
            self._go_on()

    def _do(self, step: Step) -> None:
        """Something that has to be waited for; until then nothing more of the answer is heard."""
        if self._step is None:
            self._step = step
        self._is_busy = True
        if self.upstream is not None and step != self._finish:
            self.upstream.pause()
        self.wake()

    def interrupt(self, step: Step) -> None:
        """In place of all that was still to come."""
        self._queue.clear()
        self._step = None
        self._do(step)

    def wake(self) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    def broke(self, failure: Exception) -> None:
        """Something of ours raised in the loop's turn: it is raised where it is caught."""
        self._failure = failure
        self.interrupt(self._raised)

    async def _raised(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _go_on(self) -> None:
        """What queued while a step was awaited."""
        if self._is_denied:
            self._queue.clear()
            return
        while self._queue and self._step is None and not self.is_over:
            told = self._queue.popleft()
            if told is _End:
                self._do(self._finish)
            elif told is _Failed:
                self._do(self._broken_off)
            elif isinstance(told, bytes):
                self._take(told)
        if self._step is None and not self.is_over:
            self._is_busy = False
            self.client_takes()

    def client_takes(self) -> None:
        """The client takes more; so does whoever reads the upstream."""
        takes = self.is_left or not self.client.is_full
        if self.upstream is not None and not self._is_busy and takes:
            self.upstream.resume()

    def client_is_full(self) -> None:
        if self.upstream is not None and not self.is_left:
            self.upstream.pause()

    # Its head

    def _headed(self, status: int, fields: head.Headers) -> None:
        live = self.live
        self.touch(self.engine.timeouts.idle_seconds)
        ours = head.agent_headers(fields, live.decision)
        named = {name.lower(): value for name, value in ours}
        kind = named.get(b"content-type", b"").decode("latin-1")
        coding = named.get(b"content-encoding", b"").decode("latin-1")
        way = way_of(live, kind, coding, usage_asked=self.usage_asked)
        self._held, self._settles_last = way.held, way.settles_last
        self.fields = self._framed(status, ours, named)
        if live.catch is not None:
            live.catch.headed(status, self.fields)
        self.engine.gate.answering(live, kind, coding)
        self.status = status
        self._draws = live.spending is not None
        if way.settles_first:
            self._kept = []
        else:
            self._send_head()

    def _framed(self, status: int, ours: head.Headers, named: dict[bytes, bytes]) -> head.Headers:
        """How the answer ends for the client: by its length, or in chunks. One that ends with its
        connection is chunked, too: who is given it could not tell one that broke off from a whole
        one else (RFC 9112, section 8)."""
        kept = tuple(field for field in ours if field[0].lower() not in _HELD_BACK)
        if self.request.method == "HEAD" or status in (204, 304):
            return kept
        is_changed = self._held is not None and self.usage_asked
        if _LENGTH in named and not is_changed:
            return kept
        if is_changed:
            kept = tuple(field for field in kept if field[0].lower() != _LENGTH)
        self._chunked = not self.request.http10
        return (*kept, wire.CHUNKED) if self._chunked else kept

    def _send_head(self) -> None:
        self.answering = True
        self.is_last = self.closes()
        fields = (*self.fields, wire.CLOSE) if self.is_last else self.fields
        self._send(wire.answer_head(self.status or 0, fields))

    def _send(self, data: bytes) -> None:
        if not self.is_left:
            self.client.write(data)

    # Its content

    def _take(self, data: bytes) -> None:
        self.touch(self.engine.timeouts.idle_seconds)
        if self._kept is not None:
            self._kept.append(data)
            self._kept_bytes += len(data)
            if self._kept_bytes > ANSWER_HELD_BYTES_MAX:
                self._do(self._outgrown)
            return
        if self.engine.gate.body(self.live, data) and self._draws:
            self._undrawn = data
            self._do(self._draw)
            return
        self._flow(data)

    def _flow(self, data: bytes) -> None:
        if self._held is not None:
            data = self._held.feed(data)
        if data:
            self._send(wire.chunk(data) if self._chunked else data)
        if self.client.is_full:  # since the answer before this one, it may be
            self.client_is_full()

    async def _draw(self) -> None:
        """It came to more than it was granted: more is granted, or it is cut."""
        rule = await self.unless_cut(self.engine.gate.draw(self.live))
        data, self._undrawn = self._undrawn, b""
        if rule == "" and not self.cut_by:
            self._flow(data)
            return
        self._is_denied = True
        if rule is not None:
            self.engine.cut([self.live], rule)

    async def _outgrown(self) -> None:
        """A write's answer is too long to be held: once its outcome is durable it flows."""
        kept, self._kept = b"".join(self._kept or ()), None
        self.live.answer = None  # what is held of it comes again, as it flows
        reply = await self.settle(complete=True, ended=False)
        if reply is not None:
            await self.not_recorded(reply)
            return
        if self.cut_by:
            return
        self.engine.gate.keep_long(self.live)
        if self.live.file is not None:  # whoever has all of it can be given it again
            self._settles_last, self._held = True, OneBehind()
        self._send_head()
        self._take(kept)

    # Its end

    async def _finish(self) -> None:
        if self._kept is not None:
            await self._finish_whole(b"".join(self._kept))
            return
        gate = self.engine.gate
        if self._settles_last:
            reply = await self.settle(complete=True, ended=False)
            await gate.keep(self.live, self.status or 0, wire.kept(self.fields))
            if reply is not None:
                await self.settle(complete=False)
                self.broken()
                return
        rest = self._held.rest() if self._held is not None else b""
        if rest:
            self._send(wire.chunk(rest) if self._chunked else rest)
        await self.settle(complete=True)
        if self._chunked:
            self._send(wire.LAST_CHUNK)
        self.whole()

    async def _finish_whole(self, body: bytes) -> None:
        """A write's answer of which nothing flowed yet."""
        if body:
            self.engine.gate.body(self.live, body)
        reply = await self.settle(complete=True)
        if reply is not None:
            await self.not_recorded(reply)
            return
        self._send_head()
        if body:
            self._send(wire.chunk(body) if self._chunked else body)
        if self._chunked:
            self._send(wire.LAST_CHUNK)
        self.whole()

    async def _broken_off(self) -> None:
        """The upstream broke it off, or closes of ours did."""
        await self.end_badly(self.why)

    # What the exchange does

    def touch(self, wait_seconds: float) -> None:
        raise NotImplementedError

    def closes(self) -> bool:
        """Whether its client gets no other answer on this connection."""
        raise NotImplementedError

    async def unless_cut(self, work: Awaitable[str]) -> str | None:
        raise NotImplementedError

    async def settle(
        self,
        *,
        complete: bool,
        ended: bool = True,
        fault: Reason | None = None,
        error: str = "",
    ) -> Refusal | None:
        raise NotImplementedError

    async def not_recorded(self, reply: Refusal) -> None:
        """Nothing of the answer flowed, and nothing of it may: the client is told so."""
        raise NotImplementedError

    async def end_badly(self, why: str) -> None:
        raise NotImplementedError

    def whole(self) -> None:
        """All of the answer went."""
        raise NotImplementedError

    def broken(self) -> None:
        """The client can have no more of it."""
        raise NotImplementedError
