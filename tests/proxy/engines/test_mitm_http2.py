"""HTTP/2 inside a tunnel: calls are judged one by one, malformed heads reach nothing."""

import asyncio
from typing import Any

import h2.config
import h2.connection
import h2.events
import pytest

from tests.engine import HTTP2

pytestmark = HTTP2


async def h2_exchange(reader, writer, *requests):
    """Send header lists, each ending its stream; statuses (or the reset code) in their order."""
    config = h2.config.H2Configuration(
        validate_outbound_headers=False, normalize_outbound_headers=False, header_encoding="utf-8"
    )
    conn = h2.connection.H2Connection(config)
    conn.initiate_connection()
    order = []
    for headers in requests:
        stream = conn.get_next_available_stream_id()
        order.append(stream)
        conn.send_headers(stream, headers, end_stream=True)
    writer.write(conn.data_to_send())
    seen: dict[int, str] = {}
    async with asyncio.timeout(5):
        while len(seen) < len(order):
            data = await reader.read(65536)
            if not data:
                break
            for event in conn.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    fields: dict[Any, Any] = dict(event.headers)
                    seen[event.stream_id] = fields[":status"]
                elif isinstance(event, h2.events.StreamReset):
                    seen.setdefault(event.stream_id, "reset")
            writer.write(conn.data_to_send())
    return [seen.get(stream, "closed") for stream in order]


def h2_get(path="/", authority="api.test", *more):
    return [
        (":method", "GET"),
        (":scheme", "https"),
        (":authority", authority),
        (":path", path),
        *more,
    ]


async def test_http2_calls_are_judged_one_by_one(tls_upstream, serving):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        reader, writer = await proxy.tunnel("api.test", alpn=["h2"])
        statuses = await h2_exchange(
            reader,
            writer,
            h2_get("/a"),
            h2_get("/b", "evil.test"),
            h2_get("/d", "api.test", ("proxy-authorization", "Basic !!!")),
            h2_get("/e", "api.test:444"),
            h2_get("/f/../g"),
        )
        writer.close()
        assert statuses == ["200", "400", "407", "400", "400"]
    assert tls_upstream.received.count(b"GET ") == 1
    assert b"x-run-id: r1" in bytes(tls_upstream.received).lower()


@pytest.mark.parametrize(
    "headers",
    [
        h2_get("/", "api.test", ("host", "evil.test")),
        h2_get("/", "api.test", (":authority", "evil.test")),
        h2_get("/", "api.test", ("connection", "close")),
        h2_get("/", "api.test", ("transfer-encoding", "chunked")),
        h2_get("/", "api.test", ("x-a", "a\r\nx-b: 1")),
        h2_get("", "api.test"),
        h2_get("/")[1:],
    ],
    ids=[
        "host",
        "two authorities",
        "connection",
        "transfer-encoding",
        "crlf",
        "no path",
        "no method",
    ],
)
async def test_http2_heads_that_are_malformed_reach_nothing(tls_upstream, serving, headers):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        reader, writer = await proxy.tunnel("api.test", alpn=["h2"])
        assert await h2_exchange(reader, writer, headers) in (["400"], ["closed"], ["reset"])
        writer.close()
    assert tls_upstream.connections == 0


async def test_a_tunnel_reaches_a_verified_upstream(tls_upstream, serving):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        reader, writer = await proxy.tunnel("api.test")
        writer.write(b"GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_an_upstream_that_nobody_vouches_for_gets_nothing(tls_upstream, serving):
    async with serving(tls_upstream.port) as proxy:
        reader, writer = await proxy.tunnel("api.test")
        writer.write(b"GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 502")
        writer.close()
    assert [call["state"] for call in proxy.calls()] == ["not_sent"]
    assert tls_upstream.received == b""


async def test_a_body_of_no_told_length_is_no_second_request_to_an_http1_upstream(
    tls_upstream, serving
):
    hidden = b"POST /b HTTP/1.1\r\nHost: api.test\r\nContent-Length: 0\r\n\r\n"
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        reader, writer = await proxy.tunnel("api.test", alpn=["h2"])
        conn = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        conn.initiate_connection()
        conn.send_headers(1, [(":method", "POST"), *h2_get("/a")[1:]])
        conn.send_data(1, hidden, end_stream=True)
        writer.write(conn.data_to_send())
        async with asyncio.timeout(5):
            while b"POST /a" not in tls_upstream.received or not proxy.calls():
                await asyncio.sleep(0.01)
            await reader.read(65536)
        writer.close()
    head, _, _ = bytes(tls_upstream.received).partition(b"\r\n\r\n")
    assert b"\r\ncontent-length: %d" % len(hidden) in head.lower()
