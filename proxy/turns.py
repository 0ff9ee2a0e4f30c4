"""Whose turn it is under a ceiling: a fair queue. Pure: no clock, no I/O, and no judgement.

Those who wait for one window stand in one line. In a line tenants take turns, and within a tenant
who came first is first. A line is open while there may be room: the first one of each tenant is
tried, in the order of their turns, but nobody who needs as much as one that was just tried in vain.
So who needs much holds up nobody but its own tenant, and where all need the same, trying costs as
many judgements as there is room, and one more. The price: who needs much may see others pass that
need less until its wait is over; it is first to be tried whenever there may be room.
Times are seconds of any clock that never goes back; the caller brings them.
"""

from bisect import bisect_left, insort
from collections import Counter
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import inf

WAITERS_MAX = 4096  # as many as client connections of one engine
TENANT_WAITERS_MAX = 1024  # so that no tenant takes every place

_STALE_MAX = 64

Window = tuple[str, str]
"""What is counted, and for whom."""


@dataclass(slots=True)
class _Line:
    """`tenants` is in the order of their turns; the numbers of each ascend. While the line is open,
    `untried` are the tenants whose first one has to be tried yet, and who needs `too_much` or more
    was tried in vain."""

    tenants: dict[str, list[int]] = field(default_factory=dict)
    untried: dict[str, None] = field(default_factory=dict)
    too_much: float = inf
    again_seconds: float = inf


@dataclass(slots=True)
class _Place:
    tenant: str
    window: Window
    amount: int
    until_seconds: float


class Turns:
    """Everybody who waits has a number, given in the order of arrival."""

    def __init__(
        self, waiters_max: int = WAITERS_MAX, tenant_waiters_max: int = TENANT_WAITERS_MAX
    ) -> None:
        self._waiters_max = waiters_max
        self._tenant_waiters_max = tenant_waiters_max
        self._places: dict[int, _Place] = {}
        self._lines: dict[Window, _Line] = {}
        self._open: dict[Window, None] = {}
        self._of_tenant: Counter[str] = Counter()
        self._last = 0
        # When something is to be looked at; what has gone meanwhile is skipped when it comes up.
        self._again: list[tuple[float, Window]] = []
        self._ends: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._places)

    def has_room(self, tenant: str) -> bool:
        """Whether one more of this tenant may wait."""
        if self._of_tenant[tenant] >= self._tenant_waiters_max:
            return False
        return len(self._places) < self._waiters_max

    def awaits(self, tenant: str, window: Window) -> bool:
        """Whether one of this tenant that comes now would overtake somebody: one of its own, or one
        that was not tried yet though there may be room for it."""
        line = self._lines.get(window)
        return line is not None and (tenant in line.tenants or window in self._open)

    def join(
        self,
        tenant: str,
        window: Window,
        *,
        until_seconds: float,
        again_seconds: float = inf,
        amount: int = 1,
    ) -> int:
        """Wait for a window that had no room for this amount. By `again_seconds` time alone will
        have made some."""
        self._last += 1
        number = self._last
        self._places[number] = _Place(tenant, window, amount, until_seconds)
        self._of_tenant[tenant] += 1
        self._stand(number, window, again_seconds)
        if len(self._ends) > 2 * len(self._places) + _STALE_MAX:
            places = self._places.items()
            self._ends = sorted((place.until_seconds, number) for number, place in places)
        else:
            heappush(self._ends, (until_seconds, number))
        return number

    def stir(self, window: Window | None = None) -> None:
        """Something happened that may have made room in this window, or in any."""
        for each in self._lines if window is None else (window,):
            if each in self._lines:
                self._reopen(each)

    def next(self, now_seconds: float) -> int | None:
        """Whose turn it is to be tried. Then say what came of it: `served`, `refused`, `leave`."""
        while self._again and self._again[0][0] <= now_seconds:
            at_seconds, window = heappop(self._again)
            line = self._lines.get(window)
            if line is not None and line.again_seconds == at_seconds:
                self._reopen(window)
        while self._open:
            window = next(iter(self._open))
            line = self._lines[window]
            for tenant in list(line.untried):
                number = line.tenants[tenant][0]
                if self._places[number].amount < line.too_much:
                    return number
                del line.untried[tenant]
            del self._open[window]
        return None

    def served(self, number: int) -> None:
        """It had its turn: its tenant's next one comes after those of all other tenants."""
        place = self._places[number]
        self.leave(number)
        line = self._lines.get(place.window)
        if line is not None and place.tenant in line.tenants:
            line.tenants[place.tenant] = line.tenants.pop(place.tenant)
            line.untried.pop(place.tenant, None)
            self._try(place.window, place.tenant)

    def refused(
        self, number: int, window: Window, again_seconds: float = inf, amount: int = 1
    ) -> None:
        """There was no room for this amount in this window, its own or another: it waits there, by
        its number."""
        place = self._places[number]
        place.amount = amount
        if place.window != window:
            self._step_out(number, place)
            place.window = window
            self._stand(number, window, again_seconds)
        line = self._lines[window]
        line.too_much = min(line.too_much, amount)
        if line.tenants[place.tenant][0] == number:
            line.untried.pop(place.tenant, None)
            if not line.untried:
                self._open.pop(window, None)
        self._ring(window, again_seconds)

    def leave(self, number: int) -> None:
        """It waits no more, whatever became of it. Nothing happens when it had gone already."""
        place = self._places.pop(number, None)
        if place is not None:
            self._of_tenant[place.tenant] -= 1
            if not self._of_tenant[place.tenant]:
                del self._of_tenant[place.tenant]
            self._step_out(number, place)

    def over(self, now_seconds: float) -> int | None:
        """One whose wait is over, the first to have been so."""
        while self._ends and self._ends[0][0] <= now_seconds:
            _, number = self._ends[0]
            if number in self._places:
                return number
            heappop(self._ends)
        return None

    @property
    def due_seconds(self) -> float:
        """When there is somebody to be tried or told, if nothing happens before."""
        if self._open:
            return -inf
        while self._ends and self._ends[0][1] not in self._places:
            heappop(self._ends)
        ends, again = (heap[0][0] if heap else inf for heap in (self._ends, self._again))
        return min(ends, again)

    def _stand(self, number: int, window: Window, again_seconds: float) -> None:
        tenant = self._places[number].tenant
        line = self._lines.setdefault(window, _Line())
        insort(line.tenants.setdefault(tenant, []), number)
        if window in self._open:
            line.untried[tenant] = None
        self._ring(window, again_seconds)

    def _step_out(self, number: int, place: _Place) -> None:
        """The next one of its tenant may need less, so that is tried."""
        line = self._lines[place.window]
        numbers = line.tenants[place.tenant]
        was_first = numbers[0] == number
        del numbers[bisect_left(numbers, number)]
        if not numbers:
            del line.tenants[place.tenant]
            line.untried.pop(place.tenant, None)
        if not line.tenants:
            del self._lines[place.window]
            self._open.pop(place.window, None)
        elif was_first and numbers:
            self._try(place.window, place.tenant)

    def _reopen(self, window: Window) -> None:
        """Everybody's first one is tried again; those come before who were to be tried already."""
        line = self._lines[window]
        line.untried |= dict.fromkeys(line.tenants)
        line.too_much = line.again_seconds = inf
        self._open[window] = None

    def _try(self, window: Window, tenant: str) -> None:
        self._lines[window].untried[tenant] = None
        self._open[window] = None

    def _ring(self, window: Window, again_seconds: float) -> None:
        """When time makes room for the first of a line, all of it is tried."""
        line = self._lines[window]
        if again_seconds >= line.again_seconds:
            return
        line.again_seconds = again_seconds
        if len(self._again) > 2 * len(self._lines) + _STALE_MAX:  # most of it holds no more
            lines = self._lines.items()
            self._again = sorted((line.again_seconds, window) for window, line in lines)
        else:
            heappush(self._again, (again_seconds, window))
