"""The scale bench on a small ledger: what it grows is whole, and its targets are what they say."""

from contextlib import closing
from pathlib import Path

import pytest

from ledger import chain
from ledger.checks import checked_file
from ledger.connection import open_reader
from ledger.filters import parse
from ledger.queries import calls
from tests.bench import added, asking, grown
from tests.bench.admitting import Callers, shipped_policy
from tests.bench.grown import made
from tests.bench.scale import Figures, _held

ROWS = 3_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("grown") / "ledger", ROWS, shipped_policy())


def test_a_grown_ledger_is_whole(data: Path) -> None:
    found = {one.check: (one.found, one.skipped) for one in checked_file(data / "ledger.db")}
    assert set(found.values()) == {((), "")}, found
    with closing(open_reader(data)) as reader:
        rows = chain.stored(reader, 0, ROWS, ROWS + 1)
    assert len(rows) == ROWS
    previous = chain.GENESIS
    for row in rows:
        previous = chain.link(previous, row.columns)
        assert row.hash == previous


def test_it_is_the_same_each_time_and_holds_what_is_rare(data: Path, tmp_path: Path) -> None:
    again = made(tmp_path / "again", ROWS, shipped_policy())
    heads = []
    for each in (data, again):
        with closing(open_reader(each)) as reader:
            heads.append(chain.head(reader))
            rare = list(calls(reader, parse(f"tenant:{grown.RARE_TENANT}", 0)))
            assert len(rare) == len(grown.RARE_CALLS)
    assert heads[0] == heads[1]


async def test_callers_make_their_writes_once_and_every_question_is_answered(
    data: Path, tmp_path: Path
) -> None:
    own = made(tmp_path / "own", 500, shipped_policy())
    callers = Callers(own, shipped_policy())
    lone = await callers.lone(5)
    many = await callers.many(4, 12)
    await callers.close()
    assert len(lone.admit_us) == len(lone.settle_us) == 5
    assert min(many.admit_rate, many.settle_rate) > 0
    with closing(open_reader(own)) as reader:
        assert len(list(calls(reader, parse("release:bench state:done", 0)))) == 17
    taken = asking.measure(data, rounds=1)
    assert asking.BY_RUN in taken
    assert len(asking.lines(taken)) == len(taken)


def test_the_chain_and_the_trace_are_told_by_themselves(tmp_path: Path) -> None:
    told = added.measure(tmp_path, shipped_policy(), rounds=1)
    assert [line.partition(":")[0] for line in told.lines()] == [
        "hash chain",
        "trace, in the engine",
        "trace, in the tracer's process",
    ]


@pytest.mark.parametrize(
    "of_few, of_big, query_ms, held",
    [
        ((160.0, 35_000.0), (200.0, 24_500.0), 19.9, True),
        ((161.0, 35_000.0), (200.0, 24_500.0), 19.9, False),
        ((160.0, 34_000.0), (200.0, 24_500.0), 19.9, False),
        ((160.0, 35_000.0), (201.0, 24_500.0), 19.9, False),
        ((160.0, 35_000.0), (200.0, 24_000.0), 19.9, False),
        ((160.0, 35_000.0), (200.0, 24_500.0), 20.0, False),
    ],
)
def test_every_target_can_be_missed(
    of_few: tuple[float, float], of_big: tuple[float, float], query_ms: float, held: bool
) -> None:
    few, big = (
        Figures([lone_us], [100.0], [1.0], [rate], [100.0], [1.0])
        for lone_us, rate in (of_few, of_big)
    )
    assert _held({"few": few, "big": big}, {asking.BY_RUN: [query_ms]}) is held
