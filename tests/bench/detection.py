"""What the detectors add to a call: the same callers with all of them enforced, and with none fed.

One caller of a real decider, by turns on a ledger with and one without detectors, and CPU time on
the store itself. All is as in the shipped policy, but for the limit on a tool's writes in all runs:
that load would be over it at once. `told` is what they cost where they find something in call after
call.
"""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack, closing, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from random import Random
from statistics import median
from unittest.mock import patch

from ledger import following
from ledger.records import Ask, Outcome
from policies.call import Identity, Traits
from policies.decide import decide
from policies.detectors import write_spike
from policies.detectors.rules import Mode, Rule
from policies.detectors.runs import DETECTORS
from policies.policy import Policy
from tests.bench.admitting import NO_LIMIT, Batches, Callers, Lone
from tests.bench.figures import Spread

ROUNDS, CALLS, BATCHES, BATCH_CALLS = 9, 300, 12, 16
TURN_CALLS = 15  # a disk that is slow for a second is so for all of them
RUNS = 50
SETTLED_AT_MOST = 1.05

OFF, ON, TOLD = "off", "on", "told"


@dataclass(slots=True)
class Detection:
    """Microseconds, round by round: the median settlement of one caller, and the CPU time that an
    admission with its settlement takes."""

    settle_us: dict[str, list[float]] = field(default_factory=dict)
    admit_us: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)

    @property
    def held(self) -> bool:
        return self.settled.middle <= SETTLED_AT_MOST

    @property
    def settled(self) -> Spread:
        return _ratio(self.settle_us, ON)

    def lines(self) -> list[str]:
        off, on, told = (Spread.over(self.cpu_us[each]) for each in (OFF, ON, TOLD))
        return [
            f"detectors, one caller: settlement p50 {Spread.over(self.settle_us[OFF])} us without, "
            f"{Spread.over(self.settle_us[ON])} us with, {Spread.over(self.settle_us[TOLD])} us "
            f"where calls are found out; admission {_ratio(self.admit_us, ON)} x",
            f"detectors, CPU of a call in the store: {off} us without, {on} us with, {told} us "
            f"where calls are found out",
            f"target p50 of a settlement with detectors : without: {self.settled}, wanted <= "
            f"{SETTLED_AT_MOST}: {'holds' if self.held else 'MISSED'}",
        ]


def _ratio(found: dict[str, list[float]], which: str) -> Spread:
    return Spread.over(one / other for one, other in zip(found[which], found[OFF], strict=True))


def policy_of(policy: Policy, which: str) -> Policy:
    rules = {name: Rule(Mode.ENFORCE, kind.limits) for name, kind in DETECTORS.items()}
    limits = write_spike.Limits(tool_writes=NO_LIMIT)
    if which == TOLD:
        limits = write_spike.Limits(tool_writes=1, tool_runs=1)
    rules[write_spike.NAME] = Rule(Mode.ENFORCE, limits)
    return replace(policy, detectors=rules)


def traits(ask: Ask) -> Ask:
    """As an engine makes them, out of what is new in each call."""
    action = sha256(ask.request.body).digest()
    return replace(ask, traits=Traits(action, sha256(action).digest()))


def few(identities: list[Identity]) -> list[Identity]:
    """So many places in the list, and fewer runs: what a run's first call costs comes once."""
    return [identities[number % RUNS] for number in range(len(identities))]


class Watched(Callers):
    """Its calls have what the detectors know a call by, and each run makes many of them."""

    def __init__(self, data: Path, policy: Policy) -> None:
        super().__init__(data, policy)
        self._identities = few(self._identities)

    def asks(self, number: int) -> list[Ask]:
        return [traits(ask) for ask in super().asks(number)]

    def _done(self, ask: Ask) -> Outcome:
        return replace(super()._done(ask), result=sha256(ask.request.body).digest())


class WatchedBatches(Batches):
    """The same."""

    def __init__(self, data: Path, policy: Policy) -> None:
        super().__init__(data, policy)
        self._identities = few(self._identities)

    def asks(self, number: int) -> list[Ask]:
        return [traits(ask) for ask in super().asks(number)]


@contextmanager
def unfed() -> Iterator[None]:
    """Nothing follows from a settled call, which only this bench may make so."""
    with patch.object(following, "settled", lambda *_: None):
        yield


def measure(folder: Path, policy: Policy, rounds: int = ROUNDS, calls: int = CALLS) -> Detection:
    found = Detection()
    asyncio.run(_lone(folder, policy, rounds, calls, found))
    _cpu(folder, policy, rounds, found)
    return found


async def _lone(folder: Path, policy: Policy, rounds: int, calls: int, found: Detection) -> None:
    dice = Random(1)
    async with AsyncExitStack() as closing_all:
        callers = {}
        for which in (OFF, ON, TOLD):
            callers[which] = Watched(folder / f"lone-{which}", policy_of(policy, which))
            closing_all.push_async_callback(callers[which].close)
        for number in range(-1, rounds):  # the first warms
            took: dict[str, list[Lone]] = {which: [] for which in callers}
            for _ in range(calls // TURN_CALLS):
                for which in dice.sample(list(callers), len(callers)):
                    with unfed() if which == OFF else nullcontext():
                        took[which].append(await callers[which].lone(TURN_CALLS))
            for which, turns in took.items():
                if number >= 0:
                    settled = median(us for turn in turns for us in turn.settle_us)
                    admitted = median(us for turn in turns for us in turn.admit_us)
                    found.settle_us.setdefault(which, []).append(settled)
                    found.admit_us.setdefault(which, []).append(admitted)


def _cpu(folder: Path, policy: Policy, rounds: int, found: Detection) -> None:
    dice = Random(2)
    for which in (OFF, ON, TOLD):
        found.cpu_us[which] = []
    with ExitStack() as closing_all:
        stores = {}
        for which in (OFF, ON, TOLD):
            made = WatchedBatches(folder / f"cpu-{which}", policy_of(policy, which))
            stores[which] = closing_all.enter_context(closing(made))
        for number in range(-1, rounds):
            for which in dice.sample(list(stores), len(stores)):
                with unfed() if which == OFF else nullcontext():
                    us = [stores[which].admitted_us(BATCH_CALLS, decide) for _ in range(BATCHES)]
                if number >= 0:
                    found.cpu_us[which].append(median(us) / BATCH_CALLS)
