"""Sums over sliding windows in few buckets, for the detectors and the signals. Bounded, exact to
one bucket.
"""

from array import array
from functools import cache

MOST = 10**14  # of one amount: a bucket's sum stays within 64 bits


class Rows:
    """Numbers of the last `buckets` buckets of `bucket_us` each: in `cells`, for each bucket of
    which something is known, its number and so many `fields`; the newest last. Another thread may
    read a copy of `cells` at any time."""

    __slots__ = ("_blank", "bucket_us", "buckets", "cells", "width")

    def __init__(self, bucket_us: int, buckets: int, fields: int) -> None:
        self.bucket_us, self.buckets, self.width = bucket_us, buckets, fields + 1
        self.cells = array("q")
        self._blank = _blank(self.width)

    def at(self, at_us: int) -> int:
        """Where the row of that time begins, which is made if there is none; -1 of a time that is
        over already."""
        bucket, cells, width = at_us // self.bucket_us, self.cells, self.width
        end = len(cells)
        if end and cells[end - width] == bucket:
            return end - width
        if end and bucket <= cells[end - width] - self.buckets:
            return -1
        while end and cells[end - width] >= bucket:  # a late one
            end -= width
            if cells[end] == bucket:
                return end
        row = self._blank[:]
        row[0] = bucket
        cells[end:end] = row
        oldest, begin = cells[-width] - self.buckets, 0
        while cells[begin] <= oldest:
            begin += width
        if begin:
            del cells[:begin]
        return end - begin

    def is_within(self, at_us: int) -> bool:
        """Whether anything is known of the buckets of the window that ends then."""
        cells = self.cells[-self.width :]
        return bool(cells) and cells[0] > at_us // self.bucket_us - self.buckets

    def sums(self, at_us: int, buckets: int) -> list[int]:
        """The sums of each field over the newest so many buckets, the running one too."""
        cells, width = self.cells[:], self.width
        begin = end = len(cells)
        if end:
            oldest = max(cells[end - width], at_us // self.bucket_us) - buckets
            while begin and cells[begin - width] > oldest:
                begin -= width
        return [sum(cells[begin + field :: width]) for field in range(1, width)]


@cache
def _blank(width: int) -> "array[int]":
    """Copied, which takes a third of the time of making one."""
    return array("q", bytes(8 * width))


class Sums(Rows):
    """Of one number."""

    __slots__ = ("_at_most",)

    def __init__(self, bucket_us: int, buckets: int) -> None:
        super().__init__(bucket_us, buckets, 1)
        self._at_most = 0

    def add(self, at_us: int, amount: int) -> None:
        begin = self.at(at_us)
        if begin >= 0:
            amount = min(amount, MOST)
            self.cells[begin + 1] += amount
            self._at_most += amount

    def may_reach(self, amount: int) -> bool:
        """Whether any sum may be so large; adds up only where it is not known."""
        if self._at_most >= amount:
            self._at_most = sum(self.cells[1::2])
        return self._at_most >= amount

    def within(self, at_us: int, buckets: int) -> int:
        """The sum of the newest so many buckets."""
        (sum_,) = self.sums(at_us, buckets)
        return sum_
