"""What upstreams do to a call, through real sockets: each fault has one answer and one outcome."""

import asyncio
import struct
from socket import SO_LINGER, SOL_SOCKET

import pytest

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def get(proxy, path=b"/", host=b"api.test"):
    line = b"GET http://%b%b HTTP/1.1\r\nHost: %b\r\n" % (host, path, host)
    return line + proxy.credentials() + b"\r\n"


def post(proxy, body=b'{"a": 1}', host=b"api.test", headers=b""):
    line = b"POST http://%b/w HTTP/1.1\r\nHost: %b\r\n" % (host, host)
    kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body)
    return line + proxy.credentials() + kind + headers + b"\r\n" + body


def answering(*parts):
    """An upstream that reads a head and a short body, then writes these parts and closes."""

    async def script(reader, writer):
        await reader.read(65536)
        for part in parts:
            writer.write(part)
            await writer.drain()

    return script


def reset(writer):
    writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


@pytest.mark.parametrize(
    "interim",
    [
        b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
    ],
)
async def test_interim_answers_are_skipped(upstream, serving, interim):
    made = await upstream(answering(interim, OK))
    async with serving(made.port) as proxy:
        assert (await proxy.exchange(get(proxy))).endswith(b"\r\n\r\nok")


async def test_an_interim_answer_in_the_same_packet_as_the_final_one(upstream, serving):
    made = await upstream(answering(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK))
    async with serving(made.port) as proxy:
        answer = await proxy.exchange(get(proxy))
        assert answer.startswith(b"HTTP/1.1 200")


async def test_trailers_of_a_chunked_answer_do_not_break_it(upstream, serving):
    chunked = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n"
    )
    made = await upstream(answering(chunked))
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(get(proxy))
        async with asyncio.timeout(5):
            await reader.readuntil(b"2\r\nok\r\n0\r\n\r\n")
        writer.close()
    assert [call["state"] for call in proxy.calls()] == ["done"]


async def test_a_streamed_answer_is_not_delayed(upstream, serving):
    """The client has the first event before the upstream sends the second."""
    seen = asyncio.Event()

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n")
        writer.write(b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        await seen.wait()
        writer.write(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    made = await upstream(script)
    async with serving(made.port) as proxy, asyncio.timeout(10):
        reader, writer = await proxy.connect()
        writer.write(get(proxy))
        await reader.readuntil(b"data: 1\n\n")
        seen.set()
        await reader.readuntil(b"data: 2\n\n")
        writer.close()


async def test_a_write_that_is_reset_after_it_was_sent_is_unknown_and_never_sent_again(
    upstream, serving
):
    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        reset(writer)

    made = await upstream(script)
    async with serving(made.port) as proxy:
        first = await proxy.exchange(post(proxy))
        again = await proxy.exchange(post(proxy))
        assert first.startswith(b"HTTP/1.1 504")
        assert b"outcome_unknown" in first
        assert again.startswith(b"HTTP/1.1 504")
        assert made.connections == 1
        assert [call["state"] for call in proxy.calls()] == ["unknown", "refused"]


async def test_a_write_that_could_not_be_dialled_was_not_sent_and_may_be_tried_again(
    upstream, serving
):
    made = await upstream(answering(OK))
    async with serving(1) as proxy:  # port 1: nothing listens there
        first = await proxy.exchange(post(proxy))
        assert first.startswith(b"HTTP/1.1 502")
        assert b"reason=not_sent" in first
        second = await proxy.exchange(post(proxy))
        assert b"reason=not_sent" in second
        assert [call["state"] for call in proxy.calls()] == ["not_sent", "not_sent"]
    assert made.connections == 0


async def test_a_tunnel_recovers_after_a_failed_dial(serving):
    """One failure must not stick to the connection: the second call dials again."""
    arrived = []

    async def serve(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        arrived.append(1)
        writer.write(OK)
        writer.close()

    holder = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = holder.sockets[0].getsockname()[1]
    holder.close()
    await holder.wait_closed()
    async with serving(port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(get(proxy))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 502")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(size)
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        writer.write(get(proxy))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        writer.close()
        server.close()
    assert arrived == [1]


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
async def test_an_answer_that_has_no_body_is_replayed_without_a_length(upstream, serving, status):
    """RFC 9110, section 8.6. The connection goes on with the next call."""
    made = await upstream(answering(b"HTTP/1.1 %b\r\nETag: x\r\n\r\n" % status))
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        head = b""
        for _ in range(3):
            writer.write(post(proxy))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + status)
            assert b"etag: x" in head.lower()
            assert b"content-length" not in head.lower()
        assert b"Idempotent-Replayed: true" in head
        assert made.connections == 1


async def test_a_500_to_a_write_is_relayed_replayed_and_never_sent_again(upstream, serving):
    made = await upstream(answering(b"HTTP/1.1 500 Oops\r\nContent-Length: 4\r\n\r\noops"))
    async with serving(made.port) as proxy:
        first = await proxy.exchange(post(proxy))
        again = await proxy.exchange(post(proxy))
        assert first.startswith(b"HTTP/1.1 500")
        assert again.startswith(b"HTTP/1.1 500")
        assert again.endswith(b"oops")
        assert b"Idempotent-Replayed: true" in again
        assert b"Idempotent-Replayed" not in first
        assert made.connections == 1
        assert [call["state"] for call in proxy.calls()] == ["unknown", "replayed"]


@pytest.mark.parametrize("status", [b"421", b"425", b"429"])
async def test_a_status_that_says_nothing_was_done_releases_the_write(upstream, serving, status):
    made = await upstream(answering(b"HTTP/1.1 %b No\r\nContent-Length: 0\r\n\r\n" % status))
    async with serving(made.port) as proxy:
        await proxy.exchange(post(proxy))
        await proxy.exchange(post(proxy))
    assert made.connections == 2


async def test_a_stalled_upstream_is_cut_at_the_first_byte_deadline(upstream, serving):
    async def script(reader, writer):
        await reader.read(65536)
        await reader.read()

    made = await upstream(script)
    async with serving(made.port, first_byte_seconds=0.2) as proxy:
        write = await proxy.exchange(post(proxy))
        read = await proxy.exchange(get(proxy))
        assert write.startswith(b"HTTP/1.1 504")
        assert read.startswith(b"HTTP/1.1 502")
    assert [call["state"] for call in proxy.calls()] == ["unknown", "unknown"]


@pytest.mark.parametrize(
    "broken",
    [b"garbage\r\n\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf"],
    ids=["garbage", "closed without an answer", "half an answer"],
)
async def test_a_broken_answer_to_a_write_leaves_it_unknown(upstream, serving, broken):
    made = await upstream(answering(broken))
    async with serving(made.port) as proxy:
        assert (await proxy.exchange(post(proxy))).startswith(b"HTTP/1.1 504")
        assert [call["state"] for call in proxy.calls()] == ["unknown"]


async def test_the_connection_of_a_read_is_used_again_that_of_a_write_is_not(upstream, serving):
    async def script(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(OK)

    made = await upstream(script)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        for _ in range(3):
            writer.write(get(proxy))
            await reader.readuntil(b"ok")
        assert made.connections == 1
        for number in range(2):
            writer.write(post(proxy, b"%d" % number))
            await reader.readuntil(b"ok")
        assert made.connections == 3
        writer.close()


async def test_an_agent_that_leaves_a_write_has_it_finished_and_recorded(upstream, serving):
    arrived, gone = asyncio.Event(), asyncio.Event()

    async def script(reader, writer):
        await reader.read(65536)
        arrived.set()
        await gone.wait()
        writer.write(OK)

    made = await upstream(script)
    async with serving(made.port) as proxy, asyncio.timeout(10):
        _, writer = await proxy.connect()
        writer.write(post(proxy))
        await arrived.wait()
        writer.close()
        await writer.wait_closed()
        gone.set()
        again = await proxy.exchange(post(proxy))
        assert b"Idempotent-Replayed: true" in again
        assert made.connections == 1
        assert [call["state"] for call in proxy.calls()] == ["done", "replayed"]


async def test_an_agent_that_leaves_a_read_ends_it_upstream(upstream, serving):
    arrived, ended = asyncio.Event(), asyncio.Event()

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        await reader.read()
        ended.set()

    made = await upstream(script)
    async with serving(made.port) as proxy, asyncio.timeout(10):
        _, writer = await proxy.connect()
        writer.write(get(proxy))
        await arrived.wait()
        writer.close()
        await ended.wait()


async def test_a_long_answer_to_a_write_is_recorded_before_it_streams(upstream, serving):
    """Over 1 MiB it is kept while it flows; until all of it came, the write counts as done."""
    big = b"x" * (3 * 1024 * 1024)
    asked_early = asyncio.Event()

    async def script(reader, writer):
        await reader.read(65536)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(big) + big[:-1])
        await asked_early.wait()
        writer.write(big[-1:])

    made = await upstream(script)
    async with serving(made.port) as proxy, asyncio.timeout(20):
        reader, writer = await proxy.connect()
        writer.write(post(proxy))
        await reader.readuntil(b"\r\n\r\n")
        assert [call["state"] for call in proxy.calls()] == ["done"]
        early = await proxy.exchange(post(proxy))
        assert early.startswith(b"HTTP/1.1 409")
        assert b"reason=done_but_not_stored" in early
        asked_early.set()
        assert await reader.readexactly(len(big)) == big
        again = await proxy.exchange(post(proxy))
        assert b"Idempotent-Replayed: true" in again
        assert again.endswith(big)
        assert made.connections == 1


async def test_an_upstream_cannot_speak_in_our_name(upstream, serving):
    forged = (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nPullcord-Decision: allow; forged\r\n"
        b'Idempotent_Replayed: true\r\nAlt-Svc: h3=":443"\r\n\r\nok'
    )
    made = await upstream(answering(forged))
    async with serving(made.port) as proxy:
        answer = (await proxy.exchange(get(proxy))).lower()
        assert b"forged" not in answer
        assert b"replayed" not in answer
        assert b"alt-svc" not in answer
        assert answer.count(b"pullcord-decision: allow; reason=allowed; call=") == 1


async def test_a_name_that_leads_to_the_proxy_itself_is_refused(serving):
    async with serving(0) as proxy:
        port = proxy.port
    policy = (
        "version: 1\ntools:\n  any: {match: {host: '*.test'}, allow_addresses: [127.0.0.0/8]}\n"
    )
    async with serving(port, policy, listen=f"127.0.0.1:{port}") as proxy:
        answer = await proxy.exchange(get(proxy))
        assert answer.startswith(b"HTTP/1.1 403")
        assert b"reason=own_listener" in answer
    assert proxy.calls()[-1]["state"] == "not_sent"


async def test_an_address_that_no_tool_allows_is_refused(upstream, serving):
    made = await upstream(answering(OK))
    async with serving(made.port, "version: 1\ntools: {any: {match: {host: '*.test'}}}") as proxy:
        answer = await proxy.exchange(get(proxy))
        assert b"reason=address_refused" in answer
        assert b"127.0.0.1" not in answer
    assert made.connections == 0
