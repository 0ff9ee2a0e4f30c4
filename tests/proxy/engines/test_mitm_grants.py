"""Least privilege through the whole proxy, by plain HTTP, inside TLS and over HTTP/2: what a
tenant, an agent, a token or a tool does not allow never reaches the upstream."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest

from ledger.store import Store
from ledger.tokens import Grant
from proxy import operations
from tests.end_to_end import certificates
from tests.engine import each
from tests.proxy.engines.ways import WAYS, Call, World, heard

POLICY = """\
version: 1
tools:
  refunds:
    match: {host: "*.test", path: /refunds}
    where: {amount: {at_most: 5000}}
    allow_addresses: [127.0.0.0/8]
  small:
    match: {host: "*.test", path: /small}
    body_bytes_max: 9
    allow_addresses: [127.0.0.0/8]
  things: {match: {host: "*.test"}, allow_addresses: [127.0.0.0/8]}
tenants:
  bolt: {allow: [{tool: things, method: GET}, {tool: things, where: {kind: {equals: note}}}]}
agents:
  reader: {read_only: true}
  clerk: {allow: [refunds]}
"""
RUNS = {
    "any": Grant("any", "acme"),
    "bolt": Grant("bolt", "bolt"),
    "reader": Grant("reader", "acme", agent="reader"),
    "clerk": Grant("clerk", "acme", agent="clerk"),
    "token": Grant("token", "acme", read_only=True),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> certificates.Certificates:
    return certificates.make(tmp_path_factory.mktemp("upstream"), ("api.test",))


@pytest.fixture(params=each(WAYS))
async def world(
    request: pytest.FixtureRequest, serving: Any, files: certificates.Certificates
) -> AsyncIterator[World]:
    arrived: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                await reader.readexactly(int(heard(head).get("content-length", 0)))
                arrived.append(head.split(" ")[1])
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.chain, files.key)
    secure = None if request.param == "plain HTTP" else context
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=secure)
    port = server.sockets[0].getsockname()[1]
    async with serving(port, POLICY, identity="token", upstream_ca=files.ca) as proxy:
        service = proxy.service
        now_us, policy = service.clock.now_us(), service.decider.policy

        def mint(store: Store) -> dict[str, str]:
            return {
                run: operations.mint(store, grant, "ann", now_us, policy).secret
                for run, grant in RUNS.items()
            }

        secrets = dict(await service.decider.act(mint))
        way = WAYS[request.param]
        yield World(proxy, way, secrets, arrived, asyncio.Event(), asyncio.Event())
    server.close()


def refund(amount: Any, run: str = "any", **more: Any) -> Call:
    return Call(run, json.dumps({"amount": amount, **more}), path="/refunds")


async def test_a_condition_of_a_tool_lets_pass_and_refuses(world: World) -> None:
    await world.passes(refund(5000), refund(4999.5))
    await world.bites(refund(5001), "argument_refused")
    await world.bites(refund(1, Amount=9999), "argument_refused")
    await world.bites(Call("any", "{}", path="/refunds"), "argument_refused")
    await world.bites(Call("any", "amount=1", path="/refunds"), "argument_refused")
    await world.bites(Call("any", path="/refunds"), "argument_refused")
    rules = {call["rule"] for call in world.proxy.calls() if call["reason"] == "argument_refused"}
    assert rules == {"tool:refunds"}


async def test_a_tenant_may_do_what_one_of_its_grants_says(world: World) -> None:
    await world.passes(Call("bolt"), Call("bolt", '{"kind": "note"}'))
    await world.bites(Call("bolt", '{"kind": "other"}'), "argument_refused")
    await world.bites(refund(1, "bolt"), "tool_not_allowed")


async def test_an_agent_may_use_its_tools_alone(world: World) -> None:
    await world.passes(refund(1, "clerk"))
    await world.bites(Call("clerk"), "tool_not_allowed")
    await world.bites(refund(5001, "clerk"), "argument_refused")


@pytest.mark.parametrize("run", ["reader", "token"])
async def test_who_may_only_read_reads(world: World, run: str) -> None:
    await world.passes(Call(run))
    await world.bites(Call(run, "x"), "read_only")


async def test_a_body_longer_than_its_tool_allows_is_not_sent(world: World) -> None:
    await world.passes(Call("any", "123456789", path="/small"))
    told = await world.ask(Call("any", "1234567890", path="/small"))
    assert (told.status, told.reason) == (413, "body_too_large")
    assert world.arrived == ["/small"]
    await world.passes(Call("any", "1234567890"))
