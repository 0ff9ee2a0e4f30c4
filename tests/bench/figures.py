"""Figures of one run: medians with their spread, the table, and the two gates.

A ratio is taken inside a round, where the two were measured one after the other; whatever else the
machine did then, it did to both. The median over the rounds stands, with the least and the most.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from statistics import median

from tests.bench.load import Result

RATE_AT_LEAST = 1.2
P50_AT_MOST = 1.1
CLIENTS = (1, 16, 64)


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of load."""

    tls: bool
    write: bool
    clients: int

    def __str__(self) -> str:
        kind = "durable write" if self.write else "read"
        return f"{'TLS' if self.tls else 'plain'} {kind}, {self.clients:>2} clients"


CELLS = tuple(Cell(*each) for each in product((False, True), (False, True), CLIENTS))

Measured = dict[tuple[Cell, str], list[Result]]
"""The results of each cell and variant, one for each round, in the order of the rounds."""


@dataclass(frozen=True, slots=True)
class Spread:
    least: float
    middle: float
    most: float

    @classmethod
    def over(cls, values: Iterable[float]) -> "Spread":
        ordered = sorted(values)
        return cls(ordered[0], median(ordered), ordered[-1])

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.least:.2f}-{self.most:.2f})"


def rate(result: Result) -> float:
    return result.calls / result.seconds


def ratio(measured: Measured, cell: Cell, figure: str) -> Spread:
    """pullcord's figure in stock's, over the rounds: `rate`, or the name of a field of Result."""
    pairs = zip(measured[cell, "pullcord"], measured[cell, "stock"], strict=True)
    if figure == "rate":
        return Spread.over(rate(ours) / rate(theirs) for ours, theirs in pairs)
    return Spread.over(getattr(ours, figure) / getattr(theirs, figure) for ours, theirs in pairs)


def _middle(measured: Measured, cell: Cell, variant: str, figure: str) -> float:
    return median(getattr(result, figure) for result in measured[cell, variant])


def _rates(measured: Measured, cell: Cell, variant: str) -> str:
    spread = Spread.over(map(rate, measured[cell, variant]))
    percent = (spread.most - spread.least) / 2 / spread.middle
    return f"{spread.middle:,.0f} ±{percent:3.0%}"


_HEADS = (
    ("", 31),
    ("direct/s", 13),
    ("stock/s", 12),
    ("pullcord/s", 12),
    ("p50 ms", 13),
    ("p99 ms", 13),
    ("CPU us a call", 13),
    ("rate", 17),
    ("p50", 17),
    ("CPU", 17),
)


def table(measured: Measured) -> str:
    """One line for each cell; where a column has two figures they are stock's and pullcord's."""
    lines = [
        "stock / pullcord where a column has two figures; the last three are pullcord : stock; "
        "stock records nothing, so its writes are not durable",
        " ".join(f"{name:>{width}}" for name, width in _HEADS),
    ]
    for cell in CELLS:
        if (cell, "pullcord") not in measured:
            continue
        p50, p99, cpu = (
            [_middle(measured, cell, variant, figure) for variant in ("stock", "pullcord")]
            for figure in ("p50_us", "p99_us", "cpu_us")
        )
        columns = (
            str(cell),
            _rates(measured, cell, "direct"),
            _rates(measured, cell, "stock"),
            _rates(measured, cell, "pullcord"),
            f"{p50[0] / 1e3:.2f} / {p50[1] / 1e3:.2f}",
            f"{p99[0] / 1e3:.2f} / {p99[1] / 1e3:.2f}",
            f"{cpu[0]:.0f} / {cpu[1]:.0f}",
            *(str(ratio(measured, cell, figure)) for figure in ("rate", "p50_us", "cpu_us")),
        )
        lines.append(
            " ".join(f"{text:>{width}}" for text, (_, width) in zip(columns, _HEADS, strict=True))
        )
    return "\n".join(lines)


def gates(measured: Measured) -> tuple[list[str], bool]:
    """A line for each gate, and whether both hold. The gates are on reads."""
    reads = [cell for cell in CELLS if not cell.write and (cell, "pullcord") in measured]
    faster = {cell: ratio(measured, cell, "rate").middle for cell in reads}
    slower = {cell: ratio(measured, cell, "p50_us").middle for cell in reads}
    lines, held = [], True
    for name, ratios, bound, good in (
        ("rate", faster, f">= {RATE_AT_LEAST}", lambda value: value >= RATE_AT_LEAST),
        ("p50", slower, f"<= {P50_AT_MOST}", lambda value: value <= P50_AT_MOST),
    ):
        middle = median(ratios.values())
        held = held and good(middle)
        word = "holds" if good(middle) else "MISSED"
        lines.append(f"gate {name}: pullcord : stock on reads {middle:.2f}, wanted {bound}: {word}")
        missing = [f"{cell} ({value:.2f})" for cell, value in ratios.items() if not good(value)]
        if missing:
            lines.append(f"  not by itself in: {'; '.join(missing)}")
    return lines, held
