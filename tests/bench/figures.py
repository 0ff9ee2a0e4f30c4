"""Figures of one run: medians with their spread, the table, and the gates.

A ratio is taken inside a round, where the two were measured one after the other; whatever else the
machine did then, it did to both. The median over the rounds stands, with the least and the most.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median

from tests.bench.load import Result
from tests.bench.messages import Kind, Way
from tests.bench.variants import DIRECT, ENGINES, STOCK

CLIENTS = (1, 16, 64)
CLIENTS_ON_REQUEST = (*CLIENTS, 512)
LARGE_CLIENTS_MAX = 16  # more would only wait for the load, which has a core of its own
VARIANTS = (DIRECT, STOCK, *ENGINES)


@dataclass(frozen=True, slots=True)
class Cell:
    """One kind of load."""

    way: Way
    kind: Kind
    clients: int

    def __str__(self) -> str:
        return f"{self.way} {self.kind}, {self.clients} client{'s' * (self.clients > 1)}"


def cells(clients: Sequence[int] = CLIENTS) -> tuple[Cell, ...]:
    kept = product((Way.PLAIN, Way.TLS), (Kind.READ, Kind.WRITE), clients)
    large = product((Way.PLAIN, Way.TLS), (Kind.LARGE,), clients)
    return (
        *(Cell(*each) for each in kept),
        *(Cell(Way.NEW_TLS, Kind.READ, number) for number in clients),
        *(Cell(*each) for each in large if each[2] <= LARGE_CLIENTS_MAX),
    )


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


def ratio(measured: Measured, cell: Cell, engine: str, figure: str) -> Spread:
    """An engine's figure in stock's, over the rounds: `rate`, or the name of a field of Result."""
    pairs = zip(measured[cell, engine], measured[cell, STOCK], strict=True)
    if figure == "rate":
        return Spread.over(rate(ours) / rate(theirs) for ours, theirs in pairs)
    return Spread.over(getattr(ours, figure) / getattr(theirs, figure) for ours, theirs in pairs)


def added_ms(measured: Measured, cell: Cell, engine: str) -> Spread:
    """What the way through the proxy adds to the median call."""
    pairs = zip(measured[cell, engine], measured[cell, DIRECT], strict=True)
    return Spread.over((ours.p50_us - straight.p50_us) / 1e3 for ours, straight in pairs)


# ------------------------------------------------------------------------------- the table

_PROXIES = (STOCK, *ENGINES)
_LEGEND = (
    "Where a cell of the table has several figures they are those of direct, stock mitmdump and\n"
    "pullcord over mitmproxy and over http1, without direct where it has three; ratios are those\n"
    "of the two engines to stock. Stock records nothing, so its writes are not durable."
)
_HEADS = ("load", "calls/s", "rate", "p50 ms", "p50 ratio", "p99 ms", "CPU us a call", "CPU ratio")


def table(measured: Measured) -> str:
    """In Markdown, one line for each cell."""
    measured_cells = list(dict.fromkeys(cell for cell, _ in measured))
    rows = [_HEADS, *(_row(measured, cell) for cell in sorted(measured_cells, key=_order))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join((_LEGEND, "", lines[0], rule, *lines[1:], ""))


def _order(cell: Cell) -> tuple[int, int, int]:
    return list(Way).index(cell.way), list(Kind).index(cell.kind), cell.clients


def _row(measured: Measured, cell: Cell) -> tuple[str, ...]:
    def middles(figure: str, share: float, digits: int, variants: Sequence[str]) -> str:
        each = (_middle(measured, cell, variant, figure) * share for variant in variants)
        return " / ".join(f"{value:.{digits}f}" for value in each)

    def ratios(figure: str) -> str:
        return " / ".join(str(ratio(measured, cell, engine, figure)) for engine in ENGINES)

    return (
        str(cell),
        " / ".join(_rates(measured, cell, variant) for variant in VARIANTS),
        ratios("rate"),
        middles("p50_us", 1e-3, 2, VARIANTS),
        ratios("p50_us"),
        middles("p99_us", 1e-3, 2, VARIANTS),
        middles("cpu_us", 1.0, 0, _PROXIES),
        ratios("cpu_us"),
    )


def _middle(measured: Measured, cell: Cell, variant: str, figure: str) -> float:
    return median(getattr(result, figure) for result in measured[cell, variant])


def _rates(measured: Measured, cell: Cell, variant: str) -> str:
    spread = Spread.over(map(rate, measured[cell, variant]))
    percent = (spread.most - spread.least) / 2 / spread.middle
    return f"{spread.middle:,.0f} ±{percent:.0%}"
