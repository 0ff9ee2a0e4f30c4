"""Messages that are none, from both sides: each is answered in words of ours, none is relayed."""

import asyncio

import pytest

from tests.engine import HTTP2
from tests.proxy.engines.conftest import POLICY, whole_answer
from tests.proxy.engines.test_mitm_cords import HANDSHAKE, SWITCH
from tests.proxy.engines.test_mitm_http2 import h2_exchange, h2_get
from tests.proxy.engines.test_mitm_upstream import OK, answering, get, post

R = b"HTTP/1.1 200 OK\r\n"
L = b"Content-Length: 2\r\n\r\nok"
BROKEN = {
    "a bare CR": R + b"X: a\rPullcord-Decision: refuse; reason=halted\r\n" + L,
    "a NUL": R + b"X: a\0b\r\n" + L,
    "a folded line": R + b"X: a\r\n Pullcord-Decision: b\r\n" + L,
    "a name that is none": R + b"X (Y): a\r\n" + L,
    "two framings": R + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": R + b"Content-Length: 3\r\n" + L,
    "status 0": b"HTTP/1.1 000 X\r\n" + L,
    "status 999": b"HTTP/1.1 999 X\r\n" + L,
    "status 2000": b"HTTP/1.1 2000 X\r\n" + L,
    "another version": b"HTTP/2.0 200 OK\r\n" + L,
    "an odd version": b"HTTP/9.9 200 OK\r\n" + L,
    "an upgrade": b"HTTP/1.1 101 S\r\nUpgrade: foo\r\nConnection: Upgrade\r\n\r\nraw",
    "a WebSocket": SWITCH,
}


async def reading(reader):
    """Until the connection ends."""
    try:
        return await reader.read()
    except ConnectionError:
        return b""


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("request_of", [get, post])
async def test_an_answer_that_is_none_is_never_relayed(upstream, serving, answer, request_of):
    made = await upstream(answering(answer))
    async with serving(made.port) as proxy:
        told = await proxy.exchange(request_of(proxy))
        while (call := proxy.calls()[0])["state"] == "pending":
            await asyncio.sleep(0.01)
    status, reason = (b"504", b"outcome_unknown")
    if request_of is get:
        status, reason = (b"502", b"upstream_failed")
    assert told[9:12] == status
    assert told.lower().count(b"pullcord-decision:") == 1
    assert b"pullcord-decision: refuse; reason=%b; call=" % reason in told.lower()
    assert call["state"] == "unknown"


async def test_a_handshake_that_is_answered_for_another_protocol(upstream, serving):
    made = await upstream(answering(SWITCH.replace(b"websocket", b"foo")))
    async with serving(made.port) as proxy:
        told = await proxy.exchange(HANDSHAKE + proxy.credentials() + b"\r\n")
        assert told.startswith(b"HTTP/1.1 504")
    assert [call["state"] for call in proxy.calls()] == ["unknown"]


@pytest.mark.parametrize("empty", [b"\r\n", b"\n", b"\r\n\r\n\n"])
async def test_empty_lines_before_an_answer_mean_nothing(upstream, serving, empty):
    made = await upstream(answering(empty, OK))
    async with serving(made.port) as proxy:
        assert (await proxy.exchange(get(proxy))).startswith(b"HTTP/1.1 200")


# Requests


@pytest.mark.parametrize("empty", [b"\r\n", b"\n", b"\r\n\r\n\n", b"\r\n" * 1000])
async def test_empty_lines_before_a_request_mean_nothing(upstream, serving, empty):
    made = await upstream(answering(OK))
    async with serving(made.port) as proxy:
        assert (await proxy.exchange(empty + get(proxy))).startswith(b"HTTP/1.1 200")


async def test_empty_lines_between_two_requests_mean_nothing(upstream, serving):
    made = await upstream(answering(OK))
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(post(proxy) + b"\r\n" + get(proxy))
        for _ in range(2):
            assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("chunk", [b"ZZ\r\nhi\r\n0\r\n\r\n", b"2\r\nhi0\r\n\r\n", b"-2\r\nhi\r\n"])
async def test_chunks_that_are_none_are_refused_and_recorded(upstream, serving, chunk):
    made = await upstream(answering(OK))
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        head = b"POST http://api.test/w HTTP/1.1\r\nHost: api.test\r\n"
        writer.write(head + proxy.credentials() + b"Transfer-Encoding: chunked\r\n\r\n" + chunk)
        told = await whole_answer(reader)
        assert told.startswith(b"HTTP/1.1 400")
        assert b"its chunks are malformed" in told
        assert await reading(reader) == b""
    assert [call["reason"] for call in proxy.calls()] == ["malformed_request"]
    assert made.connections == 0


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/3.0", b"HTTP/9.9", b"HTTP/0.9"])
async def test_another_version_on_http1_reaches_nothing(upstream, serving, version):
    made = await upstream(answering(OK))
    async with serving(made.port) as proxy:
        told = await proxy.exchange(get(proxy).replace(b"HTTP/1.1", version))
        assert told[9:12] in (b"400", b"505")
        assert b"connection: close" in told.lower()
    assert made.connections == 0


async def flooding(writer):
    while True:
        writer.write(b"x" * 100_000)
        await writer.drain()


async def test_what_is_sent_before_the_last_answer_has_a_bound(upstream, serving):
    async def script(reader, writer):
        await reader.read()

    made = await upstream(script)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(get(proxy))
        while not made.connections:
            await asyncio.sleep(0.01)
        with pytest.raises(OSError, match=r"reset|[Bb]roken|lost"):
            await flooding(writer)
        assert await reading(reader) == b""


@pytest.mark.parametrize("name", ["*.test", "api.test*", "-.test"])
async def test_a_tls_name_that_is_no_host_is_a_mismatch(tls_upstream, serving, name):
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        reader, writer = await proxy.tunnel("api.test", sni=name)
        writer.write(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        told = await whole_answer(reader)
        assert b"reason=authority_mismatch" in told
    assert tls_upstream.connections == 0


@HTTP2
async def test_a_tunnel_of_http2_names_a_broken_head_too(tls_upstream, serving):
    """h2 finds it itself; what matters is that the connection to the agent goes on."""
    async with serving(tls_upstream.port, upstream_ca=tls_upstream.ca) as proxy:
        reader, writer = await proxy.tunnel("api.test", alpn=["h2"])
        assert await h2_exchange(reader, writer, h2_get("/a")) == ["200"]
        writer.close()


# A connection that another tool's call has dialled

TWO_TOOLS = (
    POLICY
    + """
  wiki: {match: {host: inner.example, path: "/wiki/**"}, effect: read,
         allow_addresses: [127.0.0.0/8]}
  admin: {match: {host: inner.example, path: "/admin/**"}, effect: read}
"""
)


async def test_a_kept_connection_serves_only_tools_that_may_reach_its_address(upstream, serving):
    async def script(reader, writer):
        while True:
            await made.head(reader)
            writer.write(OK)

    made = await upstream(script)
    async with serving(made.port, TWO_TOOLS) as proxy:
        reader, writer = await proxy.connect()
        told = []
        for path in (b"/wiki/a", b"/admin/a", b"/wiki/b"):
            writer.write(get(proxy, path, b"inner.example"))
            told.append(await whole_answer(reader))
        assert [answer[9:12] for answer in told] == [b"200", b"403", b"200"]
        assert b"reason=address_refused" in told[1]
    assert b"/admin" not in made.received
    assert [call["state"] for call in proxy.calls()] == ["done", "not_sent", "done"]


@pytest.mark.parametrize(
    "first",
    [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"SSH-2.0-x\r\n", b"\0\0\0\x0c"],
    ids=["TLS to the proxy itself", "SSH", "something else"],
)
async def test_what_is_no_http_is_told_so_at_once(upstream, serving, first):
    made = await upstream(answering(OK))
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(first)
        async with asyncio.timeout(5):
            assert (await reading(reader)).startswith(b"HTTP/1.1 400")
    assert made.connections == 0


async def test_what_is_no_http_inside_a_tunnel_is_told_so_at_once(upstream, serving):
    made = await upstream(answering(OK))
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        connect = b"CONNECT api.test:22 HTTP/1.1\r\nHost: api.test:22\r\n"
        writer.write(connect + proxy.credentials() + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-x\r\n")
        async with asyncio.timeout(5):
            assert (await reading(reader)).startswith(b"HTTP/1.1 400")
    assert made.connections == 0


async def test_a_method_may_come_in_pieces(upstream, serving):
    made = await upstream(answering(OK))
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        for piece in (b"\r\n", b"G", b"E", b"T", get(proxy)[3:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.02)  # so that each arrives alone
        assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("request_of", [get, post])
async def test_an_upstream_that_nobody_vouches_for_is_told_and_not_tried_again(
    tls_upstream, serving, request_of
):
    async with serving(tls_upstream.port) as proxy:
        reader, writer = await proxy.tunnel("api.test")
        sent = request_of(proxy).replace(b"http://api.test", b"")
        writer.write(sent)
        told = await whole_answer(reader)
    assert told.startswith(b"HTTP/1.1 502")
    assert b"reason=upstream_untrusted" in told
    assert b"upstream_ca" in told
    assert tls_upstream.received == b""
    assert [(c["state"], c["reason"]) for c in proxy.calls()] == [
        ("not_sent", "upstream_untrusted")
    ]
