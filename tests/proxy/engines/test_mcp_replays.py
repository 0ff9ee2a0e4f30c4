"""An MCP client that tries again under a new id has its answer under that id."""

import asyncio
import json

import pytest

POLICY = """
version: 1
tools:
  crm: {match: {host: api.test, path: /mcp, mcp_tool: "*"}, allow_addresses: [127.0.0.0/8]}
"""
DIRECT = b'{"jsonrpc":"2.0","id":%b,"result":{"content":[], "n": 1.0}}'
EVENTS = b'data: {"jsonrpc":"2.0","method":"notifications/progress"}\n\ndata: %b\n\n' % DIRECT


def calling(proxy, rpc_id, batch=False):
    params = {"name": "add", "arguments": {"x": 1}}
    message = {"jsonrpc": "2.0", "id": rpc_id, "method": "tools/call", "params": params}
    body = json.dumps([message] if batch else message).encode()
    return (
        b"POST http://api.test/mcp HTTP/1.1\r\nHost: api.test\r\n"
        + proxy.credentials()
        + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
    )


def serves(kind, form, free=None):
    """An upstream that answers under the id of each request; with `free` once that is set."""
    arrived = []

    async def script(reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        message = json.loads(await reader.readexactly(size))
        arrived.append(message)
        if free is not None:
            await free.wait()
        is_batch = isinstance(message, list)
        body = form % json.dumps((message[0] if is_batch else message)["id"]).encode()
        body = b"[%b]" % body if is_batch else body
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n" % kind)
        writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + body)

    return script, arrived


@pytest.mark.parametrize(
    "kind, form", [(b"application/json", DIRECT), (b"text/event-stream", EVENTS)]
)
async def test_a_retry_has_the_stored_answer_under_its_own_id(upstream, serving, kind, form):
    script, arrived = serves(kind, form)
    made = await upstream(script)
    async with serving(made.port, POLICY) as proxy:
        for number, rpc_id in enumerate((1, 1, 20_000, "x-3")):
            told = await proxy.exchange(calling(proxy, rpc_id))
            head, _, body = told.partition(b"\r\n\r\n")
            assert body == form % json.dumps(rpc_id).encode()
            assert (b"Idempotent-Replayed: true" in head) == (number > 0)
        assert len(arrived) == 1


async def test_a_retry_in_flight_shares_the_answer_under_its_own_id(upstream, serving):
    free = asyncio.Event()
    script, arrived = serves(b"application/json", DIRECT, free)
    made = await upstream(script)
    async with serving(made.port, POLICY) as proxy, asyncio.timeout(10):
        first = asyncio.ensure_future(proxy.exchange(calling(proxy, 1)))
        while not arrived:
            await asyncio.sleep(0.01)
        second = asyncio.ensure_future(proxy.exchange(calling(proxy, "two")))
        await asyncio.sleep(0.1)
        assert not second.done()
        free.set()
        assert (await first).endswith(DIRECT % b"1")
        told = await second
        assert told.endswith(DIRECT % b'"two"')
        assert b"Idempotent-Replayed: true" in told
        assert len(arrived) == 1


async def test_a_batch_of_one_is_not_answered_with_the_plain_answer(upstream, serving):
    script, arrived = serves(b"application/json", DIRECT)
    made = await upstream(script)
    async with serving(made.port, POLICY) as proxy:
        assert (await proxy.exchange(calling(proxy, 1))).endswith(DIRECT % b"1")
        told = await proxy.exchange(calling(proxy, 2, batch=True))
        assert told.endswith(b"[%b]" % (DIRECT % b"2"))
        assert len(arrived) == 2
