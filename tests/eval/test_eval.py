"""What `make eval` promises holds. Takes about 2 seconds."""

import pytest

from tests.eval import figures, traces
from tests.eval.run import TARGETS, Figures, Target, bound_of_thousand
from tests.eval.traces import Class


@pytest.fixture(scope="module")
def found() -> Figures:
    return figures.told(traces.read(), {})


def test_the_traces_are_those_that_the_targets_speak_of(found: Figures) -> None:
    runs = {known: found[known].runs for known in Class}
    assert (runs[Class.HEALTHY], runs[Class.LOOP], runs[Class.ERRORS]) == (564, 5, 2)
    assert (runs[Class.SOFT_LOOP], runs[Class.NO_SOFT_LOOP]) == (11, 10)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target[0])
def test_a_target_holds(found: Figures, target: Target) -> None:
    _, figure, holds = target
    assert holds(figure(found))


def test_no_false_trip_in_564_runs_says_little_more_than_five_in_a_thousand() -> None:
    assert round(bound_of_thousand(0, 564), 1) == 5.3
