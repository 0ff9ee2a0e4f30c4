"""`make bench`: direct, stock mitmdump and pullcord over both engines side by side, in one run.

Each round takes every cell (plain, TLS or a new TLS connection each call; a read, one of 1 MB or a
write; 1, 16 or 64 clients) in a new order, and in it the variants in a new order. The proxies have
CPU 0; the load and the upstream have CPU 1. Exits 1 when a gate is missed or anything but the
expected answer came back. Linux only. At the end, alone and in this process: what the checks of
ceilings cost (`ceilings.py`), and the detectors (`detection.py`).
"""

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from ledger.connection import open_reader
from ledger.states import EventType
from tests.bench import admitting, ceilings, detection, gates, machine, variants
from tests.bench.certificates import write_certificates
from tests.bench.clients import Task
from tests.bench.figures import CLIENTS, CLIENTS_ON_REQUEST, Cell, Measured, cells, table
from tests.bench.load import Result, calls_seen, reaching
from tests.bench.messages import Kind, Way
from tests.bench.variants import ENGINES, Upstream, Variant

HANDLES_PER_CLIENT = 8

Run = Callable[[Task], Result]
Made = dict[str, Counter[str]]
"""The calls that each engine let through, by their effect."""

_EFFECT = {Kind.READ: "read", Kind.LARGE: "read", Kind.WRITE: "write"}


class Wrong(Exception):
    """What was measured is not what was meant to be measured."""


def main() -> int:
    options = _options()
    _make_room(max(options.clients))
    os.environ["PYTHONHASHSEED"] = "0"  # the same instructions in every run
    try:
        with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as folder:
            return measure(Path(folder), options.rounds, options.seconds, options.clients)
    except (Wrong, admitting.Wrong, ceilings.Wrong, variants.NotStarted) as error:
        sys.exit(f"bench: {error}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--seconds", type=float, help="for each measurement; default 0.7")
    parser.add_argument("--quick", action="store_true", help="3 rounds of half a second")
    parser.add_argument(
        "--clients", type=int, nargs="+", choices=CLIENTS_ON_REQUEST, default=CLIENTS, help="only"
    )
    parser.add_argument("--folder", help="where the ledger lies; default: the temporary one")
    options = parser.parse_args()
    options.rounds = options.rounds or (3 if options.quick else 5)
    options.seconds = options.seconds or (0.5 if options.quick else 0.7)
    return options


def _make_room(clients: int) -> None:
    """The processes inherit it: a proxy has two connections for each client, and those before."""
    least, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if least != resource.RLIM_INFINITY:
        wanted = max(least, HANDLES_PER_CLIENT * clients)
        if most != resource.RLIM_INFINITY:
            wanted = min(wanted, most)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


# ------------------------------------------------------------------------------- seconds


def measure(folder: Path, rounds: int, seconds: float, clients: Sequence[int]) -> int:
    authority, certificate = write_certificates(folder)
    print(machine.circumstances(folder), flush=True)
    with ExitStack() as stack:
        upstream = stack.enter_context(variants.upstream(folder, certificate))
        compared = [
            Variant("direct", authority),
            stack.enter_context(variants.stock(folder, authority)),
        ]
        for engine in ENGINES:
            started = variants.pullcord(folder, authority, upstream, engine=engine)
            compared.append(stack.enter_context(started))
        run = load(stack, folder, upstream)
        taken = machine.taken_by_others(compared)
        measured, made = _rounds(cells(clients), compared, rounds, seconds, upstream, run)
        print(table(measured))
        print(taken())
        print(machine.memory(compared))
        for engine in ENGINES:
            print(_recorded(variants.data_of(folder, engine), engine, made[engine]))
    lines, held = gates.told(measured)
    print("\n".join(lines))
    lines, held_too = ceilings.report(ceilings.measure(folder))
    print("\n".join(lines))
    watched = detection.measure(folder, admitting.shipped_policy())
    print("\n".join(watched.lines()))
    return 0 if held and held_too and watched.held else 1


def _rounds(
    measuring: Sequence[Cell],
    compared: list[Variant],
    rounds: int,
    seconds: float,
    upstream: Upstream,
    run: Run,
) -> tuple[Measured, Made]:
    """All results, and the calls that pullcord let through."""
    chance = random.Random(1)
    measured: Measured = {}
    made: Made = {engine: Counter() for engine in ENGINES}
    for number in range(rounds):
        _say(f"round {number + 1} of {rounds}")
        for cell in chance.sample(measuring, len(measuring)):
            for variant in chance.sample(compared, len(compared)):
                result = run(task(variant, upstream, cell, seconds=seconds))
                measured.setdefault((cell, variant.name), []).append(result)
                if variant.name in made:
                    made[variant.name][_EFFECT[cell.kind]] += result.all_calls
    _say("")
    return measured, made


def _say(text: str) -> None:
    """Progress, for a person who waits; not part of the output."""
    if sys.stderr.isatty():
        print(f"\r{text:<30}", end="\n" if not text else "", file=sys.stderr, flush=True)


def task(
    variant: Variant, upstream: Upstream, cell: Cell, seconds: float = 0.0, calls: int = 0
) -> Task:
    return Task(
        proxy_port=variant.port,
        upstream_port=upstream.plain if cell.way is Way.PLAIN else upstream.tls,
        way=cell.way,
        kind=cell.kind,
        clients=cell.clients,
        trust=str(variant.trust),
        credentials=list(variant.credentials),
        pid=variant.pid,
        seconds=seconds,
        calls=calls,
    )


def load(stack: ExitStack, folder: Path, upstream: Upstream) -> Run:
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
        if reached != reaching(task, result.all_calls):
            raise Wrong(f"{result.all_calls} calls were answered, {reached} reached the upstream")
        return result

    return run


def _recorded(data: Path, engine: str, made: Counter[str]) -> str:
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
    if found != +made:
        raise Wrong(f"the ledger of {engine} has {found}, the load made {dict(made)}")
    reads, writes = made["read"], made["write"]
    return f"{engine}: the ledger has every one of {reads} reads and {writes} writes, all done"


if __name__ == "__main__":
    sys.exit(main())
