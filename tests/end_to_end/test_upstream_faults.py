"""What upstreams do to a call, as the table in tests/cases/upstream_faults.yaml says.

The whole proxy in this process, agents and upstreams on real sockets.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ledger.connection import open_reader
from proxy.engines import http1_pool, mitm_hooks
from proxy.engines.mitm_events import DialledHook
from proxy.serve import running
from proxy.settings import Settings
from tests.end_to_end.misbehaving import Upstream, accepting, misbehaving
from tests.end_to_end.misdeeds import HTTP1, HTTP2
from tests.end_to_end.two_versions import Agent, Sent, Told
from tests.engine import ENGINE, each
from tests.proxy.engines import inside
from tests.proxy.engines.conftest import (
    WAIT_SECONDS,
    Proxy,
    nothing_crashes,
    tls_context,
)

TABLE = yaml.safe_load(Path(__file__).parents[1].joinpath("cases/upstream_faults.yaml").read_text())
POLICY = """
version: 1
tools:
  api.read: {match: {host: api.test, path: "/read/**"}, effect: read,
             allow_addresses: [127.0.0.0/8]}
  api.write: {match: {host: api.test, path: "/write/**"}, effect: write,
              allow_addresses: [127.0.0.0/8]}
"""
USUAL: dict[str, Any] = {"whole": True, "claim": None, "trailers": {}, "interim": []}
UNTRUSTED = "has a certificate of nobody's"
BOTH = ("http1", "http2")

__all__ = ["nothing_crashes"]


@dataclass(frozen=True, slots=True)
class Row:
    """`expected` for each effect."""

    fault: str
    protocol: str
    expected: dict[str, dict[str, Any]]
    body_bytes: int = 0
    key: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.fault}, {self.protocol}{', with a key' if self.key else ''}"

    def sent(self, effect: str) -> Sent:
        body = b"x" * self.body_bytes or (b'{"a": 1}' if effect == "write" else b"")
        return Sent(f"/{effect}/it", body, (("idempotency-key", "k-1"),) if self.key else ())


def rows() -> list[Row]:
    outcomes = TABLE["outcomes"]
    return [
        Row(
            row["fault"],
            protocol,
            {each: USUAL | outcomes[row[each]] | row.get("and", {}) for each in ("read", "write")},
            row.get("body", 0),
            row.get("key", False),
            row.get("seconds", {}),
        )
        for row in TABLE["faults"]
        for protocol in row.get("by", BOTH)
    ]


@dataclass(slots=True)
class Places:
    """Where the one name leads: the first dial may meet another place than those after it."""

    port: int
    first: int | OSError | None = None
    dials: int = 0

    async def resolve(self, host: str, port: int) -> list[Any]:
        self.dials += 1
        place = self.first if self.dials == 1 and self.first is not None else self.port
        if isinstance(place, OSError):
            raise place
        address = ("127.0.0.1", place)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]


@dataclass(slots=True)
class World:
    """A proxy. Its upstream is another one for each call that is to meet a fault."""

    folder: Path
    protocol: str
    places: Places
    context: ssl.SSLContext | None
    proxy: Proxy

    @asynccontextmanager
    async def upstream(self, fault: str) -> AsyncIterator[Upstream]:
        script = (HTTP2 if self.protocol == "http2" else HTTP1).get(fault)
        async with misbehaving(script, self.context) as made, AsyncExitStack() as stack:
            self.places.port, self.places.dials, self.places.first = made.port, 0, None
            if script is None and fault != UNTRUSTED:
                self.places.first = await stack.enter_async_context(accepting(fault))
            yield made

    async def ask(self, sent: Sent) -> Told:
        """On a connection of its own."""
        return await (await Agent.connect(self.proxy, self.protocol)).ask(sent)

    async def last(self) -> dict[str, Any]:
        """The ledger's last call, once none is open."""
        while self.proxy.gate.live or any(
            call["state"] == "pending" for call in self.proxy.calls()
        ):
            await asyncio.sleep(0.01)
        return self.proxy.calls()[-1]

    def claims(self) -> list[str]:
        with closing(open_reader(self.folder / "data")) as reader:
            return [state for (state,) in reader.execute("SELECT state FROM claim")]


@asynccontextmanager
async def world(
    folder: Path, protocol: str, *, trusts: bool = True, **settings: Any
) -> AsyncIterator[World]:
    (folder / "config").mkdir()
    (folder / "config" / "policy.yaml").write_text(POLICY)
    ca = folder / "upstream.pem"
    context = tls_context(ca) if protocol != "plain" else None
    if context is not None and protocol == "http2":
        context.set_alpn_protocols(["h2"])
    places = Places(0)
    made = Settings(
        config=folder / "config",
        data=folder / "data",
        listen="127.0.0.1:0",
        identity="open",
        drain_seconds=1.0,
        engine=ENGINE,
        upstream_ca=ca if context and trusts else None,
        **settings,
    )
    async with running(made, resolve=places.resolve) as service, asyncio.timeout(WAIT_SECONDS):
        port = int(str(service.listening).rpartition(":")[2])
        proxy = Proxy(service, port, folder / "data")
        try:
            yield World(folder, protocol, places, context, proxy)
        finally:
            for writer in proxy.writers:
                writer.close()


@pytest.fixture(autouse=True)
def deadlines_are_looked_at_often(monkeypatch: pytest.MonkeyPatch) -> None:
    inside.set_constant(monkeypatch, "SWEEP_SECONDS", 0.05)


@pytest.fixture
def gone_before_the_request(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on the last look at the cords takes until the upstream has closed."""
    take = http1_pool.Pool.take

    async def taken(*where: Any, **how: Any) -> Any:
        found = await take(*where, **how)
        while found.is_open:
            await asyncio.sleep(0.01)
        monkeypatch.undo()
        return found

    look = mitm_hooks.HOOKS[DialledHook]

    async def slowly(handler: Any, flow: Any) -> None:
        while flow.server_conn.connected:
            await asyncio.sleep(0.01)
        monkeypatch.undo()
        await look(handler, flow)  # type: ignore[misc]

    def gone() -> None:
        monkeypatch.setattr(http1_pool.Pool, "take", taken)
        monkeypatch.setitem(mitm_hooks.HOOKS, DialledHook, slowly)

    return gone


@pytest.mark.parametrize("row", each(rows()), ids=str)
async def test_each_fault_has_one_answer_and_one_outcome(
    row: Row, tmp_path: Path, gone_before_the_request: Callable[[], None]
) -> None:
    trusts = row.fault != UNTRUSTED
    async with world(tmp_path, row.protocol, trusts=trusts, **row.seconds) as it:
        for effect in ("read", "write"):
            if row.fault == "closes before the request":
                gone_before_the_request()
            async with it.upstream(row.fault) as upstream:
                await _met(it, upstream, row.sent(effect), row.expected[effect])


async def _met(it: World, upstream: Upstream, sent: Sent, expected: dict[str, Any]) -> None:
    """The call meets the fault; then it is made again."""
    told = await it.ask(sent)
    call = await it.last()
    seen = {
        "arrives": len(upstream.arrived),
        "status": told.status,
        "reason": told.reason,
        "retry": told.headers.get("x-should-retry"),
        "whole": told.whole,
        "trailers": told.trailers,
        "interim": told.interim,
        "state": call["state"],
        "recorded": call["reason"] if call["reason"] != "allowed" else "",
        "claim": next(iter(it.claims()), None),
    }
    assert seen == {name: expected[name] for name in seen}, (sent.path, told)
    upstream.go.set()
    again, call = await it.ask(sent), await it.last()
    if expected["again"] == "sent":
        assert (again.status, again.body, call["state"]) == (200, b"ok", "done"), (again, call)
    elif expected["again"] == "replayed":
        same = (told.status, told.body, told.trailers)
        assert (again.status, again.body, again.trailers) == same
        assert (again.headers["idempotent-replayed"], call["state"]) == ("true", "replayed")
    else:
        assert again.reason == expected["again"]
    assert len(upstream.arrived) == expected["arrives"] + (expected["again"] == "sent")


async def _arrived(upstream: Upstream, count: int = 1) -> None:
    while len(upstream.arrived) < count:
        await asyncio.sleep(0.01)


PROTOCOLS = ("plain", "http1", "http2")
WRITE, READ = Sent("/write/it", b'{"a": 1}'), Sent("/read/it")


@pytest.mark.parametrize("protocol", each(PROTOCOLS))
async def test_a_write_whose_agent_leaves_is_finished_and_recorded(
    protocol: str, tmp_path: Path
) -> None:
    async with world(tmp_path, protocol) as it, it.upstream("answers late") as upstream:
        agent = await Agent.connect(it.proxy, protocol)
        asking = asyncio.create_task(agent.ask(WRITE))
        await _arrived(upstream)
        agent.leave()
        assert not (await asking).whole
        upstream.go.set()
        assert ((await it.last())["state"], it.claims()) == ("done", ["done"])
        again = await it.ask(WRITE)
        assert (again.status, again.body, again.reason) == (200, b"ok", "replayed")
        assert len(upstream.arrived) == 1


@pytest.mark.parametrize("protocol", each(PROTOCOLS))
async def test_a_read_whose_agent_leaves_ends_upstream_at_once(
    protocol: str, tmp_path: Path
) -> None:
    async with world(tmp_path, protocol) as it, it.upstream("waits for the end") as upstream:
        agent = await Agent.connect(it.proxy, protocol)
        asking = asyncio.create_task(agent.ask(READ))
        await _arrived(upstream)
        agent.leave()
        await asking
        await upstream.closed.wait()
        assert len(upstream.arrived) == 1


@pytest.mark.mitmproxy("it keeps connections for the client that dialled them")
@pytest.mark.parametrize("protocol", ["plain", "http1"])
async def test_a_kept_connection_that_breaks_is_not_tried_again_by_itself(
    protocol: str, tmp_path: Path
) -> None:
    async with world(tmp_path, protocol) as it, it.upstream("answers once") as upstream:
        agent = await Agent.connect(it.proxy, protocol)
        assert (await agent.ask(READ)).status == 200
        told = await agent.ask(READ)
        assert (told.status, told.reason) == (502, "upstream_failed")
        assert (upstream.connections, len(upstream.arrived)) == (1, 2)
        assert (await agent.ask(READ)).status == 200
        assert (upstream.connections, len(upstream.arrived)) == (2, 3)


@pytest.mark.http1(
    "it keeps connections for all clients, so one may be stale that nobody asked for"
)
@pytest.mark.parametrize("protocol", ["plain", "http1"])
async def test_a_read_on_a_kept_connection_that_breaks_is_tried_again_once(
    protocol: str, tmp_path: Path
) -> None:
    """And a write is never sent on a kept connection."""
    async with world(tmp_path, protocol) as it, it.upstream("answers once") as upstream:
        agent = await Agent.connect(it.proxy, protocol)
        assert (await agent.ask(READ)).status == 200
        assert (await agent.ask(READ)).status == 200
        assert (upstream.connections, len(upstream.arrived)) == (2, 3)
        assert (await agent.ask(WRITE)).status == 200
        assert (upstream.connections, len(upstream.arrived)) == (3, 4)
