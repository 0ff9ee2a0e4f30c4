"""The load: closed-loop clients in a process of their own, one call in flight for each.

`python load.py` takes one task a line on standard input and prints one result a line (`Task` and
`Result` as JSON). One loop over epoll. Any answer but the expected one ends the program with a
sentence.
"""

import gc
import itertools
import json
import os
import select
import socket
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.bench.clients import ANSWER_SECONDS, Client, Task, WrongAnswer, client
from tests.bench.messages import COUNT_PATH, HEAD_END, Kind, Way

WARM_CALLS = 3  # of each client, before anything is counted


@dataclass(frozen=True, slots=True)
class Result:
    """`calls` were counted and `all_calls` made, the warming ones too. `cpu_us` is per call."""

    calls: int
    all_calls: int
    seconds: float
    p50_us: float
    p99_us: float
    cpu_us: float


def cpu_ns(pid: int) -> dict[str, int]:
    """Nanoseconds on a CPU by thread, from the scheduler's own account."""
    spent = {}
    for thread in os.scandir(f"/proc/{pid}/task"):
        try:
            spent[thread.name] = int(Path(thread.path, "schedstat").read_text().split()[0])
        except (FileNotFoundError, ProcessLookupError):  # the thread ended just now
            continue
    return spent


class Load:
    """All clients of one task."""

    def __init__(self, task: Task, numbers: Iterator[int]) -> None:
        self._task = task
        self._anew = task.way is Way.NEW_TLS
        self._poll = select.epoll()
        credentials = itertools.cycle(task.credentials)
        self._clients = [client(task, next(credentials), numbers) for _ in range(task.clients)]
        self._open: dict[int, Client] = {}
        if not self._anew:
            for each in self._clients:
                self._awaited(each)

    def run(self) -> Result:
        task = self._task
        warm_calls = warming(task)
        self._call(calls=warm_calls, seconds=0.0)
        before = cpu_ns(task.pid) if task.pid else {}
        latencies, all_calls, seconds = self._call(calls=task.calls, seconds=task.seconds)
        after = cpu_ns(task.pid) if task.pid else {}
        spent_ns = sum(after.values()) - sum(before.get(thread, 0) for thread in after)
        if not latencies:
            raise WrongAnswer(f"no call of {task} ended within {task.seconds:g} s; give it more")
        latencies.sort()
        return Result(
            calls=len(latencies),
            all_calls=warm_calls + all_calls,
            seconds=seconds,
            p50_us=latencies[len(latencies) // 2] / 1e3,
            p99_us=latencies[len(latencies) * 99 // 100] / 1e3,
            cpu_us=spent_ns / 1e3 / all_calls,
        )

    def close(self) -> None:
        for each in self._clients:
            each.close()
        self._poll.close()

    def _call(self, calls: int, seconds: float) -> tuple[list[int], int, float]:
        """Nanoseconds of each call that ended in time, how many were made, and the seconds.

        With `calls` that many are made; else new ones begin until `seconds` are over.
        """
        latencies: list[int] = []
        left = calls - len(self._clients) if calls else sys.maxsize
        running = len(self._clients)
        clock, poll, opened = time.perf_counter_ns, self._poll.poll, self._open
        start = clock()
        end = start + (round(seconds * 1e9) if not calls else sys.maxsize)
        for each in self._clients:
            self._send(each)
        late = 0
        while running:
            events = poll(ANSWER_SECONDS)
            if not events:
                raise WrongAnswer(f"no answer within {ANSWER_SECONDS:g} seconds")
            for handle, _ in events:
                each = opened[handle]
                if not each.answered():
                    continue
                now = clock()
                if now <= end:
                    latencies.append(now - each.sent_ns)
                else:
                    late += 1
                if now < end and left > 0:
                    left -= 1
                    self._send(each)
                else:
                    running -= 1
        took = seconds if not calls else (clock() - start) / 1e9
        return latencies, len(latencies) + late, took

    def _send(self, each: Client) -> None:
        if not self._anew:
            each.send()
            return
        self._open.pop(each.sock.fileno(), None)
        each.send()
        self._awaited(each)

    def _awaited(self, each: Client) -> None:
        self._open[each.sock.fileno()] = each
        self._poll.register(each.sock.fileno(), select.EPOLLIN)


def warming(task: Task) -> int:
    """The calls that are made before the counted ones."""
    return task.clients * WARM_CALLS


def reaching(task: Task, all_calls: int) -> int:
    """How many of the calls are the upstream's to answer, where the proxy does as it should."""
    if task.kind is Kind.REFUSED:
        return 0
    return task.clients if task.kind is Kind.REPLAY else all_calls


def read_task(line: str) -> Task:
    told = json.loads(line)
    return Task(**{**told, "way": Way(told["way"]), "kind": Kind(told["kind"])})


def calls_seen(port: int) -> int:
    """How many calls reached the upstream so far, by its own count."""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS) as sock:
        sock.sendall(f"GET {COUNT_PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        heard = b""
        while not heard.endswith(b"}"):
            heard += sock.recv(65_536)
    return int(json.loads(heard.partition(HEAD_END)[2])["calls"])


def main() -> None:
    gc.disable()
    orders = itertools.count(1)
    for line in sys.stdin:
        load = Load(read_task(line), orders)
        try:
            result = load.run()
        finally:
            load.close()
        gc.collect()
        print(json.dumps(asdict(result)), flush=True)


if __name__ == "__main__":
    try:
        main()
    except (WrongAnswer, OSError) as error:
        sys.exit(f"load: {error}")
