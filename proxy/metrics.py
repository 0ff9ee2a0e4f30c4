"""What `/metrics` says: the text format of Prometheus, version 0.0.4.

Counters begin when the deciding process starts; nothing here reads the ledger. Tenants are the only
names that are not of our own making: few have a series of their own, the rest are summed.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version

from ledger.states import CallState
from ledger.tally import Tally
from policies.call import Effect
from policies.detectors.signals import FIVE_MINUTES_US, MINUTE_US, Gauges, Signal, Signals
from policies.verdict import Action, Level

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

TENANTS_MAX = 200  # with series of their own
NAME_CHARACTERS_MAX = 256  # no tenant's name is longer
PLACE_SECONDS = 3_600  # a tenant that did nothing for so long gives its series to another
REST = "other"  # all tenants without a series of their own; one that is called so is among them

Number = int | float
Sample = tuple[Mapping[str, str], Number]

_WINDOWS = {"1m": MINUTE_US, "5m": FIVE_MINUTES_US}
_ENDED = (CallState.DONE, CallState.NOT_SENT, CallState.UNKNOWN)
_SINCE = "since the deciding process started"
_MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Channel:
    """One that alerts go to: whether they arrive, and how many wait."""

    ok: bool
    waiting: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How the proxy stands now. None of what cannot be told: it is left out."""

    started_us: int
    ledger_ok: bool
    policy_ok: bool
    open_calls: int
    waiting: int
    queued: int
    owed: int
    engines: int
    cords: Mapping[Level, int]
    trace_behind: int | None = None
    trace_lost: int | None = None
    incidents: int | None = None
    channels: Mapping[str, "Channel"] = field(default_factory=dict)


def _installed() -> str:
    try:
        return version("pullcord")
    except PackageNotFoundError:
        return "none"


@dataclass(slots=True)
class Metrics:
    """Made once a process: it remembers which tenants have series."""

    _places: dict[str, int] = field(default_factory=dict)
    _version: str = field(default_factory=_installed)

    def text(self, standing: Standing, tally: Tally, signals: Signals, now_us: int) -> str:
        page = Page()
        _tell_counters(page, tally)
        self._tell_signals(page, signals, now_us)
        _tell_standing(page, standing)
        page.gauge(
            "pullcord_build_info",
            "The version that runs; always 1.",
            [({"version": self._version}, 1)],
        )
        return page.text()

    def _tell_signals(self, page: "Page", signals: Signals, now_us: int) -> None:
        told = self._placed(signals, now_us)
        for name, what in _RECENT.items():
            page.gauge(
                f"pullcord_recent_{name}",
                f"{what} Of calls that ended within the window.",
                [
                    ({"tenant": tenant, "window": window}, value)
                    for tenant, signal in told.items()
                    for window, gauges in _windows(signal)
                    for value in [_value(name, gauges)]
                    if value is not None
                ],
            )
        page.gauge(
            "pullcord_run_steps_max",
            "Model calls of the run that has made most of them, of the runs that were active in "
            "the last 5 minutes.",
            [({"tenant": tenant}, signal.steps) for tenant, signal in told.items()],
        )

    def _placed(self, signals: Signals, now_us: int) -> dict[str, Signal]:
        """What each label tells."""
        active = {each.tenant: each for each in signals.tenants(now_us)}
        self._place(active, now_us)
        own = {name: active.get(name) or _idle(name) for name in self._places}
        fleet = signals.fleet(now_us)
        rest = [each.steps for name, each in active.items() if name not in own]
        left = Signal(
            fleet.minute.without(each.minute for each in own.values()),
            fleet.five_minutes.without(each.five_minutes for each in own.values()),
            REST,
            steps=max(rest, default=0),
        )
        return own | {REST: left}

    def _place(self, active: Mapping[str, Signal], now_us: int) -> None:
        """The busiest come first where there is room; who has a place keeps it while it is used, so
        that made-up names cannot make ever new series."""
        places = self._places
        for name in [name for name in places if name in active]:
            places[name] = now_us
        over_us = now_us - PLACE_SECONDS * _MICRO
        for name in [name for name, at_us in places.items() if at_us < over_us]:
            del places[name]
        for name in active:
            if len(places) >= TENANTS_MAX:
                return
            if name != REST and len(name) <= NAME_CHARACTERS_MAX:
                places.setdefault(name, now_us)


class Page:
    """The text, family by family."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def counter(self, name: str, what: str, samples: Iterable[Sample]) -> None:
        self._family(name, "counter", f"{what} Counted {_SINCE}.", samples)

    def gauge(self, name: str, what: str, samples: Iterable[Sample]) -> None:
        self._family(name, "gauge", what, samples)

    def text(self) -> str:
        return "\n".join([*self._lines, ""])

    def _family(self, name: str, kind: str, what: str, samples: Iterable[Sample]) -> None:
        self._lines.append(f"# HELP {name} {what}")
        self._lines.append(f"# TYPE {name} {kind}")
        for labels, value in samples:
            named = ",".join(f'{label}="{escaped(text)}"' for label, text in labels.items())
            self._lines.append(f"{name}{{{named}}} {value}" if named else f"{name} {value}")


def escaped(text: str) -> str:
    """A label's value: what would end it, and what no text of UTF-8 can hold."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


_RECENT = {
    "tool_calls": "Calls to tools, answers from the record among them.",
    "writes": "Writes that went to tools.",
    "model_calls": "Calls to models (gen_ai.operation.name).",
    "tokens": "Tokens of model calls (gen_ai.usage.input_tokens, gen_ai.usage.output_tokens).",
    "spend_usd": "Dollars that calls cost.",
    "new_destinations": "Destinations and recipients that the tenant was not known to have used.",
    "progress": "Progress of runs: a distinct write that succeeded is 1, new information 0.2.",
    "progress_per_usd": "Progress of runs for each dollar; none where nothing was spent.",
}


def _value(name: str, gauges: Gauges) -> Number | None:
    if name == "spend_usd":
        return gauges.spend_microusd / _MICRO
    if name == "progress":
        return gauges.credit_milli / 1000
    if name == "new_destinations":
        return gauges.destinations
    found: Number | None = getattr(gauges, name)
    return found


def _windows(signal: Signal) -> Iterable[tuple[str, Gauges]]:
    return zip(_WINDOWS, (signal.minute, signal.five_minutes), strict=True)


def _idle(tenant: str) -> Signal:
    return Signal(Gauges(), Gauges(), tenant)


def _tell_counters(page: Page, tally: Tally) -> None:
    page.counter(
        "pullcord_calls_total",
        "Calls that were decided and recorded, but for the canaries of drills.",
        [
            ({"decision": action, "effect": effect}, tally.calls.get((action, effect), 0))
            for action in Action
            for effect in Effect
        ],
    )
    page.counter(
        "pullcord_refusals_total",
        "Recorded refusals by reason code.",
        [({"reason": reason}, count) for reason, count in sorted(tally.refused.items())],
    )
    page.counter(
        "pullcord_outcomes_total",
        "How calls that were let through ended.",
        [({"state": state}, tally.outcomes.get(state, 0)) for state in _ENDED],
    )
    page.counter(
        "pullcord_tokens_total",
        "Tokens that models told of (gen_ai.client.token.usage by gen_ai.token.type).",
        [({"type": "input"}, tally.input_tokens), ({"type": "output"}, tally.output_tokens)],
    )
    page.counter(
        "pullcord_spend_usd_total",
        "Dollars that calls cost.",
        [({}, tally.spend_microusd / _MICRO)],
    )


def _tell_standing(page: Page, now: Standing) -> None:
    gauges: dict[str, tuple[str, Number | None]] = {
        "calls_in_flight": ("Calls that were let through and have not ended.", now.open_calls),
        "calls_waiting": ("Calls that wait for room under a ceiling.", now.waiting),
        "decider_queued": ("Pieces of work that wait for the decider.", now.queued),
        "outcomes_owed": ("Outcomes that the ledger has not taken yet.", now.owed),
        "engines": ("Engine processes.", now.engines),
        "ledger_ok": (
            "1 while the ledger records; 0: it fails, nothing passes.",
            int(now.ledger_ok),
        ),
        "policy_ok": ("1 while the policy file loads; 0: the last good holds.", int(now.policy_ok)),
        "incidents_open": ("Incidents that nobody has closed.", now.incidents),
        "trace_behind_messages": ("Messages not in the trace yet.", now.trace_behind),
        "process_start_time_seconds": (
            "When the deciding process started, Unix time.",
            now.started_us / _MICRO,
        ),
    }
    for name, (what, value) in gauges.items():
        if value is not None:
            page.gauge(f"pullcord_{name}", what, [({}, value)])
    page.gauge(
        "pullcord_cords_standing",
        "Cords that stand, of commands and of the policy.",
        [({"level": level}, now.cords.get(level, 0)) for level in Level],
    )
    _tell_channels(page, now.channels)
    if now.trace_lost is not None:
        page.counter(
            "pullcord_trace_lost_messages_total",
            "Messages that are missing from the trace, by the engines that run now.",
            [({}, now.trace_lost)],
        )


def _tell_channels(page: Page, channels: Mapping[str, Channel]) -> None:
    page.gauge(
        "pullcord_alert_channel_ok",
        "1 while a channel of the setting notify takes alerts; 0: it fails.",
        [({"channel": name}, int(each.ok)) for name, each in channels.items()],
    )
    page.gauge(
        "pullcord_alerts_waiting",
        "Alerts that a channel has still to be told.",
        [({"channel": name}, each.waiting) for name, each in channels.items()],
    )
