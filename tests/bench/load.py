"""The load: closed-loop clients in a process of their own, one call in flight on each connection.

`python load.py` takes one task a line on standard input and prints one result a line (`Task` and
`Result` as JSON). One loop over epoll with blocking-style TLS objects: asyncio's would be slower
than some of what it measures. Any answer but the expected one ends the program with a sentence.
"""

import gc
import itertools
import json
import os
import select
import socket
import ssl
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.bench.messages import COUNT_PATH, HEAD_END, Requests, connect

ANSWER_SECONDS = 60.0  # a proxy that is silent for so long has lost a call
ANSWER_BYTES_MAX = 65_536
WARM_CALLS = 3  # on each connection, before anything is counted


class WrongAnswer(Exception):
    """Something else came back than the upstream said, or nothing at all."""


@dataclass(frozen=True, slots=True)
class Task:
    """`proxy_port` None goes straight to the upstream. Either `seconds` or `calls` is given.

    `credentials` are handed to the connections in turn; `pid` is the process whose CPU counts.
    """

    proxy_port: int | None
    upstream_port: int
    tls: bool
    write: bool
    clients: int
    trust: str
    credentials: list[str] = field(repr=False)
    pid: int | None = None
    seconds: float = 0.0
    calls: int = 0


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


class Connection:
    """One client: sends a request, waits for its whole answer, sends the next."""

    def __init__(self, task: Task, credentials: str | None, writes: itertools.count | None) -> None:
        authority = f"127.0.0.1:{task.upstream_port}"
        port = task.proxy_port or task.upstream_port
        self.sock = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if task.tls:
            if task.proxy_port is not None:
                self._open_tunnel(authority, credentials)
            self.sock = _trusting(task.trust).wrap_socket(self.sock, server_hostname="127.0.0.1")
        self.sock.setblocking(False)
        absolute = task.proxy_port is not None and not task.tls
        self._requests = Requests(
            authority, absolute=absolute, credentials=credentials, writes=writes
        )
        self._expected = b""
        self._heard = b""
        self.sent_ns = 0

    def _open_tunnel(self, authority: str, credentials: str | None) -> None:
        self.sock.sendall(connect(authority, credentials))
        heard = b""
        while HEAD_END not in heard:
            more = self.sock.recv(65_536)
            if not more:
                raise WrongAnswer(f"the tunnel was closed after {heard!r}")
            heard += more
        if not heard.startswith(b"HTTP/1.1 200"):
            raise WrongAnswer(f"the tunnel was refused: {heard[:600].decode('latin-1')}")

    def send(self) -> None:
        request, self._expected = self._requests.next()
        self._heard = b""
        self.sent_ns = time.perf_counter_ns()
        self.sock.send(request)

    def answered(self) -> bool:
        """Whether the expected answer is here. Raises WrongAnswer for every other one."""
        try:
            heard = self.sock.recv(ANSWER_BYTES_MAX)
        except ssl.SSLWantReadError:
            return False  # a session ticket, or half a record
        self._heard += heard
        if self._heard.endswith(self._expected) and self._heard.startswith(b"HTTP/1.1 200"):
            return True
        if not heard:
            raise WrongAnswer(f"the connection was closed after {self._heard[:600]!r}")
        self._check()
        return False

    def _check(self) -> None:
        head, found, body = self._heard.partition(HEAD_END)
        wrong = bool(found) and (
            not head.startswith(b"HTTP/1.1 200") or len(body) > len(self._expected)
        )
        if wrong:
            raise WrongAnswer(f"not the expected answer: {self._heard[:900].decode('latin-1')}")


def _trusting(trust: str) -> ssl.SSLContext:
    """Only this authority: what is not intercepted by the proxy under test fails."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(trust)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # mitmproxy's own leaf lacks a key usage
    return context


class Load:
    """All connections of one task."""

    def __init__(self, task: Task, writes: itertools.count) -> None:
        self._task = task
        self._poll = select.epoll()
        self._open: dict[int, Connection] = {}
        for number in range(task.clients):
            credentials = task.credentials[number % len(task.credentials)]
            connection = Connection(task, credentials, writes if task.write else None)
            self._open[connection.sock.fileno()] = connection
            self._poll.register(connection.sock.fileno(), select.EPOLLIN)

    def run(self) -> Result:
        task = self._task
        warm_calls = task.clients * WARM_CALLS
        self._call(calls=warm_calls, seconds=0.0)
        before = cpu_ns(task.pid) if task.pid else {}
        latencies, all_calls, seconds = self._call(calls=task.calls, seconds=task.seconds)
        after = cpu_ns(task.pid) if task.pid else {}
        spent_ns = sum(after.values()) - sum(before.get(thread, 0) for thread in after)
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
        for connection in self._open.values():
            connection.sock.close()
        self._poll.close()

    def _call(self, calls: int, seconds: float) -> tuple[list[int], int, float]:
        """Nanoseconds of each call that ended in time, how many were made, and the seconds.

        With `calls` that many are made; else new ones begin until `seconds` are over.
        """
        latencies: list[int] = []
        left = calls - len(self._open) if calls else sys.maxsize
        running = len(self._open)
        clock, poll, opened = time.perf_counter_ns, self._poll.poll, self._open
        start = clock()
        end = start + (round(seconds * 1e9) if not calls else sys.maxsize)
        for connection in opened.values():
            connection.send()
        late = 0
        while running:
            events = poll(ANSWER_SECONDS)
            if not events:
                raise WrongAnswer(f"no answer within {ANSWER_SECONDS:g} seconds")
            for handle, _ in events:
                connection = opened[handle]
                if not connection.answered():
                    continue
                now = clock()
                if now <= end:
                    latencies.append(now - connection.sent_ns)
                else:
                    late += 1
                if now < end and left > 0:
                    left -= 1
                    connection.send()
                else:
                    running -= 1
        took = seconds if not calls else (clock() - start) / 1e9
        return latencies, len(latencies) + late, took


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
        load = Load(Task(**json.loads(line)), orders)
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
