"""The signals of a ledger: what was fed is in every number that is read after it."""

import threading

import pytest

from ledger import watching
from ledger.watching import Watch
from policies.detectors.rules import SHIPPED
from policies.detectors.step import Kind, Step
from tests.ledger.world import World

START_US = 1_795_000_000_000_000


def a_step(run: str = "r1", kind: Kind = Kind.TOOL) -> Step:
    return Step(START_US, kind, "c", run, run, "acme")


@pytest.fixture
def watch(world: World) -> Watch:
    made = Watch()
    assert made.make(world.store._conn, SHIPPED, START_US)
    return made


def test_what_waits_to_be_counted_is_in_every_number(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "WAITING_MAX", 7)
    for number in range(1, 30):
        for run in ("r0", f"r{number}"):
            watch.feed(a_step(run))
        watch.feed(a_step("r0", Kind.MARK))
        assert len(watch._waiting) < 7
        if number % 5:
            continue
        told = watch.signals.tenant("acme", START_US), watch.signals.run("r0", START_US)
        assert [each.minute.tool_calls for each in told if each is not None] == [2 * number, number]


def test_a_transaction_that_failed_is_in_no_number(watch: Watch, world: World) -> None:
    for _ in range(watching.WAITING_MAX + 3):
        watch.feed(a_step())
    watch.lost()
    assert watch.make(world.store._conn, SHIPPED, START_US)
    watch.feed(a_step())
    assert watch.signals.fleet(START_US).minute.tool_calls == 1


def test_one_that_reads_beside_one_that_feeds_counts_each_step_once(watch: Watch) -> None:
    read, steps, is_fed = list[int](), 5_000, threading.Event()

    def reads() -> None:
        while not is_fed.is_set():
            read.append(watch.signals.fleet(START_US).minute.tool_calls)

    reader = threading.Thread(target=reads)
    reader.start()
    for _ in range(steps):
        watch.feed(a_step())
    is_fed.set()
    reader.join()
    assert read == sorted(read)
    assert watch.signals.fleet(START_US).minute.tool_calls == steps


def test_who_feeds_waits_for_nobody(watch: Watch) -> None:
    with watch._counting:  # as by one who reads, and was interrupted
        for _ in range(3 * watching.WAITING_MAX):
            watch.feed(a_step())
    assert watch.signals.fleet(START_US).minute.tool_calls == 3 * watching.WAITING_MAX
