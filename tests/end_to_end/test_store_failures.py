"""A ledger that cannot record: nothing passes, somebody says why, and nothing is lost after it.

The faults are real and happen under the running program. One that damaged its ledger is not
trusted again; after every other it goes on by itself.
"""

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ledger.errors import MEANING, Kind
from proxy import control_client
from tests.end_to_end import faults, origin
from tests.end_to_end.line import Line, Refused, Told, asked, opened
from tests.end_to_end.origin import Origin
from tests.end_to_end.running import Proxy, Run
from tests.end_to_end.startup import sentence_of

POLICY = """\
version: 1
tools:
  api: {match: {host: api.origin.example}, allow_addresses: [127.0.0.0/8]}
"""

BUSY_SECONDS = 5.0  # how long the store waits for another program's lock
SLACK_SECONDS = 2.0
NOTICED_SECONDS = 3.0  # for readiness to follow the ledger
LOG_CALLS_MAX = 4_000  # a log of 16 MB holds fewer

Fault = Callable[[Path], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class World:
    upstream: Origin
    proxy: Proxy
    run: Run
    data: Path

    def readiness(self) -> str:
        """Empty when ready, else why not."""
        try:
            control_client.ask(self.data, "GET", "/readyz")
        except control_client.Refused as refused:
            return f"{refused.status}: {refused}"
        return ""

    def ledger(self) -> dict[str, Any]:
        """What `status` says of the ledger."""
        ledger: dict[str, Any] = control_client.ask(self.data, "GET", "/v1/status")["ledger"]
        return ledger


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    with origin.serving(tmp_path_factory.mktemp("origin")) as served:
        yield served


@pytest.fixture(scope="module")
def start(
    upstream: Origin, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., World]]:
    with ExitStack() as closing:

        def start(*, small: bool = False) -> World:
            proxy = Proxy(tmp_path_factory.mktemp("p"), POLICY, upstream.ca, upstream.routes)
            data = proxy.folder / "data"
            if small:
                closing.enter_context(faults.small_disk(data))
            proxy.start()
            closing.callback(_killed, proxy)
            return World(upstream, proxy, proxy.mint(), data)

        yield start


def _killed(proxy: Proxy) -> None:
    if proxy.process is not None:
        proxy.end(signal.SIGKILL)


@pytest.fixture(scope="module")
def on_disk(start: Callable[..., World]) -> World:
    return start()


@pytest.fixture(scope="module")
def on_small_disk(start: Callable[..., World]) -> World:
    return start(small=True)


@pytest.fixture
def kept(request: pytest.FixtureRequest) -> Iterator[Callable[[World], list[Line]]]:
    """Two connections of before the fault, plain and TLS, each with a call behind it."""
    with ExitStack() as closing:

        def open_both(world: World) -> list[Line]:
            lines = [closing.enter_context(opened(world.run, tls=tls)) for tls in (False, True)]
            assert [line.ask("GET", "/before").status for line in lines] == [200, 200]
            return lines

        yield open_both


def use_up_the_log(world: World) -> int:
    """On a full disk what fits into the write-ahead log as it is can be recorded, and so it passes;
    behind that nothing does. How many of these calls passed and could not be settled."""
    for number in range(LOG_CALLS_MAX):
        if asked(world.run, "GET", f"/fits/{number}").status == 503:
            return int(world.ledger()["owed"])
    raise AssertionError("the log has no end")


def all_at_once(world: World, kept: list[Line], path: str) -> list[tuple[Told, float]]:
    """A read and a write on each connection that was open and on new ones, with their seconds."""
    plain, secure = kept
    run = world.run
    calls: list[Callable[[], Told]] = [
        lambda: plain.ask("GET", path),
        lambda: secure.ask("POST", path, "kept"),
        lambda: asked(run, "GET", path),
        lambda: asked(run, "POST", path, "new"),
        lambda: asked(run, "GET", path, tls=True),
    ]

    def timed(call: Callable[[], Told]) -> tuple[Told, float]:
        start = time.monotonic()
        return call(), time.monotonic() - start

    with ThreadPoolExecutor(len(calls)) as callers:
        return list(callers.map(timed, calls))


@contextmanager
def held_write(world: World, path: str) -> Iterator["Future[Told]"]:
    """A write that has arrived and is answered when the gate is opened."""
    world.upstream.gate.clear()
    with ThreadPoolExecutor(1) as caller:
        told = caller.submit(asked, world.run, "POST", path, "held")
        try:
            world.upstream.wait_for(path)
            yield told
        finally:
            world.upstream.gate.set()


def nothing_passes(world: World, kept: list[Line], path: str, kind: Kind) -> None:
    """While the fault stands every call is refused for it, in time, and reaches nothing."""
    start = len(world.upstream.arrived)
    answers = all_at_once(world, kept, path)
    assert [(told.status, told.reason) for told, _ in answers] == [(503, f"store_{kind}")] * 5
    assert world.upstream.paths(start) == []
    assert max(seconds for _, seconds in answers) < BUSY_SECONDS + SLACK_SECONDS


def an_empty_tunnel_proves_nothing(world: World, kind: Kind) -> None:
    """For it nothing is recorded, so it may succeed, and says nothing about the ledger."""
    with suppress(Refused), opened(world.run, tls=True):
        pass
    assert MEANING[kind] in world.readiness()


def everybody_says_why(world: World, kind: Kind) -> None:
    assert MEANING[kind] in world.readiness()
    shown = " ".join(world.proxy.cli("status").split())
    assert "ledger FAILS, nothing passes" in shown
    assert MEANING[kind] in shown
    logged = [json.loads(line) for line in world.proxy.log().splitlines()]
    kinds = [each["kind"] for each in logged if each["event"] == "store.unavailable"]
    assert kinds[-1] == kind


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind, fault, place",
    [
        (Kind.LOCKED, faults.locked, "on_disk"),
        (Kind.READ_ONLY, faults.read_only, "on_disk"),
        (Kind.MISSING, faults.missing, "on_disk"),
        (Kind.FULL, faults.full, "on_small_disk"),
    ],
)
def test_nothing_passes_while_the_ledger_cannot_record_and_nothing_is_lost_after(
    kind: Kind,
    fault: Fault,
    place: str,
    kept: Callable[[World], list[Line]],
    request: pytest.FixtureRequest,
) -> None:
    """11 seconds for the lock, which is waited for; 2 for the others."""
    world: World = request.getfixturevalue(place)
    held, refused, after = f"/held/{kind}", f"/refused/{kind}", f"/after/{kind}"
    lines = kept(world)
    with held_write(world, held) as told, fault(world.data):
        owed = use_up_the_log(world) if kind is Kind.FULL else 0
        nothing_passes(world, lines, refused, kind)
        if kind is not Kind.LOCKED:  # which would be waited for once more
            an_empty_tunnel_proves_nothing(world, kind)
        world.upstream.gate.set()
        everybody_says_why(world, kind)
        assert (told.result().status, told.result().reason) == (504, "outcome_unknown")
        assert 1 <= world.ledger()["owed"] <= owed + 1
    # It is over: the first call of each connection passes, and the write was kept in mind.
    assert [line.ask("POST", after, "after").status for line in lines] == [200, 200]
    assert world.ledger() == {"error": None, "owed": 0}
    again = asked(world.run, "POST", held, "held")
    assert (again.status, again.headers.get("idempotent-replayed")) == (200, "true")
    assert again.json["path"] == held
    assert world.upstream.paths().count(held) == 1
    rows = world.proxy.calls(world.run, at_least=6)
    states = [(row["path"], row["state"]) for row in rows if row["path"].endswith(f"/{kind}")]
    assert states == [(held, "done"), (after, "done"), (after, "done"), (held, "replayed")]


def waited_for(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + NOTICED_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return condition()


def test_a_fault_is_noticed_though_nobody_calls(on_disk: World) -> None:
    all_recorded(on_disk)
    with faults.missing(on_disk.data):
        assert waited_for(lambda: MEANING[Kind.MISSING] in on_disk.readiness())


def test_the_end_of_a_fault_is_noticed_though_nobody_calls(on_disk: World) -> None:
    """Who is out of service because it is not ready gets no calls by which to notice."""
    all_recorded(on_disk)
    with faults.missing(on_disk.data):
        assert asked(on_disk.run, "GET", "/refused").status == 503
        assert MEANING[Kind.MISSING] in on_disk.readiness()
        assert on_disk.ledger()["owed"] == 0
    assert waited_for(lambda: on_disk.readiness() == "")


def all_recorded(world: World) -> None:
    """No outcome is on its way that would be tried again, and so notice by itself."""
    assert asked(world.run, "GET", "/before").status == 200
    assert world.proxy.calls(world.run)[-1]["state"] == "done"


@pytest.mark.slow
def test_a_damaged_ledger_is_not_used_again_until_a_backup_is_restored(
    start: Callable[..., World], kept: Callable[[World], list[Line]], tmp_path: Path
) -> None:
    """10 seconds, most of them three starts."""
    world, backup = start(), tmp_path / "backup.db"
    lines = kept(world)
    assert asked(world.run, "POST", "/kept", "once").status == 200
    faults.copy(world.data, backup)
    faults.damage(world.data)
    nothing_passes(world, lines, "/refused", Kind.CORRUPT)
    everybody_says_why(world, Kind.CORRUPT)
    world.proxy.end(signal.SIGTERM)
    assert MEANING[Kind.CORRUPT] in sentence_of(world.proxy)
    for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm"):
        (world.data / name).unlink(missing_ok=True)
    backup.replace(world.data / "ledger.db")
    world.proxy.start()
    again = asked(world.run, "POST", "/kept", "once")
    assert (again.status, again.headers.get("idempotent-replayed")) == (200, "true")
    assert world.upstream.paths().count("/kept") == 1
