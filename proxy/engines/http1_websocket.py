"""A WebSocket between a client and its upstream, relayed message by message: each of the client's
is judged before it leaves, and nothing passes beside the messages.

Compression is never negotiated (proxy/head.py), so a frame is as long as it looks. A ping is
answered here and goes on without its payload: each side stays alive, and no data passes in frames
that nobody judges.
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
    """The client's side of the relay."""

    def write(self, data: bytes) -> None: ...

    def pause(self) -> None:
        """It is not read, until `resume`."""

    def resume(self) -> None: ...

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
    """What one side says. Fragments are kept as they came, since some servers take none."""

    def __init__(self, kind: ConnectionType) -> None:
        self.frames = Connection(kind)
        self.fragments = [bytearray()]
        self.is_text = False

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

    While a message is judged, or the upstream takes nothing, the client is not read. Whoever knows
    that the client takes nothing pauses the upstream.
    """

    def __init__(self, client: Client, upstream: Upstream, judge: Judge) -> None:
        self._client = client
        self._upstream = upstream
        self._judge = judge
        self._here = _Side(ConnectionType.SERVER)
        self._there = _Side(ConnectionType.CLIENT)
        self._waiting: deque[bytes | None] = deque()
        self._hearing: asyncio.Task[None] | None = None
        self._is_denied = False  # a cut is on its way
        self._is_over = False

    def begin(self, rest: bytes) -> None:
        """After the client has been sent the head of the answer; `rest` is what came behind it."""
        if rest:
            self.received(rest)
        if not self._is_over:
            self._upstream.divert(self)

    def from_client(self, data: bytes) -> None:
        self._queue(data)

    def client_ended(self) -> None:
        """It left."""
        self._queue(None)

    def cut(self, reason: str) -> None:
        """At once: what waits to be sent upstream does not leave, the client is told."""
        if self._is_over:
            return
        self._is_over = True
        self._upstream.abort()
        self._say_close(self._here, CUT_CODE, reason)
        self._client.close()

    # The client's side: in order, each message after the one before it

    def _queue(self, data: bytes | None) -> None:
        if not self._goes_on():
            return
        self._waiting.append(data)
        if self._hearing is None:
            self._client.pause()
            self._hearing = asyncio.get_running_loop().create_task(self._hear_client())
            self._hearing.add_done_callback(self._heard)

    def _goes_on(self) -> bool:
        return not (self._is_over or self._is_denied)

    async def _hear_client(self) -> None:
        while self._waiting and self._goes_on():
            for event in self._here.heard(self._waiting.popleft()):
                await self._of_client(event)
                if not self._goes_on():
                    return
            if self._here.is_too_large:
                self._too_large()
        self._hearing = None
        if not self._is_over:
            self._client.resume()

    async def _of_client(self, event: Event) -> None:
        if not isinstance(event, Message):
            self._of_either(event, self._here, self._there)
            return
        fragments = self._here.take(event)
        if fragments is None:
            return
        is_text = self._here.is_text
        passes = await self._judge.said(b"".join(fragments))
        if self._is_over:
            return
        if passes:
            self._pass_on(fragments, self._there, is_text=is_text)
            await self._upstream.drained()
        else:
            self._is_denied = True

    # The upstream's side

    def received(self, data: bytes) -> None:
        """Of the upstream."""
        self._hear_upstream(data)

    def upstream_ended(self) -> None:
        self._hear_upstream(None)

    def _hear_upstream(self, data: bytes | None) -> None:
        if self._is_over:
            return
        for event in self._there.heard(data):
            if not self._goes_on():
                return
            if not isinstance(event, Message):
                self._of_either(event, self._there, self._here)
                continue
            fragments = self._there.take(event)
            if fragments is not None:
                self._judge.told(b"".join(fragments))
                self._pass_on(fragments, self._here, is_text=self._there.is_text)
        if self._there.is_too_large and not self._is_over:
            self._too_large()

    # Both

    def _of_either(self, event: Event, side: _Side, other: _Side) -> None:
        if isinstance(event, Ping):
            self._send(side, event.response())
            self._send(other, Ping())
        elif isinstance(event, CloseConnection):
            for each in (self._there, self._here):
                self._send(each, CloseConnection(event.code, event.reason))
            self._finish()
        elif not isinstance(event, Pong):
            raise TypeError(f"{type(event).__name__} comes from no WebSocket")

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
