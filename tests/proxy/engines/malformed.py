"""The rows of tests/cases/malformed_*.yaml, and what became of all of them over one engine."""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import yaml

from tests.engine import LOOPS, Engine
from tests.proxy.engines import crashes, inside, raw
from tests.proxy.engines.conftest import proxy_in
from tests.proxy.engines.raw import Recorder, Told

CASES = Path(__file__).parents[2] / "cases"
TUNNELLED = 2  # values of `each` that go by both ingresses; one parser reads both
AT_ONCE = 24  # rows that are under way together: those that wait cost no time of others
ALL_SECONDS = 120.0  # of one engine; a row that hangs is told by its own answer's limit

POLICY = """
version: 1
tools:
  api.read: {match: {host: "*.test", method: [GET, HEAD]}, allow_addresses: [127.0.0.0/8]}
  api.write: {match: {host: "*.test"}, allow_addresses: [127.0.0.0/8]}
"""
SETTINGS: dict[str, Any] = {
    "body_bytes_max": 100_000,
    "first_byte_seconds": 2.0,
    "idle_seconds": 0.4,
    "within_seconds": ALL_SECONDS,
}

HANGS_UP = (400, 413, 431, 505)
"""After these nobody can say where the next request starts."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row by one ingress. `path` is its own."""

    it: str
    path: str
    tunnel: bool
    value: str
    row: dict[str, Any] = field(repr=False)

    def __str__(self) -> str:
        value = f" ({ascii(self.value)[1:-1][:40]})" if "each" in self.row else ""
        return f"{self.it}{value}{', in a tunnel' if self.tunnel else ''}"

    def parts(self) -> list[bytes]:
        send = self.row["send"]
        by_byte = isinstance(send, dict)
        texts = [send["bytes"]] if by_byte else [send] if isinstance(send, str) else send
        parts = [
            raw.written(text, self.path, tunnel=self.tunnel, value=self.value) for text in texts
        ]
        return [bytes((byte,)) for byte in parts[0]] if by_byte else parts

    def expected(self, engine: Engine) -> "Expected":
        serves = "http1" if engine == "auto" else engine  # none of the rows is HTTP/2
        row = {**self.row, **self.row.get(serves, {})}
        arrives = [raw.repeated(one) for one in row.get("upstream", row.get("passes", []))]
        arrives = [one.replace("<v>", self.value) for one in arrives]
        statuses = [200] * len(arrives)
        if "refused" in row:
            statuses = [row["refused"]]
        statuses = row.get("told", statuses)
        return Expected(
            list(statuses),
            None if statuses and "refused" not in row and not arrives else arrives,
            bool(row.get("closed")) or bool(statuses and statuses[-1] in HANGS_UP),
        )


@dataclass(frozen=True, slots=True)
class Expected:
    """`arrives` as METHOD/rest:body; None where the row does not say."""

    statuses: list[int]
    arrives: list[str] | None
    closes: bool


@dataclass(slots=True)
class Outcome:
    """What became of a row: what its client was told, and what its upstream was."""

    told: Told
    arrived: list[str]
    words: bytes


@dataclass(slots=True)
class Outcomes:
    """Of all rows over one engine; `unjudged` and `crashes` should have nothing in them."""

    of: dict[str, Outcome] = field(default_factory=dict)
    unjudged: list[str] = field(default_factory=list)
    crashes: list[str] = field(default_factory=list)
    evil: list[str] = field(default_factory=list)


def rows() -> Iterator[Row]:
    numbers = 0
    for path in sorted(CASES.glob("malformed_*.yaml")):
        for row in yaml.safe_load(path.read_text("utf-8")):
            for place, value in enumerate(row.get("each", [""])):
                for way in row.get("by", ["plain", "tunnel"][: 1 + (place < TUNNELLED)]):
                    numbers += 1
                    yield Row(row["it"], f"/r{numbers}", way == "tunnel", value, row)


def outcomes(engine: Engine, folder: Path, chosen: Sequence[Row]) -> Outcomes:
    """Sends the rows, many at a time, to one proxy that runs as the program does."""
    with asyncio.Runner(loop_factory=LOOPS[engine]) as runner, crashes.watched() as seen, quiet():
        found = runner.run(_sent(engine, folder, chosen))
        found.crashes = seen
        return found


@contextmanager
def quiet() -> Iterator[None]:
    """Two lines of the log for each row would take longer than the rows."""
    before = structlog.get_config()["wrapper_class"]
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        yield
    finally:
        structlog.configure(wrapper_class=before)


async def _sent(engine: Engine, folder: Path, chosen: Sequence[Row]) -> Outcomes:
    recorder, found = Recorder(), Outcomes()
    upstream = await asyncio.start_server(recorder, "127.0.0.1", 0)
    port = upstream.sockets[0].getsockname()[1]
    turn = asyncio.Semaphore(AT_ONCE)
    settings = SETTINGS | inside.setting(engine)
    with inside.sweeping_often(engine):
        async with (
            proxy_in(folder, port, POLICY, **settings) as proxy,
            raw.judging(proxy.gate) as j,
        ):

            async def send(row: Row) -> None:
                async with turn:
                    found.of[row.path] = await _outcome(row, engine, proxy.port, recorder)

            await asyncio.gather(*(send(row) for row in chosen))
            while proxy.gate.live:
                await asyncio.sleep(0.01)
            await proxy.service.decider.act(lambda store: None)  # all outcomes are written by then
            found.unjudged = raw.unjudged(recorder, j, proxy)
            found.evil = [str(one) for one in recorder.seen if "evil" in one.target]
    upstream.close()
    return found


async def _outcome(row: Row, engine: Engine, port: int, recorder: Recorder) -> Outcome:
    expected = row.expected(engine)
    told = await raw.told(
        port,
        row.parts(),
        answers=len(expected.statuses),
        tunnel=row.tunnel,
        bodiless=bool(row.row.get("bodiless")),
        closes=expected.closes,
        pause_seconds=0.0 if isinstance(row.row["send"], dict) else 0.01,
    )
    seen = recorder.of(row.path)
    arrived = [_shown(one.method, one.target.removeprefix(row.path), one.body) for one in seen]
    words = b"".join(
        b"%b: %b\r\n" % item for one in seen for item in (*one.fields, (b"", one.body))
    )
    return Outcome(told, arrived, words.lower())


def _shown(method: str, rest: str, body: bytes) -> str:
    return method + rest + (f":{body.decode('latin-1')}" if body else "")
