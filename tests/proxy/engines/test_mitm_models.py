"""Model calls through the engine: their answers are asked for uncoded, and metered as they flow.

gpt-5.1 takes $1.25 and $10 for a million tokens of input and output.
"""

import asyncio
import json

import pytest

POLICY = """
version: 1
tools:
  model: {match: {host: model.test}, model_api: openai, allow_addresses: [127.0.0.0/8]}
"""
TOLD = {"model": "gpt-5.1", "usage": {"prompt_tokens": 1000, "completion_tokens": 200}}
PLAIN = json.dumps(TOLD).encode()
WORD = b'data: {"choices": [{"delta": {"content": "Hi"}}], "usage": null}\n\n'
LAST = b"data: " + json.dumps({"choices": [], **TOLD}).encode() + b"\n\ndata: [DONE]\n\n"


def asked(proxy, method=b"POST", path=b"/v1/chat/completions", body=b'{"model": "gpt-5.1"}'):
    line = b"%b http://model.test%b HTTP/1.1\r\nHost: model.test\r\n" % (method, path)
    kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    more = b"Accept-Encoding: gzip, br\r\nConnection: close\r\n\r\n"
    return line + proxy.credentials() + kind + more + body


def whole(body, kind=b"application/json"):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n"
    return head % (kind, len(body)) + body


def chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunked(*chunks):
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    return head + b"\r\n" + b"".join(map(chunk, chunks)) + b"0\r\n\r\n"


@pytest.fixture
async def exchanged(upstream, serving):
    """What reached the upstream, what its answer gave the agent, and the ledger's row."""

    async def exchange(answer, request=asked, **how):
        heard = []

        async def script(reader, writer):
            heard.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(answer)
            await writer.drain()

        made = await upstream(script)
        async with serving(made.port, POLICY) as proxy:
            given = await proxy.exchange(request(proxy, **how))
            while (row := proxy.calls()[0])["state"] == "pending":
                await asyncio.sleep(0.01)
        return heard[0].lower(), given, row

    return exchange


def metered(row):
    return row["effect"], row["input_tokens"], row["output_tokens"], row["cost_usd"]


async def test_a_whole_answer_is_metered(exchanged):
    heard, given, row = await exchanged(whole(PLAIN))
    assert given.endswith(PLAIN)
    assert metered(row) == ("model", 1000, 200, 0.00325)
    assert heard.count(b"accept-encoding") == 1
    assert b"\r\naccept-encoding: identity\r\n" in heard


async def test_a_stream_is_metered_and_arrives_as_it_was_sent(exchanged):
    _, given, row = await exchanged(chunked(WORD, LAST[:25], LAST[25:]))
    assert b"[DONE]" in given
    assert given.count(b"data: ") == 3
    assert metered(row) == ("model", 1000, 200, 0.00325)


async def test_what_asks_no_model_goes_as_it_came_and_is_not_metered(exchanged):
    heard, _, row = await exchanged(whole(PLAIN), method=b"GET", path=b"/v1/models", body=b"")
    assert b"\r\naccept-encoding: gzip, br\r\n" in heard
    assert metered(row) == ("read", None, None, None)


# What an agent may try so that it costs less than it does

BOUND = """ceilings:
  - {per: run, count: spend_usd, at_most: 1.00}
"""
DEAR = {"model": "gpt-5.1", "usage": {"prompt_tokens": 20, "completion_tokens": 50_000}}
CHEAP = b'{"model":"gpt-5.1","max_completion_tokens":1'


@pytest.fixture
async def attempts(upstream, serving):
    """How many of four calls reached the upstream, and what the agent was told of the last."""

    async def attempt(answer, *requests, policy=POLICY + BOUND):
        arrived = []

        async def script(reader, writer):
            head = await reader.readuntil(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            await reader.readexactly(length)
            arrived.append(head)
            writer.write(answer)
            await writer.drain()

        made, given = await upstream(script), b""
        async with serving(made.port, policy) as proxy:
            for request in requests:
                given = await proxy.exchange(asked(proxy, **request))
                while any(row["state"] == "pending" for row in proxy.calls()):
                    await asyncio.sleep(0.01)
        return len(arrived), given

    return attempt


@pytest.mark.parametrize(
    "rest",
    [
        b',"max_completion_tokens":null}',
        b',"\\u006dax_completion_tokens":50000}',
        b',"n":50.0}',
        b',"background":true}',
    ],
)
async def test_a_length_that_can_be_read_in_two_ways_is_not_sent(attempts, rest):
    arrived, given = await attempts(whole(json.dumps(DEAR).encode()), {"body": CHEAP + rest})
    assert arrived == 0
    assert b"argument_refused" in given


@pytest.mark.parametrize(
    "path",
    [b"/v1/threads/t/runs", b"/V1/Chat/Completions", b"/v1/chat/completions;x", b"/v1/anything"],
)
async def test_what_nobody_knows_of_a_model_api_is_charged(attempts, path):
    """What it answers is not believed to be all; a third does not fit."""
    bodies = [b'{"model":"gpt-5.1","max_tokens":40000,"seed":%d}' % seed for seed in range(4)]
    requests = [{"path": path, "body": body} for body in bodies]
    arrived, given = await attempts(whole(b"{}"), *requests)
    assert arrived == 2
    assert b"over_ceiling" in given


async def test_a_batch_is_not_charged_by_what_it_tells_at_first(attempts):
    nothing = {"id": "b", "usage": {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}}
    requests = [{"path": b"/v1/batches", "body": b'{"seed":%d}' % n} for n in range(4)]
    policy = POLICY + BOUND.replace("1.00", "40")  # each is charged some 16 dollars
    arrived, _ = await attempts(whole(json.dumps(nothing).encode()), *requests, policy=policy)
    assert arrived == 2


async def test_who_leaves_a_stream_is_charged_for_thoughts_that_were_not_seen(upstream, serving):
    left = asyncio.Event()

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(chunked(WORD)[: -len(b"0\r\n\r\n")])
        await writer.drain()
        await left.wait()

    made = await upstream(script)
    body = b'{"model":"gpt-5.1","stream":true,"max_completion_tokens":60000}'
    async with serving(made.port, POLICY + BOUND) as proxy:
        reader, writer = await proxy.connect()
        writer.write(asked(proxy, body=body))
        await reader.readuntil(b"}\n\n")
        writer.close()
        left.set()
        while any(row["state"] == "pending" for row in proxy.calls()) or not proxy.calls():
            await asyncio.sleep(0.01)
        given = await proxy.exchange(asked(proxy, body=body))
    assert b"over_ceiling" in given
