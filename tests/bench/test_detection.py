"""The bench of the detectors on a few calls: each way is measured, and its target can be missed."""

from contextlib import closing
from pathlib import Path

import pytest

from ledger.connection import open_reader
from tests.bench import detection
from tests.bench.admitting import shipped_policy
from tests.bench.detection import OFF, ON, TOLD, Detection


def rows(data: Path, kind: str) -> int:
    with closing(open_reader(data)) as reader:
        counted = reader.execute("SELECT count(*) FROM event WHERE type = ?", (kind,))
        return int(counted.fetchone()[0])


def test_with_and_without_detectors_the_same_calls_are_made(tmp_path: Path) -> None:
    found = detection.measure(tmp_path, shipped_policy(), rounds=1, calls=60)
    for figures in (found.settle_us, found.admit_us, found.cpu_us):
        assert {which: len(each) for which, each in figures.items()} == {OFF: 1, ON: 1, TOLD: 1}
    assert len(found.lines()) == 3
    made = {which: rows(tmp_path / f"lone-{which}", "call.outcome") for which in (OFF, ON, TOLD)}
    assert made == {OFF: 120, ON: 120, TOLD: 120}
    told = [rows(tmp_path / f"lone-{which}", "detector.alerted") > 0 for which in (OFF, ON, TOLD)]
    assert told == [False, False, True]


@pytest.mark.parametrize("on_us, held", [(104.0, True), (106.0, False)])
def test_the_target_can_be_missed(on_us: float, held: bool) -> None:
    found = Detection({OFF: [100.0], ON: [on_us]})
    assert found.held is held
