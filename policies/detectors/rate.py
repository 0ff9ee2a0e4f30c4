"""Sums over sliding windows in few buckets, for the detectors. Bounded, exact to one bucket."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Sums:
    """What came in within the last `buckets` buckets of `bucket_us` each, the running one too.

    `at_most`: no sum of theirs is larger, at any time; known without adding up.
    """

    bucket_us: int
    buckets: int
    at_most: int = 0
    _newest: int = 0
    _amounts: dict[int, int] = field(default_factory=dict)

    def add(self, at_us: int, amount: int) -> None:
        bucket = at_us // self.bucket_us
        self._newest = max(self._newest, bucket)
        self._amounts[bucket] = self._amounts.get(bucket, 0) + amount
        self.at_most += amount
        if len(self._amounts) > self.buckets or self._amounts_are_old():
            oldest = self._newest - self.buckets
            self._amounts = {at: sum_ for at, sum_ in self._amounts.items() if at > oldest}
            self.at_most = sum(self._amounts.values())

    def _amounts_are_old(self) -> bool:
        """Whether adding up is due again: the oldest went out of the window long ago."""
        return next(iter(self._amounts)) <= self._newest - 2 * self.buckets

    def within(self, at_us: int, buckets: int) -> int:
        """The sum of the newest so many buckets."""
        newest = max(self._newest, at_us // self.bucket_us)
        return sum(amount for at, amount in self._amounts.items() if at > newest - buckets)
