"""`make scale`: what a durable admission costs beside one sync of the disk, and whether a ledger of
ten million rows makes it, or a question to it, slower.

F is the median time to overwrite 32 KiB and bring them to the disk (fdatasync), on the file system
of the ledgers, measured before and behind every figure that it is compared with. In each round come
a ledger of a thousand rows and a big one in a new order, with one caller and with many, each on a
real decider; a ratio is taken inside a round, and the median of the rounds stands. The big ledger
is kept in `--folder` (FOLDER) for the next time; `--rows` (ROWS) makes a smaller one. Linux only.

Exits 1 when a target is missed.
"""

import argparse
import asyncio
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from statistics import median

from tests.bench import added, asking, machine
from tests.bench.admitting import Callers, Wrong, shipped_policy
from tests.bench.figures import Spread
from tests.bench.grown import made

FEW_ROWS, MANY_ROWS = 1_000, 10_000_000
ROUNDS, LONE_CALLS, MANY_CALLS, CALLERS = 7, 400, 4_000, 128
SYNCS = 40

LONE_IN_SYNCS_AT_MOST = 1.6
ADMISSIONS_A_SYNC_AT_LEAST = 3.5
LONE_OF_BIG_AT_MOST = 1.25
RATE_OF_BIG_AT_LEAST = 0.7
QUERY_MS_AT_MOST = 20.0


@dataclass(slots=True)
class Figures:
    """Of one ledger, round by round: microseconds, and calls a second. `..._sync_us` is F as it was
    around that figure."""

    lone_us: list[float] = field(default_factory=list)
    lone_sync_us: list[float] = field(default_factory=list)
    settle_us: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    rate_sync_us: list[float] = field(default_factory=list)
    settle_rate: list[float] = field(default_factory=list)

    @property
    def lone_in_syncs(self) -> Spread:
        return _ratio(self.lone_us, self.lone_sync_us)

    @property
    def admissions_a_sync(self) -> Spread:
        pairs = zip(self.rate, self.rate_sync_us, strict=True)
        return Spread.over(rate * sync_us / 1e6 for rate, sync_us in pairs)


def main() -> int:
    options = _options()
    folder = Path(options.folder)
    folder.mkdir(parents=True, exist_ok=True)
    policy = shipped_policy()
    try:
        print(machine.circumstances(folder), flush=True)
        big = made(folder / f"ledger-{options.rows}", options.rows, policy)
        print(f"a ledger of {options.rows:,} rows, {_size_mb(big):,.0f} MB, in {big}", flush=True)
        with tempfile.TemporaryDirectory(prefix="few-", dir=folder) as temporary:
            few = made(Path(temporary) / "few", FEW_ROWS, policy)
            busy = machine.busy()
            figures = asyncio.run(_rounds(folder, few, big, options.rounds))
            print("\n".join(_figures(figures, options.rows)), flush=True)
            print("\n".join(added.measure(Path(temporary), policy).lines()), flush=True)
        taken = asking.measure(big)
        print("\n".join(asking.lines(taken)))
        print(busy())
    except (Wrong, OSError) as error:
        sys.exit(f"scale: {error}")
    return 0 if _held(figures, taken) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--rows", type=int, default=int(os.environ.get("ROWS", MANY_ROWS)))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    kept = os.environ.get("FOLDER") or str(Path(tempfile.gettempdir(), "pullcord-scale"))
    parser.add_argument("--folder", default=kept, help=f"default: {kept}")
    return parser.parse_args()


def _size_mb(data: Path) -> float:
    return (data / "ledger.db").stat().st_size / 2**20


async def _rounds(folder: Path, few: Path, big: Path, rounds: int) -> dict[str, Figures]:
    dice = Random(1)
    figures = {"few": Figures(), "big": Figures()}
    async with AsyncExitStack() as closing:
        callers = {}
        for name, data in (("few", few), ("big", big)):
            callers[name] = Callers(data, shipped_policy())
            closing.push_async_callback(callers[name].close)
        for number in range(-1, rounds):
            kept = (
                figures if number >= 0 else {"few": Figures(), "big": Figures()}
            )  # the first warms
            for name in dice.sample(["few", "big"], 2):
                await _lone(folder, callers[name], kept[name])
            for name in dice.sample(["few", "big"], 2):
                await _many(folder, callers[name], kept[name])
    return figures


async def _lone(folder: Path, callers: Callers, figures: Figures) -> None:
    before_us = machine.sync_us(folder, SYNCS)
    lone = await callers.lone(LONE_CALLS)
    figures.lone_sync_us.append((before_us + machine.sync_us(folder, SYNCS)) / 2)
    figures.lone_us.append(median(lone.admit_us))
    figures.settle_us.append(median(lone.settle_us))


async def _many(folder: Path, callers: Callers, figures: Figures) -> None:
    before_us = machine.sync_us(folder, SYNCS)
    many = await callers.many(CALLERS, MANY_CALLS)
    figures.rate_sync_us.append((before_us + machine.sync_us(folder, SYNCS)) / 2)
    figures.rate.append(many.admit_rate)
    figures.settle_rate.append(many.settle_rate)


def _ratio(of: Sequence[float], to: Sequence[float]) -> Spread:
    return Spread.over(one / other for one, other in zip(of, to, strict=True))


def _figures(figures: dict[str, Figures], rows: int) -> list[str]:
    """The absolute ones, in words; the targets come after them."""
    lines = []
    for name, told in (("few", f"{FEW_ROWS:,} rows"), ("big", f"{rows:,} rows")):
        each = figures[name]
        lines += [
            f"{told}: F {Spread.over(each.lone_sync_us + each.rate_sync_us)} us",
            f"  one caller: admission {Spread.over(each.lone_us)} us = {each.lone_in_syncs} F; "
            f"settlement {Spread.over(each.settle_us)} us",
            f"  {CALLERS} callers: {Spread.over(each.rate)} admissions/s = "
            f"{each.admissions_a_sync} / F; settlements {Spread.over(each.settle_rate)}/s",
        ]
    return lines


def _held(figures: dict[str, Figures], taken: dict[str, list[float]]) -> bool:
    """Prints a line for each target; whether all of them hold."""
    few, big = figures["few"], figures["big"]
    found: list[tuple[str, float, str, Callable[[float], bool]]] = [
        (
            "one caller's admission, in F",
            few.lone_in_syncs.middle,
            f"<= {LONE_IN_SYNCS_AT_MOST}",
            lambda value: value <= LONE_IN_SYNCS_AT_MOST,
        ),
        (
            f"admissions of {CALLERS} callers in a time of F",
            few.admissions_a_sync.middle,
            f">= {ADMISSIONS_A_SYNC_AT_LEAST}",
            lambda value: value >= ADMISSIONS_A_SYNC_AT_LEAST,
        ),
        (
            "one caller's admission, big ledger : small",
            _ratio(big.lone_us, few.lone_us).middle,
            f"<= {LONE_OF_BIG_AT_MOST}",
            lambda value: value <= LONE_OF_BIG_AT_MOST,
        ),
        (
            f"rate of {CALLERS} callers, big ledger : small",
            _ratio(big.rate, few.rate).middle,
            f">= {RATE_OF_BIG_AT_LEAST}",
            lambda value: value >= RATE_OF_BIG_AT_LEAST,
        ),
        (
            "ms of a query by run, big ledger",
            median(taken[asking.BY_RUN]),
            f"< {QUERY_MS_AT_MOST:g}",
            lambda value: value < QUERY_MS_AT_MOST,
        ),
    ]
    for name, value, wanted, good in found:
        print(
            f"target {name}: {value:.2f}, wanted {wanted}: {'holds' if good(value) else 'MISSED'}"
        )
    return all(good(value) for _, value, _, good in found)


if __name__ == "__main__":
    sys.exit(main())
