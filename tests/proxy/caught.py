"""A tracer in the hand, on a real socket, and calls that are caught for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ledger.errors import Kind, LedgerUnavailable
from ledger.records import Ask
from policies.call import Effect, Identity, Request, ToolCall
from policies.load import load
from proxy.catching import Catch
from proxy.clock import SystemClock
from proxy.control_socket import bound
from proxy.tracing import Level, Tracing
from proxy.wire import Peer

POLICY = load(
    """\
version: 1
redact: {keys: [pin]}
tools:
  mail: {match: {host: mail.example}}
  silent: {match: {host: silent.example}, trace: none}
  loud: {match: {host: loud.example}, trace: full}
""",
    "policy.yaml",
)
WHO = Identity("r1", "acme", release="2026-11-22")
WAIT_SECONDS = 5.0


@dataclass
class Tracer:
    """Keeps what comes, or fails as it is told to."""

    path: Path
    kept: list[Any] = field(default_factory=list)
    failure: Exception | None = None
    hangs: bool = False

    def keep(self, batch: list[Any]) -> Any:
        if self.hangs:
            return asyncio.get_running_loop().create_future()
        if self.failure is not None:
            raise self.failure
        self.kept += batch
        return len(batch)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        peers: list[Peer] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peers.append(Peer(reader, writer, {"keep": self.keep}))
            await peers[-1].serve()

        server = await asyncio.start_unix_server(serve, sock=bound(self.path))
        try:
            yield
        finally:
            server.close()
            for peer in peers:
                peer.close()


@dataclass
class Place:
    tracer: Tracer
    told: list[tuple[Any, ...]] = field(default_factory=list)
    untold: int = 0

    async def tell(self, *loss: Any) -> None:
        if self.untold:
            self.untold -= 1
            raise LedgerUnavailable(Kind.FULL)
        self.told.append(loss)

    def tracing(self, level: Level = "full", **more: Any) -> Tracing:
        return Tracing(SystemClock(), level, self.tracer.path, tell=self.tell, **more)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(Tracer(tmp_path / "tracer.sock"))


def asked(tool: str = "mail", body: bytes = b"", call_id: str = "c1", **request: Any) -> Ask:
    call = ToolCall(tool, Effect.WRITE, "", b"")
    told = {"method": "POST", "scheme": "https", "host": f"{tool}.example", "port": 443, **request}
    made = Request(**{"target": "/inbox?all=1", **told}, headers=(("x-a", "1"),), body=body)
    return Ask(call_id, 1_000, WHO, made, call)


def caught(traced: Tracing, ask: Ask, *chunks: bytes, status: int = 200) -> Catch | None:
    """A whole call."""
    catch = traced.asked(ask, WHO, POLICY, is_let_through=True)
    if catch is not None:
        catch.headed(status, ((b"Content-Type", b"text/plain"),))
        for chunk in chunks:
            catch.add(chunk)
        catch.settled(status, (), is_first=True, is_over=True)
    return catch


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.01)
