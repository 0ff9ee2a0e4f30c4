"""What the record tells of losses of the trace, whole and cut short."""

from contextlib import closing

import orjson
import pytest

from ledger.connection import open_reader
from ledger.states import EventType
from ledger.untraced import Loss, losses
from tests.ledger.world import World

UNTIL_US = 9_000


def told(world: World, detail: str) -> list[Loss]:
    world.store.note(EventType.TRACE_LOST, actor="pullcord", at_us=UNTIL_US, detail=detail)
    with closing(open_reader(world.data)) as reader:
        return list(losses(reader))


@pytest.mark.parametrize("runs", [["r1"], ["r" * 400 + str(number) for number in range(10)]])
def test_a_loss_keeps_its_window_however_long_its_runs_are(world: World, runs: list[str]) -> None:
    detail = {"messages": 7, "since_us": 1_000, "why": "the tracer is away", "runs": runs}
    found = told(world, orjson.dumps(detail).decode())
    assert found == [Loss(1_000, UNTIL_US, 7, "the tracer is away")]


@pytest.mark.parametrize("detail", ["", "{", "[]", '{"messages": "x"}'])
def test_of_what_cannot_be_read_the_end_is_known(world: World, detail: str) -> None:
    assert told(world, detail) == [Loss(UNTIL_US, UNTIL_US, 0, "")]
