"""How much runs, tenants and all together did in the last minute and in the last five, as numbers
that no rule judges: for people, dashboards and alerts of their own.

Fed with the steps that the detectors are fed with. A call counts when it has ended, in the bucket
of that time, so a window is exact to one bucket. Bounded: runs, tenants and destinations that were
not heard of for longest are forgotten. One thread feeds; another may read without a lock, and may
then see a step in one number and not yet in the next.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from heapq import nlargest

from policies.detectors.rate import MOST, Rows
from policies.detectors.step import Kind, Step

RUNS_MAX = 10_000
TENANTS_MAX = 1_000
DESTINATIONS_MAX = 65_536

MINUTE_US = 60_000_000
FIVE_MINUTES_US = 300_000_000
FINE_US = 5_000_000  # a bucket of a tenant's, and of all together
COARSE_US = 10_000_000  # a bucket of a run's: there are many runs

TOOL_CALLS, WRITES, MODEL_CALLS, TOKENS, SPEND, DESTINATIONS, CREDIT = range(1, 8)
"""Where each stands in a row, after the number of its bucket."""
FIELDS = 7


@dataclass(frozen=True, slots=True)
class Gauges:
    """What was counted within a window. `writes` are those among the tool calls that went out;
    `destinations` those that the tenant was not known to have used before; `credit_milli` is
    progress (progress.py), in thousandths."""

    tool_calls: int = 0
    writes: int = 0
    model_calls: int = 0
    tokens: int = 0
    spend_microusd: int = 0
    destinations: int = 0
    credit_milli: int = 0

    @property
    def progress_per_usd(self) -> float | None:
        """None where nothing was spent."""
        if self.spend_microusd <= 0:
            return None
        return self.credit_milli * 1_000 / self.spend_microusd

    def without(self, others: "Iterable[Gauges]") -> "Gauges":
        """What is left of it; none is less than nothing, though it was read a moment before."""
        parts = [[getattr(each, name) for name in _NAMES] for each in others]
        sums = map(sum, zip(*parts, strict=True)) if parts else [0] * FIELDS
        left = (max(0, getattr(self, name) - sum_) for name, sum_ in zip(_NAMES, sums, strict=True))
        return Gauges(*left)


_NAMES = Gauges.__slots__


@dataclass(frozen=True, slots=True)
class Signal:
    """Of a run, a tenant (then `run` is empty) or all together (then both are). `steps` are the
    model calls of a run since it was first heard of here; of others, of the run that has most, of
    those that were active in the last five minutes."""

    minute: Gauges
    five_minutes: Gauges
    tenant: str = ""
    run: str = ""
    steps: int = 0


class Ring(Rows):
    """Sums of each field in buckets of one length, over the last five minutes."""

    __slots__ = ("run", "steps", "tenant")

    def __init__(self, bucket_us: int, tenant: str = "", run: str = "", steps: int = 0) -> None:
        super().__init__(bucket_us, FIVE_MINUTES_US // bucket_us, FIELDS)
        self.tenant, self.run, self.steps = tenant, run, steps

    def gauges(self, now_us: int, window_us: int) -> Gauges:
        """The sums of the buckets of a window that ends now, the running one among them."""
        return Gauges(*self.sums(now_us, window_us // self.bucket_us))

    def calls(self, now_us: int) -> int:
        """All calls of the last minute, to tools and to models."""
        minute = self.gauges(now_us, MINUTE_US)
        return minute.tool_calls + minute.model_calls


@dataclass(slots=True)
class Signals:
    """Of everything that one store records."""

    _fleet: Ring = field(default_factory=lambda: Ring(FINE_US))
    _tenants: OrderedDict[str, Ring] = field(default_factory=OrderedDict)
    _runs: OrderedDict[str, Ring] = field(default_factory=OrderedDict)
    _idle: OrderedDict[str, tuple[str, int]] = field(default_factory=OrderedDict)
    _known: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def feed(self, step: Step, credit_milli: int) -> None:
        """`credit_milli` is what its run's progress earned by it."""
        counts = self._counts(step, credit_milli)
        if counts:
            self._add(step, counts, is_model=step.kind is Kind.MODEL)

    def earned(self, step: Step, credit_milli: int) -> None:
        """What a step earned that was fed without."""
        if credit_milli:
            self._add(step, [(CREDIT, credit_milli)])

    def _add(self, step: Step, counts: list[tuple[int, int]], *, is_model: bool = False) -> None:
        at_us = step.ended_us or step.at_us
        run = self._run(step)
        run.steps += is_model
        own = (self._tenant(step.tenant), run) if step.tenant else (run,)
        for ring in (self._fleet, *own):
            begin = ring.at(at_us)
            if begin >= 0:
                cells = ring.cells
                for name, amount in counts:
                    cells[begin + name] += amount

    def _counts(self, step: Step, credit_milli: int) -> list[tuple[int, int]]:
        counts: list[tuple[int, int]] = []
        if step.kind is Kind.TOOL:
            counts.append((TOOL_CALLS, 1))
            if not step.replayed:
                if step.is_write:
                    counts.append((WRITES, 1))
                if step.destination and self._is_new(step):
                    counts.append((DESTINATIONS, 1))
        elif step.kind is Kind.MODEL:
            counts.append((MODEL_CALLS, 1))
        if credit_milli:
            counts.append((CREDIT, credit_milli))
        if step.spend_microusd:
            counts.append((SPEND, min(step.spend_microusd, MOST)))
        if step.tokens:
            counts.append((TOKENS, min(step.tokens, MOST)))
        return counts

    def _is_new(self, step: Step) -> bool:
        known = self._known
        key = hash((step.tenant, step.destination, step.recipient))
        if key in known:
            known.move_to_end(key)
            return False
        known[key] = None
        if len(known) > DESTINATIONS_MAX:
            known.popitem(last=False)
        return True

    def _run(self, step: Step) -> Ring:
        run = self._runs.get(step.run)
        if run is not None:
            self._runs.move_to_end(step.run)
            return run
        self._rest(step.ended_us or step.at_us)
        tenant, steps = self._idle.get(step.run, (step.tenant, 0))
        run = self._runs[step.run] = Ring(COARSE_US, tenant, step.run, steps)
        self._idle.pop(step.run, None)  # another thread finds it here or there
        if len(self._runs) + len(self._idle) > RUNS_MAX:
            (self._idle or self._runs).popitem(last=False)
        return run

    def _rest(self, now_us: int) -> None:
        """Of a run that did nothing within the longest window there is no more to know than whose
        it is, and its steps. One for each that comes, so that there are no more than are active."""
        run = next(iter(self._runs.values()), None)
        if run is not None and not run.is_within(now_us):
            self._idle[run.run] = run.tenant, run.steps
            del self._runs[run.run]

    def _tenant(self, name: str) -> Ring:
        tenant = self._tenants.get(name)
        if tenant is None:
            tenant = self._tenants[name] = Ring(FINE_US, name)
            if len(self._tenants) > TENANTS_MAX:
                self._tenants.popitem(last=False)
        else:
            self._tenants.move_to_end(name)
        return tenant

    # Readings

    def fleet(self, now_us: int) -> Signal:
        return _read(self._fleet, now_us, self._steps(now_us))

    def tenants(self, now_us: int, at_most: int = TENANTS_MAX) -> list[Signal]:
        """Those that were active in the last five minutes, the busiest first."""
        steps = self._steps(now_us)
        return [_read(ring, now_us, steps) for ring in _busiest(self._tenants, now_us, at_most)]

    def runs(self, now_us: int, at_most: int, tenant: str | None = None) -> list[Signal]:
        """Those that were active in the last five minutes, the busiest first; of one tenant, where
        that is given."""
        runs = self._runs
        if tenant is not None:
            runs = OrderedDict((r.run, r) for r in list(runs.values()) if r.tenant == tenant)
        return [_read(ring, now_us) for ring in _busiest(runs, now_us, at_most)]

    def tenant(self, name: str, now_us: int) -> Signal | None:
        """None where it is not known, or forgotten."""
        ring = self._tenants.get(name)
        return None if ring is None else _read(ring, now_us, self._steps(now_us))

    def run(self, name: str, now_us: int) -> Signal | None:
        """None where it is not known, or forgotten."""
        ring = self._runs.get(name)
        if ring is not None:
            return _read(ring, now_us)
        tenant, steps = self._idle.get(name, ("", -1))
        return None if steps < 0 else _read(Ring(COARSE_US, tenant, name, steps), now_us)

    def _steps(self, now_us: int) -> dict[str, int]:
        """The most model calls of one active run: of each tenant, and under None of all."""
        most: dict[str, int] = {}
        for run in list(self._runs.values()):
            if run.is_within(now_us) and run.steps > most.get(run.tenant, 0):
                most[run.tenant] = run.steps
        return most


def _busiest(rings: OrderedDict[str, Ring], now_us: int, at_most: int) -> list[Ring]:
    """By the calls of the last minute; of equal ones those first that were heard of last."""
    active = [ring for ring in reversed(list(rings.values())) if ring.is_within(now_us)]
    return nlargest(at_most, active, key=lambda ring: ring.calls(now_us))


def _read(ring: Ring, now_us: int, steps: dict[str, int] | None = None) -> Signal:
    if steps is None:
        most = ring.steps
    else:
        most = steps.get(ring.tenant, 0) if ring.tenant else max(steps.values(), default=0)
    return Signal(
        ring.gauges(now_us, MINUTE_US),
        ring.gauges(now_us, FIVE_MINUTES_US),
        ring.tenant,
        ring.run,
        most,
    )
