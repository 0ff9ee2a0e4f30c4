"""`pullcord drill`, the program's side: canaries fly through the real proxy and are stopped.

A canary is a write of the drill's own run, to an upstream that is opened here, on loopback. At each
level it flies through every engine, a cord is pulled, and what the upstream still reads is counted.
What the proxy lets happen for it is in drilling.py.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger import containment
from ledger.connection import open_reader
from ledger.sqlite import sqlite3
from policies.policy import CANARY
from policies.verdict import Level, Reason, Scope
from proxy.canaries import SILENT, Canary, Upstream
from proxy.clock import Clock
from proxy.control_client import PortUnreachable, Refused, Unreachable, ask

LEAK_SECONDS = 0.05  # what the upstream first reads later than this after the return has leaked
WATCH_SECONDS = 0.2  # how long it is watched after the return
FLOW_SECONDS = 5.0  # how long until canaries must fly through every engine
GROW_SECONDS = 0.1  # an engine that has seen none by then gets another chance at a connection
PACE_SECONDS = 0.01  # between two writes, for each canary that flies: 100 a second in all
PAUSE_SECONDS_MAX = 0.05  # so that each is told several times within the watch
HURRY_SECONDS = 0.03  # before a pull they do not pause, so that it meets some in flight
CANARIES_MAX = 64

CANARIES_PER_ENGINE = 3
LOOK_SECONDS = 0.005

LEVELS = (
    (Level.FREEZE, Scope.RUN),
    (Level.HALT, Scope.RUN),
    (Level.HALT, Scope.TOOL),
    (Level.HALT, Scope.RELEASE),
    (Level.HALT, Scope.TENANT),
)
EVERYONE = (Level.HALT, Scope.GLOBAL)
"""Only where it is asked for: it stops every agent for a moment."""

CONTAINED, PASSED, UNPROVEN = "contained", "CANARY PASSED", "not proven"
"""How a verdict begins."""


@dataclass(frozen=True, slots=True)
class Figures:
    """How one level went. Milliseconds from asking for the pull to its return, and to the last
    write that the upstream first read; writes that it read until then and later."""

    level: Level
    scope: Scope
    verdict: str
    return_ms: float | None = None
    contain_ms: float | None = None
    before: int = 0
    after: int = 0

    @property
    def proven(self) -> bool:
        return self.verdict == CONTAINED

    @property
    def leaked(self) -> bool:
        return self.verdict.startswith(PASSED)


@dataclass(frozen=True, slots=True)
class Result:
    """A whole drill; `why` is the first thing that was wrong. `halted`: the proxy halted all."""

    levels: tuple[Figures, ...]
    engines: int
    why: str = ""
    halted: bool = False

    @property
    def passed(self) -> bool:
        return not self.why


@dataclass(slots=True)
class _Level:
    """What is seen of one level. Monotonic seconds."""

    began: float
    asked: float = 0.0
    returned: float = 0.0
    read: str = ""
    admitted_after: int = 0
    arrivals: list[float] = field(default_factory=list)


class Unproven(Exception):
    """A level cannot be judged; the message says why."""


async def drill(data: Path, clock: Clock, *, everyone: bool) -> Result:
    """Drill the proxy that runs on this data directory, once.

    Raises Unreachable, LedgerError, and Refused when no drill can be begun now.
    """
    async with Upstream.serving(clock) as upstream:
        body = {"port": upstream.port}
        begun = await asyncio.to_thread(ask, data, "POST", "/v1/drill", body)
        try:
            with contextlib.closing(open_reader(data)) as reader:
                async with _flying(data, clock, begun, upstream, reader) as flight:
                    result = await flight.drilled((*LEVELS, *([EVERYONE] if everyone else [])))
            return await asyncio.to_thread(_reported, data, result)
        finally:
            # It ends by itself, too.
            with contextlib.suppress(PortUnreachable, Unreachable, Refused):
                ask(data, "DELETE", "/v1/drill")


def _reported(data: Path, result: Result) -> Result:
    levels = [
        {
            "level": each.level,
            "scope": each.scope,
            "return_ms": each.return_ms,
            "contain_ms": each.contain_ms,
            "before": each.before,
            "after": each.after,
        }
        for each in result.levels
    ]
    leaked = any(each.leaked for each in result.levels)
    body = {"passed": result.passed, "leaked": leaked, "why": result.why, "levels": levels}
    answer = ask(data, "POST", "/v1/drill/result", body)
    return Result(result.levels, result.engines, result.why, bool(answer["halted"]))


@contextlib.asynccontextmanager
async def _flying(
    data: Path, clock: Clock, begun: dict[str, Any], upstream: Upstream, reader: sqlite3.Connection
) -> AsyncIterator["Flight"]:
    def canary() -> Canary:
        return Canary(clock, begun["listening"], begun["run"], begun["secret"], upstream.url)

    flight = Flight(data, clock, begun["subjects"], upstream, reader, canary)
    try:
        yield flight
    finally:
        await flight.land()


class Flight:
    """The canaries in the air, and the levels that they are put through."""

    def __init__(
        self,
        data: Path,
        clock: Clock,
        subjects: dict[str, str],
        upstream: Upstream,
        reader: sqlite3.Connection,
        canary: Callable[[], Canary],
    ) -> None:
        self._data = data
        self._clock = clock
        self._subjects = subjects
        self._upstream = upstream
        self._reader = reader
        self._canary = canary
        self._canaries: list[Canary] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._hurrying = False

    async def drilled(self, levels: tuple[tuple[Level, Scope], ...]) -> Result:
        done: list[Figures] = []
        for level, scope in levels:
            done.append(await self._drilled(level, scope))
            if done[-1].verdict.startswith(UNPROVEN):
                break  # what did not fly here flies nowhere
        engines = len(containment.worker_rows(self._reader)) or 1
        bad = [f"{each.level} {each.scope}: {each.verdict}" for each in done if not each.proven]
        if len(done) < len(levels):
            bad.append(f"{len(levels) - len(done)} more levels not tried")
        return Result(tuple(done), engines, "; ".join(bad))

    async def land(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _drilled(self, level: Level, scope: Scope) -> Figures:
        seen = _Level(self._clock.monotonic_seconds())
        try:
            await self._flows("does not flow")
            await self._stopped(seen, level, scope)
            verdict = self._verdict(seen, level)
            await asyncio.to_thread(self._ask, "/v1/drill/release", level, scope)
            await self._flows("did not flow again")
        except (Unproven, Refused) as unproven:
            verdict = f"{UNPROVEN}: {unproven}"
        if not seen.returned:
            return Figures(level, scope, verdict, before=len(seen.arrivals))
        edge = seen.returned + LEAK_SECONDS
        last = max((at for at in seen.arrivals if at >= seen.asked), default=seen.asked)
        return Figures(
            level,
            scope,
            verdict,
            return_ms=round((seen.returned - seen.asked) * 1000, 1),
            contain_ms=round((last - seen.asked) * 1000, 1),
            before=sum(at <= edge for at in seen.arrivals),
            after=sum(at > edge for at in seen.arrivals),
        )

    async def _stopped(self, seen: _Level, level: Level, scope: Scope) -> None:
        """Pull the cord, and look for a while at what comes through all the same."""
        self._hurrying = True
        await asyncio.sleep(HURRY_SECONDS)

        def pull() -> tuple[float, float]:
            asked = self._clock.monotonic_seconds()
            self._ask("/v1/drill/pull", level, scope)
            return asked, self._clock.monotonic_seconds()

        try:
            seen.asked, seen.returned = await asyncio.to_thread(pull)
        finally:
            self._hurrying = False
        await asyncio.sleep(WATCH_SECONDS)
        await self._heard(seen.returned + LEAK_SECONDS)
        async with contextlib.aclosing(self._canary()) as reading:
            seen.read = (await reading.call("GET")).reason
        subject = self._subjects[scope]
        seen.admitted_after = containment.proof(self._reader, level, scope, subject).admitted_after
        seen.arrivals = [at for at in self._upstream.arrivals if at >= seen.began]

    async def _heard(self, edge: float) -> None:
        """Until every canary was told something that it asked after this moment."""
        over = self._clock.monotonic_seconds() + FLOW_SECONDS
        while any(canary.last(edge) == SILENT for canary in self._canaries):
            if self._clock.monotonic_seconds() > over:
                return
            await asyncio.sleep(LOOK_SECONDS)

    def _verdict(self, seen: _Level, level: Level) -> str:
        edge = seen.returned + LEAK_SECONDS
        leaked = sum(at > edge for at in seen.arrivals)
        if leaked:
            return f"{PASSED}: {leaked} writes arrived after the {level} had returned"
        if seen.admitted_after:
            return f"{PASSED}: the ledger shows {seen.admitted_after} calls admitted after it"
        stopped = Reason.HALTED if level is Level.HALT else Reason.FROZEN
        for canary in self._canaries:
            told = [each.reason for each in canary.told if each.asked > edge]
            if not told or set(told) != {stopped}:
                raise Unproven(f"a canary was told {', '.join(sorted(set(told))) or 'nothing'}")
        expected = Reason.ALLOWED if level is Level.FREEZE else Reason.HALTED
        if seen.read != expected:
            raise Unproven(f"a read was told {seen.read}, not {expected}")
        return CONTAINED

    # Flying

    async def _flows(self, otherwise: str) -> None:
        """Every canary's write arrives, through every engine. Raises Unproven."""
        since = self._clock.monotonic_seconds()
        through: set[str] = set()
        grown = since
        while True:
            engines = {worker.id for worker in containment.worker_rows(self._reader)}
            if len(self._canaries) < min(CANARIES_MAX, CANARIES_PER_ENGINE * (len(engines) or 1)):
                self._launch()
            through |= {
                row["worker"]
                for row in containment.open_calls(self._reader)
                if row["tool"] == CANARY
            }
            last = {canary.last(since) for canary in self._canaries}
            now = self._clock.monotonic_seconds()
            if last == {Reason.ALLOWED} and engines <= through:
                return
            if now - since > FLOW_SECONDS:
                told = ", ".join(sorted(last - {Reason.ALLOWED})) or "some engine took no canary"
                raise Unproven(f"the canary {otherwise} ({told})")
            if engines - through and now - grown > GROW_SECONDS:
                if len(self._canaries) < CANARIES_MAX:
                    self._launch()
                grown = now
            await asyncio.sleep(LOOK_SECONDS)

    def _launch(self) -> None:
        canary = self._canary()
        self._canaries.append(canary)
        self._tasks.append(asyncio.get_running_loop().create_task(self._fly(canary)))

    async def _fly(self, canary: Canary) -> None:
        async with contextlib.aclosing(canary):
            while True:
                told = await canary.call("POST")
                if told.reason != Reason.ALLOWED or not self._hurrying:
                    pause_seconds = PACE_SECONDS * len(self._canaries)
                    await asyncio.sleep(min(pause_seconds, PAUSE_SECONDS_MAX))

    def _ask(self, path: str, level: Level, scope: Scope) -> None:
        ask(self._data, "POST", path, {"level": level, "scope": scope})
