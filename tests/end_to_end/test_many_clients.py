"""A thousand clients at once: what each costs while it is silent, and how soon a halt ends all that
flows to them. Of the engine that is made for it."""

import asyncio
import base64
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import cast

import pytest

from ledger import containment
from ledger.connection import open_reader
from policies.verdict import Level, Scope
from proxy import control_client
from tests.end_to_end import certificates
from tests.end_to_end.memory import Memory
from tests.end_to_end.origin import HOST
from tests.end_to_end.running import Proxy, Run

STREAMS = IDLE = 1_000
CUT_SECONDS_MAX = 0.1  # of 99 in 100
CLIENT_BYTES_MAX = 60 * 1024
POLICY = f"""\
version: 1
tools:
  streams: {{match: {{host: {HOST}}}, allow_addresses: [127.0.0.0/8]}}
ceilings:
  - {{per: run, count: calls, unbounded: true}}
  - {{per: tenant, count: calls, unbounded: true}}
  - {{per: run, count: in_flight, unbounded: true}}
  - {{per: tenant, count: in_flight, unbounded: true}}
detectors: {{loop: {{mode: "off"}}, novelty: {{mode: "off"}}}}
"""
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: begun\n\n"
SHORT = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

pytestmark = [
    pytest.mark.proof,
    pytest.mark.alone,
    pytest.mark.http1("it is what the engine for HTTP/1.1 is made for"),
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]


class Origin(asyncio.Protocol):
    """Streams that never end, and short answers."""

    def __init__(self, connected: list[asyncio.Transport]) -> None:
        self._connected = connected

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._connected.append(self._transport)

    def data_received(self, data: bytes) -> None:
        self._transport.write(STREAM if b" /stream/" in data else SHORT)


@contextmanager
def running(folder: Path) -> Iterator[Proxy]:
    ports: list[int] = []
    connected: list[asyncio.Transport] = []
    ready, over = threading.Event(), threading.Event()

    async def serve() -> None:
        loop, made = asyncio.get_running_loop(), partial(Origin, connected)
        server = await loop.create_server(made, "127.0.0.1", 0, backlog=STREAMS)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        async with server:
            await asyncio.to_thread(over.wait)
            for transport in connected:
                transport.abort()

    origin = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    origin.start()
    ready.wait()
    files = certificates.make(folder, [HOST])
    proxy = Proxy(folder, POLICY, files.ca, {f"{HOST}:80": ports[0]}, workers=1)
    proxy.start()
    try:
        yield proxy
    finally:
        if proxy.process is not None:
            proxy.end(signal.SIGKILL)
        over.set()
        origin.join()


class Client(asyncio.Protocol):
    """Asks for one thing; `heard` once its answer began, `ended_ns` when its connection did."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self.heard = asyncio.Event()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended_ns = 0
        self.told = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).write(self._request)

    def data_received(self, data: bytes) -> None:
        self.told += data
        self.heard.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended_ns = time.time_ns()
        self.heard.set()
        self.ended.set_result(None)


def asking(run: Run, path: str) -> bytes:
    name, _, token = run.proxy_url.partition("://")[2].rpartition("@")[0].partition(":")
    code = base64.b64encode(f"{name}:{token}".encode()).decode()
    fields = f"Host: {HOST}\r\nProxy-Authorization: Basic {code}\r\n"
    return f"GET http://{HOST}{path} HTTP/1.1\r\n{fields}\r\n".encode()


async def opened(proxy: Proxy, run: Run, paths: list[str], ends: ExitStack) -> list[Client]:
    """All of them, each with the beginning of its answer."""
    loop, clients = asyncio.get_running_loop(), []
    for path in paths:
        make = partial(Client, asking(run, path))
        transport, client = await loop.create_connection(make, "127.0.0.1", proxy.port)
        ends.callback(transport.close)
        clients.append(client)
    for client in clients:
        await asyncio.wait_for(client.heard.wait(), 30)
        assert client.told.startswith(b"HTTP/1.1 200"), client.told
    return clients


async def test_a_halt_ends_a_thousand_streams_within_100_ms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some 6 seconds. Counted from the moment that the record gives for the cord."""
    with running(tmp_path) as proxy, ExitStack() as ends:
        mine, other = proxy.mint("acme"), proxy.mint("globex")
        clients = await opened(
            proxy, mine, [f"/stream/{number}" for number in range(STREAMS)], ends
        )
        (untouched,) = await opened(proxy, other, ["/stream/other"], ends)
        data = proxy.folder / "data"
        cord = {"level": "halt", "scope": "tenant", "subject": "acme"}
        answer = await asyncio.to_thread(control_client.ask, data, "POST", "/v1/pull", cord)
        await asyncio.wait_for(asyncio.gather(*(client.ended for client in clients)), 30)
        with closing(open_reader(data)) as reader:
            pulled_us = containment.proof(reader, Level.HALT, Scope.TENANT, "acme").pulled_us
        took = sorted((client.ended_ns / 1e9 - pulled_us / 1e6) for client in clients)
        with capsys.disabled():
            print(
                f"\n{len(took)} streams ended: p50 {took[len(took) // 2] * 1e3:.0f} ms, p99 "
                f"{took[len(took) * 99 // 100] * 1e3:.0f} ms, the last {took[-1] * 1e3:.0f} ms; "
                f"acknowledged in {answer['acknowledged_ms']} ms"
            )
        assert answer["cut"] == STREAMS
        assert answer["proof"]["still_open"] == []
        assert not untouched.ended.done()
        assert took[len(took) * 99 // 100] <= CUT_SECONDS_MAX
        proxy.stop()
        assert proxy.broken() == []


async def test_a_client_that_is_silent_takes_little_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Some 5 seconds. What the first hundred take is not theirs alone."""
    with running(tmp_path) as proxy, ExitStack() as ends:
        run = proxy.mint()
        clients = await opened(proxy, run, ["/short"] * 100, ends)
        assert proxy.process is not None
        memory = Memory(proxy.process.pid)
        clients += await opened(proxy, run, ["/short"] * IDLE, ends)
        more_bytes = memory.more_bytes()
        with capsys.disabled():
            print(f"\n{IDLE} silent clients: {more_bytes / IDLE / 1024:.1f} KiB each")
        assert not [client for client in clients if client.ended.done()]
        assert more_bytes / IDLE <= CLIENT_BYTES_MAX
