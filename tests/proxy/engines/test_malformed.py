"""Requests that are wrong, odd or only half: tests/cases/malformed_*.yaml, over both engines.

All rows go to one proxy of each engine. Whatever is sent, nobody hangs, nothing crashes, and every
byte that an upstream saw belongs to a request that was judged and let through just as it arrived.
"""

from collections import Counter

import pytest

from tests.engine import ENGINES, Engine
from tests.proxy.engines.malformed import Outcome, Outcomes, Row, outcomes, rows

ROWS = list(rows())
TITLES = list(dict.fromkeys(row.it for row in ROWS))


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Engine, Outcomes]:
    """What became of each row over each engine. Some five seconds for each."""
    return {engine: outcomes(engine, tmp_path_factory.mktemp(engine), ROWS) for engine in ENGINES}


def test_there_are_rows_enough_and_each_says_something_of_its_own() -> None:
    assert len({(row.it, row.value) for row in ROWS}) >= 900
    twice = Counter((row.it, row.value, row.tunnel) for row in ROWS)
    assert [name for name, count in twice.items() if count > 1] == []


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("title", TITLES)
def test_a_row_is_told_and_arrives_as_it_says(
    title: str, engine: Engine, found: dict[Engine, Outcomes]
) -> None:
    rows_of_it = [row for row in ROWS if row.it == title]
    wrong = {str(row): _wrong(row, engine, found[engine].of[row.path]) for row in rows_of_it}
    assert {name: what for name, what in wrong.items() if what} == {}


def _wrong(row: Row, engine: Engine, outcome: Outcome) -> str:
    """What is not as the row says; empty where all is."""
    expected, told = row.expected(engine), outcome.told
    if told.statuses != expected.statuses or told.rest:
        return f"told {told.statuses} and {told.rest!r}, not {expected.statuses}"
    if expected.closes and not told.closed:
        return "nobody hung up"
    if row.row.get("waits") and told.closed:
        return "it was hung up on"
    if expected.arrives is not None and outcome.arrived != expected.arrives:
        return f"{outcome.arrived} arrived, not {expected.arrives}"
    if row.row.get("unseen", "\0").encode() in outcome.words:
        return "what must not be seen arrived"
    return ""


@pytest.mark.parametrize("engine", ENGINES)
def test_all_that_arrived_was_judged_and_let_through_just_so(
    engine: Engine, found: dict[Engine, Outcomes]
) -> None:
    assert found[engine].unjudged == []
    assert found[engine].evil == []


@pytest.mark.parametrize("engine", ENGINES)
def test_nothing_crashed(engine: Engine, found: dict[Engine, Outcomes]) -> None:
    assert found[engine].crashes == []


def test_what_one_engine_refuses_the_other_refuses_too(found: dict[Engine, Outcomes]) -> None:
    """Where they differ a row says why that is harmless; and then no more arrives by the one that
    takes it than it was judged by."""
    differ = [
        str(row)
        for row in ROWS
        if "harmless" not in row.row
        and len({_refused(outcomes.of[row.path]) for outcomes in found.values()}) > 1
    ]
    assert differ == []


def _refused(outcome: Outcome) -> tuple[bool, tuple[str, ...]]:
    """Whether anything was refused, and all that arrived."""
    return any(status >= 400 for status in outcome.told.statuses), tuple(outcome.arrived)
