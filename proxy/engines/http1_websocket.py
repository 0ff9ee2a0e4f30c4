"""A WebSocket between a client and its upstream, relayed message by message: each of the client's
is judged before it leaves, and nothing passes beside the messages.

Compression is never negotiated (proxy/head.py), so a frame is as long as it looks. A ping is
answered here and goes on without its payload: each side stays alive, and no data passes in frames
that nobody judges. Neither side is read while what it caused to be sent is not taken: who asks and
never listens fills no memory.
"""

import asyncio
from collections import deque
from typing import Any, Protocol

import structlog
from wsproto import ConnectionType
from wsproto.connection import Connection, ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Event, Message, Ping, Pong, TextMessage

from proxy.engines.faults import OWN_FAILURE
from proxy.engines.http1_upstream import Upstream
from proxy.engines.waits import FRAGMENTS_MAX, MESSAGE_BYTES_MAX

log = structlog.get_logger()

CUT_CODE, TOO_LARGE_CODE = 1008, 1009  # RFC 6455, section 7.4.1
_REASON_BYTES_MAX = 120  # a control frame holds 125 bytes, two of them the code


class Client(Protocol):
    """The client's side of the relay. `is_full` while it takes nothing."""

    is_full: bool

    def write(self, data: bytes) -> None: ...

    def pause(self) -> None:
        """It is not read, until `resume`."""

    def resume(self) -> None: ...

    async def drained(self) -> None:
        """Until it takes more, or has gone."""

    def close(self) -> None:
        """After what was written."""


class Judge(Protocol):
    """The call that the WebSocket is."""

    async def said(self, content: bytes) -> bool:
        """A message of the client's: whether it may go on. If not, the relay is to be cut."""

    def told(self, content: bytes) -> None:
        """A message of the upstream's."""

    def closed(self, failure: str) -> None:
        """The relay is over, however that came; once, and not after `cut`. `failure` is ours."""


class _Side:
    """What one side says. Fragments are kept as they came, since some servers take none.

    `waiting` came and was not looked at yet; `is_heard` while something of it is.
    """

    def __init__(self, kind: ConnectionType) -> None:
        self.frames = Connection(kind)
        self.fragments = [bytearray()]
        self.is_text = False
        self.waiting: deque[bytes | None] = deque()
        self.is_heard = False

    def heard(self, data: bytes | None) -> list[Event]:
        """What is complete now; None for data is the end."""
        if self.frames.state is ConnectionState.CLOSED:
            return []
        self.frames.receive_data(data)
        return list(self.frames.events())

    def take(self, part: Message[Any]) -> list[bytearray] | None:
        """The fragments of a message, once it is whole."""
        self.is_text = isinstance(part, TextMessage)
        self.fragments[-1] += part.data.encode() if isinstance(part.data, str) else part.data
        if part.message_finished:
            whole, self.fragments = self.fragments, [bytearray()]
            return whole
        if part.frame_finished:
            self.fragments.append(bytearray())
        return None

    @property
    def is_too_large(self) -> bool:
        held = self.fragments
        return len(held) > FRAGMENTS_MAX or sum(map(len, held)) > MESSAGE_BYTES_MAX


class Relay:
    """`from_client` is given what the client sends; what the upstream does comes by itself.

    A side is not read while a message of its is judged, nor while the one that was told of what it
    said, be it itself by a pong, takes nothing.
    """

    def __init__(self, client: Client, upstream: Upstream, judge: Judge) -> None:
        self._client = client
        self._upstream = upstream
        self._judge = judge
        self._here = _Side(ConnectionType.SERVER)
        self._there = _Side(ConnectionType.CLIENT)
        self._is_denied = False  # a cut is on its way
        self._is_over = False

    def begin(self, rest: bytes) -> None:
        """After the client has been sent the head of the answer; `rest` is what came behind it."""
        self._upstream.divert(self)
        if rest:
            self.received(rest)

    def from_client(self, data: bytes) -> None:
        self._queue_of_client(data)

    def client_ended(self) -> None:
        """It left."""
        self._queue_of_client(None)

    def received(self, data: bytes) -> None:
        """Of the upstream."""
        self._queue_of_upstream(data)

    def upstream_ended(self) -> None:
        self._queue_of_upstream(None)

    def cut(self, reason: str) -> None:
        """At once: what waits to be sent upstream does not leave, the client is told."""
        if self._is_over:
            return
        self._is_over = True
        self._upstream.abort()
        self._say_close(self._here, CUT_CODE, reason)
        self._client.close()

    # What comes of a side: in order, each frame after the one before it

    def _queue_of_client(self, data: bytes | None) -> None:
        if self._goes_on():
            self._here.waiting.append(data)
            if not self._here.is_heard:
                self._client.pause()
                self._begin_hearing(self._here)

    def _queue_of_upstream(self, data: bytes | None) -> None:
        """Nobody judges that: it passes in this turn, as far as it is taken."""
        if self._goes_on():
            self._there.waiting.append(data)
            if not self._there.is_heard:
                self._begin_hearing(self._there, at_once=True)
            if self._there.is_heard:
                self._upstream.pause()

    def _goes_on(self) -> bool:
        return not (self._is_over or self._is_denied)

    def _begin_hearing(self, side: _Side, *, at_once: bool = False) -> None:
        side.is_heard = True
        loop = asyncio.get_running_loop()
        hearing = asyncio.Task(self._hear(side), loop=loop, eager_start=at_once)
        if hearing.done():
            self._heard(hearing)
        else:
            hearing.add_done_callback(self._heard)

    async def _hear(self, side: _Side) -> None:
        while side.waiting and self._goes_on():
            for event in side.heard(side.waiting.popleft()):
                await self._of(event, side)
                if not self._goes_on():
                    return
            if side.is_too_large:
                self._too_large()
        side.is_heard = False
        if self._goes_on():
            (self._client if side is self._here else self._upstream).resume()

    async def _of(self, event: Event, side: _Side) -> None:
        other = self._there if side is self._here else self._here
        if isinstance(event, Message):
            fragments = side.take(event)
            if fragments is not None:
                await self._whole(fragments, side, other)
        elif isinstance(event, Ping):
            self._send(side, event.response())
            self._send(other, Ping())
            await self._taken(side)
            await self._taken(other)
        elif isinstance(event, CloseConnection):
            for each in (self._there, self._here):
                self._send(each, CloseConnection(event.code, event.reason))
            self._finish()
        elif not isinstance(event, Pong):
            raise TypeError(f"{type(event).__name__} comes from no WebSocket")

    async def _whole(self, fragments: list[bytearray], side: _Side, other: _Side) -> None:
        """A message is whole."""
        is_text, content = side.is_text, b"".join(fragments)
        if side is self._there:
            self._judge.told(content)
        elif not await self._judge.said(content):
            self._is_denied = True
        if self._goes_on():
            self._pass_on(fragments, other, is_text=is_text)
            await self._taken(other)

    async def _taken(self, by: _Side) -> None:
        """Until that side takes more, has gone, or the call is cut: as late as it is idle."""
        if by is self._there:
            await self._upstream.drained()
        elif self._client.is_full:  # else what it is told in one turn may leave together
            await self._client.drained()

    # What is said

    def _pass_on(self, fragments: list[bytearray], to: _Side, *, is_text: bool) -> None:
        last = len(fragments) - 1
        for place, fragment in enumerate(fragments):
            if is_text:
                text = fragment.decode(errors="replace")
                self._send(to, TextMessage(text, message_finished=place == last))
            else:
                self._send(to, BytesMessage(bytes(fragment), message_finished=place == last))

    def _send(self, to: _Side, event: Event) -> None:
        open_to = (ConnectionState.OPEN, ConnectionState.REMOTE_CLOSING)
        closing = isinstance(event, CloseConnection)
        if to.frames.state not in (open_to if closing else open_to[:1]):
            return
        said = to.frames.send(event)
        if to is self._here:
            self._client.write(said)
        else:
            self._upstream.write(said)

    def _say_close(self, to: _Side, code: int, reason: str) -> None:
        words = reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore")
        self._send(to, CloseConnection(code, words))

    def _too_large(self) -> None:
        for side in (self._there, self._here):
            self._say_close(side, TOO_LARGE_CODE, "message too large")
        self._finish()

    def _finish(self) -> None:
        """Both sides were told what there was to tell."""
        self._is_over = True
        self._upstream.close()
        self._client.close()
        self._judge.closed("")

    def _heard(self, task: asyncio.Task[None]) -> None:
        """Whatever fails here, nothing passes any more."""
        failure = None if task.cancelled() else task.exception()
        if failure is not None:
            log.error("engine.crashed", exc_info=failure)
        if (failure is not None or task.cancelled()) and not self._is_over:
            self.cut(OWN_FAILURE)
            self._judge.closed(OWN_FAILURE)
