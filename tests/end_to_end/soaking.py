"""Agents that call without end, run after run, and what the proxy holds meanwhile.

Each connection is one run's: so many calls, then a new token, a new run, a new connection. Calls
are reads, writes with a key, the same write again, writes without one, and what the policy refuses.
"""

import asyncio
import base64
import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean

from proxy import control_client
from tests.bench.messages import HEAD_END, READ_ANSWER, write_answer
from tests.end_to_end.memory import family, told_bytes

HOST = "api.soak.example"
CONNECTIONS = 32
CALLS_OF_A_RUN = 500
TENANTS = 20
ANSWER_SECONDS = 60.0
SAMPLES = 100  # over all calls
KINDS = {"read": 70, "write": 18, "again": 4, "derived": 3, "refused": 5}  # of a hundred calls

POLICY = f"""\
version: 1
tools:
  soak.read:
    match: {{host: {HOST}, method: GET, path: "/items/{{id}}"}}
    allow_addresses: [127.0.0.0/8]
  soak.order:
    match: {{host: {HOST}, method: POST, path: /orders}}
    effect: write
    idempotency: {{header: Idempotency-Key, missing: derive}}
    allow_addresses: [127.0.0.0/8]
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """After so many calls: what each process has in memory, and how long the logs on the disk are.

    In megabytes, by the process's name and by the file's.
    """

    calls: int
    seconds: float
    memory_mb: dict[str, float]
    logs_mb: dict[str, float]

    @property
    def memory(self) -> float:
        return sum(self.memory_mb.values())

    @property
    def logs(self) -> float:
        return sum(self.logs_mb.values())


class Watch:
    """Samples of a running proxy, which was started as the process `pid`."""

    def __init__(self, pid: int, data: Path) -> None:
        self.samples: list[Sample] = []
        self._pid = pid
        self._data = data

    def take(self, calls: int, seconds: float) -> None:
        memory = {}
        for pid in family(self._pid):
            size_bytes = told_bytes(pid, "VmRSS")
            if size_bytes:
                memory[f"{_name(pid)} {pid}"] = size_bytes / 2**20
        logs = {path.name: path.stat().st_size / 2**20 for path in self._data.rglob("*-wal")}
        self.samples.append(Sample(calls, seconds, memory, logs))

    def tenth(self, number: int) -> float:
        """The mean memory over one tenth of the calls, the first is 1."""
        width = len(self.samples) // 10
        return mean(each.memory for each in self.samples[(number - 1) * width : number * width])

    def table(self) -> str:
        """A line for every tenth sample."""
        lines = ["    calls  seconds  calls/s  memory MB (each process); logs MB"]
        last = Sample(0, 0.0, {}, {})
        for sample in self.samples:
            if sample is not self.samples[-1] and sample.calls * 10 % self.samples[-1].calls:
                continue
            rate = (sample.calls - last.calls) / max(sample.seconds - last.seconds, 1e-9)
            each, logs = (
                ", ".join(f"{name.split()[0]} {size:.1f}" for name, size in sorted(sizes.items()))
                for sizes in (sample.memory_mb, sample.logs_mb)
            )
            lines.append(
                f"{sample.calls:>9,} {sample.seconds:>8.0f} {rate:>8.0f}  "
                f"{sample.memory:>9.1f} ({each}); {logs}"
            )
            last = sample
        return "\n".join(lines)


def _name(pid: int) -> str:
    """The module that it runs, or the last word of its command."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().rstrip("\0").split("\0")
    return words[words.index("-m") + 1] if "-m" in words else words[-1]


@dataclass(slots=True)
class Soak:
    """`calls` calls through the proxy on `port`. `seen` counts them by kind."""

    port: int
    data: Path
    calls: int
    watch: Watch
    seen: Counter[str] = field(default_factory=Counter)
    runs: int = 0
    _dice: random.Random = field(default_factory=lambda: random.Random(7))
    _orders: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _begun: int = 0
    _ended: int = 0

    async def run(self) -> None:
        """Raises AssertionError at the first answer that is not the expected one."""
        start = asyncio.get_running_loop().time()

        def ended() -> None:
            self._ended += 1
            if self._ended % max(1, self.calls // SAMPLES) == 0:
                self.watch.take(self._ended, asyncio.get_running_loop().time() - start)

        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._agent(ended))

    async def _agent(self, ended: Callable[[], None]) -> None:
        while self._begun < self.calls:
            agent = Agent(await self._minted(), self._dice, self._orders)
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
            try:
                for _ in range(CALLS_OF_A_RUN):
                    if self._begun >= self.calls:
                        return
                    self._begun += 1
                    kind = await asyncio.wait_for(agent.call(reader, writer), ANSWER_SECONDS)
                    self.seen[kind] += 1
                    ended()
            finally:
                writer.close()

    async def _minted(self) -> str:
        """The credentials of a run that is new."""
        self.runs += 1
        wanted = {"run": f"soak-{self.runs}", "tenant": f"tenant-{self.runs % TENANTS}"}
        told = await asyncio.to_thread(control_client.ask, self.data, "POST", "/v1/tokens", wanted)
        return f"{wanted['run']}:{told['secret']}"


class Agent:
    """One run: says one thing after the other on its connection."""

    def __init__(self, credentials: str, dice: random.Random, orders: Iterator[int]) -> None:
        code = base64.b64encode(credentials.encode()).decode()
        self._fields = f"Host: {HOST}\r\nProxy-Authorization: Basic {code}\r\n"
        self._dice = dice
        self._orders = orders
        self._written: tuple[bytes, bytes] | None = None

    async def call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Makes one call; which kind it was."""
        (kind,) = self._dice.choices(list(KINDS), list(KINDS.values()))
        if kind == "again" and self._written is None:
            kind = "write"
        request, status, body = getattr(self, f"_{kind}")()
        writer.write(request)
        head = (await reader.readuntil(HEAD_END)).decode("latin-1")
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:-2])
        told = await reader.readexactly(int(fields["content-length"]))
        assert head.split(" ", 2)[1] == status, f"{kind}: {head}{told!r}"
        assert body is None or told == body, f"{kind}: {told!r} instead of {body!r}"
        assert ("idempotent-replayed" in fields) == (kind == "again"), f"{kind}: {head}"
        return kind

    def _read(self) -> tuple[bytes, str, bytes]:
        target = f"http://{HOST}/items/{self._dice.randrange(1_000)}"
        return f"GET {target} HTTP/1.1\r\n{self._fields}\r\n".encode(), "200", READ_ANSWER

    def _refused(self) -> tuple[bytes, str, None]:
        target = f"http://{HOST}/secrets/{self._dice.randrange(1_000)}"
        return f"GET {target} HTTP/1.1\r\n{self._fields}\r\n".encode(), "403", None

    def _write(self) -> tuple[bytes, str, bytes]:
        number = next(self._orders)
        self._written = self._order(number, f"Idempotency-Key: order-{number}\r\n")
        return self._written[0], "200", self._written[1]

    def _again(self) -> tuple[bytes, str, bytes]:
        assert self._written is not None
        return self._written[0], "200", self._written[1]

    def _derived(self) -> tuple[bytes, str, bytes]:
        request, answer = self._order(next(self._orders), "")
        return request, "200", answer

    def _order(self, number: int, key: str) -> tuple[bytes, bytes]:
        digits = b"%012d" % number
        body = b'{"currency":"eur","amount":1250,"order":"%s"}' % digits
        head = (
            f"POST http://{HOST}/orders HTTP/1.1\r\n{self._fields}{key}"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body, write_answer(digits)
