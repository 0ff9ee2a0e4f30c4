"""Cords pulled while a call is on its way, WebSockets, and writes answered by event streams."""

import asyncio

import pytest

from ledger.store import Store
from policies.verdict import Level, Pull, Scope
from proxy.dial import Dialer
from proxy.gate import Gate
from tests.proxy.engines.test_fail_closed import GET, failing, through_a_tunnel


def halt(run="r1"):
    return Pull(Level.HALT, Scope.RUN, run, "test", "test", 0)


async def pull(proxy, cord):
    await proxy.service.decider.act(lambda store: store.pull(cord))
    return len((await proxy.service.fleet.sweep()).cut)


async def test_a_halt_between_verdict_and_first_byte_stops_the_call(
    tls_upstream, serving, monkeypatch
):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        dial = Dialer.dial

        async def pulled_meanwhile(*where):
            await proxy.service.decider.act(lambda store: store.pull(halt()))
            return await dial(*where)

        monkeypatch.setattr(Dialer, "dial", pulled_meanwhile)
        assert await through_a_tunnel(proxy, tls_upstream) == b"403"
    assert tls_upstream.received == b""
    assert [call["state"] for call in proxy.calls()] == ["not_sent"]


async def test_a_halt_cuts_a_stream_of_its_run_and_of_no_other(upstream, serving):
    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\ndata: 1\n\n")
        await reader.read()

    made = await upstream(script)
    async with serving(made.port) as proxy:
        streams = []
        for run in ("r1", "r2"):
            reader, writer = await proxy.connect()
            writer.write(GET + proxy.credentials(run) + b"\r\n")
            await reader.readuntil(b"data: 1\n\n\r\n")  # with the end of its chunk
            streams.append((reader, writer))
        assert await pull(proxy, halt("r1")) == 1
        assert await streams[0][0].read() == b""
        assert next(iter(proxy.gate.live.values())).identity.run == "r2"
        for _, writer in streams:
            writer.close()


async def test_a_halt_cuts_the_rest_of_a_long_answer_to_a_write(upstream, serving):
    """Its outcome is recorded before it streams; the stream is still a call in flight."""

    async def script(reader, writer):
        await reader.read(65536)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 2_000_000)
        await reader.read()

    made = await upstream(script)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        body = b"Content-Length: 2\r\n\r\n{}"
        writer.write(b"POST" + GET[3:] + proxy.credentials() + body)
        await reader.readexactly(1_000_000)
        assert await pull(proxy, halt()) == 1
        assert len(await reader.read()) < 8_000_000
        assert not proxy.gate.live
    assert [call["state"] for call in proxy.calls()] == ["done"]


async def test_a_halt_before_the_answer_is_told_in_words(upstream, serving):
    arrived = asyncio.Event()

    async def script(reader, writer):
        await reader.read(65536)
        arrived.set()
        await reader.read()

    made = await upstream(script)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        body = b"Content-Length: 2\r\n\r\n{}"
        writer.write(b"POST" + GET[3:] + proxy.credentials() + body)
        await arrived.wait()
        await pull(proxy, halt())
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"reason=cut" in answer
        assert b"run r1 is halted" in await reader.readuntil(b"}")
        writer.close()
    assert [call["state"] for call in proxy.calls()] == ["unknown"]


# WebSocket: one write, each message looked at


def frame(text, opcode=0x81):
    mask = b"\x01\x02\x03\x04"
    body = bytes(byte ^ mask[place % 4] for place, byte in enumerate(text))
    return bytes((opcode, 0x80 | len(text))) + mask + body


HANDSHAKE = (
    b"GET http://ws.test/ HTTP/1.1\r\nHost: ws.test\r\nUpgrade: websocket\r\n"
    b"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
SWITCH = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
)


async def websocket_upstream(upstream):
    async def script(reader, writer):
        await made.head(reader)
        writer.write(SWITCH)
        while data := await reader.read(65536):
            made.received += data
            writer.write(b"\x81\x02ok")

    made = await upstream(script)
    return made


async def test_a_websocket_passes_and_is_one_write(upstream, serving):
    made = await websocket_upstream(upstream)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(HANDSHAKE + proxy.credentials() + b"\r\n")
        assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
        for _ in range(2):
            writer.write(frame(b"hello"))
            assert await reader.readexactly(4) == b"\x81\x02ok"
        writer.write(frame(b"\x03\xe8", 0x88))
        await reader.read()
        writer.close()
    seen = proxy.calls()
    assert [(call["effect"], call["state"], call["status"]) for call in seen] == [
        ("write", "done", 101)
    ]


async def test_a_second_websocket_to_the_same_url_is_not_a_replay(upstream, serving):
    made = await websocket_upstream(upstream)
    async with serving(made.port) as proxy:
        for _ in range(2):
            reader, writer = await proxy.connect()
            writer.write(HANDSHAKE + proxy.credentials() + b"\r\n")
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            writer.close()
    assert made.connections == 2


@pytest.mark.parametrize("level", [Level.FREEZE, Level.HALT])
async def test_a_websocket_message_after_a_cord_was_pulled_never_leaves(upstream, serving, level):
    made = await websocket_upstream(upstream)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(HANDSHAKE + proxy.credentials() + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        cord = Pull(level, Scope.RUN, "r1", "test", "test", 0)
        await proxy.service.decider.act(lambda store: store.pull(cord))
        writer.write(frame(b"hello"))
        rest = await reader.read()
        assert rest[:1] in (b"", b"\x88")  # closed, or a close frame first
        writer.close()
    head_end = bytes(made.received).index(b"\r\n\r\n") + 4
    assert b"hello" not in made.received[head_end:]
    assert made.received[head_end : head_end + 1] in (b"", b"\x88")


async def test_a_websocket_message_that_cannot_be_judged_never_leaves(
    upstream, serving, monkeypatch
):
    made = await websocket_upstream(upstream)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(HANDSHAKE + proxy.credentials() + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        monkeypatch.setattr(Gate, "message", failing)
        writer.write(frame(b"hello"))
        await reader.read()
        writer.close()
    _, _, frames = made.received.partition(b"\r\n\r\n")
    assert frames[:1] in (b"", b"\x88")  # at most a close, whose masked bytes may be any


# A write that is answered by an event stream

MCP_POLICY = """
version: 1
tools: {crm: {match: {host: mcp.test, mcp_tool: "*"}, allow_addresses: [127.0.0.0/8]}}
"""
TOOL_CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"pay"}}'
PROGRESS = b'data: {"jsonrpc":"2.0","method":"notifications/progress"}\n\n'
RESULT = b'data: {"jsonrpc":"2.0","id":1,"result":{}}\n\n'


def tool_call(proxy):
    head = b"POST http://mcp.test/ HTTP/1.1\r\nHost: mcp.test\r\nContent-Type: application/json\r\n"
    length = b"Content-Length: %d\r\n\r\n" % len(TOOL_CALL)
    return head + proxy.credentials() + length + TOOL_CALL


async def event_upstream(upstream, finish):
    async def script(reader, writer):
        await reader.read(65536)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n" % (len(PROGRESS), PROGRESS))
        await finish.wait()
        writer.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(RESULT), RESULT))

    return await upstream(script)


async def test_the_result_of_a_streamed_write_comes_after_its_outcome_is_durable(upstream, serving):
    finish = asyncio.Event()
    made = await event_upstream(upstream, finish)
    async with serving(made.port, MCP_POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(tool_call(proxy))
        await reader.readuntil(PROGRESS)
        assert [call["state"] for call in proxy.calls()] == ["pending"]
        finish.set()
        await reader.readuntil(RESULT)
        assert [call["state"] for call in proxy.calls()] == ["done"]
        await reader.readuntil(b"0\r\n\r\n")
        again = await proxy.exchange(tool_call(proxy))
        assert again.endswith(PROGRESS + RESULT)
        assert made.connections == 1


async def test_the_result_of_a_streamed_write_that_cannot_be_recorded_never_arrives(
    upstream, serving, monkeypatch
):
    finish = asyncio.Event()
    made = await event_upstream(upstream, finish)
    async with serving(made.port, MCP_POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(tool_call(proxy))
        await reader.readuntil(PROGRESS)
        with monkeypatch.context() as patch:
            patch.setattr(Store, "settle", failing)
            finish.set()
            assert RESULT not in await reader.read()
    assert [call["state"] for call in proxy.calls()] == ["done"]  # owed, and recorded since


async def test_a_long_answer_that_cannot_be_recorded_never_arrives(upstream, serving, monkeypatch):
    async def script(reader, writer):
        await reader.read(65536)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 9_000_000)

    made = await upstream(script)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        with monkeypatch.context() as patch:
            patch.setattr(Store, "settle", failing)
            body = b"Content-Length: 2\r\n\r\n{}"
            writer.write(b"POST" + GET[3:] + proxy.credentials() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 504")
        assert b"reason=outcome_unknown" in answer
