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
