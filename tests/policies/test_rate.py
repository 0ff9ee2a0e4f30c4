"""Sums over windows: what is known of each bucket is what a plain mapping knows, in few bytes."""

import random
from collections import Counter

import pytest

from policies.detectors.rate import MOST, Rows, Sums

BUCKET_US, BUCKETS = 1_000_000, 12


@pytest.mark.parametrize("late_buckets", [0, 3, 40])
def test_sums_are_those_of_a_plain_mapping(late_buckets: int) -> None:
    dice, sums = random.Random(late_buckets), Sums(BUCKET_US, BUCKETS)
    plain, newest, now_us = Counter[int](), 0, 10**15
    for _ in range(3_000):
        now_us += dice.choice((0, 1, BUCKET_US // 2, BUCKET_US, 5 * BUCKET_US))
        at_us = now_us - dice.randrange(late_buckets * BUCKET_US + 1)
        newest = max(newest, at_us // BUCKET_US)
        amount = dice.randrange(5)
        if at_us // BUCKET_US > newest - BUCKETS:  # else it is over already
            plain[at_us // BUCKET_US] += amount
        sums.add(at_us, amount)
        for buckets in (1, 3, BUCKETS):
            oldest = max(newest, now_us // BUCKET_US) - buckets
            known = sum(each for bucket, each in plain.items() if bucket > oldest)
            assert sums.within(now_us, buckets) == known
            assert sums.may_reach(known)
        assert len(sums.cells) <= 2 * BUCKETS


def test_what_is_over_is_reached_no_more() -> None:
    sums = Sums(BUCKET_US, BUCKETS)
    sums.add(0, 5)
    assert (sums.may_reach(5), sums.may_reach(6)) == (True, False)
    sums.add(BUCKETS * BUCKET_US, 4)
    assert (sums.may_reach(4), sums.may_reach(5)) == (True, False)


def test_an_amount_that_no_bucket_holds_is_cut() -> None:
    sums = Sums(BUCKET_US, BUCKETS)
    for _ in range(50):
        sums.add(0, 10**30)
    assert sums.within(0, 1) == 50 * MOST


def test_a_row_of_several_fields_begins_with_its_bucket() -> None:
    rows = Rows(BUCKET_US, BUCKETS, 3)
    assert rows.sums(0, 1) == [0, 0, 0]
    for second, field in ((5, 1), (6, 2), (5, 3), (4, 3), (-8, 1)):
        begin = rows.at(second * BUCKET_US)
        assert (begin < 0) is (second == -8)
        if begin >= 0:
            assert rows.cells[begin] == second
            rows.cells[begin + field] += 1
    assert rows.cells.tolist() == [4, 0, 0, 1, 5, 1, 0, 1, 6, 0, 1, 0]
    assert rows.sums(6 * BUCKET_US, 2) == [1, 1, 1]
    assert (rows.is_within(17 * BUCKET_US), rows.is_within(18 * BUCKET_US)) == (True, False)
