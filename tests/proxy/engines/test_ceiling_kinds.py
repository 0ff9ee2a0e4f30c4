"""Every kind of ceiling, for everyone it can be per, with everything it can do: one test where it
bites and one where it does not, by plain HTTP, inside TLS and over HTTP/2.

What a call waits for when it is held for a person is in test_hold.py.
"""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pytest

from ledger.store import Store
from ledger.tokens import Grant
from policies.ceilings import Count, Per, Then
from proxy import operations
from tests.end_to_end import certificates
from tests.engine import each
from tests.proxy.engines.ways import OWN, WAYS, Call, World, heard

HOSTS = ("api.test", "other.test", "model.test", OWN)

TOOLS = """\
version: 1
tools:
  read: {match: {host: "*.test", method: GET}, allow_addresses: [127.0.0.0/8]}
  model: {match: {host: model.test}, model_api: openai, allow_addresses: [127.0.0.0/8]}
  paid: {match: {host: "*.test", path: /paid}, cost_usd: 0.1, allow_addresses: [127.0.0.0/8]}
  write: {match: {host: "*.test"}, allow_addresses: [127.0.0.0/8]}
ceilings:
"""

# Who calls. The first one is bound; each other one shares with it what its line says.
RUNS = {
    "r1": Grant("r1", "acme", agent="biller", release="one"),
    "r1.a": Grant("r1.a", "acme", parent="r1", agent="clerk", release="two"),  # the tree
    "r1.b": Grant("r1.b", "acme", parent="r1", agent="clerk", release="two"),  # the tree
    "r2": Grant("r2", "acme", agent="clerk", release="two"),  # the tenant
    "r3": Grant("r3", "bolt", agent="biller", release="two"),  # the agent
    "r4": Grant("r4", "bolt", agent="clerk", release="one"),  # the release
    "r5": Grant("r5", "bolt", agent="clerk", release="two"),  # nothing
    "r6": Grant("r6", "bolt", agent="biller", release="one"),  # all but the tenant
    "r7": Grant("r7", "acme", agent="clerk", release="one"),  # all but the agent
    "r8": Grant("r8", "acme", agent="biller", release="two"),  # all but the release
    "r9": Grant("r9", "acme", agent="biller", release="one"),  # all but the run
}


def write(body: str, run: str = "r1", **rest: str) -> Call:
    return Call(run, body, **rest)


def asked_model(tokens: int, **rest: str) -> Call:
    body = json.dumps({"model": "gpt-5.1", "max_tokens": tokens, "messages": []})
    return Call(body=body, host="model.test", path="/v1/chat/completions", **rest)


def paid(body: str, **rest: str) -> Call:
    return Call(body=body, path="/paid", **rest)


def spawned(child: str, run: str = "r1") -> Call:
    return Call(run, json.dumps({"run": child}), OWN, "/self/tokens")


@dataclass(frozen=True, slots=True)
class Row:
    """After `first` the ceiling has no room for `bites`, and has for `passes`."""

    ceiling: str
    first: tuple[Call, ...]
    bites: Call
    passes: Call


READ = Call()
LISTED = Call(host="model.test", path="/v1/models")
DOLLAR = "per: run, tool: paid, count: spend_usd, at_most: 0.15"

ROWS: dict[Count | Per, Row] = {
    Count.CALLS: Row("per: run, count: calls, at_most: 2", (READ, write("a")), READ, Call("r9")),
    Count.WRITES: Row("per: run, count: writes, at_most: 1", (write("a"),), write("b"), READ),
    Count.STEPS: Row(
        "per: run, count: steps, at_most: 1", (asked_model(10),), asked_model(11), LISTED
    ),
    Count.TOKENS: Row(
        "per: run, count: tokens, at_most: 500", (), asked_model(600), asked_model(100)
    ),
    Count.SPEND: Row(DOLLAR, (paid("a"),), paid("b"), write("b")),
    Count.DESTINATIONS: Row(
        "per: run, count: destinations, at_most: 1", (READ,), Call(host="other.test"), write("a")
    ),
    Count.SPAWNED: Row(
        "per: run, count: spawned, at_most: 3", (spawned("n1"),), spawned("n2"), spawned("n2", "r9")
    ),
    Count.BYTES_UP: Row(
        "per: run, count: bytes_up, at_most: 9", (write("1234"),), write("123456"), write("12345")
    ),
    Per.GLOBAL: Row(
        "per: global, tool: read, count: calls, at_most: 1",
        (READ,),
        Call("r5", host="other.test"),
        write("a", "r5"),
    ),
    Per.TENANT: Row("per: tenant, count: calls, at_most: 1", (READ,), Call("r2"), Call("r6")),
    # A run's count holds what its descendants do, so r1.a's call is r1's as well.
    Per.RUN: Row("per: run, count: calls, at_most: 1", (Call("r1.a"),), READ, Call("r9")),
    Per.TREE: Row("per: tree, count: calls, at_most: 1", (Call("r1.a"),), Call("r1.b"), Call("r9")),
    Per.AGENT: Row("per: agent, count: calls, at_most: 1", (READ,), Call("r3"), Call("r7")),
    Per.RELEASE: Row("per: release, count: calls, at_most: 1", (READ,), Call("r4"), Call("r8")),
    Per.TOOL: Row(
        "per: tool, count: calls, at_most: 1", (READ,), Call("r5", host="other.test"), write("a")
    ),
    Per.DESTINATION: Row(
        "per: destination, count: calls, at_most: 1",
        (READ,),
        write("a", "r5"),
        Call(host="other.test"),
    ),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> certificates.Certificates:
    return certificates.make(tmp_path_factory.mktemp("upstream"), HOSTS)


@pytest.fixture(params=each(WAYS))
def under(
    request: pytest.FixtureRequest, serving: Any, files: certificates.Certificates
) -> Callable[[str], Any]:
    """`async with under(ceiling) as world`: one ceiling, one way in."""

    @asynccontextmanager
    async def start(ceiling: str) -> AsyncIterator[World]:
        arrived: list[str] = []
        gate, held = asyncio.Event(), asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with suppress(OSError, asyncio.IncompleteReadError):
                while head := (await reader.readuntil(b"\r\n\r\n")).decode():
                    await reader.readexactly(int(heard(head).get("content-length", 0)))
                    arrived.append(head.split(" ")[1])
                    if arrived[-1] == "/held":
                        held.set()
                        await gate.wait()
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            writer.close()

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files.chain, files.key)
        secure = None if request.param == "plain HTTP" else context
        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=secure)
        port = server.sockets[0].getsockname()[1]
        policy = f"{TOOLS}  - {{{ceiling}}}\n"
        async with serving(port, policy, identity="token", upstream_ca=files.ca) as proxy:
            secrets = await minted(proxy)
            try:
                yield World(proxy, WAYS[request.param], secrets, arrived, gate, held)
            finally:
                gate.set()
                server.close()

    return start


async def minted(proxy: Any) -> dict[str, str]:
    """The secrets of the runs, all made in one transaction."""
    service = proxy.service
    now_us, policy = service.clock.now_us(), service.decider.policy

    def mint(store: Store) -> dict[str, str]:
        return {
            run: operations.mint(store, grant, "ann", now_us, policy).secret
            for run, grant in RUNS.items()
        }

    return dict(await service.decider.act(mint))


# What is counted, and for whom


@pytest.mark.parametrize("kind", ROWS, ids=lambda kind: f"{type(kind).__name__} {kind}".lower())
async def test_a_ceiling_bites(under: Callable[[str], Any], kind: Count | Per) -> None:
    row = ROWS[kind]
    async with under(row.ceiling) as world:
        await world.passes(*row.first)
        await world.bites(row.bites)


@pytest.mark.parametrize("kind", ROWS, ids=lambda kind: f"{type(kind).__name__} {kind}".lower())
async def test_a_ceiling_does_not_bite(under: Callable[[str], Any], kind: Count | Per) -> None:
    row = ROWS[kind]
    async with under(row.ceiling) as world:
        await world.passes(*row.first, row.passes)


IN_FLIGHT = "per: run, count: in_flight, at_most: 1"
HELD = Call(path="/held")


async def test_a_ceiling_on_calls_in_flight_bites(under: Callable[[str], Any]) -> None:
    async with under(IN_FLIGHT) as world:
        flying = asyncio.create_task(world.ask(HELD))
        await world.held.wait()
        await world.bites(READ)
        world.gate.set()
        assert (await flying).status == 200


async def test_a_ceiling_on_calls_in_flight_does_not_bite(under: Callable[[str], Any]) -> None:
    """Neither another run's call, nor one that comes when the first has ended."""
    async with under(IN_FLIGHT) as world:
        flying = asyncio.create_task(world.ask(HELD))
        await world.held.wait()
        await world.passes(Call("r9"))
        world.gate.set()
        assert (await flying).status == 200
        await idle(world)
        await world.passes(READ)
        await idle(world)
        await world.passes(READ)


async def idle(world: World) -> None:
    """Until the record knows that no call is open."""
    while any(call["state"] == "pending" for call in world.proxy.calls()):
        await asyncio.sleep(0.01)


# What it does

WRITES = "per: run, count: writes, at_most: 1"


@pytest.mark.parametrize("then", Then)
async def test_below_its_limit_a_ceiling_does_nothing_whatever_it_would_do(
    under: Callable[[str], Any], then: Then
) -> None:
    async with under(f"{WRITES}, then: {then}") as world:
        await world.passes(write("a"), READ, Call("r9"))
        assert world.events("ceiling.crossed") + world.events("cord.pulled") == []


async def test_one_that_alerts_lets_pass_and_tells_once(under: Callable[[str], Any]) -> None:
    async with under(f"{WRITES}, then: alert") as world:
        await world.passes(write("a"), write("b"), write("c"))
        assert world.events("ceiling.crossed") == [("at most 1 write per run: run r1",)]


async def test_one_that_throttles_refuses_and_says_when_there_is_room(
    under: Callable[[str], Any],
) -> None:
    async with under(f"{WRITES}, within: 1m, then: throttle") as world:
        await world.passes(write("a"))
        told = await world.bites(write("b"))
        assert 1 <= int(told.headers["retry-after"]) <= 61
        assert {"ratelimit", "ratelimit-policy"} <= told.headers.keys()
        await world.passes(READ, write("c", "r9"))
        assert world.events("cord.pulled") == []


async def test_one_that_freezes_stops_every_write_of_its_subject(
    under: Callable[[str], Any],
) -> None:
    async with under(f"{WRITES}, then: freeze") as world:
        await world.passes(write("a"))
        await world.bites(write("b"))
        await world.bites(write("c", path="/others"), "frozen")
        await world.passes(READ, write("d", "r9"))


async def test_one_that_halts_stops_everything_of_its_subject(under: Callable[[str], Any]) -> None:
    async with under(f"{WRITES}, then: halt") as world:
        await world.passes(write("a"))
        await world.bites(write("b"))
        await world.bites(READ, "halted")
        await world.passes(write("c", "r9"))


async def test_one_that_holds_lets_nothing_pass_before_a_person_has_spoken(
    under: Callable[[str], Any],
) -> None:
    async with under(f"{WRITES}, then: hold") as world:
        await world.passes(write("a"))
        parked = asyncio.create_task(world.ask(write("b")))
        await asyncio.wait({parked}, timeout=0.3)
        assert world.arrived == ["/things"]
        assert not parked.done() or parked.result().reason == "held"
        await world.passes(READ, write("c", "r9"))
        parked.cancel()


def test_no_kind_is_without_a_test() -> None:
    """In flight has two tests of its own, and so has each `then`."""
    assert {*ROWS, Count.IN_FLIGHT} == {*Count, *Per}
