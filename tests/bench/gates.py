"""What a run has to show: each gate with its bound, and whether it holds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from tests.bench.figures import Cell, Measured, Spread, added_ms, ratio
from tests.bench.messages import Kind, Way

_KEPT = (Way.PLAIN, Way.TLS)
_MANY = (16, 64)

Figure = Callable[[Measured, Cell, str], Spread]


def _rate(measured: Measured, cell: Cell, engine: str) -> Spread:
    return ratio(measured, cell, engine, "rate")


def _p50(measured: Measured, cell: Cell, engine: str) -> Spread:
    return ratio(measured, cell, engine, "p50_us")


@dataclass(frozen=True, slots=True)
class Gate:
    """A bound on one figure of an engine: on the median of the cells that it is about, or on each
    by itself."""

    name: str
    engine: str
    figure: Figure
    ways: Sequence[Way]
    kind: Kind = Kind.READ
    at_least: float | None = None
    at_most: float | None = None
    clients: Sequence[int] | None = None  # None: any number
    each: bool = False

    def is_about(self, cell: Cell) -> bool:
        return (
            cell.way in self.ways
            and cell.kind is self.kind
            and (self.clients is None or cell.clients in self.clients)
        )

    def holds(self, value: float) -> bool:
        if self.at_least is not None:
            return value >= self.at_least
        return self.at_most is None or value <= self.at_most

    @property
    def wanted(self) -> str:
        bound = f">= {self.at_least:g}" if self.at_least is not None else f"<= {self.at_most:g}"
        return f"{bound} in each" if self.each else bound


def _of_each(name: str, figure: Figure, **bound: Any) -> Gate:
    """One of the HTTP/1.1 engine's, which each cell has to keep by itself."""
    return Gate(name, "http1", figure, _KEPT, each=True, **bound)


GATES = (
    Gate("rate of reads : stock", "mitmproxy", _rate, _KEPT, at_least=1.2),
    Gate("p50 of reads : stock", "mitmproxy", _p50, _KEPT, at_most=1.1),
    _of_each("rate of reads : stock", _rate, at_least=15.0, clients=_MANY),
    _of_each(
        "rate of durable writes : stock, which records nothing",
        _rate,
        kind=Kind.WRITE,
        at_least=8.0,
        clients=_MANY,
    ),
    Gate("rate of new TLS : stock", "http1", _rate, (Way.NEW_TLS,), at_least=8.0),
    _of_each("added p50 of a read, ms", added_ms, at_most=0.35, clients=(1,)),
)


def told(measured: Measured, gates: Sequence[Gate] = GATES) -> tuple[list[str], bool]:
    """A line for each gate whose cells were measured, and whether all hold."""
    lines, all_hold = [], True
    found = dict.fromkeys(cell for cell, _ in measured)
    for gate in gates:
        values = {
            cell: gate.figure(measured, cell, gate.engine).middle
            for cell in found
            if gate.is_about(cell)
        }
        if not values:
            continue
        missed = {cell: value for cell, value in values.items() if not gate.holds(value)}
        middle = median(values.values())
        is_held = not missed if gate.each else gate.holds(middle)
        all_hold = all_hold and is_held
        word = "holds" if is_held else "MISSED"
        lines.append(f"gate {gate.engine}, {gate.name}: {middle:.2f}, wanted {gate.wanted}: {word}")
        if missed:
            named = "; ".join(f"{cell} ({value:.2f})" for cell, value in missed.items())
            lines.append(f"  not by itself in: {named}")
    return lines, all_hold
