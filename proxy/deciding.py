"""The part of the program that decides: policy file, store, decider, fleet, control API.

With one worker it shares a process with the engine; with several it is a process of its own, so
nothing here may import an engine.
"""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from ledger.errors import LedgerError, LedgerUnavailable
from ledger.records import Worker
from ledger.store import Store
from policies.load import PolicyError, load_file
from policies.policy import UNLISTED, Policy
from policies.prices import shipped_prices
from policies.verdict import Level, Pull, Scope, tool_of
from proxy import authority, control, process
from proxy.authority import UPSTREAM_FILE, Authority
from proxy.clock import Clock
from proxy.decider import Decider
from proxy.drilling import Drilling
from proxy.fleet import Fleet
from proxy.identity import NAME
from proxy.letterbox import Letterbox, post
from proxy.links import Links
from proxy.metrics import Metrics
from proxy.notifying import Notifying
from proxy.operations import CordName, cord_name
from proxy.sealing import Sealing
from proxy.secret_keys import vault_key
from proxy.settings import Settings
from proxy.signals import Counts
from proxy.tracing import Tracing
from proxy.upgrading import Upgrading

log = structlog.get_logger()

WATCH_SECONDS = 0.25  # an edit or a HALT file takes effect within a second; a stat is microseconds


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
        at_us = 0
        touched = self.path if self.path.exists() else self.path.parent
        with contextlib.suppress(OSError):
            at_us = touched.stat().st_ctime_ns // 1_000
        pull = Pull(Level.FREEZE, Scope.GLOBAL, "", reason, "setting:invalid_policy", at_us)
        return replace(self.good, pulls={**self.good.pulls, (Level.FREEZE, Scope.GLOBAL, ""): pull})


class Service:
    """The deciding part as the control API sees it."""

    def __init__(self, settings: Settings, clock: Clock, policy: PolicyFile, store: Store) -> None:
        self.settings = settings
        self.clock = clock
        self.started_us = clock.now_us()
        self.listening: str | None = None
        self.proxy_pid = os.getpid()
        self._policy = policy
        self._held: dict[CordName, Pull] = {}
        self._unstored: dict[CordName, Pull] = {}  # never changed, only replaced: two threads
        self._storing = threading.Lock()
        self.letterbox = Letterbox(settings.data, is_tool=self._is_tool)
        self.prices = shipped_prices()
        self.sealing = Sealing(settings.data, settings.seals, clock, store)
        trust = settings.data / UPSTREAM_FILE
        self.notifying = Notifying(settings.notify, settings.data, trust, clock)
        self.counts: Counts = store
        self.metrics = Metrics()
        self.tracing: Tracing | None = None  # of what people have made, such as undoing a write
        self.decider = Decider.start(
            store,
            policy.good,
            posted=self._posted,
            latched=self._latched,
            stepped_seconds=clock.stepped_seconds,
        )
        self.fleet = Fleet(self.decider, clock)
        self.drill = Drilling(self)
        self._pulling: set[asyncio.Task[None]] = set()

    def _is_tool(self, name: str) -> bool:
        run, tool = tool_of(name)
        known = tool == UNLISTED or tool in self._policy.good.tools
        return known and (not run or bool(NAME.fullmatch(run)))

    @property
    def policy_error(self) -> str | None:
        """Why the policy file as it is now does not load; None while it does."""
        return self._policy.error

    async def watch(self) -> None:
        """Follow the policy file, the HALT file and the cords that end by time, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            policy = self._policy.changed()
            if policy is not None:
                await self.adopt(policy)
            now_us = self.clock.now_us()
            due = any(
                pull.until_us is not None and pull.until_us <= now_us
                for pull in self.decider.latched.values()
            )
            posted = self._stand()
            if due or posted:
                with contextlib.suppress(LedgerError):  # it shows in `decider.failure`
                    await self._expire(now_us)

    def halt_all(self, actor: str) -> None:
        """Pull the global halt; for a signal, which waits for nothing."""
        cord = Pull(Level.HALT, Scope.GLOBAL, "", "", actor, self.clock.now_us())
        pulling = asyncio.ensure_future(self._pull(cord))
        self._pulling.add(pulling)
        pulling.add_done_callback(self._pulling.discard)

    async def _pull(self, cord: Pull) -> None:
        try:
            async with self.standing(cord):
                await self.decider.act(lambda store: store.pull(cord))
        except LedgerError as failure:  # it stands; the file holds after a restart, too
            log.error("cord.not_stored", rule=cord.rule, error=str(failure))
            with contextlib.suppress(OSError):
                await asyncio.to_thread(post, self.settings.data, cord)

    @contextlib.asynccontextmanager
    async def standing(self, cord: Pull) -> AsyncIterator[None]:
        """While a cord is being stored it stands already, so that a slow store delays no cut. One
        that the store cannot take stands on, here in memory, and is offered until it does.
        """
        name = cord_name(cord)
        self._held[name] = cord
        self._stand()
        try:
            yield
        except LedgerUnavailable:
            with self._storing:
                self._unstored = {**self._unstored, name: cord}
            raise
        finally:
            self._held.pop(name, None)
            self._stand()

    def _stand(self) -> list[Pull]:
        """Everything that is pulled and not stored. Gives what somebody has to store still."""
        posted = self._posted()
        self.decider.stand([*posted, *self._held.values()])
        return posted

    def _latched(self, posted: list[Pull]) -> None:
        """Called in the decider's thread when these, which `_posted` gave it, are stored."""
        self.letterbox.taken()
        stored = {id(cord) for cord in posted}
        with self._storing:
            self._unstored = {n: c for n, c in self._unstored.items() if id(c) not in stored}

    async def _expire(self, now_us: int) -> None:
        await self.decider.act(lambda store: store.expire(now_us))

    def _posted(self) -> list[Pull]:
        return [*self.letterbox.waiting(self.clock.now_us()), *self._unstored.values()]

    async def adopt(self, policy: Policy) -> None:
        """Put a policy in force first, record its text after: a freeze does not wait for a disk."""
        self.decider.adopt(policy)
        now_us = self.clock.now_us()

        def adopted(store: Store) -> None:
            store.record_policy(policy.digest, policy.text, policy.source, now_us)
            store.watch(policy, now_us)

        with contextlib.suppress(Exception):  # the store's failure shows in `decider.failure`
            await self.decider.act(adopted)


@contextlib.asynccontextmanager
async def deciding(
    settings: Settings,
    clock: Clock,
    policy: PolicyFile,
    *,
    supervised: bool,
    upgrading: Upgrading | None = None,
) -> AsyncIterator[Service]:
    """Everything but the engines, from an opened store to a closed one.

    Raises LedgerError and ControlError, and Stopped when an upgrade of the ledger was.
    """
    upgrading = upgrading or Upgrading(clock)
    async with contextlib.AsyncExitStack() as closing:
        alive = process.lives if supervised else _ended
        # Aside, so that signals are heard meanwhile: to bring it up to date may take minutes.
        store = await asyncio.to_thread(
            Store.open,
            settings.data,
            vault_key(settings.data),
            clock.now_us,
            alive=alive,
            progress=upgrading,
        )
        closing.callback(store.close)
        clock.start_after(store.newest_us)
        prepared(settings, clock)  # by whoever owns the data, so that no second start changes it
        service = Service(settings, clock, policy, store)
        if supervised:
            service.proxy_pid = os.getppid()
        closing.push_async_callback(service.sealing.close)
        closing.push_async_callback(service.decider.stop)
        closing.push_async_callback(service.notifying.close)
        await service.adopt(policy.good)
        if supervised:
            decider, fleet = service.decider, service.fleet
            links = await Links.listen(settings.data, decider, fleet, clock, store.workers())
            closing.push_async_callback(links.close)
        runner = await control.serve(control.build(service), settings.data / "control.sock")
        closing.push_async_callback(runner.cleanup)
        if settings.control is not None:
            port = await control.serve_port(service, settings.control)
            closing.push_async_callback(port.cleanup)
        act = service.decider.act
        for going in (service.watch(), service.sealing.run(act), service.notifying.run(act)):
            closing.callback(asyncio.create_task(going).cancel)
        yield service


def prepared(settings: Settings, clock: Clock) -> Authority:
    """The certificate authority, made on the first start. Raises AuthorityError."""
    now = datetime.fromtimestamp(clock.now_us() / 1e6, UTC)
    return authority.prepare(settings.data, settings.upstream_ca, os.environ, now)


def _ended(worker: Worker) -> bool:
    """An engine that outlived its decider has none now: nothing of it may go on."""
    process.kill(worker)
    return False
