"""Usage is asked for in streams whose client did not ask, and the client sees nothing of it."""

import json

import pytest

from tests.engine import HTTP2
from tests.proxy.engines.conftest import tls_context
from tests.proxy.engines.streams import (
    BODY,
    DONE,
    HEAD,
    POLICY,
    WORD,
    asked,
    http1,
    http2,
    pushing,
    request_of,
    secured,
    spent,
)
from tests.proxy.engines.test_mitm_models import chunk

TOLD = {"choices": [], "model": "gpt-5.1", "usage": {"prompt_tokens": 7, "completion_tokens": 5}}


def telling(length=False):
    """Tells its usage at the end if it is asked to, as OpenAI does; all of it at once."""

    async def script(reader, writer):
        body = json.loads(await request_of(reader))
        wants = body.get("stream_options", {}).get("include_usage")
        told = b"data: %b\n\n" % json.dumps(TOLD).encode() if wants else b""
        answer = WORD * 3 + told + DONE
        if length:
            writer.write(HEAD + b"Content-Length: %d\r\n\r\n" % len(answer) + answer)
        else:
            pieces = [answer[at : at + 50] for at in range(0, len(answer), 50)]
            chunks = b"".join(map(chunk, pieces)) + b"0\r\n\r\n"
            writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + chunks)
        await writer.drain()

    return script


@pytest.mark.parametrize("length", [False, True], ids=["chunked", "content-length"])
async def test_a_client_that_asks_for_no_usage_sees_none_and_it_is_known(upstream, serving, length):
    made = await upstream(telling(length))
    async with serving(made.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        given, ended = await http1(proxy, reader, writer, asked(proxy))
        row, used = await spent(proxy)
    assert (given, ended) == (WORD * 3 + DONE, True)
    assert (row["input_tokens"], row["output_tokens"]) == (7, 5)
    assert used == 59  # 7 x 1.25 + 5 x 10, rounded up


async def test_a_client_that_asks_for_usage_sees_it(upstream, serving):
    body = json.dumps({**json.loads(BODY), "stream_options": {"include_usage": True}}).encode()
    made = await upstream(telling())
    async with serving(made.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        given, ended = await http1(proxy, reader, writer, asked(proxy, body=body))
    assert ended
    assert json.dumps(TOLD).encode() in given


async def test_an_old_client_is_given_the_same_and_its_connection_ends(upstream, serving):
    made = await upstream(telling(length=True))
    async with serving(made.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(asked(proxy, http=b"HTTP/1.0"))
        head = await reader.readuntil(b"\r\n\r\n")
        assert await reader.read() == WORD * 3 + DONE
    assert b"transfer-encoding" not in head.lower()
    assert b"content-length" not in head.lower()


@HTTP2
async def test_an_http2_client_is_given_the_same(serving, tmp_path):
    ca = tmp_path / "upstream.pem"
    context = tls_context(ca)
    async with (
        secured(context, telling(length=True)) as port,
        serving(port, POLICY, upstream_ca=ca) as proxy,
    ):
        reader, writer = await proxy.tunnel("api.test", alpn=["h2"])
        assert await http2(reader, writer) == [(WORD * 3 + DONE, True)]


async def test_what_goes_upstream_is_the_agents_own_but_for_that(upstream, serving):
    heard: list[bytes] = []
    made = await upstream(pushing(1, heard=heard))
    async with serving(made.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        await http1(proxy, reader, writer, asked(proxy))
    assert heard == [BODY[:-1] + b',"stream_options":{"include_usage":true}}']
