"""The gates of the bench, and its table, over made-up results."""

from itertools import product

import pytest

from tests.bench import gates
from tests.bench.figures import VARIANTS, Cell, Measured, cells, table
from tests.bench.load import Result
from tests.bench.messages import Kind, Way
from tests.bench.variants import DIRECT, STOCK

READ = Cell(Way.PLAIN, Kind.READ, 16)
SLOW = Result(calls=100, all_calls=103, seconds=1.0, p50_us=1_000.0, p99_us=2_000.0, cpu_us=900.0)
FAST = Result(calls=2_000, all_calls=2_003, seconds=1.0, p50_us=50.0, p99_us=90.0, cpu_us=45.0)


def measured(http1: Result, mitmproxy: Result = SLOW, *, cell: Cell = READ) -> Measured:
    results = {DIRECT: FAST, STOCK: SLOW, "mitmproxy": mitmproxy, "http1": http1}
    return {(cell, name): [result, result] for name, result in results.items()}


def test_every_variant_and_ratio_stands_in_the_table() -> None:
    row = table(measured(FAST)).splitlines()[-1]
    assert "2,000 ±0% / 100 ±0% / 100 ±0% / 2,000 ±0%" in row
    assert "1.00 (1.00-1.00) / 20.00 (20.00-20.00)" in row
    assert "0.05 / 1.00 / 1.00 / 0.05" in row


def test_an_engine_is_held_to_its_own_gates_and_told_where_it_misses() -> None:
    lines, all_hold = gates.told(measured(SLOW, FAST))
    assert not all_hold
    assert [line.rpartition(": ")[2] for line in lines if line.startswith("gate")] == [
        "holds",
        "holds",
        "MISSED",
    ]
    assert lines[-1] == "  not by itself in: plain read, 16 clients (1.00)"


def test_all_that_hold() -> None:
    lines, all_hold = gates.told(measured(FAST, FAST))
    assert all_hold
    assert len(lines) == 3


@pytest.mark.parametrize("cell", cells((1, 16)), ids=str)
def test_nothing_is_asked_of_what_was_not_measured(cell: Cell) -> None:
    lines, _ = gates.told(measured(FAST, FAST, cell=cell))
    about = [gate for gate in gates.GATES if gate.is_about(cell)]
    assert len([line for line in lines if line.startswith("gate")]) == len(about)


def test_added_time_is_that_over_the_way_without_a_proxy() -> None:
    alone = Cell(Way.TLS, Kind.READ, 1)
    lines, _ = gates.told(measured(SLOW, cell=alone))
    assert any("added p50 of a read, ms: 0.95" in line and "MISSED" in line for line in lines)


def test_large_answers_are_asked_by_few() -> None:
    wanted = {(cell.way, cell.clients) for cell in cells((1, 16, 512)) if cell.kind is Kind.LARGE}
    assert wanted == set(product((Way.PLAIN, Way.TLS), (1, 16)))
    assert len(VARIANTS) == 4
