"""What the checks cost: the CPU of an admission by how many ceilings the policy has.

In this process, on a real ledger of LIVE_RUNS runs that have each made a call. The policies differ
in their number of ceilings alone: the measured tool has the same few in each but the first, the
others bind other tools. An admission is counted with its settlement and its share of the commit,
in batches as a decider makes them. Times are CPU times, in rounds that go through all policies.

`python -m tests.bench.ceilings` makes this figure alone and exits 1 when its gate is missed.
"""

import random
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

import yaml

from ledger.records import Ask, Outcome
from ledger.states import CallState, ClaimAfter
from ledger.store import Store
from policies.call import Effect, Identity, Request, ToolCall
from policies.decide import decide
from policies.load import load
from policies.load_bounds import SHIPPED
from policies.policy import Policy
from policies.schema_bounds import SHIPPED_FOR
from policies.verdict import Action
from tests.bench.figures import Spread

CEILINGS = (0, 10, 100, 1_000)
LIVE_RUNS = 10_000
RATIO_AT_MOST = 1.5
GATED = (100, 10)  # the CPU with so many in the CPU with so many

ROUNDS, BATCHES, BATCH_CALLS = 30, 12, 16
TENANTS, TOOLS, HOSTS = 20, 250, 50
CALL_US = 1_000  # of the ledger's clock between two calls: 1,000 a second

_TOOL = "api.read"
_NO_LIMIT = 1_000_000_000
_START_US = 1_795_000_000_000_000
_MATCHING: tuple[Mapping[str, object], ...] = (
    {"per": "tool", "tool": "api.*", "count": "calls", "at_most": _NO_LIMIT, "within": "1m"},
    {"per": "tree", "count": "steps", "at_most": _NO_LIMIT},
)
_OTHERS = tuple((per, count) for count in ("calls", "writes", "steps") for per in ("run", "tool"))

Measured = Mapping[int, Sequence[float]]
"""CPU microseconds of an admission, round by round, by the number of ceilings."""


class Wrong(Exception):
    """What was measured is not what was meant to be measured."""


def policy_text(ceilings: int) -> str:
    """A policy of so many ceilings, with the shipped ones; 0 has not even these."""
    tools: dict[str, object] = {_TOOL: {"match": {"host": "api0.example.com"}, "effect": "read"}}
    for number in range(TOOLS):
        match = {"host": f"api{number % HOSTS}.example.com", "path": f"/v{number}/{{id}}"}
        tools[f"other.t{number}"] = {"match": match}
    rules: list[Mapping[str, object]] = []
    if ceilings == 0:
        rules = [
            {"per": per.value, "count": count.value, "unbounded": True}
            for per, count in sorted(SHIPPED_FOR)
        ]
    else:
        rules += _MATCHING
        for number in range(ceilings - len(_MATCHING) - len(SHIPPED)):
            per, count = _OTHERS[number // TOOLS]
            bound = {"per": per, "count": count, "at_most": _NO_LIMIT, "within": "1m"}
            rules.append({**bound, "tool": f"other.t{number % TOOLS}"})
    written = {"version": 1, "unlisted": "refuse", "tools": tools, "ceilings": rules}
    return yaml.safe_dump(written, sort_keys=False)


class Caller:
    """One policy with a ledger of its own, and runs that call by turns as chance has it."""

    def __init__(self, folder: Path, ceilings: int) -> None:
        self.policy: Policy = load(policy_text(ceilings))
        if len(self.policy.ceilings) != ceilings:
            raise Wrong(f"{len(self.policy.ceilings)} ceilings where {ceilings} were meant")
        self._now_us = _START_US
        self.store = Store.open(folder / f"ceilings{ceilings}", b"k" * 32, lambda: self._now_us)
        self._runs = [
            Identity(f"run{number}", f"tenant{number % TENANTS}") for number in range(LIVE_RUNS)
        ]
        self._chance = random.Random(1)  # the same calls under every policy
        self._made = 0
        self._open: list[str] = []

    def start_runs(self) -> None:
        """Every run makes a call, so that the ledger knows of it."""
        for first in range(0, LIVE_RUNS, BATCH_CALLS * 16):
            self._batch(self._asks(self._runs[first : first + BATCH_CALLS * 16]))

    def round(self) -> float:
        """CPU microseconds of an admission with its settlement, over BATCHES batches."""
        spent_ns = 0
        for _ in range(BATCHES):
            asks = list(self._asks(self._chance.sample(self._runs, BATCH_CALLS)))
            before_ns = time.thread_time_ns()
            self._batch(asks)
            spent_ns += time.thread_time_ns() - before_ns
        self.store.checkpoint()
        return spent_ns / 1_000 / (BATCHES * BATCH_CALLS)

    def _asks(self, runs: Sequence[Identity]) -> Iterator[Ask]:
        for identity in runs:
            self._made += 1
            self._now_us += CALL_US
            request = Request("GET", "https", "api0.example.com", 443, "/items/17")
            call = ToolCall(_TOOL, Effect.READ, "GET /items/17", b"", host=request.host)
            yield Ask(f"call{self._made}", self._now_us, identity, request, call)

    def _batch(self, asks: Iterator[Ask] | list[Ask]) -> None:
        """The calls of the batch before end, these begin: one transaction."""
        with self.store.transaction(durable=False):
            for call_id in self._open:
                self.store.settle(_done(call_id, self._now_us))
            self._open.clear()
            for ask in asks:
                decision = self.store.admit(ask, self.policy, decide)
                if decision.verdict.action is not Action.ALLOW:
                    raise Wrong(f"not let through: {decision.verdict}")
                self._open.append(ask.call_id)


def _done(call_id: str, at_us: int) -> Outcome:
    return Outcome(
        call_id,
        at_us,
        CallState.DONE,
        ClaimAfter.DONE,
        status=200,
        latency_us=1_500,
        response_digest=b"r" * 32,
        response_bytes=1_024,
        answer=None,
    )


def measure(folder: Path, rounds: int = ROUNDS) -> Measured:
    """All policies, one after the other in each round and in a new order in each."""
    chance = random.Random(1)
    measured: dict[int, list[float]] = {ceilings: [] for ceilings in CEILINGS}
    with ExitStack() as stack:
        callers = {}
        for ceilings in CEILINGS:
            callers[ceilings] = Caller(folder, ceilings)
            stack.enter_context(closing(callers[ceilings].store))
            callers[ceilings].start_runs()
        for _ in range(rounds):
            for ceilings in chance.sample(CEILINGS, len(CEILINGS)):
                measured[ceilings].append(callers[ceilings].round())
    return measured


def ratio(measured: Measured, many: int, few: int) -> Spread:
    """The CPU with many ceilings in that with few; each pair is of one round."""
    pairs = zip(measured[many], measured[few], strict=True)
    return Spread.over(with_many / with_few for with_many, with_few in pairs)


def report(measured: Measured) -> tuple[list[str], bool]:
    """The lines to print, and whether the gate holds."""
    lines = [f"CPU us of an admission and its settlement, {LIVE_RUNS:,} live runs"]
    for ceilings, taken in measured.items():
        spread = Spread.over(taken)
        line = (
            f"{ceilings:>8,} ceilings: {spread.middle:.1f} ({spread.least:.1f}-{spread.most:.1f})"
        )
        lines.append(line)
    many, few = GATED
    middle = ratio(measured, many, few).middle
    held = middle <= RATIO_AT_MOST
    lines.append(
        f"gate ceilings: CPU with {many} : with {few} {middle:.2f}, "
        f"wanted <= {RATIO_AT_MOST}: {'holds' if held else 'MISSED'}"
    )
    return lines, held


def main() -> int:
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            lines, held = report(measure(Path(folder)))
    except Wrong as error:
        sys.exit(f"bench: {error}")
    print("\n".join(lines))
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
