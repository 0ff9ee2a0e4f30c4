"""The relay of a WebSocket between a client made up here and an upstream on a real socket."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from proxy.engines import http1_websocket
from proxy.engines.faults import OWN_FAILURE
from proxy.engines.http1_websocket import Relay
from tests.proxy.engines.listening import HERE, WAIT_SECONDS, asked, pool, where
from tests.proxy.engines.test_mitm_cords import SWITCH, frame
from tests.proxy.engines.test_mitm_websocket import frames

Start = Callable[..., Awaitable[Any]]

CLOSE_NORMAL = b"\x88\x02\x03\xe8"


@dataclass(eq=False)
class Client:
    """What the relay says to the client, and whether the client is read."""

    told: bytearray = field(default_factory=bytearray)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    is_read: bool = True
    is_full: bool = False
    takes: asyncio.Event = field(default_factory=asyncio.Event)
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, data: bytes) -> None:
        assert not self.closed.is_set()
        self.told += data
        self.news.set()

    def pause(self) -> None:
        self.is_read = False

    def resume(self) -> None:
        self.is_read = True

    async def drained(self) -> None:
        await self.takes.wait()

    def fill(self) -> None:
        self.is_full = True
        self.takes.clear()

    def empty(self) -> None:
        self.is_full = False
        self.takes.set()

    def close(self) -> None:
        self.closed.set()

    async def until(self, said: bytes) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while said not in self.told:
                self.news.clear()
                await self.news.wait()


@dataclass(eq=False)
class Judge:
    """Lets every message go on but `denied`; `gate` holds them up."""

    denied: bytes = b"denied"
    heard: list[bytes] = field(default_factory=list)
    answers: list[bytes] = field(default_factory=list)
    ends: list[str] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def said(self, content: bytes) -> bool:
        self.heard.append(content)
        await self.gate.wait()
        if content == b"fail":
            raise KeyError("a mistake of ours")
        return content != self.denied

    def told(self, content: bytes) -> None:
        self.answers.append(content)

    def closed(self, failure: str) -> None:
        self.ends.append(failure)


@dataclass(eq=False)
class World:
    relay: Relay
    client: Client
    judge: Judge
    made: Any
    say: asyncio.Queue[bytes | None]
    ended: asyncio.Event

    def arrived(self) -> list[tuple[int, bytes]]:
        return frames(bytes(self.made.received))

    async def until_arrived(self, *texts: bytes) -> None:
        async with asyncio.timeout(WAIT_SECONDS):
            while [text for opcode, text in self.arrived() if opcode < 3] != list(texts):
                await asyncio.sleep(0.005)

    async def until_over(self) -> None:
        """Both sides are closed."""
        async with asyncio.timeout(WAIT_SECONDS):
            await self.client.closed.wait()
            await self.ended.wait()


@pytest.fixture
async def world(upstream: Start) -> AsyncIterator[World]:
    async with opened(upstream) as made:
        yield made


@asynccontextmanager
async def opened(upstream: Start, behind: bytes = b"") -> AsyncIterator[World]:
    """`behind`: what the upstream says in one piece with its handshake."""
    say: asyncio.Queue[bytes | None] = asyncio.Queue()
    ended = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async def speak() -> None:
            while (said := await say.get()) is not None:
                writer.write(said)
            writer.close()

        await reader.readuntil(b"\r\n\r\n")
        writer.write(SWITCH + behind)
        speaking = asyncio.ensure_future(speak())
        try:
            while data := await reader.read(65536):
                made.received += data
        finally:
            speaking.cancel()
            ended.set()

    made = await upstream(script)
    connection = await pool().take(where(made.port), HERE, fresh=True)
    heard = await asked(connection, websocket=True)
    client, judge = Client(), Judge()
    relay = Relay(client, connection, judge)
    assert heard.rest is not None
    relay.begin(heard.rest)
    try:
        yield World(relay, client, judge, made, say, ended)
    finally:
        connection.abort()


async def test_messages_pass_both_ways(world: World) -> None:
    world.relay.from_client(frame(b"hello") + frame(b"bytes", 0x82))
    await world.until_arrived(b"hello", b"bytes")
    world.say.put_nowait(b"\x81\x02ok\x82\x02no")
    await world.client.until(b"\x81\x02ok\x82\x02no")
    assert world.judge.heard == [b"hello", b"bytes"]
    assert world.judge.answers == [b"ok", b"no"]
    assert world.client.is_read


async def test_what_came_with_the_handshake_is_heard(upstream: Start) -> None:
    async with opened(upstream, b"\x81\x02hi") as world:
        await world.client.until(b"\x81\x02hi")
        assert world.judge.answers == [b"hi"]


async def test_an_upstream_that_ends_with_its_handshake(upstream: Start) -> None:
    async with opened(upstream, b"\x81\x02hi" + CLOSE_NORMAL) as world:
        await world.client.closed.wait()
        assert world.client.told == b"\x81\x02hi" + CLOSE_NORMAL
        assert world.judge.ends == [""]


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_a_message_may_come_in_pieces(world: World, size: int) -> None:
    sent = frame(b"hello")
    for place in range(0, len(sent), size):
        world.relay.from_client(sent[place : place + size])
        await asyncio.sleep(0)
    await world.until_arrived(b"hello")
    assert world.judge.heard == [b"hello"]


async def test_a_message_in_fragments_is_judged_whole_and_passes_as_it_came(world: World) -> None:
    world.relay.from_client(frame(b"he", 0x01) + frame(b"", 0x00))
    await asyncio.sleep(0.02)
    assert (world.judge.heard, world.arrived()) == ([], [])
    world.relay.from_client(frame(b"llo", 0x80))
    await world.until_arrived(b"he", b"", b"llo")
    assert world.judge.heard == [b"hello"]
    assert [opcode for opcode, _ in world.arrived()] == [1, 0, 0]


async def test_a_fragment_may_end_within_a_character(world: World) -> None:
    euro = "€".encode()
    world.relay.from_client(frame(euro[:1], 0x01) + frame(euro[1:], 0x80))
    async with asyncio.timeout(WAIT_SECONDS):
        while not world.judge.heard:
            await asyncio.sleep(0.005)
    assert world.judge.heard == [euro]


async def test_while_a_message_is_judged_its_client_is_not_read_and_the_next_one_waits(
    world: World,
) -> None:
    world.judge.gate.clear()
    world.relay.from_client(frame(b"first"))
    world.relay.from_client(frame(b"second"))
    await asyncio.sleep(0.01)
    assert (world.judge.heard, world.client.is_read) == ([b"first"], False)
    assert world.arrived() == []
    world.say.put_nowait(b"\x81\x02ok")  # the other way goes on
    await world.client.until(b"\x81\x02ok")
    world.judge.gate.set()
    await world.until_arrived(b"first", b"second")
    assert world.client.is_read


async def test_nothing_passes_after_a_message_that_is_denied(world: World) -> None:
    world.relay.from_client(frame(b"first") + frame(b"denied") + frame(b"second"))
    world.relay.from_client(frame(b"third"))
    await world.until_arrived(b"first")
    await asyncio.sleep(0.02)
    world.relay.from_client(frame(b"fourth"))
    assert world.judge.heard == [b"first", b"denied"]
    world.relay.cut("rule:no-more")
    await world.until_over()
    assert [text for opcode, text in world.arrived() if opcode == 1] == [b"first"]
    assert world.client.told == b"\x88\x0e\x03\xf0rule:no-more"
    assert world.judge.ends == []  # who cuts knows


async def test_a_cut_stops_a_message_that_is_judged(world: World) -> None:
    world.judge.gate.clear()
    world.relay.from_client(frame(b"first"))
    await asyncio.sleep(0.01)
    world.relay.cut("halt")
    world.relay.cut("halt")
    world.judge.gate.set()
    await world.until_over()
    assert world.arrived() == []


async def test_a_message_that_cannot_be_judged_never_leaves(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    class Log:
        def error(self, event: str, **known: Any) -> None:
            told.append(event)

    monkeypatch.setattr(http1_websocket, "log", Log())
    world.relay.from_client(frame(b"fail"))
    await world.until_over()
    assert world.arrived() == []
    assert (world.judge.ends, told) == ([OWN_FAILURE], ["engine.crashed"])


async def test_a_ping_is_answered_here_and_carries_nothing_on(world: World) -> None:
    world.relay.from_client(frame(b"secrets", 0x89) + frame(b"others", 0x8A) + frame(b"hello"))
    await world.client.until(b"\x8a\x07secrets")
    await world.until_arrived(b"hello")
    assert world.arrived() == [(9, b""), (1, b"hello")]
    world.say.put_nowait(b"\x89\x04pong")
    await world.client.until(b"\x89\x00")
    async with asyncio.timeout(WAIT_SECONDS):
        while (10, b"pong") not in world.arrived():
            await asyncio.sleep(0.005)


async def test_a_client_that_takes_no_pong_is_not_read_until_it_does(world: World) -> None:
    world.client.fill()
    world.relay.from_client(frame(b"1", 0x89) + frame(b"2", 0x89) + frame(b"hello"))
    await world.client.until(b"\x8a\x011")
    await asyncio.sleep(0.02)
    assert (bytes(world.client.told), world.client.is_read) == (b"\x8a\x011", False)
    world.client.empty()
    await world.until_arrived(b"hello")
    assert (bytes(world.client.told), world.client.is_read) == (b"\x8a\x011\x8a\x012", True)


@pytest.mark.parametrize("said", [b"\x89\x00", b"\x81\x02ok"])
async def test_an_upstream_is_not_read_while_its_client_takes_nothing(
    world: World, said: bytes
) -> None:
    world.client.fill()
    world.say.put_nowait(said * 3)
    await world.client.until(said)
    for _ in range(20):
        world.say.put_nowait(said * 50_000)  # more than the kernel holds
    await asyncio.sleep(0.05)
    assert world.client.told == said
    assert sum(len(part or b"") for part in world.relay._there.waiting) < 1_000_000
    world.relay.cut("halt")
    await world.until_over()
    assert world.client.told == said + b"\x88\x06\x03\xf0halt"
    assert world.judge.ends == []


async def test_what_an_upstream_said_before_its_client_took_more_comes_in_its_order(
    world: World,
) -> None:
    world.client.fill()
    world.say.put_nowait(b"\x81\x011\x81\x012")
    await world.client.until(b"\x81\x011")
    world.say.put_nowait(b"\x81\x013" + CLOSE_NORMAL)
    await asyncio.sleep(0.02)
    world.client.empty()
    await world.until_over()
    assert world.client.told == b"\x81\x011\x81\x012\x81\x013" + CLOSE_NORMAL
    assert (world.judge.answers, world.judge.ends) == ([b"1", b"2", b"3"], [""])


@pytest.mark.parametrize("from_client", [True, False])
async def test_too_many_fragments_close_both_sides(
    world: World, monkeypatch: pytest.MonkeyPatch, from_client: bool
) -> None:
    monkeypatch.setattr(http1_websocket, "FRAGMENTS_MAX", 10)
    if from_client:
        world.relay.from_client(frame(b"", 0x02) + frame(b"", 0x00) * 10)
    else:
        world.say.put_nowait(b"\x02\x00" + b"\x00\x00" * 10)
    await world.until_over()
    assert b"\x88\x13\x03\xf1message too large" in world.client.told
    assert world.arrived() == [(8, b"\x03\xf1message too large")]
    assert world.judge.ends == [""]


@pytest.mark.parametrize("from_client", [True, False])
async def test_a_message_too_long_closes_both_sides(
    world: World, monkeypatch: pytest.MonkeyPatch, from_client: bool
) -> None:
    monkeypatch.setattr(http1_websocket, "MESSAGE_BYTES_MAX", 100)
    if from_client:
        world.relay.from_client(frame(b"x" * 60, 0x02) + frame(b"x" * 60, 0x00))
    else:
        world.say.put_nowait(b"\x02\x7e\x40\x00" + b"x" * 200)  # of a frame that is longer still
    await world.until_over()
    assert b"\x88\x13\x03\xf1message too large" in world.client.told
    assert [opcode for opcode, _ in world.arrived()] == [8]


async def test_a_close_is_passed_on_and_ends_it(world: World) -> None:
    world.relay.from_client(frame(b"\x03\xe8", 0x88))
    await world.until_over()
    assert (world.arrived(), world.judge.ends) == ([(8, b"\x03\xe8")], [""])
    assert world.client.told == CLOSE_NORMAL


async def test_a_close_of_the_upstream_is_passed_on(world: World) -> None:
    world.say.put_nowait(CLOSE_NORMAL)
    await world.until_over()
    assert (bytes(world.client.told), world.judge.ends) == (CLOSE_NORMAL, [""])


async def test_a_client_that_leaves_ends_it(world: World) -> None:
    world.relay.from_client(frame(b"last"))
    world.relay.client_ended()
    await world.until_over()
    assert [text for opcode, text in world.arrived() if opcode == 1] == [b"last"]
    assert world.judge.ends == [""]


async def test_an_upstream_that_leaves_ends_it(world: World) -> None:
    world.say.put_nowait(None)
    await world.until_over()
    assert world.judge.ends == [""]


@pytest.mark.parametrize("said", [b"\x81\x02ok", b"\xff\xff\xff\xff\xff\xff"])
async def test_a_client_that_speaks_no_websocket_ends_it(world: World, said: bytes) -> None:
    """A frame of a client's is masked (RFC 6455, section 5.1)."""
    world.relay.from_client(said)
    await world.until_over()
    assert world.judge.ends == [""]
    assert world.judge.heard == []
    assert [opcode for opcode, _ in world.arrived()] == [8]


async def test_after_its_end_nothing_is_taken(world: World) -> None:
    world.relay.from_client(frame(b"\x03\xe8", 0x88) + frame(b"late"))
    await world.until_over()
    world.relay.from_client(frame(b"later"))
    world.relay.client_ended()
    world.relay.upstream_ended()
    await asyncio.sleep(0)
    assert (world.judge.heard, world.judge.ends) == ([], [""])
