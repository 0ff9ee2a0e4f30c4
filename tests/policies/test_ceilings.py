"""Window arithmetic: tests/cases/ceilings.yaml, and that no span ever holds more than the limit."""

import struct
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from policies.ceilings import (
    BUCKETS,
    EMPTY,
    Ceiling,
    Count,
    Per,
    Window,
    charge,
    limit,
    oldest,
    pack,
    settle,
    unpack,
    usd,
    used,
    wait_seconds,
)

ROWS: list[dict[str, Any]] = yaml.safe_load(
    (Path(__file__).parents[1] / "cases" / "ceilings.yaml").read_text()
)


def named(row: dict[str, Any]) -> str:
    return str(row["it"])


def microseconds(seconds: float) -> int:
    return round(seconds * 1_000_000)


def a_ceiling(at_most: int, within_us: int | None) -> Ceiling:
    return Ceiling("c", Per.RUN, Count.CALLS, at_most, within_us)


@pytest.mark.parametrize("row", ROWS, ids=named)
def test_a_window_counts(row: dict[str, Any]) -> None:
    within_us = None if row["within"] is None else microseconds(row["within"])
    ceiling = a_ceiling(row["at_most"], within_us)
    window = EMPTY
    for second in row["calls"]:
        window = charge(ceiling, window, microseconds(second))
    now_us = microseconds(row["at"])
    assert used(ceiling, window, now_us) == row["used"]
    if "wait" in row:
        assert wait_seconds(ceiling, window, now_us) == row["wait"]


def test_sentences_name_rows_once() -> None:
    assert len({named(row) for row in ROWS}) == len(ROWS)


WINDOWS_US = st.sampled_from([1_000_000, 7_000_000, 60_000_000, 61_000_001, 86_400_000_000])


@given(
    st.integers(1, 5),
    WINDOWS_US,
    st.lists(st.floats(0, 0.4), min_size=1, max_size=60),
    st.integers(0, 10**15),
)
def test_no_span_of_the_window_ever_holds_more_than_the_limit(
    at_most: int, within_us: int, gaps: list[float], start_us: int
) -> None:
    """Random arrivals, each admitted while the ceiling has room."""
    ceiling, window, now_us = a_ceiling(at_most, within_us), EMPTY, start_us
    admitted: list[int] = []
    for gap in gaps:
        now_us += int(gap * within_us)
        if used(ceiling, window, now_us) < at_most:
            window = charge(ceiling, window, now_us)
            admitted.append(now_us)
    for first, beyond in zip(admitted, admitted[at_most:], strict=False):
        assert beyond - first > within_us


@given(st.integers(1, 5), WINDOWS_US, st.lists(st.floats(0, 0.2), min_size=1, max_size=30))
def test_at_most_a_sixtieth_is_refused_early(
    at_most: int, within_us: int, gaps: list[float]
) -> None:
    """What is counted beyond the window is never older than two buckets more."""
    ceiling, window, now_us, calls = a_ceiling(at_most, within_us), EMPTY, 0, list[int]()
    for gap in gaps:
        now_us += int(gap * within_us)
        window = charge(ceiling, window, now_us)
        calls.append(now_us)
    oldest_us = now_us - within_us - 2 * ceiling.bucket_us
    assert used(ceiling, window, now_us) <= sum(call >= oldest_us for call in calls)
    assert used(ceiling, window, now_us) >= sum(call >= now_us - within_us for call in calls)


@given(st.integers(1, 4), WINDOWS_US, st.lists(st.floats(0, 0.3), min_size=1, max_size=20))
def test_who_waits_as_told_is_let_in(at_most: int, within_us: int, gaps: list[float]) -> None:
    ceiling, window, now_us = a_ceiling(at_most, within_us), EMPTY, 0
    for gap in gaps:
        now_us += int(gap * within_us)
        window = charge(ceiling, window, now_us)
    wait = wait_seconds(ceiling, window, now_us)
    assert wait is not None
    assert used(ceiling, window, now_us + wait * 1_000_000) < at_most
    full = used(ceiling, window, now_us) >= at_most
    if full and wait > 1:
        assert used(ceiling, window, now_us + (wait - 1) * 1_000_000) >= at_most


@given(st.lists(st.integers(-(10**9), 10**9), min_size=1, max_size=20))
def test_a_clock_that_steps_about_loses_nothing_within_the_window(steps: list[int]) -> None:
    """However time moves, a count falls only when the clock is past the highest it has been."""
    ceiling, now_us, highest_us = a_ceiling(9, 60_000_000), 10**12, 10**12
    window = charge(ceiling, EMPTY, now_us)
    for step in steps:
        now_us += step
        before = used(ceiling, window, max(now_us, highest_us))
        window = charge(ceiling, window, now_us)
        highest_us = max(highest_us, now_us)
        assert used(ceiling, window, highest_us) == before + 1


def test_a_window_is_packed_and_unpacked() -> None:
    window = Window(12, tuple(range(BUCKETS + 1)))
    for count in Count:
        ceiling = Ceiling("c", Per.RUN, count, 5, 60_000_000)
        assert unpack(ceiling, pack(ceiling, window)) == window
        assert unpack(ceiling, pack(ceiling, EMPTY)) == EMPTY
        with pytest.raises(struct.error):
            unpack(ceiling, b"short")


@pytest.mark.parametrize("count", [Count.SPEND, Count.TOKENS, Count.BYTES_UP])
def test_amounts_are_not_cut_to_four_bytes(count: Count) -> None:
    ceiling = Ceiling("c", Per.RUN, count, 10**15)
    window = charge(ceiling, EMPTY, 0, 10**14)
    assert used(ceiling, unpack(ceiling, pack(ceiling, window)), 0) == 10**14


def test_a_limit_tells_what_remains() -> None:
    ceiling = a_ceiling(3, 60_000_000)
    window = charge(ceiling, charge(ceiling, EMPTY, 0), 5_000_000)
    told = limit(ceiling, window, 5_000_000)
    assert (told.name, told.at_most, told.remaining, told.window_seconds) == ("c", 3, 1, 60)
    full = charge(ceiling, charge(ceiling, window, 5_000_000), 5_000_000)
    assert limit(ceiling, full, 5_000_000).remaining == 0


def test_several_may_be_charged_at_once() -> None:
    ceiling = a_ceiling(9, 60_000_000)
    assert used(ceiling, charge(ceiling, EMPTY, 0, 5), 0) == 5


def test_buckets_never_fall_short_of_the_window() -> None:
    for within_us in (1, 59, 60, 61, 1_000_000, 7_000_000, 86_400_000_001):
        assert a_ceiling(1, within_us).bucket_us * BUCKETS >= within_us


HOUR_US = 3_600_000_000

# Reserved at, used, settled at (seconds), what it came to -> what the window of an hour holds then.
SETTLED = [
    ("less is given back", 0, 100, 30, 40, 40),
    ("nothing used gives all back", 0, 100, 30, 0, 0),
    ("as much as reserved changes nothing", 0, 100, 30, 100, 100),
    ("more is charged", 0, 100, 30, 250, 250),
    ("less is given back in the last bucket, too", 0, 100, 3_600, 40, 40),
    ("a bucket that has passed gives nothing back", 0, 100, 3_700, 40, 0),
    ("more is charged though the bucket has passed", 0, 100, 3_700, 250, 150),
]


@pytest.mark.parametrize("row", SETTLED, ids=lambda row: row[0])
def test_a_reservation_becomes_what_was_used(row: tuple[str, int, int, int, int, int]) -> None:
    _, at, reserved, later, actual, holds = row
    ceiling = a_ceiling(1000, HOUR_US)
    window = charge(ceiling, EMPTY, microseconds(at), reserved)
    settled = settle(ceiling, window, microseconds(later), window.newest, reserved, actual)
    assert used(ceiling, settled, microseconds(later)) == holds


def test_what_grew_in_later_buckets_is_given_back_there() -> None:
    """A stream reserved 10, drew 90 half an hour later and used 20."""
    ceiling = a_ceiling(1000, HOUR_US)
    first = charge(ceiling, EMPTY, 0, 10)
    grown = charge(ceiling, first, HOUR_US // 2, 90)
    settled = settle(ceiling, grown, HOUR_US // 2, first.newest, 100, 20)
    assert used(ceiling, settled, HOUR_US // 2) == 20
    assert used(ceiling, settled, HOUR_US + HOUR_US // 30) == 20  # the newer part stays longer


@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(0, 80)), min_size=1, max_size=20),
    st.lists(st.floats(0, 0.05), min_size=20, max_size=20),
)
def test_settled_calls_hold_exactly_what_they_used(
    calls: list[tuple[int, int]], gaps: list[float]
) -> None:
    """As long as nothing slides out, whatever the order of reservations and settlements."""
    ceiling, window, now_us = a_ceiling(10**6, HOUR_US), EMPTY, 0
    open_calls: list[tuple[int, int, int]] = []
    for (reserved, actual), gap in zip(calls, gaps, strict=False):
        now_us += int(gap * HOUR_US)
        window = charge(ceiling, window, now_us, reserved)
        open_calls.append((window.newest, reserved, actual))
    for bucket, reserved, actual in reversed(open_calls):
        window = settle(ceiling, window, now_us, bucket, reserved, actual)
    assert used(ceiling, window, now_us) == sum(actual for _, actual in calls)


def test_taking_off_by_hand_begins_with_the_oldest() -> None:
    ceiling = a_ceiling(1000, HOUR_US)
    window = charge(ceiling, charge(ceiling, EMPTY, 0, 30), HOUR_US // 2, 50)
    less = settle(ceiling, window, HOUR_US // 2, oldest(ceiling, window), 45, 0)
    assert used(ceiling, less, HOUR_US // 2) == 35
    none = settle(ceiling, window, HOUR_US // 2, oldest(ceiling, window), 1000, 0)
    assert used(ceiling, none, HOUR_US // 2) == 0


def test_more_than_the_limit_never_fits_by_waiting() -> None:
    ceiling = a_ceiling(5, 60_000_000)
    assert wait_seconds(ceiling, EMPTY, 0, 6) is None
    full = charge(ceiling, EMPTY, 0, 3)
    assert wait_seconds(ceiling, full, 0, 2) == 1
    assert (wait_seconds(ceiling, full, 0, 3) or 0) >= 60


@pytest.mark.parametrize(
    "microusd, told",
    [
        (5_000_000, "5.00"),
        (1_500_000, "1.50"),
        (12, "0.000012"),
        (0, "0.00"),
        (10**12, "1000000.00"),
    ],
)
def test_money_is_told_exactly(microusd: int, told: str) -> None:
    assert usd(microusd) == told


def test_a_ceiling_is_told_in_its_own_unit() -> None:
    spend = Ceiling("c", Per.TENANT, Count.SPEND, 20_000_000, 300_000_000)
    assert str(spend) == "at most 20.00 USD per tenant within 5 min"
    assert str(Ceiling("c", Per.RUN, Count.IN_FLIGHT, 4)) == "at most 4 calls in flight per run"
