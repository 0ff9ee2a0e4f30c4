"""One connection to an upstream, in the clear or inside TLS: what is said to it, what it answers,
and when it has gone.

It serves one request at a time. What is not asked for is never read as an answer: an upstream that
speaks first, or once more, loses its connection.
"""

import asyncio
import contextlib
import re
import socket
import ssl
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import structlog

from policies.addresses import IPNetwork
from proxy.engines.faults import OWN_FAILURE
from proxy.engines.http1_answer import Answer, Broken, Listener
from proxy.engines.http1_tls import Tls

log = structlog.get_logger()

CLOSED_BEFORE_REQUEST = "the upstream closed the connection before the request"

_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: on, for no time (socket(7))
_BINDS = re.compile(rb"\r\nauthorization:[ \t]*(?:ntlm|negotiate)\b", re.IGNORECASE)
"""Such a request vouches for everything that follows on the connection (RFC 4559, section 6)."""

__all__ = ["CLOSED_BEFORE_REQUEST", "Listener", "Raw", "Upstream", "Where", "opened"]


@dataclass(frozen=True, slots=True)
class Where:
    """An address of upstreams. `host` is a name or an address without brackets."""

    host: str
    port: int
    is_tls: bool


class Raw(Protocol):
    """Who takes what comes once HTTP is over, and the end of it."""

    def received(self, data: bytes) -> None: ...

    def upstream_ended(self) -> None: ...


class Upstream(asyncio.Protocol):
    """`peer` is the address that was dialled, `vetted` the addresses that were allowed then.

    `answered_any` is whether anything came since the last request, `served` how many there were
    before it, `is_reusable` whether another may follow.
    """

    def __init__(
        self, where: Where, connected: socket.socket, lost: Callable[["Upstream"], None]
    ) -> None:
        self.where = where
        self.peer: str = connected.getpeername()[0]
        self.vetted: tuple[IPNetwork, ...] | None = None
        self.answered_any = False
        self.served = 0
        self.is_reusable = False
        self.opened_seconds = self.idle_seconds = asyncio.get_running_loop().time()
        self._socket = connected
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._tls: Tls | None = None
        self._agreed: asyncio.Future[None] | None = None
        self._listener: Listener | None = None
        self._answer: Answer | None = None
        self._raw: Raw | None = None
        self._begins = False  # the head of a request is still to be written
        self._binds = False
        self._has_gone = False
        self._free = asyncio.Event()
        self._free.set()

    @property
    def is_open(self) -> bool:
        return not self._has_gone

    @property
    def was_pooled(self) -> bool:
        """Whether its request is not the first one on it."""
        return self.served > 1

    @property
    def is_writing(self) -> bool:
        """Whether something waits to be sent."""
        return self._transport is not None and self._transport.get_write_buffer_size() > 0

    # What is said

    async def secure(self, context: ssl.SSLContext) -> None:
        """Agree on TLS, and be sure whom it is with. Raises ssl.SSLError, OSError or ValueError."""
        transport = self._transport
        if transport is None or self._has_gone:
            raise ConnectionResetError(CLOSED_BEFORE_REQUEST)
        self._tls = Tls(context, transport.write, server_side=False, server_name=self.where.host)
        self._agreed = asyncio.get_running_loop().create_future()
        self._tls.start()
        try:
            await self._agreed
        finally:
            self._agreed = None

    def begin(self, listener: Listener, method: str, *, websocket: bool) -> None:
        """A request follows; `listener` hears of its answer. One at a time."""
        if self._has_gone:
            never = asyncio.get_running_loop().call_soon
            never(lambda: listener.failed(CLOSED_BEFORE_REQUEST, unprocessed=True))
            return
        self._listener = listener
        self._answer = Answer(listener, method, websocket=websocket)
        self.answered_any = self.is_reusable = False
        self.served += 1
        self._begins = True

    def write(self, data: bytes) -> None:
        if self._transport is None or self._has_gone:
            return
        if self._begins:
            self._begins = False
            self._binds = self._binds or _BINDS.search(data) is not None
        if self._tls is None:
            self._transport.write(data)
            return
        try:
            self._tls.send(data)
        except ssl.SSLError:
            self._over(in_order=False)

    async def drained(self) -> None:
        """Until it takes more, or has gone."""
        await self._free.wait()

    def divert(self, raw: Raw) -> None:
        """HTTP is over on it; nothing was read since it agreed to that."""
        self._raw = raw
        if self._has_gone:
            asyncio.get_running_loop().call_soon(raw.upstream_ended)
        self.resume()

    # When it ends

    def abort(self) -> None:
        """Close it at once: what waits to be sent must not leave, which closing would see to."""
        self._forget()
        with contextlib.suppress(OSError):  # else the kernel would send what it has taken
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        if self._transport is not None:
            self._transport.abort()
        else:
            self._socket.close()
        self._gone()

    def close(self) -> None:
        """Close it in order, after what was written."""
        self._forget()
        if self._transport is not None and not self._transport.is_closing():
            if self._tls is not None:
                self._tls.goodbye()
            self._transport.close()
        self._gone()

    def _forget(self) -> None:
        if self._answer is not None:
            self._answer.forget()
        self._answer = self._listener = self._raw = None

    def _gone(self) -> None:
        if self._has_gone:
            return
        self._has_gone = True
        self.is_reusable = False
        self._free.set()
        if self._agreed is not None and not self._agreed.done():
            self._agreed.set_exception(ConnectionResetError("the upstream closed the connection"))
        self._lost(self)

    # Reading

    def pause(self) -> None:
        """Nothing more is read for now; of what was, the rest is told still."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    # Called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            if self._tls is None:
                self._heard(data)
            else:
                self._decrypt(self._tls, data)
        except Exception:
            log.exception("engine.crashed")
            self._fail(OWN_FAILURE)

    def eof_received(self) -> bool:
        self._over(in_order=self._tls is None or self._tls.ended)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._over(in_order=False)
        self._transport = None

    def pause_writing(self) -> None:
        self._free.clear()

    def resume_writing(self) -> None:
        self._free.set()

    def _decrypt(self, tls: Tls, data: bytes) -> None:
        agreed = self._agreed
        try:
            plain = tls.feed(data)
        except ssl.SSLError as error:
            if agreed is not None and not agreed.done():
                agreed.set_exception(error)
            else:
                self._over(in_order=False)
                self.abort()
            return
        if agreed is not None and tls.is_ready and not agreed.done():
            agreed.set_result(None)
        if plain:
            self._heard(plain)
        if tls.ended and not self._has_gone:
            self._over(in_order=True)
            self.close()

    def _heard(self, data: bytes) -> None:
        if self._raw is not None:
            self._raw.received(data)
            return
        answer = self._answer
        if answer is None:
            self.abort()  # nobody has asked
            return
        self.answered_any = True
        try:
            answer.feed(data)
        except Broken as broken:
            if answer is self._answer:
                self._fail(str(broken))
            return
        if answer is self._answer and answer.is_over:
            self._answered(answer)

    def _over(self, *, in_order: bool) -> None:
        """Nothing more comes from it."""
        if self._has_gone:
            return
        answer, raw = self._answer, self._raw
        self._gone()
        if raw is not None:
            self._raw = None
            raw.upstream_ended()
        if answer is None:
            return
        try:
            answer.finish(in_order=in_order)
        except Broken as broken:
            self._fail(str(broken))
        else:
            self._answered(answer)

    def _answered(self, answer: Answer) -> None:
        listener = self._listener
        self._answer = self._listener = None
        if listener is None:
            return
        if answer.upgraded is not None:
            self.pause()  # until it is said who takes what comes
            listener.upgraded(answer.fields, answer.upgraded)
            return
        self.is_reusable = answer.keeps and not self._binds and not self._has_gone
        listener.ended(tuple(answer.trailers))

    def _fail(self, why: str) -> None:
        listener, raw = self._listener, self._raw
        self.abort()
        if listener is not None:
            listener.failed(why)
        if raw is not None:
            raw.upstream_ended()


async def opened(
    where: Where, connected: socket.socket, lost: Callable[[Upstream], None]
) -> Upstream:
    """A connection over a socket that is connected. Raises OSError; then the socket is closed."""
    try:
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        upstream = Upstream(where, connected, lost)
        await asyncio.get_running_loop().create_connection(lambda: upstream, sock=connected)
    except BaseException:
        connected.close()
        raise
    return upstream
