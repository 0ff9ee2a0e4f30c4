"""What the chain of hashes and the trace add to a call, each by itself, in CPU time.

The chain: the same batches on a real store, by turns with and without it. The trace: what an engine
does to catch a call, on the call's own way, and what the tracer does to keep a message, which is in
a process of its own behind the calls.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from ledger.chain import GENESIS, Head
from ledger.events import Columns, Journal, Row
from ledger.records import Ask
from policies.call import Identity
from policies.decide import decide
from policies.policy import Policy
from proxy.clock import SystemClock
from proxy.tracer import Tracer
from proxy.tracing import BATCH_MESSAGES_MAX, Message, Tracing
from tests.bench.admitting import Batches
from tests.bench.figures import Spread

ROUNDS, BATCHES, BATCH_CALLS = 15, 30, 16
TRACED_CALLS = 250  # two messages each: a batch of the tracer's
_BENCH = Identity("bench", "bench", agent="bench", release="bench")
WORDS = 300  # of a prompt and of its answer: some two kilobytes each


@dataclass(frozen=True, slots=True)
class Added:
    """CPU microseconds, round by round. `plain` and `chained` are of a row of the record, with all
    that an admission and its settlement do for it."""

    plain_us: list[float]
    chained_us: list[float]
    caught_us: list[float]  # a call: its request and its answer
    kept_us: list[float]  # a message

    def lines(self) -> list[str]:
        chain = Spread.over(
            with_it - without
            for with_it, without in zip(self.chained_us, self.plain_us, strict=True)
        )
        return [
            f"hash chain: {chain} us of CPU a row of the record, of "
            f"{Spread.over(self.chained_us)} in all (batches of {BATCH_CALLS})",
            f"trace, in the engine: {Spread.over(self.caught_us)} us of CPU a call",
            f"trace, in the tracer's process: {Spread.over(self.kept_us)} us of CPU a message "
            f"of some two kilobytes",
        ]


def measure(folder: Path, policy: Policy, rounds: int = ROUNDS) -> Added:
    added = Added([], [], [], [])
    with closing(Batches(folder / "chain", policy)) as batches:
        for _ in range(rounds):
            plain_us, chained_us = _round(batches)
            added.plain_us.append(plain_us)
            added.chained_us.append(chained_us)
    tracer = Tracer(folder / "trace", keep_days=30, keep_bytes=2**40)
    for _ in range(rounds):
        caught_us, messages = _caught(batches.asks(TRACED_CALLS), policy)
        added.caught_us.append(caught_us)
        added.kept_us.append(_kept(tracer, messages))
    return added


def _round(batches: Batches) -> tuple[float, float]:
    """Without and with the chain, batch by batch in turn: of one row, of the two of each call."""
    plain_us = chained_us = 0.0
    for number in range(BATCHES * 2):
        if number % 4 in (0, 3):
            chained_us += batches.admitted_us(BATCH_CALLS, decide)
        else:
            with _unchained():
                plain_us += batches.admitted_us(BATCH_CALLS, decide)
    batches.store.checkpoint()
    rows = BATCHES * BATCH_CALLS * 2
    return plain_us / rows, chained_us / rows


@contextmanager
def _unchained() -> Iterator[None]:
    """A record without a chain, which only this bench may make."""

    def unlinked(self: Journal, columns: Columns, row: Row, policy: str | None) -> Row:
        self.head = Head(self.head.seq + 1, GENESIS)
        return (*row, self.head.seq, GENESIS)

    with patch.object(Journal, "_linked", unlinked):
        yield


def _caught(asks: Sequence[Ask], policy: Policy) -> tuple[float, list[Message]]:
    tracing = Tracing(SystemClock(), "full")
    fields = ((b"content-type", b"application/json"), (b"x-request-id", b"req_8LQ2"))
    answers = [_answer(ask.call_id) for ask in asks]
    start_ns = time.thread_time_ns()
    for ask, answer in zip(asks, answers, strict=True):
        catch = tracing.asked(ask, _BENCH, policy, is_let_through=True)
        if catch is None:
            raise RuntimeError("the trace is off")
        catch.headed(200, fields)
        catch.add(answer)
        catch.settled(200, fields, is_first=True, is_over=True)
    spent_us = (time.thread_time_ns() - start_ns) / 1_000
    return spent_us / len(asks), [message for message, _ in tracing._waiting]


def _answer(call_id: str) -> bytes:
    words = " ".join(f"{call_id[-(number % 12) - 4 :]}" for number in range(WORDS))
    return json.dumps({"id": call_id, "choices": [{"text": words}]}).encode()


def _kept(tracer: Tracer, messages: Sequence[Message]) -> float:
    start_ns = time.thread_time_ns()
    for first in range(0, len(messages), BATCH_MESSAGES_MAX):
        tracer.keep(messages[first : first + BATCH_MESSAGES_MAX])
    return (time.thread_time_ns() - start_ns) / 1_000 / len(messages)
