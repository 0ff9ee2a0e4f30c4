"""After a SIGKILL at any point: nothing promised is lost, nothing claimed is made again."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.records import Recovered, Worker
from ledger.recovery import CRASHED
from policies.verdict import Action
from tests.ledger.crash_child import POINTS
from tests.ledger.world import World, a_worker

ROOT = Path(__file__).resolve().parents[2]

# What stands after a kill at each point: the row of the write, and what its retry is told.
NOTHING = (None, "allowed", Recovered())
OPEN = ("unknown", "outcome_unknown", Recovered(1, 1))
SETTLED = ("done", "replayed", Recovered())
AFTER = {
    "before anything": NOTHING,
    "inside the admission": NOTHING,
    "before the commit": NOTHING,
    "after the admission": OPEN,
    "inside the settlement": OPEN,
    "before its commit": OPEN,
    "after the settlement": SETTLED,
    "after a cord": SETTLED,
    "after a read": ("done", "replayed", Recovered(1, 0)),
    "inside the loss of a worker": ("done", "replayed", Recovered(2, 1)),
    "after the loss of a worker": ("done", "replayed", Recovered(1, 0)),
}


@pytest.mark.parametrize("point", POINTS)
def test_killed(tmp_path: Path, point: str) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "tests.ledger.crash_child", str(tmp_path), point],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    world = World(tmp_path)
    try:
        check(world, point, child.stdout.splitlines())
    finally:
        world.store.close()


def check(world: World, point: str, promised: list[str]) -> None:
    state, retry, recovered = AFTER[point]
    assert world.store.recovered == recovered
    rows = {row["id"]: row["state"] for row in world.calls()}
    assert rows.get("a") == state
    assert ("admitted a" in promised) <= ("a" in rows)
    assert ("settled a" in promised) <= (rows.get("a") == "done")
    assert ("admitted r" in promised) <= (rows.get("r") == "unknown")
    assert ("forsook w1" in promised) <= (rows.get("w") == "unknown")
    assert world.rows("SELECT count(*) FROM worker") == [(0,)]
    world.check_memory()
    assert ("pulled r9" in promised) == (len(world.store.pulls) == 1)
    assert world.rows("SELECT count(*) FROM open_call") == [(0,)]
    assert world.decided(world.ask("b", key="k1")).verdict.reason == retry
    assert world.conn.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_what_was_recovered_is_in_the_record(world: World) -> None:
    world.admit(world.ask("a"), world.read("b"), world.ask("c", body="y"))
    world.settle("c")
    world.wait(5)
    world.reopen()
    assert world.store.recovered == Recovered(2, 1)
    rows = world.rows("SELECT type, call_id, state, at_us, detail FROM event WHERE seq > 4")
    assert rows == [
        ("call.outcome", "a", "unknown", world.now_us, CRASHED),
        ("call.outcome", "b", "unknown", world.now_us, CRASHED),
        (
            "store.recovered",
            None,
            None,
            world.now_us,
            "2 calls, 1 of them claimed writes, became unknown",
        ),
    ]


def test_a_second_start_finds_nothing_open(world: World) -> None:
    world.decided(world.ask("a"))
    world.reopen()
    before = world.rows("SELECT count(*) FROM event")
    world.reopen()
    assert world.store.recovered == Recovered()
    assert world.rows("SELECT count(*) FROM event") == before


def test_a_settlement_from_before_the_crash_comes_too_late(world: World) -> None:
    world.decided(world.ask("a"))
    world.reopen()
    assert world.settle("a") is False
    assert world.shown("a")["state"] == "unknown"
    assert world.decided(world.ask("b")).verdict.action is Action.REFUSE


# Workers that outlive the store's process


def with_workers(world: World) -> None:
    """One call in this process, and a claimed write and a read in each of two workers."""
    for pid, name in enumerate(("w1", "w2"), 11):
        world.store.register(a_worker(name, pid))
    world.decided(world.ask("here", body="h"))
    for name in ("w1", "w2"):
        world.admit(
            world.ask(f"{name}-write", body=name, worker=name),
            world.read(f"{name}-read", worker=name),
        )


def test_what_a_living_worker_holds_stays_open(world: World) -> None:
    with_workers(world)
    asked: list[Worker] = []

    def alive(worker: Worker) -> bool:
        asked.append(worker)
        return worker.pid == 12

    world.reopen(alive=alive)
    assert asked == [a_worker("w1", 11), a_worker("w2", 12)]
    assert world.store.recovered == Recovered(3, 2)
    assert {row["id"]: row["state"] for row in world.calls()} == {
        "here": "unknown",
        "w1-write": "unknown",
        "w1-read": "unknown",
        "w2-write": "pending",
        "w2-read": "pending",
    }
    assert world.store.workers() == [a_worker("w2", 12)]
    world.check_memory()
    states = world.rows("SELECT call_id, state FROM claim ORDER BY call_id")
    assert states == [("here", "unknown"), ("w1-write", "unknown"), ("w2-write", "pending")]
    lost = world.rows("SELECT detail FROM event WHERE type = 'worker.lost'")
    assert lost == [("worker w1 (pid 11): it was gone when the ledger was opened",)]


def test_a_call_that_stayed_open_is_settled_as_if_nothing_had_been(world: World) -> None:
    with_workers(world)
    world.reopen(alive=lambda worker: True)
    again = world.decided(world.ask("again", body="w2", worker="w2")).verdict
    assert again.reason == "in_flight"
    for name in ("w2-write", "w2-read"):
        assert world.settle(name) is True
        assert world.shown(name)["state"] == "done"
    assert world.decided(world.ask("later", body="w2", worker="w2")).verdict.reason == "replayed"
    assert world.settle("here") is False
    world.check_memory()


def test_who_cannot_tell_who_lives_opens_nothing(world: World) -> None:
    with_workers(world)

    def broken(worker: Worker) -> bool:
        raise ZeroDivisionError

    before = world.rows("SELECT call_id, worker FROM open_call")
    world.store.close()
    with pytest.raises(ZeroDivisionError):
        world.opened(alive=broken)
    assert world.rows("SELECT call_id, worker FROM open_call") == before
    world.store = world.opened(alive=lambda worker: True)


# Time


def test_the_newest_row_tells_when_it_was_written(world: World) -> None:
    assert world.store.newest_us == 0
    world.decided(world.read("a"))
    written_us = world.now_us
    world.settle("a")
    world.now_us -= 3_600_000_000
    world.reopen()
    assert world.store.newest_us == written_us
