"""Whatever else happens while a cord is pulled, nothing passes: every case with every scope.

Each scope has a proxy of its own, and the four go through the cases side by side. In each case the
calls pass first, so that the refusals after it show something, and again at its end. About a minute
in all, most of it starts and a lock that is waited for.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from proxy import control_client
from tests.end_to_end import endless, faults
from tests.end_to_end.clocked import ClockedProxy, clocks
from tests.end_to_end.endless import Endless
from tests.end_to_end.ingress import Http2, Stream, WebSocket
from tests.end_to_end.line import Refused, Told, asked, opened
from tests.end_to_end.running import Run
from tests.engine import HAS_HTTP2

POLICY = """\
version: 1
tools:
  things: {match: {host: api.origin.example}, allow_addresses: [127.0.0.0/8]}
"""

RUN, TENANT = "run-1", "acme"
SUBJECTS = {"run": RUN, "tenant": TENANT, "tool": "things", "global": ""}
HALTED = "403 halted"
HOUR_SECONDS = 3600
WAIT_SECONDS = 10.0
CUT_SECONDS = 2.0
DISK = "size=48m,mode=0711"  # the write-ahead log alone grows to 16 MB


@dataclass(eq=False, slots=True)
class World:
    """One scope: its proxy, and the run that the scope covers."""

    scope: str
    proxy: ClockedProxy
    upstream: Endless
    run: Run
    numbers: Iterator[int] = field(default_factory=count)

    @property
    def data(self) -> Path:
        return self.proxy.folder / "data"

    @property
    def cord(self) -> dict[str, str]:
        return {"level": "halt", "scope": self.scope, "subject": SUBJECTS[self.scope]}

    def halt(self) -> None:
        assert control_client.ask(self.data, "POST", "/v1/pull", self.cord)["changed"]

    def resume(self) -> None:
        control_client.ask(self.data, "POST", "/v1/release", {**self.cord, "reason": "a test"})

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = control_client.ask(self.data, "GET", "/v1/status")
        return answer

    def path(self) -> str:
        return f"/{self.scope}/{next(self.numbers)}"

    def calls(self, run: Run, *, tls: bool | None = None) -> set[str]:
        """A read and a write by new connections: in the clear, inside TLS, by HTTP/2."""
        told = []
        for secure in (False, True) if tls is None else (tls,):
            for method in ("GET", "POST"):
                path = self.path()
                body = path if method == "POST" else None
                told.append(asked(run, method, path, body, tls=secure))
        if tls is None and HAS_HTTP2:
            told.append(self.by_http2(run))
        return {shown(each) for each in told}

    def by_http2(self, run: Run) -> Told:
        try:
            with closing(Http2(run)) as connection:
                return connection.ask("POST", self.path(), "by HTTP/2")
        except Refused as refused:
            return refused.told

    def passes(self, run: Run | None = None) -> None:
        assert self.calls(run or self.run) == {"200 allowed"}

    def refused(self, run: Run | None = None, *, tls: bool | None = None) -> str:
        """What every call is told; none of them may reach the upstream."""
        mark = self.upstream.mark()
        told = self.calls(run or self.run, tls=tls)
        assert self.arrived(mark) == [], f"told {told}"
        return " or ".join(sorted(told))

    def arrived(self, mark: int) -> list[str]:
        return [each.path for each in self.upstream.since(mark) if f"/{self.scope}/" in each.path]

    def minted(self, *words: str) -> Run:
        block = self.proxy.cli("env", "--format", "json", *words)
        return Run(words[1], TENANT, json.loads(block), self.proxy.folder)


def shown(told: Told) -> str:
    return f"{told.status} {told.reason}"


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


# The cases: each returns what was told, in order


def plain_http(world: World) -> list[str]:
    world.halt()
    return [world.refused(tls=False)]


def restart(world: World) -> list[str]:
    world.halt()
    world.proxy.end(signal.SIGKILL)
    world.proxy.start()
    return [world.refused()]


def resumed_run(world: World) -> list[str]:
    """The same run starts again elsewhere, by an environment of its own."""
    world.halt()
    return [world.refused(world.minted("--run", RUN, "--tenant", TENANT))]


def child_run(world: World) -> list[str]:
    """One that was there before, and one that is made under the halt."""
    name = f"child-{next(world.numbers)}"
    words = ("--tenant", TENANT, "--parent", RUN)
    before = world.minted("--run", name, *words)
    world.passes(before)
    world.halt()
    return [world.refused(before), world.refused(world.minted("--run", f"{name}-b", *words))]


def new_token(world: World) -> list[str]:
    world.halt()
    told = world.proxy.cli("token", "mint", "--run", RUN, "--tenant", TENANT, "--json")
    fresh = f"{RUN}:{json.loads(told)['secret']}@"
    environment = {
        name: re.sub(rf"{RUN}:[0-9a-f]+@", fresh, value)
        for name, value in world.run.environment.items()
    }
    assert environment != dict(world.run.environment)
    return [world.refused(replace(world.run, environment=environment))]


def keep_alive(world: World) -> list[str]:
    with ExitStack() as closing_all:
        lines = [closing_all.enter_context(opened(world.run, tls=tls)) for tls in (False, True)]
        assert {shown(line.ask("GET", world.path())) for line in lines} == {"200 allowed"}
        world.halt()
        mark, told = world.upstream.mark(), []
        for method in ("GET", "POST"):
            told += [shown(line.ask(method, world.path(), method)) for line in lines]
        assert world.arrived(mark) == []
    return sorted(set(told))


def stream(world: World) -> list[str]:
    return cut_and_refused(world, "stream", Stream)


def websocket(world: World) -> list[str]:
    return cut_and_refused(world, "socket", WebSocket)


def cut_and_refused(world: World, kind: str, make: "type[Stream] | type[WebSocket]") -> list[str]:
    told = []
    with ExitStack() as closing_all:
        before = [make(world.run, f"/{kind}{world.path()}", tls=tls) for tls in (False, True)]
        for each in before:
            closing_all.callback(each.close)
        world.halt()
        mark = world.upstream.mark()
        for each in before:
            each.sock.settimeout(CUT_SECONDS)
            each.cut_ns()
            told.append("cut")
        for tls in (False, True):
            with pytest.raises(Refused) as refused:
                make(world.run, f"/{kind}{world.path()}", tls=tls)
            told.append(shown(refused.value.told))
        assert world.arrived(mark) == []
    return list(dict.fromkeys(told))


def http2(world: World) -> list[str]:
    """A stream that flows and one that is new, on a connection of before; and a new connection."""
    with closing(Http2(world.run, seconds=WAIT_SECONDS)) as connection:
        flowing = connection.begin("GET", f"/stream{world.path()}")
        connection.flows(flowing)
        world.halt()
        mark = world.upstream.mark()
        while not connection.answers[flowing].ended_ns:
            connection.pump()
        assert connection.answers[flowing].reset
        told = ["cut", shown(connection.ask("POST", world.path(), "new"))]
        told.append(shown(world.by_http2(world.run)))
        assert world.arrived(mark) == []
    return list(dict.fromkeys(told))


def store_locked(world: World) -> list[str]:
    world.halt()
    with faults.locked(world.data):
        told = world.refused(tls=False)
    return [told, world.refused()]


def store_full(world: World) -> list[str]:
    world.halt()
    with faults.full(world.data):
        told = world.refused()
    return [told, world.refused()]


def clock_stepped(world: World) -> list[str]:
    world.halt()
    told = []
    for ahead_seconds in (HOUR_SECONDS, -HOUR_SECONDS, 0):
        world.proxy.set_clock(ahead_seconds)
        told.append(world.refused())
    return list(dict.fromkeys(told))


def policy_broken(world: World) -> list[str]:
    world.halt()
    world.proxy.edit_policy("version: 1\ntools: {things: [what]}\n")
    until(lambda: world.status()["policy"]["error"] is not None)
    told = world.refused()
    world.proxy.edit_policy(POLICY)
    until(lambda: world.status()["policy"]["error"] is None)
    return [told]


def halt_file(world: World) -> list[str]:
    """Nobody is asked: a line in the file is enough, and taking the file away lifts nothing."""
    words = " ".join(filter(None, ["halt", world.scope, SUBJECTS[world.scope]]))
    world.proxy.folder.joinpath("halt.new").write_text("" if world.scope == "global" else words)
    file = world.data / "HALT"
    file.write_text(world.proxy.folder.joinpath("halt.new").read_text())
    told = [world.refused()]
    until(lambda: any(cord["latched"] for cord in world.status()["pulled"]))
    file.unlink()
    return list(dict.fromkeys([*told, world.refused()]))


def record_unread(world: World) -> list[str]:
    """What happened before cannot be read back after a start, so no detector would know of it."""
    world.halt()
    world.proxy.end(signal.SIGKILL)
    with faults.spoiled(world.data):
        world.proxy.start()
        told = [world.refused()]
        world.resume()
        told.append(world.refused())
        world.proxy.end(signal.SIGKILL)
    world.proxy.start()
    world.halt()
    return [*told, world.refused()]


CASES: dict[Callable[[World], list[str]], list[str]] = {
    plain_http: [HALTED],
    keep_alive: [HALTED],
    stream: ["cut", HALTED],
    websocket: ["cut", HALTED],
    **({http2: ["cut", HALTED]} if HAS_HTTP2 else {}),
    restart: [HALTED],
    resumed_run: [HALTED],
    child_run: [HALTED, HALTED],
    new_token: [HALTED],
    store_locked: ["503 store_locked", HALTED],
    store_full: ["503 store_full", HALTED],
    clock_stepped: ["503 clock_stepped", HALTED],
    policy_broken: [HALTED],
    halt_file: [HALTED],
    record_unread: [HALTED, "503 detector_failure", HALTED],
}


@pytest.fixture
def worlds(tmp_path: Path) -> Iterator[list[World]]:
    with ExitStack() as closing_all:
        (tmp_path / "upstream").mkdir()
        upstream = closing_all.enter_context(endless.serving(tmp_path / "upstream"))
        proxies = []
        closing_all.enter_context(clocks())
        closing_all.enter_context(patch.object(faults, "DISK", DISK))
        for scope in SUBJECTS:
            folder = tmp_path / scope
            folder.mkdir()
            proxies.append(ClockedProxy(folder, POLICY, upstream.ca, upstream.routes))
            if os.geteuid() == 0:
                closing_all.enter_context(faults.small_disk(folder / "data"))
            closing_all.callback(killed, proxies[-1])
            proxies[-1].start()
        with ThreadPoolExecutor(len(proxies)) as minting:
            runs = list(minting.map(lambda proxy: proxy.mint(TENANT), proxies))
        yield [World(*each) for each in zip(SUBJECTS, proxies, [upstream] * 4, runs, strict=True)]


def killed(proxy: ClockedProxy) -> None:
    if proxy.process is not None:
        proxy.end(signal.SIGKILL)


def column(world: World, cases: list[Callable[[World], list[str]]]) -> list[str]:
    """What each case came to in this scope; a failure is told in its place."""
    found = []
    for case in cases:
        try:
            world.passes()
            told = case(world)
            world.resume()
            world.passes()
            found.append(", ".join(told))
        except Exception as failure:
            found.append(f"FAILS: {type(failure).__name__}: {failure}"[:300])
            world.proxy.set_clock(0)
            world.proxy.edit_policy(POLICY)
            if world.proxy.process is None:
                world.proxy.start()
            with ExitStack() as anyhow:
                anyhow.push(lambda *_: True)
                world.resume()
    return found


@pytest.mark.slow
def test_nothing_passes_a_halt_whatever_else_happens(
    worlds: list[World], capsys: pytest.CaptureFixture[str]
) -> None:
    """60 seconds."""
    cases = [case for case in CASES if case is not store_full or os.geteuid() == 0]
    with ThreadPoolExecutor(len(worlds)) as scopes:
        columns = list(scopes.map(lambda world: column(world, cases), worlds))
    table = {case: [told[row] for told in columns] for row, case in enumerate(cases)}
    with capsys.disabled():
        print(f"\n{'':14}" + "".join(f" | {world.scope:28}" for world in worlds))
        for case, cells in table.items():
            name = case.__name__.replace("_", " ")
            print(f"{name:14}" + "".join(f" | {cell:28}" for cell in cells))
    expected = {case: [", ".join(CASES[case])] * len(worlds) for case in cases}
    assert table == expected
    for world in worlds:
        world.proxy.stop()
        assert world.proxy.broken() == []
