"""One client connection through mitmproxy: its hooks, its calls, the connections dialled for it.

mitmproxy's own dialling is replaced at import, so that none goes past `proxy.dial`.
"""

import asyncio
import contextlib
import contextvars
from collections import defaultdict
from collections.abc import Iterator
from math import inf
from typing import TYPE_CHECKING, Any

import structlog
from mitmproxy import http, options
from mitmproxy.connection import ConnectionState, Server
from mitmproxy.proxy import commands, mode_servers, mode_specs
from mitmproxy.proxy import server as mserver
from mitmproxy.proxy.layers import modes

from policies.addresses import IPNetwork
from proxy.dial import NotDialled
from proxy.engines import (
    mitm_hooks,
    mitm_http2_upstream,  # noqa: F401 - it puts its layer in mitmproxy's place
)
from proxy.engines.heard import Tunnel
from proxy.engines.mitm_exchange import Exchange
from proxy.engines.mitm_layers import InTunnel
from proxy.engines.mitm_pace import PacedReader, reader_of
from proxy.engines.waits import FIRST_CALL_SECONDS, LINGER_SECONDS

if TYPE_CHECKING:
    from proxy.engines.mitm import MitmEngine

log = structlog.get_logger()

UPSTREAM_CONNECTIONS_MAX = 256  # per client connection and address; mitmproxy's 5 starves streams
IDLE_UPSTREAMS_MAX = 8  # per client connection; the one that rested longest is closed

_REGULAR = mode_specs.ProxyMode.parse("regular")

_CONNECTING: contextvars.ContextVar[Server] = contextvars.ContextVar("connecting")
"""The connection that the current task opens."""


class Handler(mode_servers.ProxyConnectionHandler):
    """One client connection. `tunnel` is what its CONNECT named and who asked for it."""

    def __init__(
        self,
        engine: "MitmEngine",
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        opts: options.Options,
        tunnel: Tunnel | None = None,
    ) -> None:
        """`tunnel` where its CONNECT was judged and answered elsewhere."""
        super().__init__(engine.master, PacedReader(reader), writer, opts, _REGULAR)  # type: ignore[no-untyped-call]
        self.engine = engine
        context = self.layer.context
        if tunnel is None:
            self.layer = modes.HttpProxy(context)
        else:
            context.server.address = (tunnel.host, tunnel.port)
            self.layer = InTunnel(context)
        self.max_conns = defaultdict(lambda: asyncio.Semaphore(UPSTREAM_CONNECTIONS_MAX))
        self.tunnel = tunnel
        self.sni: str | None = None
        self.is_stranger = tunnel is None  # until somebody we know has asked for something
        self.calls: set[Exchange] = set()
        self.allowed: dict[tuple[str, int], tuple[IPNetwork, ...]] = {}
        self.vetted: dict[Server, tuple[IPNetwork, ...]] = {}  # connections, each for these
        self.idle: dict[Server, None] = {}  # the one that rests longest comes first
        self.not_dialled: dict[tuple[str, int], NotDialled] = {}
        self.ended = asyncio.Event()
        self.heard_seconds = asyncio.get_running_loop().time()
        self._first_seconds = self.heard_seconds + FIRST_CALL_SECONDS
        self._leave_seconds = inf
        self._hooks = 0  # that are awaited now

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """The boundary: whatever a hook raises refuses its call (notes/mitmproxy_behaviour.md)."""
        (data,) = hook.args()
        self.heard_seconds = asyncio.get_running_loop().time()
        self._hooks += 1
        with self.timeout_watchdog.disarm():
            try:
                done = mitm_hooks.HOOKS[type(hook)](self, data)
                if done is not None:
                    await done
            except Exception:
                log.exception("engine.hook_failed", hook=hook.name)
                mitm_hooks.refuse_after_failure(self, hook, data)
            finally:
                self._hooks -= 1

    async def open_connection(self, command: commands.OpenConnection) -> None:
        """mitmproxy's, which ends when the connection does."""
        _CONNECTING.set(command.connection)
        self.engine.upstreams += 1
        try:
            await super().open_connection(command)
        finally:
            self.engine.upstreams -= 1

    def over(self, exchange: Exchange) -> None:
        """A call of this client's is settled and closed."""
        self.engine.exchanges.pop(exchange.live.call_id, None)
        self.engine.forget(exchange.flow)
        self.calls.discard(exchange)
        exchange.release()
        exchange.ended_mark.set()
        connection = exchange.flow.server_conn
        if connection in self.transports and not exchange.live.is_write:
            self.idle.pop(connection, None)
            self.idle[connection] = None
            if len(self.idle) > IDLE_UPSTREAMS_MAX:
                self.close_idle()

    def close_idle(self) -> bool:
        """Close the upstream connection that has rested longest; False where none rests."""
        used = {exchange.flow.server_conn for exchange in self.calls}
        for connection in [known for known in self.idle if known not in used]:
            del self.idle[connection]
            with contextlib.suppress(KeyError, AttributeError):
                self.close_connection(connection)
                return True
        return False

    @contextlib.contextmanager
    def not_reading(self) -> Iterator[None]:
        """While this lasts the kernel holds what the client sends. To pause the transport would not
        do: asyncio's reader, which pauses it too, makes it go on as soon as it has been read."""
        reader = reader_of(self.transports.get(self.client))
        if reader is None:
            yield
            return
        reader.pause()
        try:
            yield
        finally:
            reader.resume()

    def leave(self, wait_seconds: float | None = None) -> None:
        """It was refused and is to go: what it still sends is read for a while, and dropped."""
        now_seconds = asyncio.get_running_loop().time()
        self._leave_seconds = now_seconds + (wait_seconds or LINGER_SECONDS)

    def is_overdue(self, now_seconds: float, *, busy: bool) -> bool:
        """Whether it has to be hung up on. `busy` while a request of its is on its way here."""
        if now_seconds > self._leave_seconds:
            return True
        if self._hooks or self.calls:
            return False
        if self.is_stranger:
            return now_seconds > self._first_seconds
        idle_seconds = now_seconds - self.heard_seconds
        return not busy and idle_seconds > self.engine.timeouts.client_idle_seconds

    def is_gone(self, flow: http.HTTPFlow) -> bool:
        """Whether this client, or the stream of this flow, has ended what it sends: then it does
        not wait for an answer any more."""
        reads = self.client.state & ConnectionState.CAN_READ
        return not reads or flow.metadata.get("client_left", False)

    def log(self, message: str, level: int = 20, exc_info: Any = None) -> None:
        """mitmproxy's log, of which only a crash matters: it would leave the client hanging."""
        if exc_info:
            log.error("engine.crashed", exc_info=exc_info)
            for exchange in self.calls:
                exchange.ended_mark.set()
            self.hang_up()

    def abort(self) -> None:
        """Drop every connection of this client and what waits in them to be sent."""
        for side in list(self.transports.values()):
            if isinstance(side.writer, asyncio.StreamWriter):
                side.writer.transport.abort()

    def hang_up(self) -> None:
        """Close the client's side; a connection that is closing already is left alone."""
        with contextlib.suppress(KeyError, AttributeError):
            self.close_connection(self.client)


class _DialledHere:
    """Stands in for `asyncio` in mitmproxy's server module, so that every dial is vetted.

    It has no other seam; rewriting the server address in a hook would break keep-alive.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def open_connection(
        self, host: str, port: int, *, local_addr: Any = None
    ) -> tuple[PacedReader, asyncio.StreamWriter]:
        handler = mitm_hooks.DIALLING.get()
        try:
            allow = handler.allowed[host, port]  # a KeyError here is a dial nobody judged
            if not handler.engine.has_room_upstream():
                raise OSError("too many connections to upstreams are open here; try again later")
            reader, writer = await handler.engine.dialer.open_connection(host, port, allow)
            return PacedReader(reader, _CONNECTING.get()), writer
        except NotDialled as refused:
            handler.not_dialled[host, port] = refused
            raise
        except KeyError:
            raise OSError("no verdict allows this connection") from None


mserver.__dict__["asyncio"] = _DialledHere()
