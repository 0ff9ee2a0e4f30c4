"""Each failure alone, by each way in: nothing passes, and each has its own reason.

The ways are a new connection in the clear, a new tunnel, a new HTTP/2 connection, connections of
all three kinds that were open before, and a message on a WebSocket that was. About a minute in all.
"""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from proxy import control_client
from tests.end_to_end import endless, faults
from tests.end_to_end.clocked import ClockedProxy, clocks
from tests.end_to_end.endless import Endless
from tests.end_to_end.ingress import Http2, WebSocket, raw_answer
from tests.end_to_end.line import Line, Refused, Told, asked
from tests.end_to_end.origin import HOST
from tests.end_to_end.running import Run
from tests.engine import HAS_HTTP2, spoken

POLICY = """\
version: 1
tools:
  things: {match: {host: api.origin.example}, allow_addresses: [127.0.0.0/8]}
"""

HOUR_SECONDS = 3600
BACK_SECONDS = 20.0  # a decider that was killed; test_kill_workers.py tells how soon it is back
ANSWER_SECONDS = 20.0
MESSAGE_SECONDS = 8.0  # a lock is waited for 5 seconds, and so is a decider that says nothing

WAYS = spoken(("plain", "tunnel", "HTTP/2", "plain kept", "tunnel kept", "HTTP/2 kept", "message"))

NUMBERS = count()


@dataclass(eq=False, slots=True)
class World:
    proxy: ClockedProxy
    upstream: Endless
    run: Run

    @property
    def data(self) -> Path:
        return self.proxy.folder / "data"

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = control_client.ask(self.data, "GET", "/v1/status")
        return answer


class Kept:
    """A connection of each kind, with a call behind it, and a WebSocket."""

    def __init__(self, run: Run, closing_all: ExitStack) -> None:
        self.plain = closing_all.enter_context(closing(Line(run, tls=False)))
        self.tunnel = closing_all.enter_context(closing(Line(run, tls=True)))
        lines: list[Line | Http2] = [self.plain, self.tunnel]
        if HAS_HTTP2:
            self.http2 = closing_all.enter_context(closing(Http2(run, seconds=ANSWER_SECONDS)))
            lines.append(self.http2)
        opened = WebSocket(run, f"/socket/{next(NUMBERS)}", tls=True)
        self.socket = closing_all.enter_context(closing(opened))
        self.socket.sock.settimeout(MESSAGE_SECONDS)
        before = [line.ask("POST", path(), "before") for line in lines]
        assert {told.status for told in before} == {200}

    def message(self) -> str:
        self.socket.say("hello")
        try:
            self.socket.cut_ns()
        except TimeoutError:
            return "flows on"
        return f"cut {self.socket.reason}"


def path() -> str:
    return f"/orders/{next(NUMBERS)}"


def shown(told: Told) -> str:
    return f"{told.status} {told.reason}"


def by_http2(run: Run, method: str) -> Told:
    try:
        with closing(Http2(run, seconds=ANSWER_SECONDS)) as connection:
            return connection.ask(method, path())
    except Refused as refused:
        return refused.told


def told_by_each(run: Run, kept: Kept, method: str) -> dict[str, str]:
    """What each way is told, all at once but for a message, which has no method.

    It comes first and alone: in one batch with a call it would share that one's failure.
    """
    first = {"message": kept.message()} if method == "POST" else {}
    ways: dict[str, Callable[[], str]] = {
        "plain": lambda: shown(asked(run, method, path(), "new")),
        "tunnel": lambda: shown(asked(run, method, path(), "new", tls=True)),
        "HTTP/2": lambda: shown(by_http2(run, method)),
        "plain kept": lambda: shown(kept.plain.ask(method, path(), "kept")),
        "tunnel kept": lambda: shown(kept.tunnel.ask(method, path(), "kept")),
        "HTTP/2 kept": lambda: shown(kept.http2.ask(method, path(), "kept")),
    }
    with ThreadPoolExecutor(len(ways)) as callers:
        told = {way: callers.submit(call) for way, call in ways.items() if way in WAYS}
        return first | {way: answer.result(timeout=60) for way, answer in told.items()}


def refused_by_each(world: World, kept: Kept, status: int, reason: str) -> None:
    """Writes, and a message; then reads, where connections were not closed with the answer."""
    mark = world.upstream.mark()
    told = told_by_each(world.run, kept, "POST")
    assert told == dict.fromkeys(WAYS, f"{status} {reason}") | {"message": f"cut {reason}"}
    told = told_by_each(world.run, kept, "GET")
    assert told == {way: f"{status} {reason}" for way in WAYS if way != "message"}
    assert [(each.method, each.path) for each in world.upstream.since(mark)] == []


def passes_again(world: World, seconds: float = 0.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with ExitStack() as closing_all, suppress(Refused, OSError, AssertionError):
            Kept(world.run, closing_all)
            return
        assert time.monotonic() < deadline, "nothing passes any more"
        time.sleep(0.1)


# The failures


@contextmanager
def clock_set(ahead_seconds: int, proxy: ClockedProxy) -> Iterator[None]:
    proxy.set_clock(ahead_seconds)
    try:
        yield
    finally:
        proxy.set_clock(0)


@contextmanager
def stopped(world: World) -> Iterator[None]:
    """The decider lives, and does nothing."""
    pid = world.status()["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


STORE: dict[str, Callable[[Path], AbstractContextManager[None]]] = {
    "store_locked": faults.locked,
    "store_read_only": faults.read_only,
    "store_missing": faults.missing,
    "store_full": faults.full,
}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endless]:
    with endless.serving(tmp_path_factory.mktemp("endless")) as served:
        yield served


@pytest.fixture(scope="module")
def start(
    upstream: Endless, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., World]]:
    with clocks(), ExitStack() as closing_all:

        def start(workers: int = 1, setting: str = "", *, small: bool = False) -> World:
            folder = tmp_path_factory.mktemp("p")
            proxy = ClockedProxy(folder, POLICY, upstream.ca, upstream.routes, workers=workers)
            with (folder / "config" / "pullcord.yaml").open("a") as settings:
                settings.write(setting)
            if small:
                closing_all.enter_context(faults.small_disk(folder / "data"))
            proxy.start()
            closing_all.callback(killed, proxy)
            return World(proxy, upstream, proxy.mint())

        yield start


def killed(proxy: ClockedProxy) -> None:
    if proxy.process is not None:
        proxy.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def one(start: Callable[..., World]) -> World:
    return start()


@pytest.fixture(scope="module")
def small(start: Callable[..., World]) -> World:
    return start(small=True)


@pytest.fixture(scope="module")
def two(start: Callable[..., World]) -> World:
    """With two engines."""
    return start(workers=2)


@pytest.fixture
def kept() -> Iterator[Callable[[World], Kept]]:
    with ExitStack() as closing_all:
        yield lambda world: Kept(world.run, closing_all)


@pytest.mark.slow
@pytest.mark.parametrize("reason", STORE)
def test_a_store_that_fails_refuses_by_each_way(
    reason: str, kept: Callable[[World], Kept], request: pytest.FixtureRequest
) -> None:
    """7 seconds for the lock, which is waited for; 2 for each other."""
    world: World = request.getfixturevalue("small" if reason == "store_full" else "one")
    lines = kept(world)
    with STORE[reason](world.data):
        refused_by_each(world, lines, 503, reason)
    passes_again(world)


@pytest.mark.slow
def test_a_damaged_store_refuses_by_each_way(
    start: Callable[..., World], kept: Callable[[World], Kept]
) -> None:
    """4 seconds, most of them a start."""
    world = start()
    lines = kept(world)
    faults.damage(world.data)
    refused_by_each(world, lines, 503, "store_corrupt")


@pytest.mark.slow
@pytest.mark.parametrize("ahead_seconds", [HOUR_SECONDS, -HOUR_SECONDS])
@pytest.mark.parametrize("engines", ["one", "two"])
def test_a_clock_that_was_set_refuses_by_each_way_until_it_is_right(
    ahead_seconds: int,
    engines: str,
    kept: Callable[[World], Kept],
    request: pytest.FixtureRequest,
) -> None:
    """2 seconds, and the start of a proxy."""
    world: World = request.getfixturevalue(engines)
    lines = kept(world)
    with clock_set(ahead_seconds, world.proxy):
        refused_by_each(world, lines, 503, "clock_stepped")
        assert round(world.status()["clock"]["stepped_seconds"]) == ahead_seconds
    passes_again(world)


@pytest.mark.slow
def test_a_start_with_a_clock_behind_the_record_refuses_until_it_is_right(
    start: Callable[..., World], kept: Callable[[World], Kept]
) -> None:
    """6 seconds, most of them two starts. One that is ahead cannot be told from a long pause."""
    world = start()
    passes_again(world)
    world.proxy.stop()
    with clock_set(-HOUR_SECONDS, world.proxy):
        world.proxy.start()
        mark = world.upstream.mark()
        told = {shown(asked(world.run, "POST", path(), "new", tls=tls)) for tls in (False, True)}
        if HAS_HTTP2:
            told |= {shown(by_http2(world.run, "GET"))}
        assert told == {"503 clock_stepped"}
        assert world.upstream.since(mark) == []
    passes_again(world)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_without_its_decider_an_engine_refuses_by_each_way(
    number: signal.Signals, two: World, kept: Callable[[World], Kept]
) -> None:
    """5 seconds when it was killed; 15 when it was stopped, 5 of which it is waited for twice."""
    lines = kept(two)
    if number == signal.SIGKILL:
        os.kill(two.status()["pid"], number)
        mark = two.upstream.mark()
        told = told_by_each(two.run, lines, "POST")
        expected = dict.fromkeys(WAYS, "503 decider_unreachable")
        assert told == expected | {"message": "cut decider_unreachable"}
        assert two.upstream.since(mark) == []
    else:
        with stopped(two):
            refused_by_each(two, lines, 503, "decider_unreachable")
    passes_again(two, BACK_SECONDS)


@pytest.mark.slow
def test_a_policy_that_cannot_be_read_freezes_writes_where_it_was_set_so(
    start: Callable[..., World], kept: Callable[[World], Kept]
) -> None:
    """4 seconds, most of them a start. Reads flow under the last good policy."""
    world = start(setting="invalid_policy: freeze\n")
    for breaking in ("version: 1\ntools: {things: 7}\n", "", None):
        lines = kept(world)
        if breaking is None:
            (world.proxy.folder / "config" / "policy.yaml").unlink()
        else:
            world.proxy.edit_policy(breaking)
        until(lambda: world.status()["policy"]["error"] is not None)
        mark = world.upstream.mark()
        told = told_by_each(world.run, lines, "POST")
        assert told == dict.fromkeys(WAYS, "403 frozen") | {"message": "cut freeze:global"}
        assert world.upstream.since(mark) == []
        told = told_by_each(world.run, lines, "GET")
        assert set(told.values()) == {"200 allowed"}
        world.proxy.edit_policy(POLICY)
        until(lambda: world.status()["policy"]["error"] is None)
        passes_again(world)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


PRINCIPALS = {
    "nobody": None,
    "a bearer": "Bearer {secret}",
    "a digest": 'Digest username="run-1", response="00"',
    "a ticket": "Negotiate YII=",
    "a word": "{secret}",
    "two halves, not encoded": "Basic run-1:{secret}",
    "a signature": 'Signature keyId="run-1",signature="00"',
}


@pytest.mark.parametrize("principal", PRINCIPALS)
def test_a_principal_of_an_unknown_kind_is_refused_by_each_way(
    principal: str, one: World, kept: Callable[[World], Kept]
) -> None:
    """407, so that its client says what it lacks; nobody passes as somebody else or as nobody."""
    secret = urlsplit(one.run.proxy_url).password or ""
    sent = PRINCIPALS[principal]
    fields = {} if sent is None else {"Proxy-Authorization": sent.format(secret=secret)}
    mark = one.upstream.mark()
    ways: dict[str, Callable[[], Told]] = {
        "plain": partial(told_raw, one.run, "GET", f"http://{HOST}{path()}", fields),
        "tunnel": partial(told_raw, one.run, "CONNECT", f"{HOST}:443", fields),
    }
    told = {way: call() for way, call in ways.items()}
    if sent is not None:  # inside a tunnel of a known run a call may name itself, and then counts
        lines = kept(one)
        mark = one.upstream.mark()
        header = fields["Proxy-Authorization"]
        told["tunnel kept"] = lines.tunnel.ask("GET", path(), Proxy_Authorization=header)
        if HAS_HTTP2:
            stream = lines.http2.begin("GET", path(), proxy_authorization=header)
            told["HTTP/2 kept"] = lines.http2.told(stream)
    assert {way: each.status for way, each in told.items()} == dict.fromkeys(told, 407)
    assert {each.reason for each in told.values()} == {"credentials_required"}
    assert all("basic" in each.headers["proxy-authenticate"].lower() for each in told.values())
    assert one.upstream.since(mark) == []


def told_raw(run: Run, method: str, target: str, fields: dict[str, str]) -> Told:
    address = ("127.0.0.1", urlsplit(run.proxy_url).port or 0)
    with socket.create_connection(address, timeout=ANSWER_SECONDS) as sock:
        return raw_answer(sock, method, target, fields)
