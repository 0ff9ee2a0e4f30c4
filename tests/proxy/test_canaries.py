"""Where the canary's name leads, and which arrivals count as canaries."""

import asyncio
import socket
from collections.abc import Sequence
from ipaddress import ip_network

import pytest

from policies.policy import CANARY_HOST, CANARY_TOOL
from proxy.canaries import LOST, Canary, Upstream
from proxy.clock import SystemClock
from proxy.dial import AddressRefused, AddrInfo, Dialer, OwnListener


async def never(host: str, port: int) -> Sequence[AddrInfo]:
    raise AssertionError(f"{host} is to be resolved")


@pytest.mark.parametrize("host", [CANARY_HOST, f"{CANARY_HOST}.", CANARY_HOST.upper()])
async def test_its_host_is_this_machine_and_is_never_resolved(host: str) -> None:
    dialer = Dialer(frozenset(), resolve=never)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with await dialer.dial(host, port, CANARY_TOOL.allow_addresses) as connected:
            assert connected.getpeername() == ("127.0.0.1", port)


async def test_only_the_canarys_tool_may_dial_it_and_never_pullcord_itself() -> None:
    with pytest.raises(AddressRefused):
        await Dialer(frozenset(), resolve=never).dial(CANARY_HOST, 1)
    with pytest.raises(AddressRefused):
        await Dialer(frozenset(), resolve=never).dial(CANARY_HOST, 1, [ip_network("10.0.0.0/8")])
    with pytest.raises(OwnListener):
        await Dialer(frozenset({1}), resolve=never).dial(
            CANARY_HOST, 1, CANARY_TOOL.allow_addresses
        )


async def answered(upstream: Upstream, head: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", upstream.port)
    try:
        writer.write(head.encode())
        return await reader.read(12)
    finally:
        writer.close()


async def test_the_upstream_counts_writes_to_its_secret_path_alone() -> None:
    async with Upstream.serving(SystemClock()) as upstream:
        path = upstream.path
        assert path in upstream.url
        for method, target in (("POST", "/"), ("GET", path), ("POST", f"{path}x")):
            await answered(upstream, f"{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n")
        await answered(upstream, "no request\r\n\r\n")
        assert upstream.arrivals == []
        head = f"POST {path} HTTP/1.1\r\nContent-Length: 2\r\n\r\n" + "{}"
        assert await answered(upstream, head) == b"HTTP/1.1 200"
        assert len(upstream.arrivals) == 1


async def test_a_canary_that_meets_no_proxy_is_lost_and_tries_again() -> None:
    canary = Canary(SystemClock(), "127.0.0.1:1", "r1", "secret", "http://h:1/x")
    assert (await canary.call("POST")).reason == LOST
    assert (await canary.call("POST")).reason == LOST
    assert canary.last(0.0) == LOST
    await canary.aclose()
