"""Streamed uploads that are held back, cut, broken off or answered before their end."""

import asyncio
import hashlib
from contextlib import closing, suppress

import h2.config
import h2.connection
import h2.events

from ledger import queries
from ledger.connection import open_reader
from policies.verdict import Level, Pull, Scope
from proxy.engines.mitm_http2 import WINDOW_BYTES
from proxy.gate import Gate
from tests.engine import HTTP2
from tests.proxy.engines.uploading import (
    CEILING,
    PART,
    POLICY,
    Taking,
    answer_of,
    chunk,
    of_chunks,
    put,
    settled,
)

HALT = Pull(Level.HALT, Scope.RUN, "r1", "", "ann", 1)


async def test_a_body_longer_than_the_tool_takes(upstream, serving):
    taking = Taking()
    server = await upstream(taking)
    policy = POLICY.replace("50000000", "100000")
    async with serving(server.port, policy) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 100_001))
        assert (await answer_of(reader))[0].startswith(b"HTTP/1.1 413")
        assert taking.heads == []
        reader, writer = await proxy.connect()
        writer.write(put(proxy) + chunk(PART) + chunk(PART) + chunk(PART))
        head, _body = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 413"), head
        calls = await settled(proxy, 2)
    assert [call["state"] for call in calls] == ["refused", "unknown"]
    assert len(await of_chunks(taking.bodies[0])) <= 100_000
    assert taking.ended == ["cut"]


async def test_bytes_count_as_they_flow_where_no_length_is_told(upstream, serving):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY + CEILING) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 100_001))
        assert (await answer_of(reader))[0].startswith(b"HTTP/1.1 429")
        reader, writer = await proxy.connect()
        writer.write(put(proxy) + chunk(b"a" * 60_000) + chunk(b"b" * 60_000) + chunk(b"c"))
        head, body = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 403"), head
        assert b'"cut"' in body, body
        calls = await settled(proxy, 2)
    assert [call["state"] for call in calls] == ["refused", "unknown"]
    assert len(await of_chunks(taking.bodies[0])) <= 100_000


async def test_a_part_whose_count_fails_does_not_flow(upstream, serving, monkeypatch):
    def failing(*_args):
        raise RuntimeError("injected")

    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY + CEILING) as proxy:
        monkeypatch.setattr(Gate, "uploaded", failing)
        reader, writer = await proxy.connect()
        writer.write(put(proxy) + chunk(PART))
        with suppress(OSError):
            await reader.read()
        (call,) = await settled(proxy)
        while not taking.ended:
            await asyncio.sleep(0.01)
    assert call["state"] == "unknown"
    assert taking.ended == ["cut"]
    assert bytes(taking.bodies[0]) == b""


async def test_a_halt_cuts_an_upload(upstream, serving):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 10 * len(PART)) + PART)
        await taking.came.wait()
        halt = Pull(Level.HALT, Scope.RUN, "r1", "", "ann", 1)
        await proxy.service.decider.act(lambda store: store.pull(halt))
        head, body = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 403")
        assert b'"cut"' in body
        (call,) = await settled(proxy)
    assert call["state"] == "unknown"
    assert taking.ended == ["cut"]


async def test_an_agent_that_leaves_aborts_its_upload(upstream, serving):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        _, writer = await proxy.connect()
        writer.write(put(proxy) + chunk(PART))
        await taking.came.wait()
        writer.close()
        (call,) = await settled(proxy)
        while not taking.ended:
            await asyncio.sleep(0.01)
        with closing(open_reader(proxy.data)) as ledger:
            row = queries.call(ledger, call["id"])
    assert row is not None
    assert row["events"][-1]["detail"] == "the client left after 0.1 MB"
    assert call["state"] == "unknown"
    assert taking.ended == ["cut"]
    assert not bytes(taking.bodies[0]).endswith(b"0\r\n\r\n")


async def test_broken_chunks_end_an_upload(upstream, serving):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy) + chunk(PART))
        await taking.came.wait()
        writer.write(b"xyz\r\n")
        assert (await answer_of(reader))[0].startswith(b"HTTP/1.1 504")
        (call,) = await settled(proxy)
    assert call["state"] == "unknown"
    assert taking.ended == ["cut"]


async def test_an_upstream_that_answers_early_is_heard(upstream, serving):
    async def early(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n")
        await writer.drain()
        await reader.read()

    server = await upstream(early)
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 100 * len(PART)) + PART)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 401")
        assert await reader.readuntil(b"0\r\n\r\n") == b"2\r\nno\r\n0\r\n\r\n"
        for _ in range(99):
            writer.write(PART)
            await writer.drain()
        assert await reader.read() == b""
        (call,) = await settled(proxy)
    assert call["state"] == "done"
    assert call["status"] == 401


async def test_an_upstream_that_hangs_up_leaves_it_unknown(upstream, serving):
    async def gone(reader, writer):
        await reader.readuntil(b"\r\n\r\n")

    server = await upstream(gone)
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 100 * len(PART)) + PART)
        assert (await answer_of(reader))[0].startswith(b"HTTP/1.1 504")
        (call,) = await settled(proxy)
    assert call["state"] == "unknown"


async def test_what_cannot_be_dialled_was_not_sent(upstream, serving):
    server = await upstream(Taking())
    policy = POLICY.replace("allow_addresses: [127.0.0.0/8]", "trace: none")
    async with serving(server.port, policy) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 10 * len(PART)) + PART)
        head, body = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 403")
        assert b"address_refused" in body
        (call,) = await settled(proxy)
    assert call["state"] == "not_sent"
    assert server.connections == 0


async def test_a_slow_upstream_holds_its_client_back(upstream, serving):
    taking = Taking()
    taking.may_read.clear()
    server = await upstream(taking)
    sent = 0
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 400 * len(PART)))
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while sent < 400:
                    writer.write(PART)
                    await writer.drain()
                    sent += 1
        taking.may_read.set()
        for _ in range(400 - sent - 1):
            writer.write(PART)
            await writer.drain()
        await answer_of(reader)
    assert sent < 300, "the kernel's buffers hold some megabytes, not all of it"
    assert hashlib.sha256(taking.bodies[0]).digest() == hashlib.sha256(PART * 400).digest()


async def test_no_part_flows_on_where_nobody_can_be_asked(upstream, serving, monkeypatch):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY + CEILING) as proxy:

        async def broken(*args):
            raise RuntimeError("no")

        monkeypatch.setattr(type(proxy.gate), "uploaded", broken)
        reader, writer = await proxy.connect()
        writer.write(put(proxy) + chunk(b"secret"))
        assert await reader.read() == b""
        (call,) = await settled(proxy)
    assert call["state"] == "unknown"
    assert all(b"secret" not in body for body in taking.bodies)


@HTTP2
async def test_an_upload_by_http2_that_waits_gets_no_more_window(
    tls_upstream, serving, monkeypatch
):
    free = asyncio.Event()

    async def waits(*args):
        await free.wait()

    async with serving(tls_upstream.port, POLICY + CEILING, upstream_ca=tls_upstream.ca) as proxy:
        monkeypatch.setattr(type(proxy.gate), "uploaded", waits)
        reader, writer = await proxy.tunnel("api.test", alpn=["h2"])
        conn = h2.connection.H2Connection(h2.config.H2Configuration())
        conn.initiate_connection()
        stream = conn.get_next_available_stream_id()
        conn.send_headers(
            stream,
            [
                (":method", "PUT"),
                (":scheme", "https"),
                (":authority", "api.test"),
                (":path", "/files/a"),
                ("idempotency-key", "k1"),
            ],
        )
        sent = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    while most := min(conn.local_flow_control_window(stream), 16_384):
                        conn.send_data(stream, bytes(most))
                        sent += most
                    writer.write(conn.data_to_send())
                    conn.receive_data(await reader.read(65536))
        assert 0 < sent <= 2 * WINDOW_BYTES
        free.set()
        async with asyncio.timeout(5):  # and then it may go on
            while not conn.local_flow_control_window(stream):
                conn.receive_data(await reader.read(65536))
        writer.close()


async def test_a_client_is_not_read_while_its_upload_waits(upstream, serving, monkeypatch):
    taking, free = Taking(), asyncio.Event()
    server = await upstream(taking)

    async def waits(*args):
        await free.wait()

    async with serving(server.port, POLICY + CEILING) as proxy:
        monkeypatch.setattr(type(proxy.gate), "uploaded", waits)
        reader, writer = await proxy.connect()
        writer.write(put(proxy))
        sent = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                while sent < 400:
                    writer.write(chunk(PART))
                    await writer.drain()
                    sent += 1
        assert sent < 300, "the kernel's buffers hold some megabytes, not all of it"
        free.set()
        for _ in range(400 - sent):
            writer.write(chunk(PART))
            await writer.drain()
        writer.write(b"0\r\n\r\n")
        assert (await answer_of(reader))[1] == b"ok"
    assert len(await of_chunks(taking.bodies[0])) >= 400 * len(PART)


async def test_a_halt_that_lands_while_it_is_dialled_sends_nothing(upstream, serving, monkeypatch):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        told = proxy.gate.sent

        def halted(live):
            monkeypatch.setattr(proxy.gate, "_stopped", lambda live: HALT)
            live.epoch -= 1
            return told(live)

        monkeypatch.setattr(proxy.gate, "sent", halted)
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 10 * len(PART)) + PART)
        head, body = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 403")
        assert b'"halted"' in body
        assert b"connection: close" in head.lower()
        (call,) = await settled(proxy)
    assert call["state"] == "not_sent"
    assert taking.heads == []
