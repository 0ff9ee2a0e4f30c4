"""`make instructions`: what a call costs in instructions, over both engines, against a baseline.

The baseline (`instructions.json`) is by the build of the interpreter: another compiler or OpenSSL
makes another number of instructions of the same program. Exits 1 where a call, counted twice, costs
over 2 % more than the baseline of this very build; of another build it prints only. Linux only,
with valgrind.

`--write` makes what was counted the baseline of this build.
"""

import argparse
import json
import os
import platform
import ssl
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import product
from pathlib import Path

from tests.bench import callgrind, variants
from tests.bench.callgrind import Lengths
from tests.bench.certificates import write_certificates
from tests.bench.clients import Task
from tests.bench.figures import Cell
from tests.bench.messages import Kind, Way
from tests.bench.run import Wrong, load, task
from tests.bench.variants import ENGINES, STOCK, Variant

BASELINE = Path(__file__).with_name("instructions.json")
WORSE_AT_MOST = 0.02

KINDS = (Kind.READ, Kind.REPLAY, Kind.REFUSED, Kind.WRITE)
WAYS = (Way.PLAIN, Way.TLS)
LENGTHS = {
    "http1": Lengths(warm=5, few=5, more=35),
    "mitmproxy": Lengths(warm=5, few=5, more=25),
    STOCK: Lengths(warm=5, few=5, more=25),
}

Costs = dict[str, float]
"""Instructions a call by what is called: `plain read`."""
Counted = dict[str, Costs]
"""By variant."""


def main() -> int:
    options = _options()
    os.environ["PYTHONHASHSEED"] = "0"  # the same instructions in every run
    build = this_build()
    before = read_baseline(BASELINE).get(build, {})
    print(f"{build}\n", flush=True)
    try:
        callgrind.check()
        counted = count(options.only)
        again = [name for name in counted if worsened({name: counted[name]}, before)]
        if again and not options.write:
            # Threads that meet, and when memory is collected, make one count in some hundred worse.
            print(f"counted again, because it seemed worse: {', '.join(again)}\n", flush=True)
            counted = least(counted, count(again))
    except (Wrong, variants.NotStarted, callgrind.Unusable) as error:
        sys.exit(f"instructions: {error}")
    print(table(counted, before))
    if options.write:
        write_baseline(BASELINE, build, counted)
        print(f"\nwritten to {BASELINE.name}")
        return 0
    if not before:
        print("\nno baseline of this build: nothing to compare with (--write makes one)")
    worse = worsened(counted, before)
    for each in worse:
        print(f"WORSE by more than {WORSE_AT_MOST:.0%}: {each}")
    return 1 if worse else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--write", action="store_true", help="make it this build's baseline")
    parser.add_argument(
        "--only", nargs="+", choices=(*ENGINES, STOCK), default=ENGINES, help="default: the engines"
    )
    return parser.parse_args()


def this_build() -> str:
    """What the number of instructions of one program hangs on."""
    version = " ".join(sys.version.split())
    libc = " ".join(platform.libc_ver())
    return f"CPython {version}, {ssl.OPENSSL_VERSION}, {libc}, {platform.machine()}"


def count(names: Sequence[str]) -> Counted:
    """Each of these, one after another: nothing of ours runs beside the one that is counted."""
    with (
        tempfile.TemporaryDirectory(prefix="instructions-") as temporary,
        ExitStack() as stack,
    ):
        folder = Path(temporary)
        authority, certificate = write_certificates(folder)
        upstream = stack.enter_context(variants.upstream(folder, certificate))
        run = load(stack, folder, upstream)

        def task_for(variant: Variant, cell: Cell, calls: int) -> Task:
            return task(variant, upstream, cell, calls=calls)

        counted: Counted = {}
        for name in names:
            start: callgrind.Start = partial(variants.stock, folder, authority)
            if name != STOCK:
                start = partial(variants.pullcord, folder, authority, upstream, engine=name)
            kinds = KINDS if name != STOCK else (Kind.READ,)
            wanted = [Cell(way, kind, 1) for way, kind in product(WAYS, kinds)]
            found = callgrind.instructions(folder, start, task_for, run, wanted, LENGTHS[name])
            counted[name] = {f"{cell.way} {cell.kind}": cost for cell, cost in found}
        return counted


# ------------------------------------------------------------------------- the comparison


def read_baseline(path: Path) -> dict[str, Mapping[str, Mapping[str, float]]]:
    known: dict[str, Mapping[str, Mapping[str, float]]] = json.loads(path.read_text())
    return known


def write_baseline(path: Path, build: str, counted: Counted) -> None:
    """What was not counted now stays as it was."""
    known = read_baseline(path)
    whole = {
        name: {what: round(cost) for what, cost in costs.items()} for name, costs in counted.items()
    }
    written = {**known, build: {**known.get(build, {}), **whole}}
    path.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")


def least(counted: Counted, again: Counted) -> Counted:
    """Of what was counted twice the less."""
    return {
        name: {what: min(cost, again.get(name, costs)[what]) for what, cost in costs.items()}
        for name, costs in counted.items()
    }


def worsened(counted: Counted, before: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What costs too much more than it did, in words."""
    return [
        f"{name}, {what}: {cost / 1e6:.3f} M, was {was / 1e6:.3f} M"
        for name, costs in counted.items()
        for what, cost in costs.items()
        if (was := before.get(name, {}).get(what)) and cost > was * (1 + WORSE_AT_MOST)
    ]


def table(counted: Counted, before: Mapping[str, Mapping[str, float]]) -> str:
    """In Markdown: million instructions a call, and the change since the baseline."""
    names = list(counted)
    called = list(dict.fromkeys(what for costs in counted.values() for what in costs))
    rows = [("million instructions a call", *names)]
    for what in called:
        rows.append((what, *(_told(counted[name], before.get(name, {}), what) for name in names)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join((lines[0], rule, *lines[1:]))


def _told(costs: Mapping[str, float], before: Mapping[str, float], what: str) -> str:
    if what not in costs:
        return "-"
    cost, was = costs[what], before.get(what)
    return f"{cost / 1e6:.3f}" + (f" ({cost / was - 1:+.1%})" if was else "")


if __name__ == "__main__":
    sys.exit(main())
