"""Engine processes: what they hold is theirs until they settle it, leave, or are struck off."""

import dataclasses
from typing import Any

import pytest

from ledger.errors import LedgerError
from ledger.workers import LEFT_OPEN
from tests.ledger.world import START_US, World, a_worker


def noted(world: World) -> list[tuple[Any, ...]]:
    return world.rows("SELECT type, actor, detail FROM event WHERE actor IS NOT NULL")


def states(world: World) -> dict[str, str]:
    return {row["id"]: row["state"] for row in world.calls()}


@pytest.fixture
def two(world: World) -> World:
    """Two workers, each with a claimed write and a read in flight."""
    for pid, name in enumerate(("w1", "w2"), 11):
        world.store.register(a_worker(name, pid))
        world.admit(
            world.ask(f"{name}-write", body=name, worker=name),
            world.read(f"{name}-read", worker=name),
        )
    return world


# Registered, heard of


def test_a_worker_is_registered_once(world: World) -> None:
    world.store.register(a_worker())
    world.store.register(dataclasses.replace(a_worker(), seen_us=START_US + 5))
    assert world.store.workers() == [dataclasses.replace(a_worker(), seen_us=START_US + 5)]
    assert noted(world) == [("worker.joined", "pullcord", "worker w1 (pid 4711)")]
    world.check_memory()


@pytest.mark.parametrize("other", [{"pid": 5}, {"started": "200"}, {"id": ""}])
def test_another_process_does_not_take_its_place(world: World, other: dict[str, Any]) -> None:
    world.store.register(a_worker())
    with world.store.transaction(durable=True):
        with pytest.raises(LedgerError, match=r"another process|under an id"):
            world.store.register(dataclasses.replace(a_worker(), **other))
        world.store.admit(world.read("a"), world.policy, world.judge)
    assert world.store.workers() == [a_worker()]
    assert len(world.calls()) == 1


def test_workers_are_heard_of(two: World) -> None:
    two.store.seen(["w2", "nobody"], START_US + 7)
    assert [(each.id, each.seen_us) for each in two.store.workers()] == [
        ("w1", START_US),
        ("w2", START_US + 7),
    ]
    two.store.seen(["w2"], START_US - 9)  # the clock went back
    assert two.store.workers()[1].seen_us == START_US - 9
    two.check_memory()


# Struck off


def test_the_calls_of_a_lost_worker_are_unknown(two: World) -> None:
    two.wait(5)
    assert two.store.forsake("w1", two.now_us, "silent for 5 s") == 2
    assert states(two) == {
        "w1-write": "unknown",
        "w1-read": "unknown",
        "w2-write": "pending",
        "w2-read": "pending",
    }
    assert [worker.id for worker in two.store.workers()] == ["w2"]
    two.check_memory()
    claims = two.rows("SELECT call_id, state FROM claim ORDER BY call_id")
    assert claims == [("w1-write", "unknown"), ("w2-write", "pending")]
    outcomes = two.rows("SELECT at_us, detail FROM event WHERE type = 'call.outcome'")
    assert outcomes == [(two.now_us, "silent for 5 s")] * 2
    assert noted(two)[2:] == [
        (
            "worker.lost",
            "pullcord",
            "worker w1 (pid 11): silent for 5 s; 2 calls, 1 of them claimed writes, became unknown",
        )
    ]


def test_a_lost_worker_changes_nothing_any_more(two: World) -> None:
    two.store.forsake("w1", two.now_us, "silent")
    assert two.settle("w1-write") is False
    assert two.settle("w1-read") is False
    late = two.decided(two.ask("late", body="new", worker="w1")).verdict
    assert late.reason == "policy_failure"
    assert two.decided(two.ask("retry", body="w1", worker="w2")).verdict.reason == "outcome_unknown"
    assert two.store.forsake("w1", two.now_us, "silent") == 0
    assert len(noted(two)) == 3
    assert two.settle("w2-write") is True
    two.reopen()
    assert states(two)["w1-write"] == "unknown"


def test_a_call_of_the_same_transaction_goes_with_its_worker(two: World) -> None:
    with two.store.transaction(durable=True):
        two.store.admit(two.ask("now", body="n", worker="w1"), two.policy, two.judge)
        two.settle("w1-read")
        assert two.store.forsake("w1", two.now_us, "silent") == 2
    assert states(two)["now"] == "unknown"
    assert states(two)["w1-read"] == "done"
    assert two.rows("SELECT call_id FROM open_call ORDER BY 1") == [("w2-read",), ("w2-write",)]
    assert ("now", "unknown") in two.rows("SELECT call_id, state FROM claim")
    two.check_memory()


def test_a_worker_without_calls_is_struck_off_too(world: World) -> None:
    world.store.register(a_worker())
    assert world.store.forsake("w1", world.now_us, "killed") == 0
    assert world.store.workers() == []
    assert [row[0] for row in noted(world)] == ["worker.joined", "worker.lost"]


def test_nobody_is_struck_off_without_a_trace(world: World) -> None:
    assert world.store.forsake("w9", world.now_us, "killed") == 0
    assert noted(world) == []


# An orderly end


def test_a_worker_that_has_settled_leaves(two: World) -> None:
    two.settle("w1-write")
    two.settle("w1-read")
    two.store.leave("w1")
    two.store.leave("nobody")
    assert [worker.id for worker in two.store.workers()] == ["w2"]
    assert len(noted(two)) == 2
    two.check_memory()


def test_what_a_leaving_worker_left_open_is_unknown(two: World) -> None:
    two.settle("w1-read")
    two.store.leave("w1")
    assert states(two)["w1-write"] == "unknown"
    assert LEFT_OPEN in noted(two)[-1][2]
    two.check_memory()


# All or nothing


def test_what_a_failed_transaction_did_to_workers_is_undone(two: World) -> None:
    workers, calls = two.store.workers(), two.rows("SELECT * FROM open_call")
    for act in (
        lambda: two.store.register(a_worker("w3")),
        lambda: two.store.seen(["w1"], START_US + 9),
        lambda: two.store.forsake("w1", two.now_us, "silent"),
        lambda: two.store.leave("w2"),
    ):
        with two.failing():
            act()
            assert two.store.workers() != workers
        assert two.store.workers() == workers
        assert two.rows("SELECT * FROM open_call") == calls
        two.check_memory()
    assert set(states(two).values()) == {"pending"}
    assert two.settle("w1-write") is True


def test_a_loss_is_durable(two: World) -> None:
    with two.store.transaction(durable=False):
        two.store.forsake("w1", two.now_us, "silent")
    assert two.conn.execute("PRAGMA synchronous").fetchone() == (2,)
