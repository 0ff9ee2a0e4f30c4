"""Callers of a real decider: one alone, or many at once, each with a claimed write.

What is timed is `await decider.admit(ask)` and `await decider.settle(outcome)`, from the loop of
the callers through the decider's thread to the disk and back. Requests are read and identified
before the clock runs. The policy is the shipped one; only its limits are out of reach.
"""

import asyncio
import time
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import yaml

from ledger.admission import Judge
from ledger.records import Answer, Ask, Decision, Outcome
from ledger.states import CallState, ClaimAfter
from ledger.store import Store
from policies.call import Identity, Request
from policies.load import load
from policies.match import identify
from policies.policy import Policy
from policies.verdict import Action
from proxy.clock import new_id
from proxy.decider import Decider
from tests.end_to_end.running import ROOT

RUNS, TENANTS = 1_000, 100
NO_LIMIT = 1_000_000_000
START_US = 1_795_000_000_000_000
SINCE_US = 3_600_000_000  # the calls that are measured begin so long after the ledger's newest
_ANSWER = Answer(200, (("content-type", "application/json"),), b'{"id":"ch_1","paid":true}')


class Wrong(Exception):
    """What was measured is not what was meant to be measured."""


def shipped_policy() -> Policy:
    """`config/policy.yaml` with its ceilings, none of which is ever reached."""
    written: dict[str, Any] = yaml.safe_load((ROOT / "config" / "policy.yaml").read_text())
    for ceiling in written["ceilings"]:
        ceiling["at_most"] = NO_LIMIT
    return load(yaml.safe_dump(written, sort_keys=False))


@dataclass(frozen=True, slots=True)
class Lone:
    """Microseconds of each admission and of each settlement."""

    admit_us: list[float]
    settle_us: list[float]


@dataclass(frozen=True, slots=True)
class Many:
    """Admissions and settlements a second."""

    admit_rate: float
    settle_rate: float


class Writes:
    """New writes over a store of their own; their time goes on where the store's ended."""

    def __init__(self, data: Path, policy: Policy) -> None:
        self.policy = policy
        self._start_us, self._start = START_US, time.monotonic()
        self.store = Store.open(data, b"k" * 32, self.now_us)
        self._start_us = max(START_US, self.store.newest_us + SINCE_US)
        self._numbers = count(time.monotonic_ns())  # no key is one of an earlier run's
        self._identities = [
            Identity(f"bench{n}", f"bench{n % TENANTS}", agent="bench", release="bench")
            for n in range(RUNS)
        ]

    def now_us(self) -> int:
        return self._start_us + round((time.monotonic() - self._start) * 1e6)

    def asks(self, number: int) -> list[Ask]:
        """New writes, each with a key of its own, of runs by turns."""
        made = []
        for _ in range(number):
            key = next(self._numbers)
            request = Request(
                "POST",
                "https",
                "api.stripe.com",
                443,
                "/v1/charges",
                (
                    ("content-type", "application/x-www-form-urlencoded"),
                    ("idempotency-key", f"order-{key}"),
                ),
                b"amount=1250&currency=eur&customer=cus_%d" % key,
            )
            now_us = self.now_us()
            who = self._identities[key % RUNS]
            call = identify(self.policy, request)
            made.append(Ask(new_id(now_us), now_us, who, request, call))
        return made


class Batches(Writes):
    """Admissions and settlements on the store itself, in its caller's own thread."""

    def close(self) -> None:
        self.store.close()

    def admitted_us(self, calls: int, judge: Judge) -> float:
        """Microseconds of CPU of a batch: one transaction of admissions, one of settlements."""
        asks = self.asks(calls)
        outcomes = [done(ask, ask.at_us + 40_000) for ask in asks]
        start_ns = time.thread_time_ns()
        with self.store.transaction(durable=True):
            for ask in asks:
                allowed(self.store.admit(ask, self.policy, judge))
        with self.store.transaction(durable=True):
            for outcome in outcomes:
                self.store.settle(outcome, self.policy)
        return (time.thread_time_ns() - start_ns) / 1_000


class Callers(Writes):
    """Of one decider. Make it inside a running loop; `close` ends the decider and the store."""

    def __init__(self, data: Path, policy: Policy) -> None:
        super().__init__(data, policy)
        self._decider = Decider.start(self.store, policy)

    async def close(self) -> None:
        await self._decider.stop()
        self.store.close()

    async def lone(self, calls: int) -> Lone:
        """One caller: asks, is let through, tells how it ended, and only then the next."""
        admit_us, settle_us = [], []
        for ask in self.asks(calls):
            start = time.perf_counter()
            await self._admitted(ask)
            admitted = time.perf_counter()
            await self._decider.settle(self._done(ask), durable=True)
            settle_us.append((time.perf_counter() - admitted) * 1e6)
            admit_us.append((admitted - start) * 1e6)
        return Lone(admit_us, settle_us)

    async def many(self, callers: int, calls: int) -> Many:
        """So many callers share the admissions; when all are made, they share the settlements."""
        asks = self.asks(calls)
        admit_seconds = await _shared(callers, [self._admitted(ask) for ask in asks])
        outcomes = [self._done(ask) for ask in asks]
        settle_seconds = await _shared(callers, [self._settled(each) for each in outcomes])
        return Many(calls / admit_seconds, calls / settle_seconds)

    async def _admitted(self, ask: Ask) -> None:
        allowed(await self._decider.admit(ask, self.policy))

    async def _settled(self, outcome: Outcome) -> None:
        await self._decider.settle(outcome, durable=True)

    def _done(self, ask: Ask) -> Outcome:
        return done(ask, self.now_us())


def allowed(decision: Decision) -> None:
    if decision.verdict.action is not Action.ALLOW:
        raise Wrong(f"not let through: {decision.verdict}")


def done(ask: Ask, at_us: int) -> Outcome:
    return Outcome(
        ask.call_id,
        at_us,
        CallState.DONE,
        ClaimAfter.DONE,
        status=200,
        latency_us=40_000,
        response_digest=b"r" * 32,
        response_bytes=len(_ANSWER.body),
        answer=_ANSWER,
    )


async def _shared(callers: int, work: "list[Any]") -> float:
    """Seconds until all is done; each caller takes the next piece when its last one is done."""
    left = iter(work)

    async def caller() -> None:
        for piece in left:
            await piece

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return time.perf_counter() - start
