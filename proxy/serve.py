"""Builds the parts, starts and stops them in order. Owns the clock."""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator

import structlog

from ledger.records import Worker
from proxy import logs, process
from proxy.authority import Authority
from proxy.clock import Clock, SystemClock, new_id
from proxy.deciding import PolicyFile, Service, deciding, prepared
from proxy.dial import Dialer, Resolver, system_resolver
from proxy.engines.mitm import MitmEngine, Timeouts
from proxy.fleet import InProcess
from proxy.gate import Gate
from proxy.settings import Settings

log = structlog.get_logger()

BACKLOG_MAX = 1024  # connections that wait to be accepted; a burst of a fleet's start fits


class StartError(Exception):
    """What keeps the proxy from starting, in one sentence that says what to type next."""


def bind(listen: str) -> socket.socket:
    """A listening socket. The protocol number is needed for asyncio to set TCP_NODELAY."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
        listener.listen(BACKLOG_MAX)
    except OSError as error:
        listener.close()
        raise StartError(
            f"cannot listen on {listen}: {error.strerror}; end what uses the port, or choose "
            "another: pullcord up --listen 127.0.0.1:8641"
        ) from error
    return listener


@contextlib.asynccontextmanager
async def engine_running(
    gate: Gate,
    settings: Settings,
    listener: socket.socket,
    certificates: Authority,
    resolve: Resolver | None = None,
) -> AsyncIterator[None]:
    """An engine on a bound socket; at the end what is in flight may end within the drain time."""
    port = listener.getsockname()[1]
    engine = MitmEngine(
        gate,
        Dialer(settings.own_ports | {port}, settings.connect_seconds, resolve or system_resolver()),
        certificates,
        body_bytes_max=settings.body_bytes_max,
        timeouts=Timeouts(settings.first_byte_seconds, settings.idle_seconds),
    )
    await engine.start(listener)
    try:
        yield
    finally:
        gate.draining = True
        await engine.stop(settings.drain_seconds)


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextlib.asynccontextmanager
async def running(
    settings: Settings, clock: Clock | None = None, resolve: Resolver | None = None
) -> AsyncIterator[Service]:
    """The whole proxy in this process, from an opened store to a closed one. `resolve` stands in
    for DNS.

    Raises StartError, PolicyError, AuthorityError or LedgerError before anything listens.
    """
    clock = clock or SystemClock()
    policy = PolicyFile(settings.policy_file, settings.invalid_policy)
    async with contextlib.AsyncExitStack() as closing:
        listener = closing.enter_context(bind(settings.listen))
        service = await closing.enter_async_context(
            deciding(settings, clock, policy, supervised=False)
        )
        gate = Gate(service.decider, clock, settings.identity)
        pid = os.getpid()
        here = Worker(new_id(clock.now_us()), pid, process.started(pid), clock.now_us())
        await service.fleet.join(InProcess(gate, here))
        await closing.enter_async_context(
            engine_running(gate, settings, listener, prepared(settings, clock), resolve)
        )
        service.listening = address_of(listener)
        yield service


def greeting(listening: str, settings: Settings, policy: str) -> str:
    """The first two lines: where agents reach it, and what to type next."""
    command = "pullcord" if shutil.which("pullcord") else shlex.quote(sys.argv[0])
    return (
        f"pullcord listens on http://{listening}  policy {policy}  "
        f"ledger {settings.data / 'ledger.db'}\n"
        f'next:   eval "$({command} env --run NAME)"   or   {command} run -- COMMAND\n'
    )


async def _until_signalled(settings: Settings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with running(settings) as service:
        loop.add_signal_handler(signal.SIGUSR1, service.halt_all, "signal:SIGUSR1")
        policy = service.decider.policy
        told = f"{policy.source} ({policy.digest[:12]})"
        sys.stdout.write(greeting(service.listening or "", settings, told))
        sys.stdout.flush()
        await stopping.wait()
        log.info("proxy.stopping")


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; SIGUSR1 halts everything. Returns the exit code."""
    logs.configure(sys.stderr)
    if settings.workers > 1:
        from proxy import supervisor

        return asyncio.run(supervisor.supervise(settings))
    asyncio.run(_until_signalled(settings))
    return 0
