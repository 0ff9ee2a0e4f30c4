"""`make bench`: direct, stock mitmdump and pullcord side by side, in one run.

Each round takes every cell (plain or TLS, read or write, 1, 16 or 64 clients) in a new order, and
in it the variants in a new order. The proxies have CPU 0; the load and the upstream have CPU 1.
Exits 1 when a gate is missed or anything but the expected answer came back. Linux only.
At the end, alone and in this process: what the checks of ceilings cost (`ceilings.py`), and the
detectors (`detection.py`).
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path

from ledger.connection import open_reader
from ledger.states import EventType
from tests.bench import admitting, callgrind, ceilings, detection, machine, variants
from tests.bench.certificates import write_certificates
from tests.bench.figures import CELLS, CLIENTS, Cell, Measured, gates, table
from tests.bench.load import Result, Task, calls_seen
from tests.bench.variants import Upstream, Variant

Run = Callable[[Task], Result]


class Wrong(Exception):
    """What was measured is not what was meant to be measured."""


def main() -> int:
    options = _options()
    os.environ["PYTHONHASHSEED"] = "0"  # the same instructions in every run
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
            if options.callgrind:
                callgrind.check()
                return count(Path(folder))
            return measure(Path(folder), options.rounds, options.seconds, options.clients)
    except (
        Wrong,
        admitting.Wrong,
        ceilings.Wrong,
        variants.NotStarted,
        callgrind.Unusable,
    ) as error:
        sys.exit(f"bench: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--seconds", type=float, help="for each measurement; default 1")
    parser.add_argument("--quick", action="store_true", help="3 rounds of half a second")
    parser.add_argument("--clients", type=int, nargs="+", choices=CLIENTS, help="only these")
    parser.add_argument("--callgrind", action="store_true", help="count instructions instead")
    parser.add_argument("--folder", help="where the ledger lies; default: the temporary one")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (0.5 if options.quick else 1.0)
    return options


# ------------------------------------------------------------------------------- seconds


def measure(folder: Path, rounds: int, seconds: float, clients: list[int] | None) -> int:
    cells = [cell for cell in CELLS if not clients or cell.clients in clients]
    authority, certificate = write_certificates(folder)
    print(machine.circumstances(folder), flush=True)
    with ExitStack() as stack:
        upstream = stack.enter_context(variants.upstream(folder, certificate))
        compared = [
            Variant("direct", authority),
            stack.enter_context(variants.stock(folder, authority)),
            stack.enter_context(variants.pullcord(folder, authority, upstream)),
        ]
        run = _load(stack, folder, upstream)
        taken = machine.taken_by_others(compared)
        measured, made = _rounds(cells, compared, rounds, seconds, upstream, run)
        print(table(measured))
        print(taken())
        print(machine.memory(compared))
        print(_recorded(folder / "data", made))
    lines, held = gates(measured)
    print("\n".join(lines))
    lines, held_too = ceilings.report(ceilings.measure(folder))
    print("\n".join(lines))
    watched = detection.measure(folder, admitting.shipped_policy())
    print("\n".join(watched.lines()))
    return 0 if held and held_too and watched.held else 1


def _rounds(
    cells: list[Cell],
    compared: list[Variant],
    rounds: int,
    seconds: float,
    upstream: Upstream,
    run: Run,
) -> tuple[Measured, dict[bool, int]]:
    """All results, and how many reads (False) and writes (True) pullcord let through."""
    chance = random.Random(1)
    measured: Measured = {}
    made = {False: 0, True: 0}
    for number in range(rounds):
        _say(f"round {number + 1} of {rounds}")
        for cell in chance.sample(cells, len(cells)):
            for variant in chance.sample(compared, len(compared)):
                result = run(_task(variant, upstream, cell, seconds=seconds))
                measured.setdefault((cell, variant.name), []).append(result)
                if variant.name == "pullcord":
                    made[cell.write] += result.all_calls
    _say("")
    return measured, made


def _say(text: str) -> None:
    """Progress, for a person who waits; not part of the output."""
    if sys.stderr.isatty():
        print(f"\r{text:<30}", end="\n" if not text else "", file=sys.stderr, flush=True)


def _task(
    variant: Variant, upstream: Upstream, cell: Cell, seconds: float = 0.0, calls: int = 0
) -> Task:
    return Task(
        proxy_port=variant.port,
        upstream_port=upstream.tls if cell.tls else upstream.plain,
        tls=cell.tls,
        write=cell.write,
        clients=cell.clients,
        trust=str(variant.trust),
        credentials=list(variant.credentials),
        pid=variant.pid,
        seconds=seconds,
        calls=calls,
    )


def _load(stack: ExitStack, folder: Path, upstream: Upstream) -> Run:
    """Start the load's process; what is returned runs one task there and checks the upstream."""
    log = folder / "load.log"
    process = stack.enter_context(variants.running(variants.module("load"), variants.LOAD_CPU, log))

    def run(task: Task) -> Result:
        if process.stdin is None or process.stdout is None:
            raise Wrong("the load has no pipes")
        before = calls_seen(upstream.plain)
        process.stdin.write(json.dumps(asdict(task)).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise Wrong(f"{log.read_text().strip()}\nwhile doing {task}")
        result = Result(**json.loads(line))
        reached = calls_seen(upstream.plain) - before
        if reached != result.all_calls:
            raise Wrong(f"{result.all_calls} calls were answered, {reached} reached the upstream")
        return result

    return run


def _recorded(data: Path, made: dict[bool, int]) -> str:
    """The ledger was written indeed. Raises Wrong when it differs from what was answered."""
    time.sleep(0.5)  # the outcome of a read may be written after its answer
    reader = open_reader(data)
    try:
        found = dict(
            reader.execute(
                "SELECT i.effect, count(*) FROM event i JOIN event o ON o.call_id = i.call_id "
                "WHERE i.type = ? AND o.type = ? AND o.state = 'done' GROUP BY i.effect",
                (EventType.INTENT, EventType.OUTCOME),
            )
        )
    finally:
        reader.close()
    if (found.get("read", 0), found.get("write", 0)) != (made[False], made[True]):
        raise Wrong(f"the ledger has {found}, the load made {made[False]} and {made[True]}")
    return f"the ledger has every one of {made[False]} reads and {made[True]} writes, all done"


# -------------------------------------------------------------------------- instructions


def count(folder: Path) -> int:
    """Instructions a call of both proxies, at one client."""
    authority, certificate = write_certificates(folder)
    counted: dict[str, dict[Cell, float]] = {}
    with ExitStack() as stack:
        upstream = stack.enter_context(variants.upstream(folder, certificate))
        run = _load(stack, folder, upstream)

        def task_for(variant: Variant, cell: Cell, calls: int) -> Task:
            return _task(variant, upstream, cell, calls=calls)

        for name, start in (
            ("stock", partial(variants.stock, folder, authority)),
            ("pullcord", partial(variants.pullcord, folder, authority, upstream)),
        ):
            counted[name] = dict(callgrind.instructions(folder, start, task_for, run))
    print("million instructions a call, one client")
    for cell, stock in counted["stock"].items():
        ours = counted["pullcord"][cell]
        print(
            f"{cell!s:>28}: stock {stock / 1e6:.3f}, pullcord {ours / 1e6:.3f} = {ours / stock:.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
