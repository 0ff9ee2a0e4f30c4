"""Reads that name a time leave out what is older or newer without reading it, and lose no call."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from ledger import queries
from ledger.connection import open_reader
from ledger.filters import Filter, parse
from ledger.paging import every_call
from ledger.queries import DISORDER_US
from tests.ledger.world import START_US, World

SECOND_US = 1_000_000


def fill(world: World, times_us: list[int]) -> None:
    """A call for each time, with an outcome that was written down much later than it happened."""
    world.decided(world.read("first"))
    intents = [(at_us, f"c{number:05}") for number, at_us in enumerate(times_us)]
    world.conn.execute("BEGIN")
    world.conn.execute("DELETE FROM open_call")
    world.conn.execute("DELETE FROM event")
    for at_us, call_id in intents:
        world.conn.execute(
            "INSERT INTO event (type, at_us, call_id, run, tool, effect, decision, reason, state) "
            "VALUES ('call.intent', ?, ?, 'r1', 'pay', 'read', 'allow', 'allowed', 'pending')",
            (at_us, call_id),
        )
        world.conn.execute(
            "INSERT INTO event (type, at_us, call_id, state) VALUES ('call.outcome', ?, ?, 'done')",
            (START_US, call_id),
        )
    world.conn.execute("COMMIT")


def without_times(chosen: Filter) -> Filter:
    return Filter(chosen.where, chosen.values)


@pytest.mark.parametrize("seed", range(5))
def test_no_call_is_lost_however_late_it_was_written(world: World, seed: int) -> None:
    draw = random.Random(seed)
    times_us = [
        START_US + number * 7 * SECOND_US - draw.randrange(DISORDER_US) for number in range(300)
    ]
    fill(world, times_us)
    reader = open_reader(world.data)
    for _ in range(40):
        since_us, until_us = (START_US + draw.randrange(-100, 2200) * SECOND_US for _ in range(2))
        everything = parse("state:done", 0)
        chosen = Filter(
            f"{everything.where} AND at_us >= ? AND at_us < ?",
            (*everything.values, since_us, until_us),
            since_us,
            until_us,
        )
        plain = without_times(chosen)
        wanted = [row["id"] for row in queries.calls(reader, plain, 1000)]
        assert [row["id"] for row in queries.calls(reader, chosen, 1000)] == wanted
        assert [row["id"] for row in every_call(reader, chosen, 50)] == wanted[::-1]
        assert queries.totals(reader, chosen) == queries.totals(reader, plain)
    reader.close()


@pytest.mark.parametrize(
    "terms, since_us, until_us",
    [
        ("", None, None),
        ("since:10s", 90, None),
        ("since:10s since:20s until:5s", 90, 95),
        ("until:5s until:7s", None, 93),
        ("-since:10s -until:5s", None, None),
    ],
)
def test_a_filter_tells_its_times(terms: str, since_us: int | None, until_us: int | None) -> None:
    chosen = parse(terms, 100 * SECOND_US)
    times = [each and each // SECOND_US for each in (chosen.since_us, chosen.until_us)]
    assert times == [since_us, until_us]


READS: dict[str, Callable[[Any, Filter], object]] = {
    "a page": lambda reader, chosen: list(queries.calls(reader, chosen, 50)),
    "sums": queries.totals,
    "all pages": lambda reader, chosen: list(every_call(reader, chosen)),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("terms", ["since:1m tool:none", "until:66h tool:none"])
def test_what_is_too_old_or_too_new_is_not_read(world: World, read: str, terms: str) -> None:
    fill(world, [START_US + number * 120 * SECOND_US for number in range(2000)])
    now_us = START_US + 2000 * 120 * SECOND_US
    chosen = parse(terms, now_us)
    reader = open_reader(world.data)

    def steps(chosen: Filter) -> int:
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return 0

        reader.set_progress_handler(step, 10)
        READS[read](reader, chosen)
        reader.set_progress_handler(None, 0)
        return count

    assert steps(chosen) * 10 < steps(without_times(chosen))
    reader.close()
