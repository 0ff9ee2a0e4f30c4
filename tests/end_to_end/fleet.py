"""Agents that write without end and try each write again, however often the proxy dies under them.

A write ends for them when they are answered, or told that nobody knows whether it happened.
"""

import http.client
import random
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.end_to_end.line import Line, Refused, Told
from tests.end_to_end.running import Run

AGENTS = 8
TWINS = 0.25  # of the writes are made by two agents at once
KEYED = 0.5  # carry a key of the agent's, the others are known by their body
PAUSE_SECONDS = 0.05  # between two tries
GIVE_UP_SECONDS = 60.0

ANSWERED = "answered"
UNKNOWN = "outcome_unknown"
LOST = "lost"
AGAIN = {LOST, "in_flight", "not_sent", "shutting_down", "decider_unreachable"}


class Fleet:
    """Every second write is made by plain HTTP, the others by TLS. All agents are of one run.

    `ends` has for each write, by its number, how it ended for each agent that made it.
    """

    def __init__(self, run: Run, choice: random.Random) -> None:
        self.ends: defaultdict[int, list[str]] = defaultdict(list)
        self.tries = 0
        self._run = run
        self._choice = choice
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._last = 0
        self._twins: list[int] = []

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Writes until the end of the block, and then until every write has ended."""
        agents = [threading.Thread(target=self._agent, daemon=True) for _ in range(AGENTS)]
        for agent in agents:
            agent.start()
        try:
            yield
        finally:
            self._stopping.set()
            for agent in agents:
                agent.join()

    def again(self, number: int) -> str:
        """How a write that has ended ends when it is made once more."""
        with ExitStack() as closing:
            return self._try(number, {}, closing)

    def _agent(self) -> None:
        with ExitStack() as closing:
            lines: dict[bool, Line] = {}
            while not self._stopping.is_set():
                number, end = self._next(), ""
                deadline = time.monotonic() + GIVE_UP_SECONDS
                while not end or (end in AGAIN and time.monotonic() < deadline):
                    end = self._try(number, lines, closing)
                    time.sleep(PAUSE_SECONDS if end in AGAIN else 0)
                self.ends[number].append(end)

    def _next(self) -> int:
        with self._lock:
            if self._twins:
                return self._twins.pop()
            self._last += 1
            if self._choice.random() < TWINS:
                self._twins.append(self._last)
            return self._last

    def _try(self, number: int, lines: dict[bool, Line], closing: ExitStack) -> str:
        """Write once, on the connection that is open or on a new one."""
        self.tries += 1
        secure = number % 2 == 0
        try:
            if secure not in lines:
                lines[secure] = Line(self._run, tls=secure)
                closing.callback(lines[secure].close)
            keyed = random.Random(number).random() < KEYED
            key = {"Idempotency_Key": f"key-{number}"} if keyed else {}
            path, body = f"/orders/{number}", f"order {number}"
            return _end(lines[secure].ask("POST", path, body, **key))
        except Refused as refused:
            return _end(refused.told)
        except (OSError, http.client.HTTPException):
            lost = lines.pop(secure, None)
            if lost is not None:
                lost.close()
            return LOST


def _end(told: Told) -> str:
    return ANSWERED if told.status == 200 else told.reason or f"status {told.status}"
