"""What counts since when, and which call is a stale repeat: as plain mappings tell it."""

import random
from typing import Any

from policies.detectors.progress import Progress, Since
from policies.detectors.step import Kind, Step

START_US = 1_795_000_000_000_000


def a_step(number: int, kind: Kind = Kind.TOOL, **told: Any) -> Step:
    return Step(START_US + number, kind, f"c{number}", "r1", "r1", **told)


def counted(since: Since) -> tuple[int, int, int]:
    return since.calls, since.model_calls, since.spend_microusd


def test_each_count_begins_by_itself_and_counts_a_step_once() -> None:
    progress = Progress.begun(START_US)
    progress.feed(a_step(1, Kind.MODEL, spend_microusd=7))
    assert progress.unmoved is progress.unearned is progress.unwritten
    assert counted(progress.unwritten) == (0, 1, 7)
    for number in range(2, 60):  # after fifty calls new information earns nothing more
        progress.feed(a_step(number, action=b"a%07d" % number, result=b"r" * 8))
    assert progress.is_new
    assert progress.credit == 0
    progress.feed(a_step(60, Kind.MODEL, spend_microusd=5))
    assert counted(progress.unmoved) == (0, 1, 5)
    assert counted(progress.unearned) == (8, 1, 5)
    assert counted(progress.unwritten) == (58, 2, 12)
    progress.feed(a_step(61, action=b"pay-----", is_write=True))
    assert counted(progress.unmoved) == counted(progress.unwritten) == (0, 0, 0)
    assert progress.unwritten.at_us == progress.unmoved.at_us == START_US + 61


def test_a_stale_repeat_is_one_by_the_definition() -> None:
    """notes/detection.md: same tool and arguments, same result, no new distinct write between, also
    where other results came between. A replay has no result of its own: it is stale after one."""
    dice, progress = random.Random(5), Progress.begun(START_US)
    told, writes = dict[tuple[bytes, bytes], int](), set[bytes]()
    seen = set[tuple[bool, bool, bool]]()
    for number in range(20_000):
        action, replayed = b"action-%d" % dice.randrange(8), dice.random() < 0.3
        result = b"" if replayed else b"result-%d" % dice.randrange(2)
        is_write, is_ok = dice.random() < 0.05, dice.random() < 0.9
        step = a_step(
            number, action=action, result=result, is_write=is_write, is_ok=is_ok, replayed=replayed
        )
        if dice.random() < 0.01:
            step = a_step(number, action=b"write%03d" % number, is_write=True)
            action, result, replayed, is_write, is_ok = step.action, b"", False, True, True
        progress.feed(step)
        written = is_write and is_ok and not replayed and action not in writes
        if written:
            writes.add(action)
        known = (action, result) in told
        stale = told.get((action, result)) == len(writes)
        told[action, result] = len(writes)
        assert progress.is_stale is stale
        assert progress.is_written is written
        assert progress.epoch == len(writes)
        if not replayed:
            assert progress.is_new is (written or not known)
        seen.add((stale, replayed, progress.is_new))
    assert {(True, True, False), (False, True, False), (True, False, False)} <= seen
    assert {(False, False, True), (False, False, False)} <= seen
