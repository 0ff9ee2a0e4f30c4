"""After a SIGKILL at any point: nothing promised is lost, nothing claimed is made again."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ledger.records import Recovered
from ledger.recovery import CRASHED
from policies.verdict import Action
from tests.ledger.crash_child import POINTS
from tests.ledger.world import World

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
