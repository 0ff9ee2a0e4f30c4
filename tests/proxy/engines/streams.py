"""Model calls that stream, for the tests of what they may spend and what they tell: upstreams that
push, clients of HTTP/1 and HTTP/2, and what was settled.

gpt-5.1 takes $1.25 and $10 for a million tokens of input and output: 10 micro-dollars a token.
"""

import asyncio
import json
import ssl

import h2.config
import h2.connection
import h2.events

from ledger.records import Ask
from policies.call import Identity
from proxy.replies import NOTHING_HEARD, UNREAD
from tests.proxy.engines.test_mitm_models import chunk

BUDGET_MICROUSD = 8_000
TENANT_MICROUSD = 200_000_000  # shipped; what is left of it tells what was used
CHUNK_TOKENS = 10
CHUNK_MICROUSD = CHUNK_TOKENS * 10
ESTIMATE_TOKENS = 100
POLICY = """
version: 1
tools:
  model: {match: {host: "*.test"}, model_api: openai, allow_addresses: [127.0.0.0/8]}
ceilings:
  - {per: run, count: spend_usd, at_most: 0.008}
"""
BODY = json.dumps(
    {"model": "gpt-5.1", "stream": True, "max_completion_tokens": ESTIMATE_TOKENS}
).encode()
INPUT_MICROUSD = -(-(len(BODY)) // 3) * 125 // 100
WORDS = {"model": "gpt-5.1", "choices": [{"index": 0, "delta": {"content": "abc" * CHUNK_TOKENS}}]}
WORD = b"data: %b\n\n" % json.dumps(WORDS).encode()
DONE = b"data: [DONE]\n\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"


def asked(proxy, http=b"HTTP/1.1", body=BODY, authority=b"http://api.test"):
    line = b"POST %b/v1/chat/completions %b\r\nHost: api.test\r\n" % (authority, http)
    kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    return line + (proxy.credentials() if authority else b"") + kind + b"\r\n" + body


async def request_of(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return await reader.readexactly(length)


def pushing(words, *, usage=None, heard=None):
    """Answers with so many chunks at once, whatever was estimated; it ignores `stream_options`."""

    async def script(reader, writer):
        body = await request_of(reader)
        if heard is not None:
            heard.append(body)
        writer.write(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(words):
            writer.write(chunk(WORD))
        if usage:
            writer.write(chunk(b"data: %b\n\n" % json.dumps(usage).encode()))
        writer.write(chunk(DONE) + b"0\r\n\r\n")
        await writer.drain()
        await reader.read()

    return script


async def pushing_http2(reader, writer, words):
    """The same in HTTP/2, as fast as its windows let it."""
    config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
    conn = h2.connection.H2Connection(config)
    conn.initiate_connection()
    left: dict[int, list[bytes]] = {}
    writer.write(conn.data_to_send())
    while data := await reader.read(65_536):
        for event in conn.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                kind = [(":status", "200"), ("content-type", "text/event-stream")]
                conn.send_headers(event.stream_id, kind)
                left[event.stream_id] = [WORD] * words + [DONE]
            elif isinstance(event, h2.events.StreamReset):
                left.pop(event.stream_id, None)
        for stream, chunks in list(left.items()):
            while chunks and conn.local_flow_control_window(stream) >= len(chunks[0]):
                conn.send_data(stream, chunks.pop(0), end_stream=not chunks)
            if not chunks:
                del left[stream]
        writer.write(conn.data_to_send())


async def http1(proxy, reader, writer, request):
    """The answer's body, as far as it came, and whether it ended as it should."""
    writer.write(request)
    await reader.readuntil(b"\r\n\r\n")
    given = b""
    try:
        while size := int(await reader.readuntil(b"\r\n"), 16):
            given += (await reader.readexactly(size + 2))[:-2]
    except (asyncio.IncompleteReadError, ConnectionError):
        return given, False
    return given, True


async def http2(reader, writer, *, streams=1):
    conn = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    conn.initiate_connection()
    given: dict[int, bytes] = {}
    ended: dict[int, bool] = {}
    for _ in range(streams):
        stream = conn.get_next_available_stream_id()
        names = {":method": "POST", ":scheme": "https", ":authority": "api.test"}
        path = {":path": "/v1/chat/completions", "content-type": "application/json"}
        conn.send_headers(stream, list({**names, **path}.items()))
        conn.send_data(stream, BODY, end_stream=True)
        given[stream] = b""
    writer.write(conn.data_to_send())
    while len(ended) < streams and (data := await reader.read(65_536)):
        for event in conn.receive_data(data):
            if isinstance(event, h2.events.DataReceived):
                given[event.stream_id] += event.data
                conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
                ended[event.stream_id] = isinstance(event, h2.events.StreamEnded)
        writer.write(conn.data_to_send())
    return [(given[stream], ended.get(stream, False)) for stream in given]


class secured:
    def __init__(self, context: ssl.SSLContext, script):
        self._context, self._script = context, script

    async def __aenter__(self):
        async def serve(reader, writer):
            try:
                await self._script(reader, writer)
            except (OSError, asyncio.IncompleteReadError):
                pass
            finally:
                writer.close()

        self._server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=self._context)
        return self._server.sockets[0].getsockname()[1]

    async def __aexit__(self, *_):
        self._server.close()


async def spent(proxy):
    """The ledger's row, and the micro-dollars that it settled, once it has."""
    while proxy.gate.live or any(call["state"] == "pending" for call in proxy.calls()):
        await asyncio.sleep(0.01)
    (row,) = proxy.calls()
    return row, await used_microusd(proxy)


async def used_microusd(proxy):
    ask = Ask("", proxy.service.clock.now_us(), Identity("r1", "acme"), NOTHING_HEARD, UNREAD)
    state = await proxy.service.decider.own_state(ask)
    (limit,) = [one for one in state.limits if one.at_most == TENANT_MICROUSD]
    return TENANT_MICROUSD - limit.remaining
