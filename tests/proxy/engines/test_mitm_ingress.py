"""What agents send, through each ingress: what names two destinations or smuggles reaches nothing.

Ingresses: plain absolute-form, CONNECT with TLS, plain HTTP inside a CONNECT, WebSocket
handshakes. HTTP/2 is in test_mitm_http2.py.
"""

import asyncio
import base64
import json

import pytest

from tests.proxy.engines.conftest import whole_answer

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
async def counting(upstream):
    """An upstream that answers every request; it must see none in most of these tests."""

    async def script(reader, writer):
        while await made.head(reader):
            writer.write(OK)

    made = await upstream(script)
    return made


# Plain, absolute-form


MISMATCHES = {
    "another Host": b"GET http://api.test/ HTTP/1.1\r\nHost: evil.test\r\n",
    "another port in Host": b"GET http://api.test/ HTTP/1.1\r\nHost: api.test:81\r\n",
    "two Hosts": b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\nHost: evil.test\r\n",
    "two equal Hosts": b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\nHost: api.test\r\n",
    "no Host": b"GET http://api.test/ HTTP/1.1\r\n",
    "a userinfo": b"GET http://evil.test@api.test/ HTTP/1.1\r\nHost: api.test\r\n",
    "a comma in Host": b"GET http://api.test/ HTTP/1.1\r\nHost: api.test,evil.test\r\n",
}
MALFORMED = {
    "a null byte": b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\nX-A: a\x00b\r\n",
    "a bare CR": b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\nX-A: a\rb\r\n",
    "a folded line": b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\nX-A: a\r\n b\r\n",
    "a space before the colon": b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\nX-A : a\r\n",
    "length and chunked": b"POST http://api.test/ HTTP/1.1\r\nHost: api.test\r\n"
    b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
    "two lengths": b"POST http://api.test/ HTTP/1.1\r\nHost: api.test\r\n"
    b"Content-Length: 3\r\nContent-Length: 4\r\n",
    "a signed length": b"POST http://api.test/ HTTP/1.1\r\nHost: api.test\r\n"
    b"Content-Length: +3\r\n",
    "an unknown coding": b"POST http://api.test/ HTTP/1.1\r\nHost: api.test\r\n"
    b"Transfer-Encoding: xchunked\r\n",
    "Connection names Host": b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n"
    b"Connection: host\r\n",
    "a fragment": b"GET http://api.test/#x HTTP/1.1\r\nHost: api.test\r\n",
    "dot segments": b"GET http://api.test/a/../b HTTP/1.1\r\nHost: api.test\r\n",
    "encoded dot segments": b"GET http://api.test/a/%2e%2e/b HTTP/1.1\r\nHost: api.test\r\n",
    "a h2 preface": b"PRI * HTTP/2.0\r\n",
    "an odd scheme": b"GET ftp://api.test/ HTTP/1.1\r\nHost: api.test\r\n",
    "a bad method": b"G@T http://api.test/ HTTP/1.1\r\nHost: api.test\r\n",
    "two credentials": b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n"
    b"Proxy-Authorization: Basic eDp5\r\n",
}


@pytest.mark.parametrize(
    "request_head", (MISMATCHES | MALFORMED).values(), ids=MISMATCHES | MALFORMED
)
async def test_plain_requests_that_are_ambiguous_reach_nothing(counting, serving, request_head):
    async with serving(counting.port) as proxy:
        answer = await proxy.exchange(request_head + proxy.credentials() + b"\r\n")
        assert answer[9:12] in (b"400", b"407", b"505"), answer
        assert b"connection: close" in answer.lower()
    assert counting.received == b""


async def test_a_head_without_end_is_refused(counting, serving):
    async with serving(counting.port) as proxy:
        flood = b"GET http://api.test/ HTTP/1.1\r\nX-A: " + b"a" * 100_000
        assert (await proxy.exchange(flood)).startswith(b"HTTP/1.1 431")


async def test_too_many_headers_are_refused(counting, serving):
    async with serving(counting.port) as proxy:
        many = b"".join(b"X-%d: 1\r\n" % number for number in range(300))
        head = b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n" + many
        answer = await proxy.exchange(head + proxy.credentials() + b"\r\n")
        assert answer.startswith(b"HTTP/1.1 431")
        assert b"reason=head_too_large" in answer
    assert counting.received == b""


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_over_the_limit_gets_a_clean_413(counting, serving, framing):
    body = b"x" * 300_000
    async with serving(counting.port, body_bytes_max=100_000) as proxy:
        head = b"POST http://api.test/ HTTP/1.1\r\nHost: api.test\r\n" + proxy.credentials()
        if framing == "length":
            sent = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        else:
            chunk = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            sent = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk
        answer = await proxy.exchange(sent)
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"reason=body_too_large" in answer
    assert counting.received == b""


async def test_tags_are_added_and_what_the_agent_sent_under_their_names_is_dropped(
    counting, serving
):
    spoofed = (
        b"X-Run-Id: root\r\nx_tenant_id: other\r\nX-TENANT-ID: other\r\nX-Pullcord-Progress: 1\r\n"
        b"Connection: x-run-id, keep-alive\r\nKeep-Alive: 5\r\nProxy-Connection: x\r\n"
    )
    async with serving(counting.port) as proxy:
        head = b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n" + spoofed
        assert b" 200 " in await proxy.exchange(head + proxy.credentials() + b"\r\n")
    seen = bytes(counting.received).lower()
    assert b"x-run-id: r1\r\n" in seen
    assert b"x-tenant-id: acme\r\n" in seen
    for dropped in (b"root", b"other", b"pullcord", b"proxy-", b"keep-alive"):
        assert dropped not in seen, dropped


async def test_each_plain_request_on_a_connection_has_its_own_credentials(counting, serving):
    get = b"GET http://api.test/ HTTP/1.1\r\nHost: api.test\r\n"
    async with serving(counting.port) as proxy:
        reader, writer = await proxy.connect()
        for run, expected in ((b"a", b"200"), (b"b", b"200"), (b"b@d", b"407"), (b"", b"407")):
            encoded = base64.b64encode(run + b":acme")
            sent = b"Proxy-Authorization: Basic " + encoded + b"\r\n" if run else b""
            writer.write(get + sent + b"\r\n")
            head = await reader.readuntil(b"\r\n\r\n")
            assert head[9:12] == expected
            size = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
            await reader.readexactly(int(size))
        writer.close()
        assert [call["run"] for call in proxy.calls()] == ["a", "b", None, None]
    assert counting.received.count(b"GET ") == 2


async def test_pipelined_requests_are_answered_in_order(upstream, serving):
    async def script(reader, writer):
        while True:
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

    made = await upstream(script)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        for path in (b"/1", b"/2", b"/3"):
            get = b"GET http://api.test%b HTTP/1.1\r\nHost: api.test\r\n" % path
            writer.write(get + proxy.credentials() + b"\r\n")
        async with asyncio.timeout(5):
            for path in (b"/1", b"/2", b"/3"):
                await reader.readuntil(b"\r\n\r\n" + path)
        writer.close()


# CONNECT


async def test_a_connect_without_credentials_is_told_how_and_may_try_again(counting, serving):
    async with serving(counting.port) as proxy:
        reader, writer = await proxy.connect()
        bare = b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n"
        writer.write(bare + b"\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 407")
        assert head.lower().count(b"proxy-authenticate: basic realm") == 1
        await reader.readexactly(int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]))
        writer.write(bare + proxy.credentials() + b"\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize(
    "line, status",
    [
        (b"CONNECT api.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n", b"400"),
        (b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\nHost: api.test:443\r\n", b"400"),
        (b"CONNECT api.test HTTP/1.1\r\nHost: api.test\r\n", b"400"),
        (b"CONNECT http://api.test/ HTTP/1.1\r\nHost: api.test\r\n", b"400"),
    ],
)
async def test_a_connect_that_names_two_destinations_is_refused(counting, serving, line, status):
    async with serving(counting.port) as proxy:
        answer = await proxy.exchange(line + proxy.credentials() + b"\r\n")
        assert answer[9:12] == status, answer


async def test_plain_http_inside_a_connect_is_judged_like_any_other(counting, serving):
    """Node's clients send http:// URLs through CONNECT."""
    async with serving(counting.port) as proxy:
        reader, writer = await proxy.connect()
        connect = b"CONNECT api.test:80 HTTP/1.1\r\nHost: api.test:80\r\n"
        writer.write(connect + proxy.credentials() + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"GET /a HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET /b HTTP/1.1\r\nHost: evil.test\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 400")
        writer.close()
        assert [call["run"] for call in proxy.calls()] == ["r1", "r1"]
    assert counting.received.count(b"GET ") == 1


INSIDE = {
    "another Host": b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n",
    "an absolute form elsewhere": b"GET https://evil.test/ HTTP/1.1\r\nHost: api.test\r\n\r\n",
    "two Hosts": b"GET / HTTP/1.1\r\nHost: api.test\r\nHost: evil.test\r\n\r\n",
    "another port": b"GET / HTTP/1.1\r\nHost: api.test:8443\r\n\r\n",
    "a CONNECT again": b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test:443\r\n\r\n",
    "two credentials": b"GET / HTTP/1.1\r\nHost: api.test\r\nProxy-Authorization: Basic eDp5\r\n"
    b"Proxy-Authorization: Basic eDp5\r\n\r\n",
}


@pytest.mark.parametrize("request_head", INSIDE.values(), ids=INSIDE)
async def test_mismatches_inside_a_tunnel_reach_nothing(counting, serving, request_head):
    async with serving(counting.port) as proxy:
        reader, writer = await proxy.tunnel("api.test")
        writer.write(request_head)
        async with asyncio.timeout(5):
            answer = await reader.readuntil(b"\r\n\r\n")
        assert answer[9:12] in (b"400", b"407", b"505"), answer
        writer.close()
    assert counting.received == b""


async def test_a_tls_name_that_differs_from_the_tunnel_reaches_nothing(counting, serving):
    async with serving(counting.port) as proxy:
        reader, writer = await proxy.tunnel("api.test", sni="evil.test")
        writer.write(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"reason=authority_mismatch" in answer
        writer.close()
    assert counting.connections == 0


async def test_a_wrong_credential_after_a_right_one_in_a_tunnel_is_a_407(counting, serving):
    async with serving(counting.port) as proxy:
        reader, writer = await proxy.tunnel("api.test")
        writer.write(b"GET / HTTP/1.1\r\nHost: api.test\r\nProxy-Authorization: Basic !!!\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 407")
        writer.close()
    assert counting.connections == 0


@pytest.mark.parametrize("start", [b"SSH-2.0-OpenSSH_9\r\n", b"\x00\x01\x02\x03\x04\r\n\r\n"])
async def test_what_is_neither_tls_nor_http_in_a_tunnel_is_never_dialled(counting, serving, start):
    async with serving(counting.port) as proxy:
        reader, writer = await proxy.connect()
        connect = b"CONNECT api.test:22 HTTP/1.1\r\nHost: api.test:22\r\n"
        writer.write(connect + proxy.credentials() + b"\r\n")
        await reader.readuntil(b"\r\n\r\n")
        writer.write(start + b"\r\n\r\n")
        async with asyncio.timeout(5):
            rest = await reader.read()
        assert rest[:12] in (b"", b"HTTP/1.1 400")
        writer.close()
    assert counting.connections == 0


# WebSocket handshakes, which are requests like any other until the switch

UPGRADE = (
    b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize("request_head", MISMATCHES.values(), ids=MISMATCHES)
async def test_ambiguous_websocket_handshakes_reach_nothing(counting, serving, request_head):
    async with serving(counting.port) as proxy:
        answer = await proxy.exchange(request_head + UPGRADE + proxy.credentials() + b"\r\n")
        assert answer[9:12] == b"400", answer
    assert counting.received == b""


@pytest.mark.parametrize("request_head", INSIDE.values(), ids=INSIDE)
async def test_ambiguous_websocket_handshakes_in_a_tunnel_reach_nothing(
    counting, serving, request_head
):
    async with serving(counting.port) as proxy:
        reader, writer = await proxy.tunnel("api.test")
        writer.write(request_head[:-2] + UPGRADE + b"\r\n")
        assert (await reader.readuntil(b"\r\n\r\n"))[9:12] in (b"400", b"407")
    assert counting.received == b""


async def test_a_wrong_credential_on_a_websocket_handshake_in_a_tunnel_is_a_407(counting, serving):
    async with serving(counting.port) as proxy:
        reader, writer = await proxy.tunnel("api.test")
        head = b"GET / HTTP/1.1\r\nHost: api.test\r\nProxy-Authorization: Basic !!!\r\n"
        writer.write(head + UPGRADE + b"\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 407")
    assert counting.connections == 0


# The run's own view


@pytest.mark.parametrize("ingress", ["plain", "tunnel"])
async def test_a_run_reads_its_own_state_and_nothing_is_dialled(counting, serving, ingress):
    async with serving(counting.port) as proxy:
        if ingress == "plain":
            url = b"GET http://pullcord.invalid/self HTTP/1.1\r\nHost: pullcord.invalid\r\n"
            answer = await proxy.exchange(url + proxy.credentials() + b"\r\n")
        else:
            reader, writer = await proxy.tunnel("pullcord.invalid")
            writer.write(b"GET /self HTTP/1.1\r\nHost: pullcord.invalid\r\n\r\n")
            answer = await whole_answer(reader)
        assert answer.startswith(b"HTTP/1.1 200")
        state = json.loads(answer.partition(b"\r\n\r\n")[2])
        assert (state["run"], state["tenant"], state["halted"]) == ("r1", "acme", False)
    assert counting.connections == 0


@pytest.mark.parametrize(
    "line, status",
    [(b"POST /self", b"405"), (b"DELETE /self", b"405"), (b"GET /other", b"404")],
)
async def test_the_own_view_loosens_nothing(counting, serving, line, status):
    method, path = line.split(b" ")
    async with serving(counting.port) as proxy:
        url = b"%b http://pullcord.invalid%b HTTP/1.1\r\nHost: pullcord.invalid\r\n"
        answer = await proxy.exchange(url % (method, path) + proxy.credentials() + b"\r\n")
        assert answer[9:12] == status


async def test_the_own_view_needs_credentials_too(counting, serving):
    async with serving(counting.port) as proxy:
        url = b"GET http://pullcord.invalid/self HTTP/1.1\r\nHost: pullcord.invalid\r\n\r\n"
        assert (await proxy.exchange(url)).startswith(b"HTTP/1.1 407")
