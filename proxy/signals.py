"""How much is going on, as the control API tells it: in JSON, dollars as numbers, names in full."""

from typing import Any, Protocol

from ledger.tally import Tally
from policies.detectors.signals import Gauges, Signal, Signals

_MICRO = 1_000_000
_FIVE_MINUTES_PER_HOUR = 12

Answer = dict[str, Any]


class Counts(Protocol):
    """What the store counts in memory. Safe in any thread, and also while it fails."""

    @property
    def signals(self) -> Signals: ...
    @property
    def tally(self) -> Tally: ...
    @property
    def open_calls(self) -> int: ...


def shown(
    signals: Signals, now_us: int, top: int, run: str | None, tenant: str | None
) -> Answer | None:
    """All together, and the busiest `top` tenants and runs; of one run or tenant where one is
    named. None where that is not known."""
    if run is not None:
        found = signals.run(run, now_us)
        return None if found is None else _answer(None, [], [found])
    if tenant is not None:
        named = signals.tenant(tenant, now_us)
        runs = signals.runs(now_us, top, tenant)
        return None if named is None else _answer(None, [named], runs)
    tenants, runs = signals.tenants(now_us, top), signals.runs(now_us, top)
    return _answer(signals.fleet(now_us), tenants, runs)


def _answer(fleet: Signal | None, tenants: list[Signal], runs: list[Signal]) -> Answer:
    return {
        "fleet": fleet and _as_json(fleet),
        "tenants": [_as_json(each) for each in tenants],
        "runs": [_as_json(each) for each in runs],
    }


def rates_of(fleet: Signal) -> Answer:
    """The few that `status` shows: a minute's are of the last one, the others of the last five."""
    return {
        "tool_calls_per_minute": fleet.minute.tool_calls,
        "writes_per_minute": fleet.minute.writes,
        "usd_per_hour": usd_per_hour(fleet.five_minutes),
        "progress": fleet.five_minutes.credit_milli / 1000,
        "progress_per_usd": fleet.five_minutes.progress_per_usd,
    }


def usd_per_hour(five_minutes: Gauges) -> float:
    return five_minutes.spend_microusd * _FIVE_MINUTES_PER_HOUR / _MICRO


def _as_json(signal: Signal) -> Answer:
    subject = "run" if signal.run else "tenant" if signal.tenant else "fleet"
    return {
        "subject": subject,
        "tenant": signal.tenant or None,
        "run": signal.run or None,
        "steps": signal.steps,
        "usd_per_hour": usd_per_hour(signal.five_minutes),
        "minute": _window(signal.minute),
        "five_minutes": _window(signal.five_minutes),
    }


def _window(gauges: Gauges) -> Answer:
    return {
        "tool_calls": gauges.tool_calls,
        "writes": gauges.writes,
        "model_calls": gauges.model_calls,
        "tokens": gauges.tokens,
        "spend_usd": gauges.spend_microusd / _MICRO,
        "new_destinations": gauges.destinations,
        "progress": gauges.credit_milli / 1000,
        "progress_per_usd": gauges.progress_per_usd,
    }
