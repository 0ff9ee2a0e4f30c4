"""What the detectors remember of a run is bounded: so many bytes, and of so many runs.

Ten thousand runs that each fill everything that is kept of them fit beside the ledger.
"""

import gc
import hashlib
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from policies.detectors import runs
from policies.detectors.fan_out import FanOut
from policies.detectors.progress import Progress
from policies.detectors.runs import RUNS_MAX, Runs
from policies.detectors.step import Kind, Step

START_US = 1_795_000_000_000_000
FULL_CALLS = 800
USUAL_CALLS = 3
SPAWNS = 70
HOSTS = 512

# Three tables of 256 keys of 6 bytes, of which one has 10 more of a result, are some 7 KiB; windows
# of money, of credits and of writes some 4 more. Twice that, and ten thousand runs are in 320 MiB;
# what is kept of a usual run is a tenth.
RUN_BYTES_MAX = 32 * 1024
USUAL_BYTES_MAX = 3 * 1024
TREE_BYTES_MAX = 64 * 1024


def short(*what: object) -> bytes:
    return hashlib.blake2b(repr(what).encode(), digest_size=8).digest()


def calls(run: str, count: int) -> Iterator[Step]:
    """Each to another place, with other arguments, another answer, another word of a person."""
    for number in range(count):
        turn = number % 3
        yield Step(
            START_US + number * 1_500_000,
            Kind.MODEL if turn == 0 else Kind.TOOL,
            f"{run}:{number:030}",
            run,
            run,
            "acme",
            "agent",
            "release",
            tool=f"tool-{number % 100}" if turn else "",
            destination=f"host-{number % HOSTS}.example" if turn else "",
            recipient=b"" if turn else short(run, number, "to"),
            action=short(run, number) if turn else b"",
            result=short(run, number, "told"),
            is_write=turn == 1,
            human=b"" if turn else short(run, number, "said"),
            spend_microusd=100,
        )


def spawns(root: str) -> Iterator[Step]:
    for number in range(SPAWNS):
        child = f"{root}.{number}"
        yield Step(START_US + number, Kind.SPAWN, f"{child:>36}", child, root, "acme", depth=1)


def grown[T](make: Callable[[], T], count: int) -> tuple[T, float]:
    """What is made, and the bytes that it takes, by `count`."""
    gc.collect()
    tracemalloc.start()
    try:
        made = make()
        gc.collect()
        return made, tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()


def fed(runs_fed: int, calls_each: int) -> tuple[Runs, float]:
    """Bytes in all."""

    def make() -> Runs:
        many = Runs()
        for number in range(runs_fed):
            for step in calls(f"run-{number}", calls_each):
                many.feed(step)
        return many

    return grown(make, 1)


def of_one_more(calls_each: int, few: int = 2, more: int = 10) -> float:
    """Bytes of one more run: what is kept once for all runs is none of its."""
    return (fed(more, calls_each)[1] - fed(few, calls_each)[1]) / (more - few)


def trees(count: int) -> float:
    """Bytes for each tree, its runs not counted."""

    def make() -> list[FanOut]:
        made = [FanOut() for _ in range(count)]
        for number, tree in enumerate(made):
            for step in spawns(f"root-{number}"):
                tree.feed(step, Progress.begun(START_US))
        return made

    return grown(make, count)[1]


@pytest.mark.alone
@pytest.mark.slow
def test_what_is_kept_of_a_run_is_bounded(capsys: pytest.CaptureFixture[str]) -> None:
    """12 seconds, most of them the counting of memory."""
    fed(1, FULL_CALLS)  # names of tools and hosts are kept once
    full_bytes, more_bytes = of_one_more(FULL_CALLS), of_one_more(3 * FULL_CALLS)
    many, usual_bytes = fed(RUNS_MAX + 1, USUAL_CALLS)
    usual_bytes /= RUNS_MAX
    tree_bytes = trees(100)
    with capsys.disabled():
        print(
            f"\nstate of a run: {full_bytes / 1024:.1f} KiB when all is full ({FULL_CALLS} calls; "
            f"{more_bytes / 1024:.1f} after {3 * FULL_CALLS}), {RUNS_MAX:,} such runs "
            f"at most {max(full_bytes, more_bytes) * RUNS_MAX / 2**20:.0f} MiB; "
            f"{usual_bytes / 1024:.1f} KiB after {USUAL_CALLS} calls, {RUNS_MAX:,} such runs "
            f"{usual_bytes * RUNS_MAX / 2**20:.0f} MiB (measured); "
            f"a tree of {SPAWNS} runs {tree_bytes / 1024:.1f} KiB"
        )
    assert len(many._runs) == RUNS_MAX
    assert "run-0" not in many._runs  # who was not heard of for longest goes first
    assert max(full_bytes, more_bytes) < RUN_BYTES_MAX
    assert usual_bytes < USUAL_BYTES_MAX
    assert tree_bytes < TREE_BYTES_MAX


def test_a_run_that_is_heard_of_again_is_not_the_next_to_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runs, "RUNS_MAX", 3)
    many = Runs()
    for run in ("a", "b", "c", "a", "d"):
        for step in calls(run, 1):
            many.feed(step)
    assert set(many._runs) == {"a", "c", "d"}
