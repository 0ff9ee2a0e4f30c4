"""SIGKILL at each step of the crash matrix, of the process that is there and of all at once.

Two engines, agents that try each write until it ends, and an upstream that counts in a process
which is not killed. ROUNDS of each (`make proof` takes 20); the seed gives the same choices again.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ledger import chain, checks
from ledger.connection import open_reader
from ledger.sqlite import sqlite3
from tests.end_to_end import crash_points, origin
from tests.end_to_end.crash_points import (
    ALONE,
    ENGINE,
    EVERYTHING,
    NO_ROW,
    POINTS,
    VICTIMS,
    Point,
)
from tests.end_to_end.fleet import ANSWERED, UNKNOWN, Fleet
from tests.end_to_end.running import START_SECONDS, Proxy
from tests.end_to_end.test_kill_workers import World, until

POLICY = """\
version: 1
tools:
  orders.create:
    match: {host: api.origin.example, method: POST, path: "/orders/{number}"}
    allow_addresses: [127.0.0.0/8]
ceilings:
  - {per: run, count: calls, unbounded: true}
  - {per: tenant, count: calls, unbounded: true}
"""

ROUNDS = min(int(os.environ.get("ROUNDS", "3")), 20)
LAUNCH = Path(__file__).with_name("launch_crash.py")
ENDED = "ended"  # what LAUNCH says of a life of the program
PASSES_MAX = 3  # it dies at the first pass of its point or at a later one
PAUSES_SECONDS = (0.0, 0.0, 0.002)  # of the upstream
REACHED_SECONDS = 20.0
SHORT_SECONDS = 0.005
BUSY_SECONDS = 0.05

CLOSED = {"done", "unknown", "not_sent", "refused", "replayed"}


class CrashProxy(Proxy):
    """Its processes die where `arm` says, once. `process` is what starts it and waits outside;
    `pid` is the supervisor's while it lives."""

    pid = 0
    group = 0
    """The processes of the last start: while one of them lives, it may have the port still."""

    def start(self) -> None:
        until(lambda: not self.group or not group_lives(self.group))
        if self.process is None:
            with (self.folder / "proxy.log").open("a") as log:
                self.process = subprocess.Popen(
                    [sys.executable, str(LAUNCH), "up"],
                    cwd=self.folder,
                    env=self._environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        assert self.process.stdin is not None
        self.process.stdin.write("start\n")
        self.process.stdin.flush()
        self.pid = self.group = int(self._out.readline())
        watchdog = threading.Timer(START_SECONDS, os.killpg, (self.pid, signal.SIGKILL))
        watchdog.start()
        said = ""
        while f"http://127.0.0.1:{self.port}" not in said and not said.startswith(ENDED):
            said = self._out.readline()
        watchdog.cancel()
        if said.startswith(ENDED):
            self.pid = 0
            pytest.fail(f"it ended in its start: {self.log()[-2000:]}")

    def end(self, number: signal.Signals) -> int:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        told = ""
        while not told.startswith(ENDED):
            told = self._out.readline()
            assert told, "what starts it has ended"
        self.pid = 0
        return int(told.split()[1])

    def close(self) -> None:
        assert self.process is not None
        with suppress(ProcessLookupError):
            if self.pid:
                os.killpg(self.pid, signal.SIGKILL)
        self.process.communicate(timeout=START_SECONDS)  # its input ends, and so does it

    @property
    def crash(self) -> Path:
        folder = self.folder / "crash"
        folder.mkdir(exist_ok=True)
        return folder

    def arm(self, point: Point, victim: str, passes: int) -> None:
        (self.crash / "fired").unlink(missing_ok=True)
        told = {"point": point.name, "victim": victim, "passes": passes, "id": time.monotonic_ns()}
        (self.crash / "new").write_text(json.dumps(told))
        (self.crash / "new").replace(self.crash / "armed")

    def fired(self) -> Any:
        """Who died, and which calls were there; None until then."""
        try:
            return json.loads((self.crash / "fired").read_text())
        except FileNotFoundError:
            return None

    def promises(self) -> list[tuple[str, str]]:
        lines = (self.crash / "promises").read_text().splitlines()
        return [(what, call) for what, call in (line.split() for line in lines)]

    @property
    def _environment(self) -> dict[str, str]:
        return super()._environment | {"TEST_CRASH": str(self.crash)}


class Wave(Fleet):
    """A fleet whose writes have numbers of their own, and that can be told to begin no more."""

    def begin_at(self, number: int) -> None:
        self._last = number

    @property
    def last(self) -> int:
        return self._last

    def enough(self) -> None:
        self._stopping.set()


@dataclass(eq=False, slots=True)
class Tally:
    """One line of the table. `lost` are promises that the record does not keep: what an engine was
    let to do, and what an engine or an agent was told."""

    point: Point
    victim: str
    rounds: int = 0
    kills: int = 0
    states: Counter[str] = field(default_factory=Counter)
    saw: int = 0
    duplicates: int = 0
    lost: int = 0
    without_row: int = 0
    there: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        states = (self.states[state] for state in ("done", "unknown", "not_sent"))
        counts = (self.rounds, self.kills, *states, self.saw)
        counts += (self.duplicates, self.lost, self.without_row)
        told = "".join(f"{count:>{width}}" for count, width in zip(counts, WIDTHS, strict=True))
        there = ", ".join(f"{count} {state}" for state, count in sorted(self.there.items()))
        return f"{self.point.name:38}{self.victim:12}{told}  {there}"


WIDTHS = (6, 6, 6, 8, 9, 9, 11, 5, 12)
HEAD = (
    f"{'killed at':38}{'who':12}rounds kills  done unknown not_sent upstream duplicates lost "
    "without row  the calls there"
)


@dataclass(eq=False, slots=True)
class Matrix:
    """One proxy through all kills. `followed` is how far its chain was looked at."""

    world: World
    proxy: CrashProxy
    choice: random.Random
    numbers: int = 0
    promises: int = 0
    followed: chain.Head = field(default_factory=chain.Head)

    def round(self, tally: Tally) -> None:
        """Kill at the point while agents write, go on until every write has ended, and look."""
        point, victim, proxy = tally.point, tally.victim, self.proxy
        self.world.both()
        arrived = len(self.world.upstream.arrived)
        wave = Wave(self.world.run, self.choice)
        wave.begin_at(self.numbers)
        with wave.writing():
            proxy.arm(point, victim, 1 if point.after else self.choice.randint(1, PASSES_MAX))
            self.lead_to(tally)
            until_fired(proxy)
            wave.enough()
            tally.kills += 1
            if victim == EVERYTHING or point is crash_points.SUPERVISING:
                if proxy.pid:
                    proxy.end(signal.SIGKILL)
                proxy.start()
        self.numbers = wave.last
        tally.rounds += 1
        self.look(tally, wave, self.world.upstream.paths(arrived))

    def lead_to(self, tally: Tally) -> None:
        """The death of another process, where it takes one to come by the point."""
        point = tally.point
        if not point.after:
            return
        tally.kills += 1
        time.sleep(BUSY_SECONDS)
        if point.after == ENGINE:
            os.kill(self.choice.choice(self.world.workers()), signal.SIGKILL)
        elif tally.victim == ALONE:
            os.kill(self.world.status()["pid"], signal.SIGKILL)
        else:
            os.killpg(self.proxy.pid, signal.SIGKILL)
            self.proxy.end(signal.SIGKILL)
            with suppress(pytest.fail.Exception):  # it dies in its start
                self.proxy.start()

    def look(self, tally: Tally, wave: Wave, arrived: list[str]) -> None:
        rows = self.ended_rows()
        states = {row["id"]: row["state"] for row in rows if row["decision"] == "allow"}
        made: dict[str, list[str]] = {}  # the states in which a write may have had its effect
        for row in rows:
            if row["decision"] == "allow" and row["state"] != "not_sent":
                made.setdefault(row["path"], []).append(row["state"])
        assert [path for path, found in made.items() if len(found) > 1] == [], "let through twice"
        tally.states += Counter(states.values())
        tally.saw += len(arrived)
        tally.duplicates += len(arrived) - len(set(arrived))
        tally.without_row += len(set(arrived) - set(made))
        tally.lost += sum(not kept(states, *told) for told in self.new_promises())
        for number, ends in wave.ends.items():
            path = f"/orders/{number}"
            found = made.get(path, [])
            assert set(ends) <= {ANSWERED, UNKNOWN}, f"write {number} ended with {ends}"
            is_kept = found == ["done"] if ANSWERED in ends else found in (["unknown"], ["done"])
            tally.lost += not is_kept or (ANSWERED in ends and path not in arrived)
        calls = self.proxy.fired()["calls"]
        there = Counter(states.get(call, NO_ROW) for call in calls)
        tally.there += there
        wanted = tally.point.alone if tally.victim == ALONE else tally.point.everything
        assert set(there) == ({wanted} if wanted else set()), (tally.point, tally.victim, there)

    def ended_rows(self) -> list[dict[str, Any]]:
        """The calls since the last look, once none is open; the chain is followed over them."""
        before, rows = self.followed.seq, self.rows_after(self.followed.seq)
        deadline = time.monotonic() + REACHED_SECONDS
        while open_calls := [row for row in rows if row["state"] not in CLOSED]:
            assert time.monotonic() < deadline, f"they never end: {open_calls}"
            time.sleep(SHORT_SECONDS)
            rows = self.rows_after(before)
        with closing(open_reader(self.proxy.folder / "data")) as reader:
            self.followed = followed(reader, self.followed)
        return rows

    def rows_after(self, seq: int) -> list[dict[str, Any]]:
        names = ("id", "path", "decision", "state")
        with closing(open_reader(self.proxy.folder / "data")) as reader:
            found = reader.execute(
                "SELECT id, path, decision, state FROM calls WHERE seq > ?", (seq,)
            )
            return [dict(zip(names, row, strict=True)) for row in found]

    def new_promises(self) -> list[tuple[str, str]]:
        told = self.proxy.promises()
        new, self.promises = told[self.promises :], len(told)
        return new


def kept(states: Mapping[str, str], what: str, call_id: str) -> bool:
    """Whether the record knows of what an engine was told: that it may send, or what it settled."""
    return call_id in states if what == "admitted" else states.get(call_id) == what


def followed(reader: sqlite3.Connection, head: chain.Head) -> chain.Head:
    """Recompute the chain over the rows after `head`; where it ends."""
    found = reader.execute(
        "SELECT e.*, p.digest AS policy_digest FROM event e "
        "LEFT JOIN policy p ON p.id = e.policy WHERE e.seq > ? ORDER BY e.seq",
        (head.seq,),
    )
    names = [column[0] for column in found.description]
    for values in found:
        row = dict(zip(names, values, strict=True))
        assert row["seq"] == head.seq + 1, "a number is missing"
        head = chain.Head(row["seq"], chain.link(head.hash, chain.chained(row)))
        assert row["hash"] == head.hash, f"the chain is broken at row {row['seq']}"
    return head


def group_lives(group: int) -> bool:
    """Whether a process of this group runs; one that has ended and is not waited for does not."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue  # it ended just now
        if int(its_group) == group and state != "Z":
            return True
    return False


def until_fired(proxy: CrashProxy) -> None:
    deadline = time.monotonic() + REACHED_SECONDS
    while proxy.fired() is None:
        assert time.monotonic() < deadline, "nobody came by the point"
        time.sleep(SHORT_SECONDS)


@pytest.fixture
def matrix(tmp_path: Path) -> Iterator[Matrix]:
    for name in ("origin", "proxy"):
        (tmp_path / name).mkdir()
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    print(f"seed {seed}")
    with origin.serving(tmp_path / "origin") as upstream:
        upstream.pause_seconds = lambda: random.choice(PAUSES_SECONDS)
        proxy = CrashProxy(tmp_path / "proxy", POLICY, upstream.ca, upstream.routes, workers=2)
        proxy.start()
        try:
            yield Matrix(World(proxy, upstream, proxy.mint()), proxy, random.Random(seed))
        finally:
            proxy.close()


@pytest.mark.proof
@pytest.mark.slow
def test_no_kill_at_any_step_makes_a_write_twice_or_loses_what_was_promised(
    matrix: Matrix, capsys: pytest.CaptureFixture[str]
) -> None:
    """60 seconds of 3 rounds, most of them starts."""
    started = time.monotonic()
    tallies = [Tally(point, victim) for victim in VICTIMS for point in POINTS]
    try:
        for tally in tallies:
            for _ in range(ROUNDS):
                matrix.round(tally)
    finally:
        with capsys.disabled():
            print(f"\n{HEAD}", *tallies, sep="\n")
            print(f"{matrix.numbers} writes, {time.monotonic() - started:.0f} s")
    matrix.proxy.stop()
    with closing(open_reader(matrix.proxy.folder / "data")) as reader:
        followed(reader, chain.Head())
        assert [each for each in checks.checked(reader) if not each.is_ok or each.skipped] == []
    wrong = [t for t in tallies if t.duplicates or t.lost or t.without_row]
    assert [str(tally) for tally in wrong] == []
    assert matrix.proxy.broken() == []
