"""A hostile agent asks every control route through the proxy, by every way and name: none reaches.

It has its own token for the proxy and a stolen one of an admin for the control API, so whatever
came through would be done. About 10 seconds.
"""

import asyncio
import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import h2.config
import h2.connection
import h2.events
import pytest

from ledger.store import Grant
from proxy import operations
from proxy.control import ROUTES
from proxy.control_access import Route
from proxy.control_client import TOKEN_FILE
from proxy.dial import system_resolver
from proxy.serve import running
from proxy.settings import Settings
from tests.engine import HTTP2
from tests.ports import free_port
from tests.proxy.engines.conftest import Proxy, whole_answer

# Every way to write this machine: a policy that allows them all is no excuse.
HOSTS = [
    "localhost",
    "LOCALHOST.",
    "127.0.0.1",
    "127.0.0.2",
    "127.1",
    "2130706433",
    "0x7f000001",
    "0177.0.0.1",
    "0.0.0.0",
    "[::1]",
    "[::]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "rebound.test",
    socket.gethostname(),
    "pullcord.invalid",
    "pullcord.invalid.",
    "pullcord.INVALID",
]

POLICY = """
version: 1
unlisted: allow
tools:
  near: {match: {host: 127.0.0.1, port: PORT}, allow_addresses: [0.0.0.0/0, "::/0"]}
  named: {match: {host: localhost, port: PORT}, allow_addresses: [0.0.0.0/0, "::/0"]}
  six: {match: {host: "::1", port: PORT}, allow_addresses: [0.0.0.0/0, "::/0"]}
  any: {match: {host: "*.test", port: PORT}, allow_addresses: [0.0.0.0/0, "::/0"]}
  web: {match: {host: api.test, port: WEB}, effect: read, allow_addresses: [127.0.0.0/8]}
"""

BODIES: dict[str, dict[str, Any]] = {
    "/v1/pull": {"level": "halt", "scope": "global"},
    "/v1/release": {"level": "halt", "scope": "run", "subject": "stood", "reason": "x"},
    "/v1/tokens": {"run": "stolen", "tenant": "acme"},
    "/v1/tokens/revoke": {"name": "local"},
    "/v1/operators": {"name": "thief", "role": "admin"},
}


class Agent:
    """`stolen` is the admin's token; each way gives the raw answer."""

    def __init__(self, proxy: Proxy, control_port: int, stolen: str, secret: str) -> None:
        self.proxy, self.control_port = proxy, control_port
        self.credentials = proxy.credentials("hostile", secret).decode()
        self.stolen = stolen

    def head(self, route: Route, target: str, authority: str, *, own: str = "") -> bytes:
        body = json.dumps(BODIES.get(route.path, {})).encode()
        lines = [
            f"{route.method} {target} HTTP/1.1",
            f"Host: {authority}",
            f"Authorization: Bearer {self.stolen}",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
        return ("\r\n".join(lines) + f"\r\n{own}\r\n").encode() + body

    async def tunnel(self, authority: str) -> tuple[bytes, Any, Any]:
        reader, writer = await self.proxy.connect()
        head = f"CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n{self.credentials}\r\n"
        writer.write(head.encode())
        return await reader.readuntil(b"\r\n\r\n"), reader, writer

    async def plain(self, route: Route, authority: str) -> bytes:
        target = f"http://{authority}{route.path}"
        return await self.proxy.exchange(self.head(route, target, authority, own=self.credentials))

    async def in_a_tunnel(self, route: Route, authority: str) -> bytes:
        answer, reader, writer = await self.tunnel(authority)
        if b" 200 " not in answer.split(b"\r\n")[0]:
            return answer
        writer.write(self.head(route, route.path, authority))
        return await whole_answer(reader)

    async def in_tls(self, route: Route, authority: str) -> bytes:
        answer, reader, writer = await self.tunnel(authority)
        if b" 200 " not in answer.split(b"\r\n")[0]:
            return answer
        await self.secured(writer, authority, [])
        writer.write(self.head(route, route.path, authority))
        return await whole_answer(reader)

    async def in_http2(self, route: Route, authority: str) -> bytes:
        answer, reader, writer = await self.tunnel(authority)
        if b" 200 " not in answer.split(b"\r\n")[0]:
            return answer
        await self.secured(writer, authority, ["h2"])
        return await self.in_stream(reader, writer, "https", route, authority)

    async def in_clear_http2(self, route: Route, authority: str) -> bytes:
        answer, reader, writer = await self.tunnel(authority)
        if b" 200 " not in answer.split(b"\r\n")[0]:
            return answer
        return await self.in_stream(reader, writer, "http", route, authority)

    async def secured(self, writer: Any, authority: str, alpn: Sequence[str]) -> None:
        context = ssl.create_default_context(cafile=str(self.proxy.data / "ca" / "ca.pem"))
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        if alpn:
            context.set_alpn_protocols(list(alpn))
        name = authority.rpartition(":")[0].strip("[]")
        await writer.start_tls(context, server_hostname=name.rstrip("."))

    async def in_stream(
        self, reader: Any, writer: Any, scheme: str, route: Route, authority: str
    ) -> bytes:
        """The answer of one HTTP/2 stream, written as HTTP/1 would."""
        conn = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        conn.initiate_connection()
        fields = [
            (":method", route.method),
            (":scheme", scheme),
            (":authority", authority),
            (":path", route.path),
            ("authorization", f"Bearer {self.stolen}"),
        ]
        conn.send_headers(1, fields)
        conn.send_data(1, json.dumps(BODIES.get(route.path, {})).encode(), end_stream=True)
        writer.write(conn.data_to_send())
        while data := await reader.read(65536):
            with contextlib.suppress(h2.exceptions.ProtocolError):
                for event in conn.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived):
                        told: dict[Any, Any] = dict(event.headers or ())
                        decision = told.get("pullcord-decision", "")
                        status = told[":status"]
                        return f"HTTP/2 {status}\r\nPullcord-Decision: {decision}\r\n\r\n".encode()
        return b""


@asynccontextmanager
async def besieged(root: Path, upstream_port: int = 80) -> AsyncIterator[Agent]:
    """A proxy with its control port open, one cord that stands, and the agent."""
    look_up = system_resolver()

    async def resolve(host: str, port: int) -> Any:
        return await look_up("127.0.0.1" if host.endswith(".test") else host, port)

    config, port = root / "config", free_port()
    config.mkdir()
    policy = POLICY.replace("PORT", str(port)).replace("WEB", str(upstream_port))
    (config / "policy.yaml").write_text(policy)
    settings = Settings(
        config=config,
        data=root / "data",
        listen="127.0.0.1:0",
        control=f"127.0.0.1:{port}",
        drain_seconds=0.5,
    )
    async with running(settings, resolve=resolve) as service, asyncio.timeout(120):
        now_us = service.clock.now_us()
        minted = await service.decider.act(
            lambda store: operations.mint(store, Grant("hostile", "acme"), "test", now_us)
        )
        listening = int(str(service.listening).rpartition(":")[2])
        proxy = Proxy(service, listening, root / "data")
        stolen = (root / "data" / TOKEN_FILE).read_text().strip()
        try:
            yield Agent(proxy, port, stolen, minted.secret)
        finally:
            for writer in proxy.writers:
                writer.close()


Way = Callable[[Agent, Route, str], Awaitable[bytes]]
WAYS: dict[str, Way] = {
    "plain": Agent.plain,
    "CONNECT": Agent.in_a_tunnel,
    "CONNECT, TLS": Agent.in_tls,
    "CONNECT, TLS, HTTP/2": Agent.in_http2,
    "CONNECT, HTTP/2": Agent.in_clear_http2,
}


REASONS = {
    "reason=own_listener",
    "reason=malformed_request",  # pullcord.invalid: the agent's view of itself has no such path
    "reason=not_sent",  # this machine resolves no such name
}


def decision_in(answer: bytes) -> str:
    """Only the proxy's own answers have one: the control API never says it."""
    for line in answer.split(b"\r\n\r\n")[0].split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"pullcord-decision":
            return value.decode().strip().split(";")[1].strip()
    return ""


async def untouched(agent: Agent) -> None:
    """Nothing was done or refused by the control API: it was not asked."""
    service = agent.proxy.service
    assert service.decider.pulls == {}
    runs, operators = await service.decider.act(
        lambda store: ([each.identity.run for each in store.tokens()], store.operators())
    )
    assert runs == ["hostile"]
    assert [(each.name, each.revoked_us) for each in operators] == [("local", None)]


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=HTTP2 if "TLS, HTTP/2" in way else ()) for way in WAYS]
)
async def test_no_route_is_reached_by_any_name(tmp_path: Path, way: str) -> None:
    """Every route by some names, and a pull by every name."""
    near = ("localhost", "127.0.0.1", "[::1]")
    tried = [
        (host, route)
        for host in HOSTS
        for route in ROUTES
        if host in near or route.path == "/v1/pull"
    ]
    async with besieged(tmp_path) as agent:
        reasons: dict[str, set[str]] = {}
        for host, route in tried:
            answer = await WAYS[way](agent, route, f"{host}:{agent.control_port}")
            assert b" 200" not in answer.split(b"\r\n")[0]
            reasons.setdefault(host, set()).add(decision_in(answer) if answer else "hung up")
        if way == "CONNECT, HTTP/2":  # without TLS it is not spoken at all
            assert set.union(*reasons.values()) == {"hung up"}
        else:
            assert all(found <= REASONS for found in reasons.values()), reasons
            assert [reasons[host] for host in near] == [{"reason=own_listener"}] * len(near)
        await untouched(agent)


async def test_the_same_token_opens_the_port_itself(tmp_path: Path) -> None:
    """The other half: what the agent sends is what an operator sends."""
    async with besieged(tmp_path) as agent:
        url = f"http://127.0.0.1:{agent.control_port}/v1/status"
        headers = {"Authorization": f"Bearer {agent.stolen}"}
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, headers=headers) as answer,
        ):
            assert answer.status == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "rebound.test"])
async def test_even_where_the_policy_allows_every_address_it_is_an_own_listener(
    tmp_path: Path, host: str
) -> None:
    route = ROUTES[0]
    async with besieged(tmp_path) as agent:
        answer = await agent.plain(route, f"{host}:{agent.control_port}")
        assert answer.startswith(b"HTTP/1.1 403")
        assert decision_in(answer) == "reason=own_listener"


async def test_a_redirect_leads_nowhere(tmp_path: Path) -> None:
    places: list[str] = []

    async def redirect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 302 Found\r\nLocation: {places[0]}\r\nContent-Length: 0\r\n"
        writer.write(f"{head}Connection: close\r\n\r\n".encode())
        writer.close()

    server = await asyncio.start_server(redirect, "127.0.0.1", 0)
    upstream_port = server.sockets[0].getsockname()[1]
    async with server, besieged(tmp_path, upstream_port) as agent:
        places.append(f"http://127.0.0.1:{agent.control_port}/v1/status")
        web = f"api.test:{upstream_port}"
        route = next(route for route in ROUTES if route.path == "/v1/status")
        led = await agent.plain(route, web)
        assert led.startswith(b"HTTP/1.1 302")
        assert places[0].encode() in led
        sent = agent.head(route, places[0], urlsplit(places[0]).netloc, own=agent.credentials)
        answer = await agent.proxy.exchange(sent)
        assert answer.startswith(b"HTTP/1.1 403")
        assert decision_in(answer) == "reason=own_listener"
        await untouched(agent)
