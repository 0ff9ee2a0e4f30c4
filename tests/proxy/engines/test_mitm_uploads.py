"""Uploads of tools with `stream: true`: judged by their heads, then they flow on as they come."""

import asyncio
import hashlib
from contextlib import closing

import pytest

from ledger import queries
from ledger.connection import open_reader
from policies.verdict import Level, Pull, Scope
from tests.engine import HTTP2
from tests.proxy.engines.conftest import tls_context
from tests.proxy.engines.uploading import (
    PART,
    POLICY,
    Taking,
    answer_of,
    chunk,
    h2_upload,
    of_chunks,
    put,
    settled,
)


async def test_an_upload_is_judged_by_its_head_and_flows_before_it_ends(upstream, serving):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 2 * len(PART)) + PART)
        await taking.came.wait()
        while len(taking.bodies[0]) < len(PART):
            await asyncio.sleep(0.01)
        assert [call["state"] for call in proxy.calls()] == ["pending"]
        writer.write(PART)
        head, body = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 200")
        assert body == b"ok"
        (call,) = await settled(proxy)
    assert call["state"] == "done"
    assert call["tool"] == "files.put"
    assert bytes(taking.bodies[0]) == PART + PART
    assert b"content-length: 131072" in taking.heads[0].lower()


async def test_the_body_is_hashed_on_the_way(upstream, serving):
    server = await upstream(Taking())
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy) + chunk(PART) + chunk(PART[:100]) + b"0\r\n\r\n")
        assert (await answer_of(reader))[1] == b"ok"
        (call,) = await settled(proxy)
        with closing(open_reader(proxy.data)) as ledger:
            ((digest,),) = ledger.execute(
                "SELECT request_digest FROM event WHERE type = 'call.outcome'"
            ).fetchall()
            row = queries.call(ledger, call["id"])
    assert digest == hashlib.sha256(PART + PART[:100]).digest()
    assert row is not None
    assert row["events"][-1]["request_digest"] == digest.hex()
    assert call["state"] == "done"


async def test_chunks_reach_the_upstream_as_they_were(upstream, serving):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy) + chunk(b"abc") + chunk(PART) + b"0\r\n\r\n")
        await answer_of(reader)
        writer.write(put(proxy, 3, key=b"k2") + b"def")  # the connection is still good
        assert (await answer_of(reader))[1] == b"ok"
    assert await of_chunks(taking.bodies[0]) == b"abc" + PART
    assert bytes(taking.bodies[1]) == b"def"


async def test_a_repeat_is_replayed_without_its_body(upstream, serving):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 3) + b"abc")
        first = await answer_of(reader)
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 3))  # nothing of its body
        head, body = await answer_of(reader)
        assert b"Idempotent-Replayed: true" in head
        assert b"connection: close" in head.lower()
        assert body == first[1]
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 4))  # another length is another payload
        assert (await answer_of(reader))[0].startswith(b"HTTP/1.1 422")
    assert len(taking.heads) == 1


async def test_a_repeat_in_flight_is_told_at_once(upstream, serving):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        _, writer = await proxy.connect()
        writer.write(put(proxy, 10) + b"abc")
        await taking.came.wait()
        reader, _ = second = await proxy.connect()
        second[1].write(put(proxy, 10))
        async with asyncio.timeout(5):
            head, body = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 409")
        assert b"in_flight" in body


@pytest.mark.parametrize(
    "path, status, reason",
    [(b"/files/a", b"400", "key_required"), (b"/free/a", b"200", "allowed")],
    ids=["a key is required", "unless the policy says off"],
)
async def test_without_a_key(upstream, serving, path, status, reason):
    server = await upstream(Taking())
    async with serving(server.port, POLICY) as proxy:
        for _ in range(2):
            reader, writer = await proxy.connect()
            writer.write(put(proxy, 3, key=None, path=path) + b"abc")
            assert (await answer_of(reader))[0].startswith(b"HTTP/1.1 " + status)
        assert [call["reason"] for call in await settled(proxy, 2)] == [reason] * 2


async def test_a_refused_upload_is_answered_while_its_client_sends_on(upstream, serving):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        halt = Pull(Level.HALT, Scope.RUN, "r1", "", "ann", 1)
        await proxy.service.decider.act(lambda store: store.pull(halt))
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 100 * len(PART)))
        for _ in range(100):
            writer.write(PART)
            await writer.drain()
        head, body = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 403")
        assert b"halted" in body
        assert await reader.read() == b""
    assert taking.heads == []


async def test_expect_100_continue(upstream, serving):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 3, more=b"Expect: 100-continue\r\n"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"abc")
        assert (await answer_of(reader))[1] == b"ok"
        reader, writer = await proxy.connect()
        writer.write(put(proxy, 3, key=None, more=b"Expect: 100-continue\r\n"))
        assert (await answer_of(reader))[0].startswith(b"HTTP/1.1 400")  # and no 100 before
    assert b"expect" not in taking.heads[0].lower()


@HTTP2
@pytest.mark.parametrize("told", [True, False])
async def test_an_upload_by_http2_reaches_an_http1_upstream(tmp_path, serving, told):
    taking, ca = Taking(), tmp_path / "upstream.pem"
    taking.closes = True
    context = tls_context(ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    server = await asyncio.start_server(taking, "127.0.0.1", 0, ssl=context)
    async with serving(server.sockets[0].getsockname()[1], POLICY, upstream_ca=ca) as proxy:
        reader, writer = await proxy.tunnel("api.test", alpn=["h2"])
        parts = [PART] * 40  # more than a window
        sent = await h2_upload(reader, writer, 40 * len(PART), parts=parts, told=told)
        assert sent == ("200", b"ok")
        writer.close()
        reader, writer = await proxy.tunnel("api.test", alpn=["h2"])
        sent = await h2_upload(reader, writer, 40 * len(PART), parts=[PART], told=told, ends=False)
        assert sent == ("200", b"ok")  # replayed, its body unread
        writer.close()
    server.close()
    body = taking.bodies[0] if told else await of_chunks(taking.bodies[0])
    assert bytes(body) == PART * 40
    assert len(taking.heads) == 1


async def test_a_hundred_uploads_at_once(upstream, serving):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:

        async def one(number):
            reader, writer = await proxy.connect()
            run = f"r{number % 10}"
            writer.write(put(proxy, 4 * len(PART), key=b"k%d" % number, run=run))
            for _ in range(4):
                writer.write(PART)
                await writer.drain()
            return (await answer_of(reader))[1]

        assert await asyncio.gather(*map(one, range(100))) == [b"ok"] * 100
    assert [len(body) for body in taking.bodies] == [4 * len(PART)] * 100
