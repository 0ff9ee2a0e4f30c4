"""Builds the parts, starts and stops them in order. Owns the clock."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import structlog

from ledger.answer_files import AnswerFiles
from ledger.records import Worker
from proxy import logs, process, supervisor
from proxy.authority import Authority
from proxy.clock import Clock, SystemClock, new_id
from proxy.deciding import PolicyFile, Service, deciding, prepared
from proxy.dial import Dialer, Resolver, system_resolver
from proxy.engines.arriving import Bodies
from proxy.engines.engine import Needs
from proxy.engines.waits import Timeouts
from proxy.fleet import InProcess
from proxy.gate import Gate
from proxy.listening import address_of, bind, greeting
from proxy.settings import Settings
from proxy.spool import Spool
from proxy.tracing import SOCKET, Tell, Tracing
from proxy.upgrading import Stopped, Upgrading

if TYPE_CHECKING:
    from proxy.engines.auto import AutoEngine
    from proxy.engines.http1 import Http1Engine
    from proxy.engines.mitm import MitmEngine

log = structlog.get_logger()


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
    own_ports, resolve = settings.own_ports | {port}, resolve or system_resolver()
    needs = Needs(
        gate,
        Dialer(own_ports, settings.connect_seconds, resolve),
        certificates,
        Timeouts(settings.first_byte_seconds, settings.idle_seconds),
        settings.body_bytes_max,
        Bodies(Spool(settings.data)),
    )
    engine = _engine(settings.engine)(needs)
    gate.files = AnswerFiles(settings.data)
    await engine.start(listener)
    try:
        yield
    finally:
        gate.draining = True
        await engine.stop(settings.drain_seconds)


def _engine(name: str) -> "type[MitmEngine | Http1Engine | AutoEngine]":
    """The one that is chosen. Another is not imported: that takes longer than the start."""
    if name == "auto":
        from proxy.engines.auto import AutoEngine

        return AutoEngine
    if name == "http1":
        from proxy.engines.http1 import Http1Engine

        return Http1Engine

    from proxy.engines.mitm import MitmEngine

    return MitmEngine


@contextlib.asynccontextmanager
async def tracing_running(
    settings: Settings, clock: Clock, tell: Tell, tracer: supervisor.Child | None = None
) -> AsyncIterator[Tracing]:
    """What catches calls for the trace; at the end it waits a little for what is not kept yet.

    A `tracer` of this process's own is started when the first call was caught.
    """
    path = settings.data / SOCKET
    tracing = Tracing(clock, settings.trace, path, settings.trace_body_bytes_max, tell)
    keeping = asyncio.create_task(_kept(tracer, tracing.first)) if tracer is not None else None
    try:
        async with tracing.going():
            yield tracing
    finally:
        if tracer is not None and keeping is not None:
            keeping.cancel()
            await asyncio.wait({keeping})
            await tracer.stop(supervisor.STOP_SECONDS)


async def _kept(tracer: supervisor.Child, needed: asyncio.Event) -> None:
    await needed.wait()
    await tracer.kept()


@contextlib.asynccontextmanager
async def running(
    settings: Settings,
    clock: Clock | None = None,
    resolve: Resolver | None = None,
    upgrading: Upgrading | None = None,
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
            deciding(settings, clock, policy, supervised=False, upgrading=upgrading)
        )
        tell, tracer = service.decider.trace_lost, supervisor.tracer(settings)
        tracing = await closing.enter_async_context(tracing_running(settings, clock, tell, tracer))
        service.tracing = tracing
        gate = Gate(
            service.decider,
            clock,
            settings.identity,
            tracing=tracing,
            logs_passing=settings.log_calls == "all",
        )
        pid = os.getpid()
        here = Worker(new_id(clock.now_us()), pid, process.started(pid), clock.now_us())
        await service.fleet.join(InProcess(gate, here))
        await closing.enter_async_context(
            engine_running(gate, settings, listener, prepared(settings, clock), resolve)
        )
        service.listening = address_of(listener)
        yield service


async def _until_signalled(settings: Settings) -> None:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    clock = SystemClock()
    upgrading = Upgrading(clock)

    def stop() -> None:
        stopping.set()
        upgrading.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop)
    async with running(settings, clock, upgrading=upgrading) as service:
        loop.add_signal_handler(signal.SIGUSR1, service.halt_all, "signal:SIGUSR1")
        policy = service.decider.policy
        told = f"{policy.source} ({policy.digest[:12]})"
        process.settle_heap()
        sys.stdout.write(greeting(service.listening or "", settings, told))
        sys.stdout.flush()
        await stopping.wait()
        log.info("proxy.stopping")


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; SIGUSR1 halts everything. Returns the exit code."""
    logs.configure(sys.stderr)
    try:
        process.serve(_until_signalled(settings), fast=settings.engine != "mitmproxy")
    except Stopped as stopped:
        log.info("proxy.stopping", told=str(stopped))
    return 0
