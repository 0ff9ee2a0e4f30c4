"""Places in flight are free again when the engine that holds them is dead; claims are not."""

import http.client
import os
import signal
import ssl
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.end_to_end import origin, race
from tests.end_to_end.line import Line, Told, asked
from tests.end_to_end.running import Proxy, Run
from tests.end_to_end.test_kill_workers import World, until

PLACES = 4

POLICY = f"""\
version: 1
tools:
  held: {{match: {{host: api.origin.example, path: "/held/**"}}, allow_addresses: [127.0.0.0/8]}}
  rest: {{match: {{host: api.origin.example}}, allow_addresses: [127.0.0.0/8]}}
ceilings:
  - {{per: run, tool: held, count: in_flight, at_most: {PLACES}}}
"""


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


def engine_of(line: Line, engines: list[int]) -> int:
    """The process that took this connection, as the kernel knows it."""
    mine, its = line.sock.getsockname()[1], line.sock.getpeername()[1]
    for entry in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, *_, inode = entry.split()[:10]
        if (int(local.split(":")[1], 16), int(remote.split(":")[1], 16)) == (its, mine):
            for pid in engines:
                if f"socket:[{inode}]" in open_files(pid):
                    return pid
    raise LookupError("nobody has this connection")


def open_files(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):  # closed meanwhile
            found.add(os.readlink(entry))
    return found


def spread(run: Run, engines: list[int], wanted: dict[int, int]) -> dict[int, list[Line]]:
    """So many connections on each engine."""
    lines: dict[int, list[Line]] = {pid: [] for pid in wanted}
    for number in range(200):
        if all(len(lines[pid]) == wanted[pid] for pid in wanted):
            return lines
        line = Line(run, tls=number % 2 == 1)
        assert line.ask("GET", f"/looks/{number}").status == 200
        pid = engine_of(line, engines)
        if len(lines[pid]) < wanted[pid]:
            lines[pid].append(line)
        else:
            line.close()
    raise AssertionError("one engine takes all connections: nothing to show")


def posted(line: Line, path: str) -> Told | None:
    with suppress(OSError, http.client.HTTPException):
        return line.ask("POST", path, path)
    return None


@pytest.mark.slow
def test_the_places_of_a_dead_engine_are_free_and_its_claims_stay_unknown(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 seconds, half of them starts. It holds three places of four when it is killed."""
    engines = world.both()
    victim, other = engines
    lines = spread(world.run, engines, {victim: 3, other: 1})
    secure = [isinstance(line.sock, ssl.SSLSocket) for line in lines[victim]]
    with ThreadPoolExecutor(16) as agents:

        def held(line: Line, path: str) -> Future[Told | None]:
            flying = agents.submit(posted, line, path)
            until(partial(has_arrived_or_ended, world, path, flying))
            return flying

        lost = [held(line, f"/held/lost-{n}") for n, line in enumerate(lines[victim])]
        kept = held(lines[other][0], "/held/kept")
        assert asked(world.run, "POST", "/held/fifth", "fifth").reason == "over_ceiling"
        os.kill(victim, signal.SIGKILL)
        until(partial(world.is_without, victim))
        until(lambda: all(flying.done() for flying in lost))
        fresh = [Line(world.run, tls=number % 2 == 1) for number in range(5)]
        later = [held(line, f"/held/later-{n}") for n, line in enumerate(fresh)]
        over = [flying.result() for flying in later if flying.done()]
        arrived = [path for path in world.upstream.paths() if path.startswith("/held/")]
        # While the new ones are on their way: whoever asks again for a lost one is told.
        again = [
            asked(world.run, "POST", f"/held/lost-{n}", f"/held/lost-{n}", tls=tls)
            for n, tls in enumerate(secure)
        ]
        world.upstream.gate.set()
        passed = [flying.result(30) for flying in (kept, *later) if flying.result(30) not in over]
    states = Counter(
        row["state"] for row in race.rows(world.proxy, world.run) if row["decision"] == "allow"
    )
    for line in (*lines[victim], *lines[other], *fresh):
        line.close()
    with capsys.disabled():
        print(
            f"\nkill -9 of an engine with 3 of {PLACES} places: {len(passed) - 1} of 5 new calls "
            f"pass, {len(over)} are over the ceiling; the lost ones are "
            f"{[told.reason for told in again]}"
        )
    assert [flying.result() for flying in lost] == [None] * 3
    assert len(arrived) == 3 + 1 + 3, "not exactly the three places are free"
    assert [told and told.reason for told in over] == ["over_ceiling"] * 2
    assert [told and told.status for told in passed] == [200] * 4
    assert [(told.status, told.reason) for told in again] == [(504, "outcome_unknown")] * 3
    assert Counter(world.upstream.paths()).most_common(1)[0][1] == 1, "made twice"
    assert states["unknown"] == 3
    world.proxy.stop()
    assert world.proxy.broken() == []


@pytest.mark.slow
def test_the_places_of_living_engines_outlive_the_decider(world: World) -> None:
    """4 seconds. The next decider knows who holds a place, and gets it back from them."""
    decider, lines = world.status()["pid"], [Line(world.run, tls=n % 2 == 1) for n in range(PLACES)]
    with ThreadPoolExecutor(PLACES) as agents:
        flying = [agents.submit(posted, line, f"/held/{n}") for n, line in enumerate(lines)]
        until(lambda: len(world.upstream.arrived) == PLACES)
        os.kill(decider, signal.SIGKILL)
        until(lambda: len(world.both()) == 2 and world.status()["pid"] != decider)
        assert judged(world).reason == "over_ceiling"
        assert len(world.upstream.arrived) == PLACES
        world.upstream.gate.set()
        told = [each.result(30) for each in flying]
    assert [each and each.status for each in told] == [200] * PLACES
    assert {row["state"] for row in race.rows(world.proxy, world.run)} == {"done", "refused"}
    again = race.posted_at_once([(world.run, f"/held/again-{n}") for n in range(PLACES)])
    assert race.ends(again) == ["allowed"] * PLACES
    for line in lines:
        line.close()


def judged(world: World) -> Told:
    """The decider knows its engines before they know what stands: until then they refuse all."""
    answers: list[Told] = []

    def is_judged() -> bool:
        answers.append(asked(world.run, "POST", "/held/fifth", "fifth"))
        return answers[-1].reason != "decider_unreachable"

    until(is_judged)
    return answers[-1]


def has_arrived_or_ended(world: World, path: str, flying: "Future[Told | None]") -> bool:
    return flying.done() or path in world.upstream.paths()
