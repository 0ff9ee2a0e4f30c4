"""Which runs are told as runaways, and by which call: tests/cases/detectors.yaml."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.detectors.runs import Runs
from policies.detectors.step import Kind, Severity
from tests.policies.runs_of import steps

CASES = yaml.safe_load(Path("tests/cases/detectors.yaml").read_text("utf-8"))


def firsts(row: dict[str, Any]) -> dict[tuple[str, Severity], int]:
    """By which tool call each detector first said what."""
    runs, calls = Runs(), 0
    found: dict[tuple[str, Severity], int] = {}
    for step in steps(row):
        calls += step.kind is Kind.TOOL
        for finding in runs.feed(step):
            found.setdefault((finding.detector, finding.severity), calls)
    return found


@pytest.mark.parametrize("row", CASES["healthy"], ids=lambda row: row["case"])
def test_what_is_healthy_is_not_stopped(row: dict[str, Any]) -> None:
    found = firsts(row)
    if row["wants"] == "quiet":
        found = {told: calls for told, calls in found.items() if told[1] is Severity.TRIP}
    assert not found


@pytest.mark.parametrize("row", CASES["loops"], ids=lambda row: row["case"])
def test_a_runaway_is_told_in_time(row: dict[str, Any]) -> None:
    wanted = Severity(row["wants"])
    found = {
        detector: calls
        for (detector, severity), calls in firsts(row).items()
        if severity is wanted and detector in row.get("by", [detector])
    }
    assert found
    assert min(found.values()) <= row["within"]
