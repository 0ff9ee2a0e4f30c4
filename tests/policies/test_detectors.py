"""Which runs are told as runaways, and by which call: tests/cases/detectors.yaml."""

import pytest

from tests.policies.runs_of import CASES, Row, firsts, holds

ROWS = [row for rows in CASES.values() for row in rows]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["case"])
def test_what_is_healthy_goes_on_and_what_is_not_is_told_in_time(row: Row) -> None:
    found = firsts(row)
    # A row that is known to be missed says why; it must be taken off once it holds.
    assert holds(row, found) is ("missed" not in row), found
