"""A client's connection as bytes, in the clear or inside TLS: what came, what is written, when it
is read, and how it ends."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Callable
from math import inf
from typing import cast

import structlog

from proxy.engines.http1_tls import Tls

log = structlog.get_logger()

JOINED_BYTES_MAX = 64 * 1024  # of what waits to leave together; one turn may bring megabytes

_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: on, for no time (socket(7))


class Connection(asyncio.Protocol):
    """`is_gone` once its client has ended what it sends: then it does not wait for an answer any
    more. `is_full` while it takes nothing. `drops`: what it sends is not looked at any more."""

    def __init__(self) -> None:
        self.is_gone = False
        self.is_full = False
        self.drops = False
        self.ended = asyncio.Event()
        self.tls: Tls | None = None
        self.transport: asyncio.Transport | None = None
        self.pending = b""  # came, and is not used yet
        self.state: Callable[[], None] = self.unexpected  # uses it
        self.loop = asyncio.get_running_loop()
        self.leave_seconds = inf
        self._out: list[bytes] = []
        self._out_bytes = 0
        self._holds = 0
        self._lingers = False
        self._taken: asyncio.Event | None = None
        self._then: Callable[[], None] | None = None

    @property
    def is_closing(self) -> bool:
        """Whether it ends once its client has taken what was written."""
        return self.transport is not None and self.transport.is_closing()

    # What is done with it

    def unexpected(self) -> None:
        raise RuntimeError("nobody expects anything on this connection")

    def came(self) -> None:
        """It stands."""
        raise NotImplementedError

    def left(self) -> None:
        """Its client sends nothing more. Once."""
        raise NotImplementedError

    def gone(self) -> None:
        """It is no more."""
        raise NotImplementedError

    def filled(self) -> None:
        """Its client takes nothing for now."""
        raise NotImplementedError

    def emptied(self) -> None:
        """Its client takes more."""
        raise NotImplementedError

    # What the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.came()

    def data_received(self, data: bytes) -> None:
        if self.drops:
            return
        try:
            self.received(data)
        except Exception:
            self.crashed()

    def eof_received(self) -> bool:
        self._left()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.drops = True
        self._left()
        self._takes()
        self.gone()
        self.ended.set()

    def pause_writing(self) -> None:
        self.is_full = True
        self.filled()

    def resume_writing(self) -> None:
        self.is_full = False
        self._takes()
        self.emptied()
        then, self._then = self._then, None
        if then is not None:
            self.resume()
            then()

    def received(self, data: bytes) -> None:
        """As it came from the wire."""
        tls = self.tls
        if tls is not None:
            try:
                data = tls.feed(data)
            except ssl.SSLError:
                self.close()
                return
        if data:
            self.pending = self.pending + data if self.pending else data
            self._work()
        if tls is not None and tls.ended and not self.is_gone:
            self._left()
            self.close()

    def _work(self) -> None:
        """As far as what came lets it."""
        while self.pending and not self._holds and not self.drops:
            state, size_bytes = self.state, len(self.pending)
            state()
            if state == self.state and len(self.pending) == size_bytes:
                return

    def work_soon(self) -> None:
        """What came already may be used now."""
        if self.pending:
            self.loop.call_soon(self._work_safely)

    def _work_safely(self) -> None:
        try:
            self._work()
        except Exception:
            self.crashed()

    def _left(self) -> None:
        if not self.is_gone:
            self.is_gone = True
            self.left()

    def crashed(self) -> None:
        """The boundary of all that is done in the loop's turn."""
        log.exception("engine.crashed")
        self.abort()
        self._left()

    # Writing

    def write(self, data: bytes) -> None:
        """What is written in one turn of the loop leaves together, if it is little."""
        if not self._out:
            self.loop.call_soon(self.flush)
        self._out.append(data)
        self._out_bytes += len(data)
        if self._out_bytes > JOINED_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        out, self._out, self._out_bytes = self._out, [], 0
        transport = self.transport
        if not out or transport is None or transport.is_closing():
            return
        data = out[0] if len(out) == 1 else b"".join(out)
        if self.tls is None:
            transport.write(data)
            return
        try:
            self.tls.send(data)
        except ssl.SSLError:
            self.abort()

    async def drained(self) -> None:
        """Until it takes more, or has gone."""
        self.flush()
        while self.is_full and self.transport is not None:
            if self._taken is None:
                self._taken = asyncio.Event()
            self._taken.clear()
            await self._taken.wait()

    def _takes(self) -> None:
        if self._taken is not None:
            self._taken.set()

    def once_taken(self, then: Callable[[], None]) -> None:
        """Now, or when its client takes more: until then it is not read."""
        if self.is_full:
            self._then = then
            self.pause()
        else:
            then()

    # Reading

    def pause(self) -> None:
        """It is not read until each pause was ended: the kernel holds what it sends, then it."""
        self._holds += 1
        if self._holds == 1 and self.transport is not None and not self.drops:
            self.transport.pause_reading()

    def resume(self) -> None:
        self._holds -= 1
        if self._holds:
            return
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()
        self.work_soon()

    # Its end

    def linger(self, wait_seconds: float) -> None:
        """It was answered and is to go: what it still sends is read for a while, and dropped, since
        closing at once could take the answer from it (RFC 9112, section 9.6)."""
        self.drops, self.pending = True, b""
        self.flush()
        self.leave_seconds = self.loop.time() + wait_seconds
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self.is_gone:
            self.close()
            return
        if self.tls is not None:
            self.tls.goodbye()
        self._lingers = True
        with contextlib.suppress(RuntimeError):  # uvloop's: the kernel knows already that it left
            transport.resume_reading()
            transport.write_eof()

    def close(self) -> None:
        """After what was written."""
        self.drops = True
        self.flush()
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if self._lingers:  # it was told all that there is
            transport.abort()
            return
        if self.tls is not None:
            self.tls.goodbye()
        transport.close()

    hang_up = close

    def end(self) -> None:
        """After what was written; a second time without it, since nobody takes it."""
        if self.is_closing:
            self.abort()
        else:
            self.close()

    def break_off(self, *, at_once: bool) -> None:
        """An answer has begun and does not end: TLS says no goodbye. `at_once`: nothing but a reset
        tells its client so."""
        self.drops = True
        self.flush()
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        if at_once:
            connected: socket.socket = transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        if at_once or transport.get_write_buffer_size():
            self.abort()
        else:
            transport.close()

    def abort(self) -> None:
        """Drop it, and what waits in it to be sent."""
        self.drops = True
        if self.transport is not None:
            self.transport.abort()
