"""64 agents write as fast as they can while a person halts: after the command, nothing arrives.

The command is the real one, as a process. The upstream is a process, too, and notes when it read
the first byte of each write; one machine, one monotonic clock. `make proof` takes 20 rounds of each
scope (ROUNDS).
"""

import http.client
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest

from ledger import containment, queries
from ledger.connection import open_reader
from policies.verdict import Level, Scope
from proxy import control_client
from tests.end_to_end import endless
from tests.end_to_end.endless import POLICY, Endless
from tests.end_to_end.line import Line, Refused
from tests.end_to_end.running import Proxy, Run

ROUNDS = min(int(os.environ.get("ROUNDS", "3")), 20)
WRITERS = 64
SECURE = 4  # every fourth writes inside TLS
TOOLS = ("orders", "refunds")
SUBJECTS = {"run": "run-1", "tenant": "acme", "tool": "orders", "global": ""}

BUSY_SECONDS = 0.5  # of writing before each command
LATE_SECONDS = 0.05  # what the upstream first reads later than this after the command is a leak
WATCHED_SECONDS = 0.5  # so long it is watched
REFUSED_PAUSE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Took:
    """One round; seconds. `last` is from the cord's moment in the record to its last write.

    `command` is what a person waits for: most of it is the start of a process on a busy machine;
    `acknowledged` is the part that the proxy took, from the commit to the last engine's word.
    """

    scope: str
    command: float
    acknowledged: float
    last: float
    leaks: int
    arrived: int
    flowed: int


@dataclass(eq=False)
class Writers:
    """Each writes without end on one connection, every write another. Two runs, two tools."""

    runs: list[Run]
    ends: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    _stopping: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def writing(self) -> Iterator[None]:
        agents = [threading.Thread(target=self._agent, args=(n,)) for n in range(WRITERS)]
        for agent in agents:
            agent.start()
        try:
            yield
        finally:
            self._stopping.set()
            for agent in agents:
                agent.join()

    def _agent(self, number: int) -> None:
        run, tool = self.runs[number % 2], TOOLS[number // 2 % 2]
        secure, line = number // 4 % SECURE == 0, None
        for turn in count():
            if self._stopping.is_set():
                break
            path = f"/{tool}/{run.name}/{number}-{turn}"
            try:
                line = line or Line(run, tls=secure)
                told = line.ask("POST", path, path)
                if told.status == 403:
                    time.sleep(REFUSED_PAUSE_SECONDS)
                elif told.status != 200:
                    self.broken.append(f"{path}: {told.status} {told.body!r}")
            except Refused as refused:
                self.broken.append(f"{path}: {refused}")
            except (OSError, http.client.HTTPException):
                if line is not None:  # cut, which is what a halt does to a call in flight
                    line.close()
                line = None
        if line is not None:
            line.close()


def is_halted(scope: str, path: str) -> bool:
    """Whether a write is of the scope."""
    _, tool, run, _ = path.split("/")
    return {"run": run == "run-1", "tenant": run == "run-1", "tool": tool == "orders"}.get(
        scope, True
    )


def pulled_seconds(proxy: Proxy, scope: str) -> float:
    """The moment of the cord in the record, which is read before its commit, as monotonic."""
    with closing(open_reader(proxy.folder / "data")) as reader:
        proof = containment.proof(reader, Level.HALT, Scope(scope), SUBJECTS[scope])
    return proof.pulled_us / 1e6 - (time.time() - time.monotonic())


def one_round(proxy: Proxy, upstream: Endless, scope: str) -> Took:
    """Busy, halted, watched, resumed."""
    start = upstream.mark()
    time.sleep(BUSY_SECONDS)
    named = [scope, *filter(None, [SUBJECTS[scope]])]
    began = time.monotonic()
    answer = json.loads(proxy.cli("halt", *named, "--json"))
    returned = time.monotonic()
    assert (answer["acknowledged"], answer["killed"]) == (2, []), answer
    assert answer["proof"]["admitted_after"] == 0, answer
    time.sleep(WATCHED_SECONDS)
    arrived = [(each, each.at_ns / 1e9) for each in upstream.since(start)]
    mine = [at for each, at in arrived if is_halted(scope, each.path)]
    flowed = [at for each, at in arrived if not is_halted(scope, each.path) and at > returned]
    release = {"level": "halt", "scope": scope, "subject": SUBJECTS[scope], "reason": "again"}
    control_client.ask(proxy.folder / "data", "POST", "/v1/release", release)
    return Took(
        scope,
        returned - began,
        answer["acknowledged_ms"] / 1e3,
        max(mine) - pulled_seconds(proxy, scope),
        sum(at > returned + LATE_SECONDS for at in mine),
        len(mine),
        len(flowed),
    )


def quantile(values: list[float], part: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * part))]


def told(rounds: list[Took]) -> str:
    def figures(values: list[float]) -> str:
        return (
            f"p50 {quantile(values, 0.5) * 1e3:.0f} ms, p99 {quantile(values, 0.99) * 1e3:.0f} ms"
        )

    return (
        f"start to return {figures([each.command for each in rounds])}; "
        f"acknowledged {figures([each.acknowledged for each in rounds])}; "
        f"commit to last write {figures([each.last for each in rounds])}; "
        f"{sum(each.leaks for each in rounds)} leaks, "
        f"{sum(each.arrived for each in rounds)} writes before"
    )


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endless]:
    with endless.serving(tmp_path_factory.mktemp("endless")) as served:
        yield served


@pytest.mark.proof
@pytest.mark.slow
def test_no_write_arrives_50_ms_after_halt_has_returned(
    upstream: Endless, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 seconds a round, and there are four scopes: 40 seconds with 3 rounds of each."""
    proxy = Proxy(tmp_path, POLICY, upstream.ca, upstream.routes, workers=2)
    proxy.start()
    writers, rounds = Writers([proxy.mint("acme"), proxy.mint("globex")]), []
    try:
        with writers.writing():
            for _ in range(ROUNDS):
                rounds += [one_round(proxy, upstream, scope) for scope in SUBJECTS]
        with capsys.disabled():
            print(f"\nhalt race, {WRITERS} writers, 2 workers, {ROUNDS} rounds of each scope:")
            for scope in SUBJECTS:
                print(f"  {scope}: {told([each for each in rounds if each.scope == scope])}")
            print(f"  all: {told(rounds)}")
        assert writers.broken == []
        assert sum(each.leaks for each in rounds) == 0
        # Harder than the promise, since a command takes a while to end after its answer: nothing
        # arrives after the proxy itself has said that all engines have cut.
        assert [each for each in rounds if each.last > each.acknowledged + LATE_SECONDS] == []
        for each in rounds:
            assert each.arrived > 0, f"nobody wrote before the halt of a {each.scope}"
            assert each.scope == "global" or each.flowed > 0, f"a {each.scope} halted others too"
        check_record(proxy, upstream)
        proxy.stop()
        assert proxy.broken() == []
    finally:
        if proxy.process is not None:
            proxy.end(signal.SIGKILL)


def check_record(proxy: Proxy, upstream: Endless) -> None:
    """Once all has ended: what arrived has a row that says so, and what has none did not."""
    deadline, rows = time.monotonic() + 10, []
    while time.monotonic() < deadline:
        with closing(open_reader(proxy.folder / "data")) as reader:
            rows = list(queries.calls(reader, limit=10_000_000))
        if all(row["state"] != "pending" for row in rows):
            break
        time.sleep(0.2)
    states = {row["path"]: row["state"] for row in rows if row["decision"] == "allow"}
    assert set(states.values()) <= {"done", "unknown", "not_sent"}
    arrived = [each.path for each in upstream.since() if each.method == "POST"]
    assert len(arrived) == len(set(arrived)), "made twice"
    wrong = [path for path in arrived if states.get(path) not in ("done", "unknown")]
    assert wrong == [], "arrived, and the record does not know"
    done = {path for path, state in states.items() if state == "done"}
    assert done <= set(arrived), "recorded as done, and never arrived"
