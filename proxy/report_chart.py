"""The chart of an incident: calls, writes, spend and verdicts over time, with marks where cords
were pulled and released. As an SVG image that stands in a page, needs no script and prints. Pure.

Each lane is one path of bars with a name and its highest figure beside it, so that no meaning is in
a colour alone. The tables of the report say the same in words.
"""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

SLOTS = 60  # bars beside each other that are still told apart on paper
MARKS_MAX = 16
LEAST_WIDTH_US = 1_000

_WIDTH, _LEFT, _RIGHT = 960, 150, 16
_LANE, _GAP, _TOP, _FOOT = 44, 14, 58, 34
_PLOT = _WIDTH - _LEFT - _RIGHT
_TICKS = 4
_MARK_ROWS = 3  # marks that are close together stand over each other
_MARK_ROOM = 18


@dataclass(frozen=True, slots=True)
class Lane:
    """`kind` is how it is drawn. Figures of spend are micro-dollars."""

    name: str
    kind: str
    figures: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a time: `kind` is pulled, released or other."""

    at_us: int
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class Chart:
    """`before` and `after` are how many calls were decided outside of its time."""

    start_us: int
    width_us: int
    lanes: tuple[Lane, ...]
    marks: tuple[Mark, ...] = ()
    before: int = 0
    after: int = 0

    @property
    def end_us(self) -> int:
        return self.start_us + SLOTS * self.width_us


def window(start_us: int, focus_us: int, last_us: int) -> tuple[int, int]:
    """From when on, and how wide slots are so that what matters fills the chart: `focus_us` is when
    the last call was let through or the cord was pulled, `last_us` when the last call came or the
    last cord was moved."""
    start_us -= start_us % 1_000  # marks are told to the millisecond
    until_us = min(last_us, focus_us + (focus_us - start_us))
    span_us = max(until_us - start_us, focus_us - start_us, 1) + 1
    width_us = max(-(-span_us // SLOTS), LEAST_WIDTH_US)
    step_us = 10 ** (len(str(width_us)) - 2)  # two digits are enough for people
    return start_us, -(-width_us // step_us) * step_us


def lanes(rows: Iterable[dict[str, Any]]) -> tuple[tuple[Lane, ...], int, int]:
    """The lanes of what `incident_calls.slots` found, and how many calls came before and after.
    Those of replays and holds are left out where there are none."""
    figures = {name: [0] * SLOTS for name, _, _ in _LANES}
    outside = {-1: 0, SLOTS: 0}
    for row in rows:
        slot = row["slot"]
        if slot in outside:
            outside[slot] += row["calls"]
            continue
        let_through = row["decision"] == "allow"
        if let_through:
            figures["calls"][slot] += row["calls"]
            figures["spend"][slot] += row["cost_microusd"]
            if row["effect"] == "write":
                figures["writes"][slot] += row["calls"]
        elif row["decision"] in figures:
            figures[row["decision"]][slot] += row["calls"]
    found = tuple(
        Lane(title, name, tuple(figures[name]))
        for name, title, always in _LANES
        if always or any(figures[name])
    )
    return found, outside[-1], outside[SLOTS]


_LANES = (
    ("calls", "calls let through", True),
    ("writes", "writes among them", True),
    ("spend", "spend", True),
    ("replay", "replayed", False),
    ("hold", "held", False),
    ("refuse", "refused", True),
)


def figure(lane: Lane, amount: int) -> str:
    """An amount as people write it."""
    if lane.kind == "spend":
        return f"{amount / 1e6:.6f} USD" if amount else "0 USD"
    return f"{amount:,}"


def seconds(at_us: int, *, fine: bool = False) -> str:
    """The time of a day, UTC."""
    at = datetime.fromtimestamp(at_us // 1_000 / 1_000, UTC)
    return at.strftime("%H:%M:%S") + (f".{at.microsecond // 1000:03d}" if fine else "")


def told(chart: Chart) -> str:
    """The chart in one sentence, for whoever cannot see it."""
    sums = ", ".join(f"{figure(lane, sum(lane.figures))} {lane.name}" for lane in chart.lanes)
    start = datetime.fromtimestamp(chart.start_us // 1_000 / 1_000, UTC)
    return (
        f"From {start:%Y-%m-%d %H:%M:%S} to {seconds(chart.end_us)} UTC, in {SLOTS} slots of "
        f"{chart.width_us / 1e6:g} s: {sums}. {len(chart.marks)} numbered marks."
    )


def svg(chart: Chart) -> str:
    """The image, with a title and a description. Its colours are the page's."""
    height = _TOP + len(chart.lanes) * (_LANE + _GAP) + _FOOT
    parts = [
        f'<svg class="chart" role="img" viewBox="0 0 {_WIDTH} {height}" '
        'aria-labelledby="chart-title chart-desc">',
        '<title id="chart-title">Calls, writes, spend and verdicts over time</title>',
        f'<desc id="chart-desc">{html.escape(told(chart))}</desc>',
    ]
    for number, lane in enumerate(chart.lanes):
        parts += _lane(lane, _TOP + number * (_LANE + _GAP))
    parts += _axis(chart, height - _FOOT)
    parts += _marks(chart, height - _FOOT)
    return "\n".join([*parts, "</svg>"])


def _lane(lane: Lane, top: int) -> list[str]:
    highest = max(lane.figures)
    bottom = top + _LANE
    name = "spend, USD" if lane.kind == "spend" else lane.name
    most = f"{highest / 1e6:.4g}" if lane.kind == "spend" else f"{highest:,}"
    said = f"at most {most} a slot" if highest else "none"
    return [
        f'<text class="name" x="{_LEFT - 10}" y="{top + 18}">{html.escape(name)}</text>',
        f'<text class="most" x="{_LEFT - 10}" y="{top + 35}">{html.escape(said)}</text>',
        f'<path class="bars {lane.kind}" d="{_bars(lane.figures, highest, bottom)}"/>',
        f'<path class="line" d="M{_LEFT} {bottom}h{_PLOT}"/>',
    ]


def _bars(figures: Sequence[int], highest: int, bottom: int) -> str:
    """One path of all bars. What is little is still seen."""
    step = _PLOT / SLOTS
    drawn = []
    for slot, amount in enumerate(figures):
        if amount:
            tall = max(_LANE * amount / highest, 2)
            drawn.append(
                f"M{_LEFT + slot * step + 0.5:.1f} {bottom}v{-tall:.1f}h{step - 1:.1f}v{tall:.1f}z"
            )
    return "".join(drawn) or f"M{_LEFT} {bottom}"


def _axis(chart: Chart, y: int) -> list[str]:
    fine = chart.width_us * SLOTS < 20_000_000
    parts = []
    for tick in range(_TICKS + 1):
        at_us = chart.start_us + chart.width_us * SLOTS * tick // _TICKS
        x = _LEFT + _PLOT * tick / _TICKS
        anchor = "start" if tick == 0 else "end" if tick == _TICKS else "middle"
        parts.append(f'<path class="line" d="M{x:.1f} {y - _GAP}v6"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{y + 10}" text-anchor="{anchor}">'
            f"{seconds(at_us, fine=fine)}</text>"
        )
    return parts


def _marks(chart: Chart, bottom: int) -> list[str]:
    """A numbered line each. Those outside of the chart's time are in the table alone."""
    parts, ends = [], [float("-inf")] * _MARK_ROWS
    for number, mark in enumerate(chart.marks, 1):
        if not chart.start_us <= mark.at_us <= chart.end_us:
            continue
        x = _LEFT + _PLOT * (mark.at_us - chart.start_us) / (chart.width_us * SLOTS)
        row = min(range(_MARK_ROWS), key=lambda place: (ends[place] > x - _MARK_ROOM, place))
        ends[row] = x
        y = 10 + row * (_MARK_ROOM - 1)
        parts += [
            f'<path class="mark {mark.kind}" d="M{x:.1f} {y + 8}V{bottom - _GAP}"/>',
            f'<circle class="mark {mark.kind}" cx="{x:.1f}" cy="{y}" r="8"/>',
            f'<text class="number" x="{x:.1f}" y="{y + 4}">{number}</text>',
        ]
    return parts
