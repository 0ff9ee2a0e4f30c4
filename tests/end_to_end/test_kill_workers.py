"""Engines and decider killed one by one under a load of keyed writes; and stopped, and orphaned.

Nothing happens twice, no ceiling leaks, and what serves goes on serving. The rounds are of a kill
of one of two engines, then of the decider (ROUNDS; `make proof` takes 20).
"""

import http.client
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from proxy import control_client
from tests.end_to_end import origin
from tests.end_to_end.fleet import Fleet
from tests.end_to_end.line import Line, Told, asked, opened
from tests.end_to_end.origin import Origin
from tests.end_to_end.running import Proxy, Run
from tests.end_to_end.test_kill import check, recorded

TICKETS = 40  # that a ceiling lets pass, over all kills

POLICY = f"""\
version: 1
tools:
  orders.create:
    match: {{host: api.origin.example, method: POST, path: "/orders/{{number}}"}}
    allow_addresses: [127.0.0.0/8]
  tickets:
    match: {{host: api.origin.example, path: "/tickets/**"}}
    allow_addresses: [127.0.0.0/8]
  held: {{match: {{host: api.origin.example, path: "/held/**"}}, allow_addresses: [127.0.0.0/8]}}
  looks: {{match: {{host: api.origin.example, method: GET}}, allow_addresses: [127.0.0.0/8]}}
ceilings:
  - {{per: tool, tool: tickets, count: writes, at_most: {TICKETS}, within: 1h}}
  - {{per: run, count: calls, unbounded: true}}
  - {{per: tenant, count: calls, unbounded: true}}
"""

ROUNDS = min(int(os.environ.get("ROUNDS", "3")), 20)
BUSY_SECONDS = 0.8  # a kill comes at any moment of these
BACK_SECONDS = 3.0  # within which the next decider has recovered and serves
ONWARD_SECONDS = 2.0  # within which somebody is served after an engine died
LATE_SECONDS = 0.05
CUT_ALONE_SECONDS = 14.0
HALT_SECONDS = 8.0  # 5 for the acknowledgement, and a process that starts on a busy machine
ENDED_SECONDS = 10.0
POLL_SECONDS = 0.05
PAUSES_SECONDS = (0.0, 0.0, 0.002, 0.05)


@dataclass(eq=False, slots=True)
class World:
    proxy: Proxy
    upstream: Origin
    run: Run

    def status(self) -> dict[str, Any]:
        answer: dict[str, Any] = control_client.ask(self.proxy.folder / "data", "GET", "/v1/status")
        return answer

    def workers(self) -> list[int]:
        return sorted(worker["pid"] for worker in self.status()["workers"])

    def both(self) -> list[int]:
        """The engines' processes, once there are two of them."""
        until(lambda: len(self._answered()) == 2)
        return self.workers()

    def is_without(self, pid: int) -> bool:
        """Whether two others than this one serve."""
        return pid not in self.both()

    def _answered(self) -> list[int]:
        try:
            return self.workers()
        except control_client.Unreachable:
            return []

    def children(self) -> list[int]:
        """The processes that the supervisor started, as the kernel knows them."""
        supervisor = self.proxy.process
        assert supervisor is not None
        folder = Path(f"/proc/{supervisor.pid}/task/{supervisor.pid}/children")
        return [int(pid) for pid in folder.read_text().split()]


def until(condition: Callable[[], bool], seconds: float = ENDED_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.05)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    for name in ("origin", "proxy"):
        (tmp_path / name).mkdir()
    with origin.serving(tmp_path / "origin") as upstream:
        proxy = Proxy(tmp_path / "proxy", POLICY, upstream.ca, upstream.routes, workers=2)
        proxy.start()
        try:
            yield World(proxy, upstream, proxy.mint())
        finally:
            if proxy.process is not None:
                proxy.end(signal.SIGKILL)


@contextmanager
def tickets_written(world: World) -> Iterator[list[Told]]:
    """Someone writes tickets all along, each another; far more than the ceiling lets pass."""
    answers: list[Told] = []
    stopping: list[bool] = []

    def write() -> None:
        number = 0
        while not stopping:
            number += 1
            with suppress(OSError, http.client.HTTPException):
                path = f"/tickets/{number}"
                answers.append(asked(world.run, "POST", path, path, tls=number % 2 == 0))
            time.sleep(POLL_SECONDS)

    with ThreadPoolExecutor(1) as writer:
        written = writer.submit(write)
        try:
            yield answers
        finally:
            stopping.append(True)
            written.result(timeout=60)


@dataclass(frozen=True, slots=True)
class Gap:
    """What fresh calls, one after the other, were told after a kill."""

    seconds: float
    told: Counter[str]


def gap_after(kill: Callable[[], None], run: Run, seconds: float) -> Gap:
    """Calls from the kill on until three in a row pass. The time is that of the first of them."""
    told: Counter[str] = Counter()
    kill()
    start, since, passed = time.monotonic(), 0.0, 0
    while passed < 3:
        began = time.monotonic() - start
        assert began < 10 * seconds, f"not served again: {told}"
        try:
            with opened(run, tls=False) as line:
                line.sock.settimeout(seconds)
                answer = line.ask("GET", f"/looks/{time.monotonic_ns()}")
            reason = "passed" if answer.status == 200 else str(answer.reason)
        except (OSError, http.client.HTTPException):
            reason = "connection lost"
        told[reason] += 1
        since = since if passed and reason == "passed" else time.monotonic() - start
        passed = passed + 1 if reason == "passed" else 0
        time.sleep(POLL_SECONDS)
    return Gap(since, told)


@pytest.mark.proof
@pytest.mark.slow
def test_kills_of_engines_and_decider_make_nothing_twice_and_leak_no_ceiling(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """7 seconds a round."""
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    choice, started = random.Random(seed), time.monotonic()
    world.upstream.pause_seconds = lambda: random.choice(PAUSES_SECONDS)
    fleet, engines, deciders = Fleet(world.run, choice), [], []
    with fleet.writing(), tickets_written(world):
        for _ in range(ROUNDS):
            victim = choice.choice(world.both())
            time.sleep(choice.uniform(0.0, BUSY_SECONDS))
            engines.append(gap_after(partial(os.kill, victim, signal.SIGKILL), world.run, 2.0))
            until(partial(world.is_without, victim))
            decider = world.status()["pid"]
            time.sleep(choice.uniform(0.0, BUSY_SECONDS))
            deciders.append(gap_after(partial(os.kill, decider, signal.SIGKILL), world.run, 3.0))
            assert world.status()["pid"] != decider
        world.both()
        time.sleep(BUSY_SECONDS)
    asked_again = choice.sample(sorted(fleet.ends), min(50, len(fleet.ends)))
    told_again = {number: fleet.again(number) for number in asked_again}
    world.proxy.stop()
    rows = recorded(world.proxy)
    states, tickets = checked(world, fleet, rows)
    with capsys.disabled():
        print(
            f"\nkill -9, 2 workers: seed {seed}, {ROUNDS} rounds, {len(fleet.ends)} writes in "
            f"{fleet.tries} tries: {dict(states)}; tickets {dict(tickets)} of {TICKETS}; after an "
            f"engine's end served within {told_of(engines)}; after the decider's within "
            f"{told_of(deciders)}; {time.monotonic() - started:.0f} s"
        )
    assert told_again == {number: fleet.ends[number][0] for number in asked_again}
    assert max(gap.seconds for gap in engines) <= ONWARD_SECONDS
    assert max(gap.seconds for gap in deciders) <= BACK_SECONDS
    refusing = {reason for gap in deciders for reason in gap.told} - {"passed"}
    assert refusing == {"decider_unreachable"}
    assert {reason for gap in engines for reason in gap.told} <= {"passed", "connection lost"}
    assert world.proxy.broken() == []


def told_of(gaps: list[Gap]) -> str:
    told = sum((gap.told for gap in gaps), Counter[str]())
    return f"{' '.join(f'{gap.seconds:.2f}' for gap in gaps)} s ({dict(told)})"


def checked(
    world: World, fleet: Fleet, rows: list[dict[str, Any]]
) -> tuple[Counter[str], Counter[str]]:
    """The states of the orders and those of the tickets that were let through."""
    tools: dict[str, list[dict[str, Any]]] = {"tickets": [], "orders.create": []}
    for row in rows:
        tools.setdefault(row["tool"], []).append(row)
    assert {row["state"] for row in rows} <= {"done", "not_sent", "unknown", "refused", "replayed"}
    tickets = [row for row in tools["tickets"] if row["decision"] == "allow"]
    arrived = Counter(path for path in world.upstream.paths() if path.startswith("/tickets/"))
    assert max(arrived.values()) == 1, "made twice"
    assert len(tickets) == TICKETS, "the ceiling has let through another number"
    sent = {row["path"] for row in tickets if row["state"] in ("done", "unknown")}
    done = {row["path"] for row in tickets if row["state"] == "done"}
    assert done <= set(arrived) <= sent
    world.upstream.arrived[:] = [
        each for each in world.upstream.arrived if each.path.startswith("/orders/")
    ]
    states = check(world.upstream, fleet, tools["orders.create"])
    return states, Counter(row["state"] for row in tickets)


# One that is stopped


@pytest.mark.slow
def test_an_engine_that_is_stopped_is_killed_by_a_halt_and_sends_nothing_when_it_wakes(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """11 seconds: 5 are the engine's to answer in. It holds a write in flight, and others that it
    has not read yet."""
    victim = world.both()[0]
    lines = [Line(world.run, tls=number % 2 == 1, seconds=2.0) for number in range(16)]
    assert {line.ask("GET", "/looks").status for line in lines} == {200}
    with ThreadPoolExecutor(len(lines)) as agents:
        flying = [agents.submit(lost_or_told, line, f"/held/{n}") for n, line in enumerate(lines)]
        until(lambda: sum(path.startswith("/held/") for path in world.upstream.paths()) == 16)
        mine = {call["id"] for call in world.status()["calls"]}
        os.kill(victim, signal.SIGSTOP)
        held = {call["id"] for call in world.status()["calls"]}  # of the other engine
        assert 0 < len(held) < len(mine), "one engine has all connections: nothing to show"
        # What comes now on new connections waits in the stopped one's hands, or is served.
        late = [agents.submit(late_write, world.run, number) for number in range(16)]
        start = time.monotonic()
        said = world.proxy.cli("halt", "run", world.run.name)
        took = time.monotonic() - start
        arrived = len(world.upstream.arrived)
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGCONT)
        time.sleep(1.0)
        world.upstream.gate.set()
        for told in (*flying, *late):
            told.result(timeout=30)
    assert len(world.upstream.arrived) == arrived, "it woke and sent"
    assert took < HALT_SECONDS, f"halt returned after {took:.1f} s"
    assert victim not in world.workers()
    states = {row["id"]: row["state"] for row in world.proxy.ledger(f"run:{world.run.name}")}
    assert {states[call] for call in mine} == {"unknown"}
    with capsys.disabled():
        print(f"\nstopped engine: halt returned after {took:.1f} s: {' '.join(said.split())}")
    for line in lines:
        line.close()
    assert asked(world.run, "GET", "/looks").reason == "halted"


def lost_or_told(line: Line, path: str) -> int:
    with suppress(OSError, http.client.HTTPException):
        line.sock.settimeout(20.0)
        return line.ask("POST", path, path).status
    return 0


def late_write(run: Run, number: int) -> int:
    with suppress(OSError, http.client.HTTPException):
        return asked(run, "POST", f"/orders/{number}", f"late {number}").status
    return 0


@pytest.mark.slow
def test_without_a_decider_for_long_what_is_in_flight_is_cut(world: World) -> None:
    """15 seconds: 5 until a decider that says nothing is taken for gone, 5 until the cut. Nobody
    can know any more what is halted, so what flows on might be."""
    world.both()
    decider = world.status()["pid"]
    lines = [Line(world.run, tls=number % 2 == 1) for number in range(4)]
    with ThreadPoolExecutor(len(lines)) as agents:
        flying = [agents.submit(lost_or_told, line, f"/held/{n}") for n, line in enumerate(lines)]
        until(lambda: sum(path.startswith("/held/") for path in world.upstream.paths()) == 4)
        os.kill(decider, signal.SIGSTOP)
        try:
            until(lambda: all(told.done() for told in flying), CUT_ALONE_SECONDS)
        finally:
            os.kill(decider, signal.SIGCONT)
            world.upstream.gate.set()
        assert 200 not in {told.result() for told in flying}
    for line in lines:
        line.close()
    until(lambda: gap_after(lambda: None, world.run, 3.0).seconds < 1.0)
    assert {row["state"] for row in world.proxy.calls(world.run, at_least=4)} <= {"unknown", "done"}
    held = [row for row in world.proxy.ledger(f"run:{world.run.name}") if row["tool"] == "held"]
    assert [row["state"] for row in held] == ["unknown"] * 4


@pytest.mark.proof
@pytest.mark.slow
def test_a_halt_that_finds_no_decider_holds_all_the_same(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 seconds a round. The decider dies, and a person halts before the next one serves; what
    came back to the engines meanwhile does not let them send."""
    took, ways = [], []
    with Fleet(world.run, random.Random(1)).writing():
        for number in range(ROUNDS):
            world.both()
            time.sleep(BUSY_SECONDS)
            os.kill(world.status()["pid"], signal.SIGKILL)
            time.sleep(number % 3 * 0.4)
            start = time.monotonic()
            ways.append(" ".join(world.proxy.cli("halt", "run", world.run.name).split()))
            took.append(time.monotonic() - start)
            time.sleep(LATE_SECONDS)
            arrived = len(world.upstream.arrived)
            time.sleep(2.0)
            assert len(world.upstream.arrived) == arrived, "it leaked"
            until(lambda: told_now(world.run) == "halted")
            world.proxy.cli("resume", "run", world.run.name, "--reason", "again")
            until(partial(has_more_than, world.upstream, arrived))
    with capsys.disabled():
        print(f"\nhalt without a decider: returned after {[round(each, 1) for each in took]} s")
        print("\n".join(f"  {way[:160]}" for way in ways))


def has_more_than(upstream: Origin, count: int) -> bool:
    return len(upstream.arrived) > count


def told_now(run: Run) -> str:
    try:
        return str(asked(run, "GET", "/looks").reason)
    except (OSError, http.client.HTTPException):
        return "connection lost"


# One that loses its parent


@pytest.mark.alone
@pytest.mark.slow
def test_without_its_supervisor_all_of_it_ends_and_a_new_start_works_at_once(world: World) -> None:
    """5 seconds, most of them two starts. One of the engines is stopped, and ends all the same."""
    stopped = world.both()[0]
    children = world.children()
    assert len(children) == 4  # the decider, two engines, the tracer
    os.kill(stopped, signal.SIGSTOP)
    world.proxy.end(signal.SIGKILL)
    until(lambda: not any(lives(pid) for pid in children), 3.0)
    world.proxy.start()
    assert asked(world.run, "POST", "/orders/1", "after").status == 200
    assert set(world.both()).isdisjoint(children)
    world.proxy.stop()
    assert world.proxy.broken() == []


def lives(pid: int) -> bool:
    """Whether the process runs; one that has ended and is not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"
