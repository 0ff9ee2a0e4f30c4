"""Connections to upstreams, shared by all clients of this process: dialled, kept for the next read,
bounded.

A write never has one that was used before: when a stale one breaks nobody knows what was done. What
is kept carries nobody's identity, since each request of HTTP/1 speaks for itself; connections that
somebody authenticated as a whole are not kept (http1_upstream.py).
"""

import asyncio
import ssl
from collections.abc import Sequence
from ipaddress import ip_address

from policies.addresses import IPNetwork, refused_block
from proxy.dial import Dialer
from proxy.engines.http1_upstream import Upstream, Where, opened

IDLE_UPSTREAMS_MAX = 1024  # connections that rest; the one that rested longest is closed
IDLE_EACH_MAX = 256  # of them to one address
IDLE_SECONDS = 15.0  # one may rest; most servers close theirs after 5 to 75 s
KEPT_SECONDS = 300.0  # from the dial on: a name may have moved since

_UNTRUSTED = "Certificate verify failed"


class Untrusted(OSError):
    """Nobody whom we trust vouches that the upstream is the one that it is called."""


class Pool:
    """All connections to upstreams. `tls` verifies them; `room` is how many there may be."""

    def __init__(self, dialer: Dialer, tls: ssl.SSLContext, room: int) -> None:
        self._dialer = dialer
        self._tls = tls
        self._room = room
        self._dialling = 0
        self._open: set[Upstream] = set()
        self._idle: dict[Upstream, None] = {}  # the one that rests longest comes first
        self._idle_at: dict[Where, dict[Upstream, None]] = {}
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False

    async def take(self, where: Where, allow: Sequence[IPNetwork], *, fresh: bool) -> Upstream:
        """A connection for one request; `fresh` that nobody has used before.

        `allow` are the tool's `allow_addresses`. Raises the dialer's errors, Untrusted, or OSError
        in words fit for the record. If it is cancelled nothing stays open.
        """
        kept = None if fresh else self._kept(where, tuple(allow))
        return kept or await self._dialled(where, tuple(allow))

    def give_back(self, upstream: Upstream) -> None:
        """Its request was sent whole and its answer has come whole. Kept where it can be, else
        closed."""
        now_seconds = asyncio.get_running_loop().time()
        is_old = now_seconds - upstream.opened_seconds > KEPT_SECONDS
        if self._closed or is_old or not upstream.is_reusable or upstream.is_writing:
            self.drop(upstream)
            return
        upstream.resume()
        upstream.idle_seconds = now_seconds
        beside = self._idle_at.setdefault(upstream.where, {})
        beside[upstream] = self._idle[upstream] = None
        if len(beside) > IDLE_EACH_MAX:
            next(iter(beside)).close()
        elif len(self._idle) > IDLE_UPSTREAMS_MAX:
            self._close_idle()
        if self._expiry is None:
            self._expire_later(IDLE_SECONDS)

    def drop(self, upstream: Upstream) -> None:
        """It serves nobody else; closed in order. Who has answered and does not take the rest of
        what was asked is not waited for: nobody would count what that holds."""
        if upstream.is_writing:
            upstream.abort()
        else:
            upstream.close()

    def close(self) -> None:
        """None is kept from now on; what is in use is its user's to close."""
        self._closed = True
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        while self._close_idle():
            pass

    def _kept(self, where: Where, allow: tuple[IPNetwork, ...]) -> Upstream | None:
        """The one that rested shortest, of those at an address to which this tool may go."""
        beside = self._idle_at.get(where)
        if not beside:
            return None
        oldest_seconds = asyncio.get_running_loop().time() - IDLE_SECONDS
        for upstream in reversed(beside):
            if upstream.idle_seconds < oldest_seconds:
                return None  # so are all that follow; `_expire` closes them
            if _may_use(upstream, allow):
                self._wake(upstream)
                return upstream
        return None

    async def _dialled(self, where: Where, allow: tuple[IPNetwork, ...]) -> Upstream:
        self._dialling += 1
        try:
            if not self._has_room():
                raise OSError("too many connections to upstreams are open here; try again later")
            connected = await self._dialer.dial(where.host, where.port, allow)
            upstream = await opened(where, connected, self._gone)
            upstream.vetted = allow
            self._open.add(upstream)
        finally:
            self._dialling -= 1
        try:
            if where.is_tls:
                await self._secured(upstream)
        except BaseException:
            upstream.abort()
            raise
        return upstream

    async def _secured(self, upstream: Upstream) -> None:
        where = upstream.where
        named, limit_seconds = f"{where.host}:{where.port}", self._dialer.connect_timeout_seconds
        try:
            async with asyncio.timeout(limit_seconds):
                await upstream.secure(self._tls)
        except ssl.SSLCertVerificationError as error:
            raise Untrusted(f"{_UNTRUSTED}: {error.verify_message}") from error
        except TimeoutError as error:
            why = f"{named} did not agree on TLS within {limit_seconds:g} seconds"
            raise TimeoutError(why) from error
        except ssl.SSLError as error:
            raise OSError(f"TLS with {named} failed: {error.reason or 'no reason'}") from error
        except OSError as error:
            raise OSError(f"TLS with {named} failed: it closed the connection") from error
        except ValueError as error:
            raise OSError(f"TLS with {named} failed: not a host name") from error

    def _has_room(self) -> bool:
        """Whether one more may be dialled, if need be in place of an idle one."""
        if len(self._open) + self._dialling <= self._room:  # the one that asks is counted already
            return True
        return self._close_idle()

    def _close_idle(self) -> bool:
        """Close the one that has rested longest; False where none rests."""
        upstream = next(iter(self._idle), None)
        if upstream is not None:
            upstream.close()
        return upstream is not None

    def _gone(self, upstream: Upstream) -> None:
        self._open.discard(upstream)
        self._wake(upstream)

    def _wake(self, upstream: Upstream) -> None:
        self._idle.pop(upstream, None)
        beside = self._idle_at.get(upstream.where)
        if beside is not None:
            beside.pop(upstream, None)
            if not beside:
                del self._idle_at[upstream.where]

    def _expire_later(self, wait_seconds: float) -> None:
        self._expiry = asyncio.get_running_loop().call_later(wait_seconds, self._expire)

    def _expire(self) -> None:
        """Close what has rested long enough, and look again when the next one will have."""
        self._expiry = None
        now_seconds = asyncio.get_running_loop().time()
        for upstream in list(self._idle):
            left_seconds = upstream.idle_seconds + IDLE_SECONDS - now_seconds
            if left_seconds > 0:
                self._expire_later(left_seconds)
                return
            upstream.close()


def _may_use(upstream: Upstream, allow: tuple[IPNetwork, ...]) -> bool:
    """Whether a tool that allows these may go where this connection leads: another tool's call
    may have dialled it."""
    if upstream.vetted == allow:
        return True
    if refused_block(ip_address(upstream.peer.partition("%")[0]), allow) is not None:
        return False
    upstream.vetted = allow
    return True
