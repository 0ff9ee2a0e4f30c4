"""Made-up conversations: requests right and mutated, cut anywhere, many at once, left any time."""

import asyncio
import os
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from hypothesis import strategies as st

from policies.detectors.runs import DETECTORS
from tests.engine import Engine
from tests.proxy.engines import inside, raw
from tests.proxy.engines.conftest import Proxy, proxy_in
from tests.proxy.engines.raw import CREDENTIALS, LOST, TUNNEL, Judged, Recorder, Seen

FUZZ_SECONDS = float(os.environ.get("FUZZ_SECONDS", "8"))
ENDS_SECONDS = 6.0  # once its client has gone a conversation ends within this
QUIET_SECONDS = 0.02
_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger: on, for no time (socket(7))

_OFF = ", ".join(f'{detector}: "off"' for detector in DETECTORS)
POLICY = f"""
version: 1
detectors: {{{_OFF}}}
tools:
  api.read: {{match: {{host: "*.test", method: [GET, HEAD]}}, allow_addresses: [127.0.0.0/8]}}
  api.write:
    match: {{host: "*.test"}}
    idempotency: {{missing: "off"}}
    allow_addresses: [127.0.0.0/8]
ceilings:
  - {{per: run, count: calls, unbounded: true}}
  - {{per: tenant, count: calls, unbounded: true}}
  - {{per: run, count: in_flight, unbounded: true}}
  - {{per: tenant, count: in_flight, unbounded: true}}
"""

ENDINGS = ("reads", "reads", "reads", "half-closes", "closes", "resets")

METHODS = st.sampled_from([b"GET", b"POST", b"PUT", b"HEAD", b"DELETE", b"PATCH"])
PATHS = st.sampled_from([b"/f", b"/f/1", b"/f?a=b", b"/f%20", b"/f//x"])
FIELDS = st.sampled_from([
    b"X-A: a", b"Accept: */*", b"Connection: keep-alive", b"Connection: close", b"X-B:",
    b"TE: trailers",
    b"Expect: 100-continue", b"Content-Type: application/json", b"Authorization: Basic eDp5",
    b"Upgrade: h2c", b"Cookie: a=b; c=d", b"X-Long: " + b"a" * 500,
])  # fmt: skip
ODD = st.sampled_from([
    b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"\x7f", b"\xff",
    b"#", b"0", b"0\r\n\r\n", b"\r\n ", b"Content-Length: 5\r\n", b"Host: evil.test\r\n",
    b"Transfer-Encoding: chunked\r\n", b"GET /f HTTP/1.1\r\nHost: api.test\r\n\r\n",
    b"HTTP/1.1", b"http://", b"//", b"ffffffffffffffff",
])  # fmt: skip


@dataclass(frozen=True, slots=True)
class Conversation:
    """What one client sends, in these parts, and how it ends."""

    parts: tuple[bytes, ...]
    tunnel: bool
    ending: str


@st.composite
def _bodies(draw: st.DrawFn) -> bytes:
    """The framing's field, the end of the head, and a body."""
    body = draw(st.binary(max_size=60))
    match draw(st.sampled_from(["none", "length", "chunked"])):
        case "length":
            return b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        case "chunked":
            size = draw(st.integers(1, 20))
            chunks = [body[at : at + size] for at in range(0, len(body), size)]
            sent = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
            trailers = draw(st.sampled_from([b"", b"", b"X-T: t\r\n"]))
            return b"Transfer-Encoding: chunked\r\n\r\n%b0\r\n%b\r\n" % (sent, trailers)
        case _:
            return b"\r\n"


@st.composite
def _requests(draw: st.DrawFn, *, tunnel: bool) -> bytes:
    authority = b"" if tunnel else b"http://api.test"
    line = b"%b %b%b HTTP/1.1" % (draw(METHODS), authority, draw(PATHS))
    fields = [b"Host: api.test", *draw(st.lists(FIELDS, max_size=4))]
    head = b"".join(one + b"\r\n" for one in (line, *fields))
    return head + (b"" if tunnel else CREDENTIALS) + draw(_bodies())


@st.composite
def _mutated(draw: st.DrawFn, data: bytes) -> bytes:
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 4]))):
        at = draw(st.integers(0, len(data)))
        match draw(st.sampled_from(["insert", "drop", "replace", "repeat", "truncate"])):
            case "insert":
                data = data[:at] + draw(ODD) + data[at:]
            case "drop":
                data = data[:at] + data[at + draw(st.integers(1, 4)) :]
            case "replace":
                data = data[:at] + draw(ODD) + data[at + 1 :]
            case "repeat":
                data = data[:at] + data[max(0, at - draw(st.integers(1, 40))) :]
            case _:
                data = data[:at]
    return data


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    tunnel = draw(st.booleans())
    sent = b"".join(draw(st.lists(_requests(tunnel=tunnel), min_size=1, max_size=4)))
    sent = draw(_mutated(sent))
    cuts = sorted(draw(st.lists(st.integers(0, len(sent)), max_size=6)))
    edges = [0, *cuts, len(sent)]
    parts = [sent[begin:end] for begin, end in pairwise(edges)]
    return Conversation(tuple(filter(None, parts)), tunnel, draw(st.sampled_from(ENDINGS)))


@dataclass(slots=True)
class World:
    """A proxy, and an upstream that all of its names lead to. What arrived is counted against what
    was let through."""

    proxy: Proxy
    recorder: Recorder
    judged: Judged
    count: int = 0
    arrived: int = 0
    checked: int = 0
    left: Counter[tuple[str, str, bytes]] = field(default_factory=Counter)

    async def hold(self, many: list[Conversation]) -> None:
        """All at once. Raises AssertionError for what must never be."""
        await asyncio.gather(*(self._one(each) for each in many))
        async with asyncio.timeout(ENDS_SECONDS):
            while self.proxy.gate.live:
                await asyncio.sleep(0.001)
        self.count += len(many)
        self.check()

    def check(self) -> None:
        assert self.recorder.odd == []
        for request in self.judged.admitted.values():
            self.left[request.method, request.target, request.body] += 1
        self.judged.admitted.clear()
        for one in self.recorder.seen:
            self._check(one)
        self.arrived += len(self.recorder.seen)
        self.recorder.seen.clear()

    def _check(self, one: Seen) -> None:
        key = (one.method, one.target, one.body)
        assert self.left[key] > 0, f"{one} was not let through"
        self.left[key] -= 1
        assert b"evil.test" not in one.values(b"host"), one

    async def _one(self, said: Conversation) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy.port)
        try:
            if said.tunnel:
                writer.write(TUNNEL)
                await reader.readuntil(b"\r\n\r\n")
            with suppress(*LOST):
                for part in said.parts:
                    writer.write(part)
                    await writer.drain()
                    await asyncio.sleep(0)
            await _ended(said.ending, reader, writer)
        finally:
            writer.close()


async def _ended(ending: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    if ending == "resets":
        connected = writer.get_extra_info("socket")
        if connected is not None:
            with suppress(OSError):  # it was hung up on
                connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        writer.transport.abort()
        return
    if ending == "reads":
        with suppress(TimeoutError, OSError):
            while True:
                async with asyncio.timeout(QUIET_SECONDS):
                    if not await reader.read(65536):
                        return
    if ending != "closes":
        with suppress(*LOST):
            writer.write_eof()
            async with asyncio.timeout(ENDS_SECONDS):  # it hangs up on whoever has ended
                while await reader.read(65536):
                    pass


@asynccontextmanager
async def world(engine: Engine, folder: Path) -> AsyncIterator[World]:
    recorder = Recorder()
    upstream = await asyncio.start_server(recorder, "127.0.0.1", 0)
    settings = inside.setting(engine) | {"idle_seconds": 0.3, "first_byte_seconds": 2.0}
    port = upstream.sockets[0].getsockname()[1]
    with inside.sweeping_often(engine):
        async with (
            proxy_in(
                folder, port, POLICY, within_seconds=2 * FUZZ_SECONDS + 60, **settings
            ) as proxy,
            raw.judging(proxy.gate) as judged,
        ):
            yield World(proxy, recorder, judged)
    upstream.close()
