"""The figure of what the checks cost: the ratio of pairs, the gate, the policies compared."""

import pytest

from policies.load import load
from tests.bench.ceilings import CEILINGS, policy_text, ratio, report

BUSY = {0: [5.0, 50.0], 10: [10.0, 100.0], 100: [14.0, 130.0], 1_000: [15.0, 140.0]}
"""The machine was ten times as busy in the second round."""


def test_a_ratio_is_taken_inside_a_round() -> None:
    spread = ratio(BUSY, 100, 10)
    assert [spread.least, spread.middle, spread.most] == pytest.approx([1.3, 1.35, 1.4])


@pytest.mark.parametrize("with_100, holds", [(15.0, True), (15.1, False)])
def test_the_gate_is_missed_beyond_one_and_a_half(with_100: float, holds: bool) -> None:
    lines, held = report({0: [5.0], 10: [10.0], 100: [with_100], 1_000: [90.0]})
    assert held is holds
    assert lines[-1].endswith("holds" if holds else "MISSED")


def test_every_number_of_ceilings_has_its_line() -> None:
    lines, _ = report(BUSY)
    assert len(lines) == 1 + len(CEILINGS) + 1
    assert "1,000 ceilings: 77.5 (15.0-140.0)" in lines[4]


@pytest.mark.parametrize("ceilings", CEILINGS[:3])
def test_the_measured_tool_has_as_many_ceilings_in_a_long_policy_as_in_a_short(
    ceilings: int,
) -> None:
    policy = load(policy_text(ceilings))
    assert len(policy.ceilings) == ceilings
    assert len(policy.ceilings_of["api.read"]) == (9 if ceilings else 0)
