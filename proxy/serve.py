"""Builds the parts, starts and stops them in order, and watches the policy file. Owns the clock."""

import asyncio
import contextlib
import os
import shlex
import shutil
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from ledger.store import Store
from policies.load import PolicyError, load_file
from policies.policy import Policy
from policies.verdict import Level, Pull, Scope
from proxy import authority, control, logs
from proxy.clock import Clock, SystemClock
from proxy.decider import Decider
from proxy.dial import Dialer, Resolver, system_resolver
from proxy.engines.mitm import MitmEngine, Timeouts
from proxy.gate import Gate
from proxy.operations import vault_key
from proxy.settings import Settings

log = structlog.get_logger()

BACKLOG_MAX = 1024  # connections that wait to be accepted; a burst of a fleet's start fits
POLICY_POLL_SECONDS = 0.25  # an edit takes effect within a second; a stat costs microseconds


class StartError(Exception):
    """What keeps the proxy from starting, in one sentence that says what to type next."""


class PolicyFile:
    """The policy on disk and the last good one. An edit that does not load changes nothing but
    `error`, which `status` and `readyz` show; with `invalid_policy: freeze` it also freezes writes.
    """

    def __init__(self, path: Path, invalid_policy: str) -> None:
        self.path = path
        self.error: str | None = None
        self.good = load_file(path)
        self._freezes = invalid_policy == "freeze"
        self._seen = self._stamp()

    def changed(self) -> Policy | None:
        """The policy that is in force from now on, or None when the file is as it was."""
        stamp = self._stamp()
        if stamp == self._seen:
            return None
        self._seen = stamp
        try:
            self.good = load_file(self.path)
        except PolicyError as error:
            self.error = str(error)
            log.error("policy.refused", error=self.error)
            return self._frozen() if self._freezes else None
        self.error = None
        log.info("policy.accepted", digest=self.good.digest[:12])
        return self.good

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _frozen(self) -> Policy:
        reason = f"{self.path} does not load (setting invalid_policy: freeze)"
        pull = Pull(Level.FREEZE, Scope.GLOBAL, "", reason, "setting:invalid_policy", 0)
        return replace(self.good, pulls={**self.good.pulls, (Level.FREEZE, Scope.GLOBAL, ""): pull})


class Service:
    """The running proxy, as the control API sees it."""

    def __init__(self, settings: Settings, clock: Clock, policy: PolicyFile, store: Store) -> None:
        self.settings = settings
        self.clock = clock
        self.started_us = clock.now_us()
        self.listening: str | None = None
        self.decider = Decider.start(store, policy.good)
        self.gate = Gate(self.decider, clock, settings.identity)
        self._policy = policy

    @property
    def policy_error(self) -> str | None:
        return self._policy.error

    def sweep(self) -> int:
        """Cut what a halt now stands over. Returns how many calls."""
        return self.gate.sweep()

    async def watch(self) -> None:
        """Follow the policy file until cancelled."""
        while True:
            await asyncio.sleep(POLICY_POLL_SECONDS)
            policy = self._policy.changed()
            if policy is not None:
                await self.adopt(policy)

    async def adopt(self, policy: Policy) -> None:
        """Put a policy in force first, record its text after: a freeze does not wait for a disk."""
        self.decider.adopt(policy)
        self.gate.sweep()
        now_us = self.clock.now_us()
        with contextlib.suppress(Exception):  # the store's failure shows in `decider.failure`
            await self.decider.act(
                lambda store: store.record_policy(policy.digest, policy.text, policy.source, now_us)
            )


def _bind(listen: str) -> socket.socket:
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
async def running(
    settings: Settings, clock: Clock | None = None, resolve: Resolver | None = None
) -> AsyncIterator[Service]:
    """The whole proxy, from an opened store to a closed one. `resolve` stands in for DNS.

    Raises StartError, PolicyError, AuthorityError or LedgerError before anything listens.
    """
    clock = clock or SystemClock()
    policy = PolicyFile(settings.policy_file, settings.invalid_policy)
    certificates = authority.prepare(
        settings.data,
        settings.upstream_ca,
        os.environ,
        datetime.fromtimestamp(clock.now_us() / 1e6, UTC),
    )
    async with contextlib.AsyncExitStack() as closing:
        listener = closing.enter_context(_bind(settings.listen))
        store = Store.open(settings.data, vault_key(settings.data), clock.now_us)
        closing.callback(store.close)
        service = Service(settings, clock, policy, store)
        closing.push_async_callback(service.decider.stop)
        await service.adopt(policy.good)
        host, port = listener.getsockname()[:2]
        engine = MitmEngine(
            service.gate,
            Dialer(frozenset((port,)), settings.connect_seconds, resolve or system_resolver()),
            certificates,
            body_bytes_max=settings.body_bytes_max,
            timeouts=Timeouts(settings.first_byte_seconds, settings.idle_seconds),
        )
        runner = await control.serve(control.build(service), settings.data / "control.sock")
        closing.push_async_callback(runner.cleanup)
        await engine.start(listener)
        closing.push_async_callback(engine.stop, settings.drain_seconds)
        service.listening = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        watching = asyncio.create_task(service.watch())
        closing.callback(watching.cancel)
        yield service
        service.gate.draining = True


async def _until_signalled(settings: Settings) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with running(settings) as service:
        policy = service.decider.policy
        command = "pullcord" if shutil.which("pullcord") else shlex.quote(sys.argv[0])
        sys.stdout.write(
            f"pullcord listens on http://{service.listening}  policy {policy.source} "
            f"({policy.digest[:12]})  ledger {settings.data / 'ledger.db'}\n"
            f'next:   eval "$({command} env --run NAME)"   or   {command} run -- COMMAND\n'
        )
        sys.stdout.flush()
        await stopping.wait()
        log.info("proxy.stopping", calls=len(service.gate.live))


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT. Returns the exit code."""
    logs.configure(sys.stderr)
    asyncio.run(_until_signalled(settings))
    return 0
