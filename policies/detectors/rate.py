"""Sums over sliding windows in few buckets, for the detectors. Bounded, exact to one bucket."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Sums:
    """What came in within the last `buckets` buckets of `bucket_us` each, the running one too."""

    bucket_us: int
    buckets: int
    _newest: int = 0
    _amounts: dict[int, int] = field(default_factory=dict)

    def add(self, at_us: int, amount: int) -> None:
        bucket = at_us // self.bucket_us
        self._newest = max(self._newest, bucket)
        self._amounts[bucket] = self._amounts.get(bucket, 0) + amount
        if len(self._amounts) > self.buckets:
            oldest = self._newest - self.buckets
            self._amounts = {at: sum_ for at, sum_ in self._amounts.items() if at > oldest}

    def within(self, at_us: int, buckets: int) -> int:
        """The sum of the newest so many buckets."""
        newest = max(self._newest, at_us // self.bucket_us)
        return sum(amount for at, amount in self._amounts.items() if at > newest - buckets)
