"""The mitmproxy engine: HTTP/1.1, HTTP/2, gRPC and WebSocket, in the clear and inside TLS.

mitmproxy is a library here: its layers, its TLS and nothing else. No addon runs; every hook comes
to `Handler.handle_hook`, which is the one boundary where an exception becomes a refusal. The
engine holds no policy: `proxy.gate` is its only tie (design, section 2).
"""

import asyncio
import contextlib
import socket
from collections import defaultdict
from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import Any

import structlog
from mitmproxy import options
from mitmproxy.addons import proxyserver, tlsconfig
from mitmproxy.master import Master
from mitmproxy.proxy import commands, mode_servers, mode_specs
from mitmproxy.proxy import server as mserver
from mitmproxy.proxy.layers import modes

from proxy.authority import Authority
from proxy.dial import Dialer, NotDialled
from proxy.engines import mitm_hooks
from proxy.engines.mitm_exchange import CUT_SECONDS, Exchange
from proxy.engines.mitm_layers import CutFlow
from proxy.engines.mitm_wire import Tunnel
from proxy.gate import Gate, Live

log = structlog.get_logger()

UPSTREAM_CONNECTIONS_MAX = 256  # per client connection and address; mitmproxy's 5 starves streams
CLIENT_CONNECTIONS_MAX = 4096  # each costs about 100 KB; more is a runaway of its own
SWEEP_SECONDS = 1.0  # how often deadlines are looked at; a deadline is late by this at most


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. A model may think for minutes before its first byte."""

    first_byte_seconds: float = 300.0
    idle_seconds: float = 300.0
    client_idle_seconds: float = 900.0


class MitmEngine:
    """Listens, and turns what mitmproxy reads into the gate's protocol and back."""

    def __init__(
        self,
        gate: Gate,
        dialer: Dialer,
        authority: Authority,
        *,
        body_bytes_max: int,
        timeouts: Timeouts,
    ) -> None:
        self.gate = gate
        self.dialer = dialer
        self.body_bytes_max = body_bytes_max
        self.timeouts = timeouts
        self.exchanges: dict[str, Exchange] = {}
        self._handlers: set[Handler] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._server: asyncio.Server | None = None
        self._options = _options(authority)
        self.master = Master(self._options, asyncio.get_running_loop(), with_termlog=False)
        self.master._legacy_log_events.uninstall()  # it formats every log record of the process
        self.tls = tlsconfig.TlsConfig()
        self.master.addons.add(proxyserver.Proxyserver(), self.tls)
        self._options.update(**_settings(authority))

    async def start(self, listener: socket.socket) -> None:
        """Serve on a bound socket, which must carry IPPROTO_TCP (notes/performance.md)."""
        self._server = await asyncio.start_server(self._serve, sock=listener)
        self.spawn(self._sweep())

    async def stop(self, drain_seconds: float) -> None:
        """Stop listening, let what is in flight end, then cut the rest."""
        if self._server is not None:
            self._server.close()
        await _all_set([item.ended for item in self.exchanges.values()], drain_seconds)
        rest = list(self.exchanges.values())
        self.cut([item.live for item in rest], "shutdown")
        await _all_set([item.ended for item in rest], CUT_SECONDS)
        handlers = list(self._handlers)
        for handler in handlers:
            handler.hang_up()
        await _all_set([handler.ended for handler in handlers], CUT_SECONDS)
        for task in self._tasks:
            task.cancel()

    def cut(self, calls: Iterable[Live], reason: str) -> None:
        """Close these calls on both sides; each is settled by the hook that follows."""
        for live in calls:
            exchange = self.exchanges.get(live.call_id)
            if exchange is not None:
                exchange.cut_by = exchange.cut_by or reason
                event = CutFlow(exchange.flow, reason)
                self.spawn(exchange.handler.server_event(event))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._handlers) >= CLIENT_CONNECTIONS_MAX:
            writer.close()  # no words: writing them would take what there is no more of
            return
        handler = Handler(self, reader, writer, self._options)
        self._handlers.add(handler)
        try:
            await handler.handle_client()
        finally:
            self._handlers.discard(handler)
            handler.ended.set()
            writer.close()

    async def _sweep(self) -> None:
        """Cut what waits longer than its deadline, and hang up on silent clients."""
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            now_seconds = asyncio.get_running_loop().time()
            late = [
                exchange.live
                for exchange in self.exchanges.values()
                if exchange.deadline_seconds < now_seconds
            ]
            self.cut(late, "timeout")
            busy = {exchange.handler for exchange in self.exchanges.values()}
            for handler in self._handlers - busy:
                if now_seconds - handler.heard_seconds > self.timeouts.client_idle_seconds:
                    handler.hang_up()

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run beside the connection that asked; cancelled when the engine stops."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Handler(mode_servers.ProxyConnectionHandler):
    """One client connection. `tunnel` is what its CONNECT named and who asked for it."""

    def __init__(
        self,
        engine: MitmEngine,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        opts: options.Options,
    ) -> None:
        super().__init__(engine.master, reader, writer, opts, _REGULAR)  # type: ignore[no-untyped-call]
        self.engine = engine
        self.layer = modes.HttpProxy(self.layer.context)
        self.max_conns = defaultdict(lambda: asyncio.Semaphore(UPSTREAM_CONNECTIONS_MAX))
        self.tunnel: Tunnel | None = None
        self.sni: str | None = None
        self.allowed: dict[tuple[str, int], Any] = {}
        self.not_dialled: dict[tuple[str, int], NotDialled] = {}
        self.ended = asyncio.Event()
        self.heard_seconds = asyncio.get_running_loop().time()

    async def handle_hook(self, hook: commands.StartHook) -> None:
        """The boundary: whatever a hook raises refuses its call (notes/mitmproxy_behaviour.md)."""
        (data,) = hook.args()
        self.heard_seconds = asyncio.get_running_loop().time()
        with self.timeout_watchdog.disarm():
            try:
                done = mitm_hooks.HOOKS[type(hook)](self, data)
                if done is not None:
                    await done
            except Exception:
                log.exception("engine.hook_failed", hook=hook.name)
                mitm_hooks.refuse_after_failure(self, hook, data)

    def log(self, message: str, level: int = 20, exc_info: Any = None) -> None:
        """mitmproxy's log, of which only a crash matters: it would leave the client hanging."""
        if exc_info:
            log.error("engine.crashed", exc_info=exc_info)
            for exchange in self.engine.exchanges.values():
                if exchange.handler is self:
                    exchange.ended.set()
            self.hang_up()

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
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        handler = mitm_hooks.DIALLING.get()
        try:
            allow = handler.allowed[host, port]  # a KeyError here is a dial nobody judged
            return await handler.engine.dialer.open_connection(host, port, allow)
        except NotDialled as refused:
            handler.not_dialled[host, port] = refused
            raise
        except KeyError:
            raise OSError("no verdict allows this connection") from None


mserver.__dict__["asyncio"] = _DialledHere()


async def _all_set(marks: list[asyncio.Event], wait_seconds: float) -> None:
    """Wait until each is set, no longer than that."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(wait_seconds):
            for mark in marks:
                await mark.wait()


_REGULAR = mode_specs.ProxyMode.parse("regular")


def _options(authority: Authority) -> options.Options:
    return options.Options(confdir=str(authority.confdir))


def _settings(authority: Authority) -> dict[str, Any]:
    """mitmproxy's options, set after the addons that define them were added."""
    return {
        "confdir": str(authority.confdir),
        "ssl_verify_upstream_trusted_ca": str(authority.upstream_file),
        "ssl_insecure": False,
        "connection_strategy": "lazy",
        "upstream_cert": False,
        "rawtcp": False,
        "http3": False,
        "tcp_timeout": 86_400,  # its own watchdog cuts held calls; ours is `_sweep`
        "validate_inbound_headers": True,
    }
