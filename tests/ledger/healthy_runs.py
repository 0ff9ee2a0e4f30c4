"""Agents that do their work (and one that does not): what they call, and when. Two hundred of them
are a mixed load.

Arguments and answers are text and become digests as those of live calls do.
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, cycle

from policies.detectors import volatile

MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """One call, `after_seconds` since the end of the last one. `effect`: read, write or model."""

    after_seconds: float
    effect: str
    tool: str = ""
    asks: str = ""
    told: str = ""
    status: int = 200
    usd: float = 0.0
    human: str = ""
    recipient: str = ""
    takes_seconds: float = 0.2

    @property
    def action(self) -> bytes:
        return digest(self.tool.encode() + volatile.of_arguments(self.asks.encode()))

    @property
    def result(self) -> bytes:
        return digest(volatile.of_result(self.told.encode()))


def digest(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()


def said(text: str) -> bytes:
    return digest(text.encode()) if text else b""


Behaviour = Callable[[str, random.Random], Iterator[Call]]


def waits(run: str, dice: random.Random) -> Iterator[Call]:
    """Asks for a job that is pending all the time, every 5 to 30 seconds."""
    every = dice.uniform(5, 30)
    while True:
        yield Call(every, "read", "jobs.get", f"{run} job 1", '{"status":"pending"}')


def watches(run: str, dice: random.Random) -> Iterator[Call]:
    """The same of one that gets on, and writes when it is done."""
    every = dice.uniform(5, 30)
    for number in count():
        told = f'{{"status":"running","rows":{number}}}'
        yield Call(every, "read", "jobs.get", f"{run} job {number // 20}", told)
        if number % 20 == 19:
            yield Call(1, "write", "pay", f"{run} pays {number}", "ok", recipient=f"{run} {number}")


def asks_a_model_to_wait(run: str, dice: random.Random) -> Iterator[Call]:
    """Each poll is made by a model, which says so."""
    every = dice.uniform(16, 30)
    yield Call(1, "model", human=f"{run} tell me when it is there", usd=0.004, takes_seconds=2)
    while True:
        yield Call(every, "model", usd=0.004, takes_seconds=2)
        yield Call(0.1, "read", "jobs.get", f"{run} job 1", '{"status":"pending"}')


def pages(run: str, dice: random.Random) -> Iterator[Call]:
    every = dice.uniform(0.8, 3)
    for number in count():
        yield Call(every, "read", "orders.list", f"{run} page {number}", f"orders of {number}")


def writes_a_batch(run: str, dice: random.Random) -> Iterator[Call]:
    """Somebody else each time."""
    every = dice.uniform(1.2, 4)
    for number in count():
        who = f"{run} {number}"
        yield Call(every, "write", "mail", f"to {who}", f"sent {who}", recipient=who)


def tries_again(run: str, dice: random.Random) -> Iterator[Call]:
    """An upstream that is down for a minute, and then takes the write; over and over."""
    for number in count():
        for wait in (1, 2, 4, 8, 16, 32):
            yield Call(wait, "read", "stock.get", f"{run} {number}", "try later", 503)
        yield Call(1, "read", "stock.get", f"{run} {number}", f"{number} left")
        yield Call(1, "write", "pay", f"{run} pays {number}", "ok", recipient=f"{run} {number}")


def reads_a_stream(run: str, dice: random.Random) -> Iterator[Call]:
    for number in count():
        yield Call(1, "read", "log.tail", f"{run} log", f"line {number}")


def codes(run: str, dice: random.Random) -> Iterator[Call]:
    """A person asks for something; it reads, edits, tests until that passes, and answers."""
    for task in count():
        yield Call(5, "model", human=f"{run} task {task}", usd=0.03, takes_seconds=4)
        for number in range(dice.randrange(2, 6)):
            name = f"{run} {task}.{number}"
            yield Call(0.5, "read", "files.get", name, f"text of {name}")
            yield Call(1, "model", usd=0.03, takes_seconds=4)
            yield Call(0.5, "write", "files.put", f"{name} edited", "ok", recipient=f"{run} {task}")
            yield Call(0.5, "read", "tests.run", f"{run} all", "2 failed")
            yield Call(1, "model", usd=0.03, takes_seconds=4)
        yield Call(dice.uniform(5, 40), "read", "tests.run", f"{run} all", "passed")


def talks(run: str, dice: random.Random) -> Iterator[Call]:
    for number in count():
        told = f"{run} says {number}"
        yield Call(dice.uniform(8, 40), "model", human=told, usd=0.01, takes_seconds=3)


def researches(run: str, dice: random.Random) -> Iterator[Call]:
    """Looks at many places, some of them twice, and writes down what it found."""
    for number, site in zip(count(), cycle(range(40)), strict=False):
        yield Call(2, "model", human=f"{run} {number}" if number % 12 == 0 else "", usd=0.02)
        yield Call(1, "read", f"site{site}.get", f"{run} {number}", f"page {number}")
        if number % 6 == 5:
            yield Call(1, "write", "notes.put", f"{run} {number}", "ok", recipient=f"{run} notes")


def loops(run: str, dice: random.Random) -> Iterator[Call]:
    """The one that is not healthy."""
    while True:
        yield Call(2, "read", "jobs.get", f"{run} job 1", '{"status":"pending"}')


LOAD: dict[Behaviour, int] = {
    waits: 40,
    watches: 20,
    asks_a_model_to_wait: 20,
    pages: 20,
    writes_a_batch: 20,
    tries_again: 20,
    reads_a_stream: 10,
    codes: 10,  # and the children of some of them
    talks: 10,
    researches: 15,
}
