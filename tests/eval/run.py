"""`make eval`: the detectors over real traces, and over both sides of each of their limits.

Prints, by detector: false alerts and trips in a thousand healthy runs with the bound that 95 % of
such samples keep, what was caught and after how many calls, seconds and dollars; then the hard
cases of tests/cases/detectors.yaml. Exit code 1 when a line of TARGETS or a case does not hold.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from math import comb
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from policies.detectors.runs import DETECTORS
from policies.detectors.step import Severity
from tests.eval import figures, traces
from tests.eval.figures import ANY, Told
from tests.eval.traces import Class
from tests.policies.runs_of import CASES, firsts
from tests.policies.runs_of import holds as is_as_wanted

Figures = dict[Class, Told]

ALERT, TRIP = Severity.ALERT, Severity.TRIP


def false(found: Figures, severity: Severity) -> int:
    return len(found[Class.HEALTHY].told(ANY, severity))


def caught(found: Figures, severity: Severity) -> float:
    return len(found[Class.LOOP].told(ANY, severity)) / found[Class.LOOP].runs


def calls(found: Figures, severity: Severity) -> float:
    return median(first.calls for first in found[Class.LOOP].told(ANY, severity))


def soft(found: Figures, known: Class) -> int:
    return len(found[known].told(ANY, ALERT))


Target = tuple[str, Callable[[Figures], float], Callable[[float], bool]]
TARGETS: tuple[Target, ...] = (
    ("false trips of the healthy runs: 0", lambda f: false(f, TRIP), lambda n: n == 0),
    ("false alerts of the healthy runs: at most 1", lambda f: false(f, ALERT), lambda n: n <= 1),
    ("share of the loops that trip: 1", lambda f: caught(f, TRIP), lambda n: n == 1),
    ("median calls to the alert: at most 8", lambda f: calls(f, ALERT), lambda n: n <= 8),
    ("median calls to the trip: at most 12", lambda f: calls(f, TRIP), lambda n: n <= 12),
    ("soft loops told, of 11: more than 8", lambda f: soft(f, Class.SOFT_LOOP), lambda n: n > 8),
    ("others told, of 10: at most 1", lambda f: soft(f, Class.NO_SOFT_LOOP), lambda n: n <= 1),
)


def bound_of_thousand(count: int, runs: int) -> float:
    """What a thousand runs have at most, with 95 % confidence (Clopper and Pearson, one-sided)."""
    low, high = count / runs, 1.0
    for _ in range(50):
        share = (low + high) / 2
        at_most = sum(
            comb(runs, found) * share**found * (1 - share) ** (runs - found)
            for found in range(count + 1)
        )
        low, high = (share, high) if at_most > 0.05 else (low, share)
    return 1000 * high


def by_detector(found: Figures) -> Table:
    healthy, loops = found[Class.HEALTHY], found[Class.LOOP]
    table = Table(title=f"{healthy.runs} healthy runs, {loops.runs} loops, from their onset on")
    for name in ("detector", "says", "false", "of 1,000", "at most (95 %)", "caught"):
        table.add_column(name, justify="right")
    for name in ("calls med/max", "seconds med/max", "dollars med/max", "grey"):
        table.add_column(name, justify="right")
    for detector in (*DETECTORS, ANY):
        for severity in (ALERT, TRIP):
            wrong, firsts = len(healthy.told(detector, severity)), loops.told(detector, severity)
            table.add_row(
                *(detector, severity, str(wrong), f"{1000 * wrong / healthy.runs:.1f}"),
                *(f"{bound_of_thousand(wrong, healthy.runs):.1f}", str(len(firsts))),
                _spread([float(first.calls) for first in firsts], 0),
                _spread([first.seconds for first in firsts], 1),
                _spread([first.spend_microusd / 1e6 for first in firsts], 3),
                str(len(found[Class.GREY].told(detector, severity))),
            )
    return table


def _spread(values: list[float], digits: int) -> str:
    return f"{median(values):.{digits}f}/{max(values):.{digits}f}" if values else "-"


def variants() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Each limit at half and at double its default, the others as they are."""
    for detector, kind in DETECTORS.items():
        for one in fields(kind.limits):
            value = getattr(kind.limits, one.name)
            for factor, changed in (("half", max(1, value // 2)), ("double", value * 2)):
                limits = {detector: replace(kind.limits, **{one.name: changed})}
                yield f"{detector}.{one.name} = {value}", f"{factor}, {changed}", limits


def moved(runs: list[traces.Trace]) -> Table:
    table = Table(title="every limit at half and at double")
    for name in ("limit", "at", "false alerts", "false trips", "loops alert/trip"):
        table.add_column(name)
    for name in ("calls to alert/trip", "soft loops", "no soft loops"):
        table.add_column(name)
    for limit, at, limits in variants():
        found = figures.told(runs, limits)
        loops = found[Class.LOOP]
        firsts = [loops.told(ANY, severity) for severity in (ALERT, TRIP)]
        table.add_row(
            *(limit, at, str(false(found, ALERT)), str(false(found, TRIP))),
            "/".join(str(len(one)) for one in firsts),
            "/".join(f"{median(f.calls for f in one):g}" if one else "-" for one in firsts),
            str(soft(found, Class.SOFT_LOOP)),
            str(soft(found, Class.NO_SOFT_LOOP)),
        )
    return table


def hard() -> tuple[Table, str, bool]:
    """Each hard case, how many of them hold, and whether the others are known not to."""
    table = Table(title="hard cases, by the call of the alert and of the trip")
    for name in ("case", "wants", "told", ""):
        table.add_column(name)
    held = known = count = 0
    for side, rows in CASES.items():
        for row in rows:
            found = firsts(row)
            is_held, count = is_as_wanted(row, found), count + 1
            held, known = held + is_held, known + ("missed" in row and not is_held)
            verdict = "held" if is_held else f"MISSED{', known: ' if 'missed' in row else ''}"
            wants = row["wants"] + (f" <= {row['within']}" if "within" in row else "")
            said = ", ".join(
                f"{name} {severity} {calls}"
                for (name, severity), calls in sorted(found.items(), key=lambda each: each[1])
            )
            table.add_row(
                f"{side}: {row['case']}", wants, said or "-", verdict + row.get("missed", "")
            )
    told = f"hard cases: {held} of {count} held, {count - held} missed, {known} of these known"
    return table, told, held + known == count


def main() -> int:
    console = Console(width=150)
    runs = traces.read()
    found = figures.told(runs, {})
    console.print(by_detector(found))
    if "--quick" not in sys.argv:
        console.print(moved(runs))
    missed = 0
    for text, figure, holds in TARGETS:
        value = figure(found)
        missed += not holds(value)
        console.print(f"{'ok' if holds(value) else 'MISSED':7} {text}: {value:g}")
    table, text, is_known = hard()
    console.print(table)
    console.print(f"{'ok' if is_known else 'MISSED':7} {text}")
    return 1 if missed or not is_known else 0


if __name__ == "__main__":
    sys.exit(main())
