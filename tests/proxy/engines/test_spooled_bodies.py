"""Requests that are held to be judged: long ones wait on the disk, sealed, and take no memory."""

import asyncio
import os
import sys
import threading
from pathlib import Path

import pytest

from proxy import serve, spool
from proxy.engines import arriving
from proxy.gate import Gate
from tests.engine import HTTP2
from tests.proxy.engines.conftest import tls_context
from tests.proxy.engines.test_fail_closed import failing
from tests.proxy.engines.uploading import PART, Taking, answer_of, chunk, h2_upload, of_chunks, put

COUNT = 48  # parts of a body
SIZE_BYTES = COUNT * len(PART)
STRANGERS, LONG_BYTES = 8, 15 * 1024 * 1024
POLICY = """
version: 1
tools:
  files.put: {match: {host: "*.test", method: PUT}, allow_addresses: [127.0.0.0/8]}
"""


@pytest.fixture
def bodies(monkeypatch):
    """What this process holds of request bodies, once its engine is there."""
    made = []

    def kept(of):
        made.append(arriving.Bodies(of))
        return made[0]

    monkeypatch.setattr(serve, "Bodies", kept)
    yield made
    (held,) = made
    assert (held.held_bytes, held.spool.files, held.spool.size_bytes) == (0, 0, 0)


async def until(condition):
    while not condition():
        await asyncio.sleep(0.005)


def nameless(data):
    """What the open files below there hold that have no name; asked on Linux alone."""
    if sys.platform != "linux":
        return []
    there = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    links = [(path, os.readlink(path)) for path in there if path.is_symlink()]
    wanted = [path for path, link in links if str(data) in link and "(deleted)" in link]
    return [path.read_bytes() for path in wanted]


async def begun(proxy, bodies, *, told=True):
    """A client that has sent all of a long body but its last part."""
    reader, writer = await proxy.connect()
    writer.write(put(proxy, SIZE_BYTES if told else None))
    for _ in range(COUNT - 1):
        writer.write(PART if told else chunk(PART))
        await writer.drain()
    least_bytes = SIZE_BYTES - len(PART) - spool.PART_BYTES
    await until(lambda: bodies[0].spool.size_bytes > least_bytes)
    return reader, writer


@pytest.mark.parametrize("told", [True, False])
async def test_a_long_body_waits_on_the_disk_and_goes_on_as_it_came(
    serving, upstream, bodies, told
):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await begun(proxy, bodies, told=told)
        assert bodies[0].held_bytes < 2 * spool.PART_BYTES + len(PART)
        assert bodies[0].spool.files == 1
        if sys.platform == "linux":
            (sealed,) = nameless(proxy.data)
            assert len(sealed) > SIZE_BYTES - 2 * spool.PART_BYTES
            assert PART[:16] not in sealed
        writer.write(PART if told else chunk(PART) + b"0\r\n\r\n")
        assert (await answer_of(reader))[1] == b"ok"
        sent = bytes(taking.bodies[0])
        is_chunked = b"transfer-encoding" in taking.heads[0].lower()
        assert (await of_chunks(sent) if is_chunked else sent) == PART * COUNT
        await until(lambda: bodies[0].held_bytes == 0)
        assert nameless(proxy.data) == []


async def test_the_key_of_a_long_body_is_that_of_all_of_it(serving, upstream, bodies):
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        for last in (PART, PART, PART[::-1]):
            reader, writer = await proxy.connect()
            writer.write(put(proxy, SIZE_BYTES, key=None) + PART * (COUNT - 1) + last)
            head, _ = await answer_of(reader)
            assert head.startswith(b"HTTP/1.1 200"), head
    assert len(taking.heads) == 2  # the second is a replay of the first


@HTTP2
async def test_a_long_body_by_http2_waits_on_the_disk_too(tmp_path, serving, bodies):
    taking, ca = Taking(), tmp_path / "upstream.pem"
    taking.closes = True
    server = await asyncio.start_server(taking, "127.0.0.1", 0, ssl=tls_context(ca))
    async with serving(server.sockets[0].getsockname()[1], POLICY, upstream_ca=ca) as proxy:
        reader, writer = await proxy.tunnel("api.test", alpn=["h2"])
        parts = [PART] * COUNT
        sending = h2_upload(reader, writer, SIZE_BYTES, parts=parts, ends=False)
        task = asyncio.create_task(sending)
        await until(lambda: bodies and bodies[0].spool.size_bytes > SIZE_BYTES // 2)
        task.cancel()
        writer.close()
        await until(lambda: bodies[0].held_bytes == bodies[0].spool.files == 0)
        reader, writer = await proxy.tunnel("api.test", alpn=["h2"])
        sent = await h2_upload(reader, writer, SIZE_BYTES, parts=parts)
        assert sent == ("200", b"ok")
        assert bytes(taking.bodies[0]) == PART * COUNT
        server.close()


@HTTP2
async def test_by_http2_a_client_that_is_faster_than_the_disk_is_not_read(
    monkeypatch, tmp_path, serving, bodies
):
    taking, ca, disk = Taking(), tmp_path / "upstream.pem", SlowDisk(monkeypatch)
    taking.closes = True
    server = await asyncio.start_server(taking, "127.0.0.1", 0, ssl=tls_context(ca))
    async with serving(server.sockets[0].getsockname()[1], POLICY, upstream_ca=ca) as proxy:
        reader, writer = await proxy.tunnel("api.test", alpn=["h2"])
        sending = h2_upload(reader, writer, SIZE_BYTES, parts=[PART] * COUNT)
        task = asyncio.create_task(sending)
        await until(disk.waits.is_set)
        for _ in range(10):
            await proxy.tunnel("api.test", alpn=["h2"])
        assert bodies[0].held_bytes < arriving.HELD_BYTES_MAX + 2 * spool.PART_BYTES
        disk.goes.set()
        assert await task == ("200", b"ok")
        assert bytes(taking.bodies[0]) == PART * COUNT
        server.close()


async def test_of_a_client_that_leaves_nothing_stays(serving, upstream, bodies):
    server = await upstream(Taking())
    async with serving(server.port, POLICY) as proxy:
        _, writer = await begun(proxy, bodies)
        writer.transport.abort()
        await until(lambda: bodies[0].held_bytes == bodies[0].spool.files == 0)
        assert nameless(proxy.data) == []
    assert server.connections == 0


async def test_of_a_body_that_gets_too_long_nothing_stays(serving, upstream, bodies):
    server = await upstream(Taking())
    async with serving(server.port, POLICY, body_bytes_max=SIZE_BYTES - 1) as proxy:
        reader, writer = await begun(proxy, bodies)
        writer.write(PART)
        head, told = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 413")
        assert b"more than" in told
        await until(lambda: bodies[0].held_bytes == bodies[0].spool.files == 0)
    assert server.connections == 0


@pytest.mark.parametrize("step", ["write", "read"])
async def test_what_the_disk_does_not_keep_is_refused(monkeypatch, serving, upstream, bodies, step):
    def full(*_):
        raise OSError("the disk is nearly full")

    monkeypatch.setattr(spool.SealedFile, step, full)
    server = await upstream(Taking())
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, SIZE_BYTES) + PART * COUNT)
        head, told = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 413")
        assert b"the proxy could not keep it: the disk is nearly full" in told
    assert server.connections == 0


async def test_what_is_not_as_it_was_written_is_refused(monkeypatch, serving, upstream, bodies):
    monkeypatch.setattr(spool.SealedFile, "_nonce", lambda *_: os.urandom(12))
    server = await upstream(Taking())
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, SIZE_BYTES) + PART * COUNT)
        head, told = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 413")
        assert b"could not keep it: InvalidTag" in told
    assert server.connections == 0


async def test_a_body_that_cannot_be_fetched_goes_nowhere(
    monkeypatch, serving, upstream, bodies, nothing_crashes
):
    monkeypatch.setattr(arriving.Arriving, "whole", failing)
    server = await upstream(Taking())
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, SIZE_BYTES) + PART * COUNT)
        told = await reader.read()
        assert not told or told[9:12] in (b"502", b"503")
        assert not proxy.gate.live
    assert server.connections == 0
    nothing_crashes.clear()


async def test_an_engine_that_stops_holds_nothing(monkeypatch, serving, upstream, bodies):
    reads, may_read, read = threading.Event(), threading.Event(), spool.SealedFile.read

    def late(file, rest):
        reads.set()
        assert may_read.wait(10)
        return read(file, rest)

    monkeypatch.setattr(spool.SealedFile, "read", late)
    server = await upstream(Taking())
    async with serving(server.port, POLICY, drain_seconds=0.1) as proxy:
        _, writer = await proxy.connect()
        writer.write(put(proxy, SIZE_BYTES) + PART * COUNT)
        await until(reads.is_set)
    may_read.set()
    async with asyncio.timeout(5):
        await until(lambda: bodies[0].held_bytes == bodies[0].spool.files == 0)
    assert server.connections == 0


class SlowDisk:
    """Keeps every write waiting until it `goes`."""

    def __init__(self, monkeypatch):
        self.waits, self.goes, write = threading.Event(), threading.Event(), spool.SealedFile.write

        def late(file, parts):
            self.waits.set()
            assert self.goes.wait(10)
            write(file, parts)

        monkeypatch.setattr(spool.SealedFile, "write", late)


async def called(proxy):
    """Somebody else's call, which nothing keeps waiting."""
    reader, writer = await proxy.connect()
    writer.write(put(proxy, 2, key=None) + b"ok")
    assert (await answer_of(reader))[1] == b"ok"
    writer.close()


async def test_a_client_that_is_faster_than_the_disk_is_not_read_meanwhile(
    monkeypatch, serving, upstream, bodies
):
    taking, disk = Taking(), SlowDisk(monkeypatch)
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, SIZE_BYTES) + PART * COUNT)
        await until(disk.waits.is_set)
        for _ in range(10):
            await called(proxy)
        assert bodies[0].held_bytes < arriving.HELD_BYTES_MAX + 2 * spool.PART_BYTES
        disk.goes.set()
        assert (await answer_of(reader))[1] == b"ok"
    assert bytes(taking.bodies[-1]) == PART * COUNT


async def test_of_a_client_that_is_not_known_yet_nothing_more_is_read(
    monkeypatch, serving, upstream, bodies
):
    """However much of its body has come already when that is asked."""
    asks, may_tell, greet = [], asyncio.Event(), Gate.greet

    async def late(gate, credentials, seen):
        asks.append(seen)
        await may_tell.wait()
        return await greet(gate, credentials, seen)

    monkeypatch.setattr(Gate, "greet", late)
    server = await upstream(Taking())
    async with serving(server.port, POLICY) as proxy:
        writers = []
        for _ in range(STRANGERS):
            _, writer = await proxy.connect()
            writer.write(put(proxy, LONG_BYTES) + bytes(LONG_BYTES))
            writers.append(writer)
        await until(lambda: len(asks) == STRANGERS)
        for _ in range(20):
            await called(proxy)
        left_bytes = [writer.transport.get_write_buffer_size() for writer in writers]
        assert min(left_bytes) > LONG_BYTES // 4  # the kernel holds some
        for writer in writers:
            writer.transport.abort()
        may_tell.set()


async def test_one_that_has_to_give_way_to_others_is_read_to_its_end(
    monkeypatch, serving, upstream, bodies
):
    disk = SlowDisk(monkeypatch)
    server = await upstream(Taking())
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, SIZE_BYTES) + PART * COUNT)
        await until(disk.waits.is_set)
        await called(proxy)
        next(iter(bodies[0].coming)).give_way()
        head, told = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 413")
        assert b"send it again" in told
        disk.goes.set()
    assert server.connections == 1


async def test_without_room_for_files_it_stays_in_memory(monkeypatch, serving, upstream, bodies):
    monkeypatch.setattr(spool, "SPOOL_FILES_MAX", 0)
    taking = Taking()
    server = await upstream(taking)
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await proxy.connect()
        writer.write(put(proxy, SIZE_BYTES) + PART * (COUNT - 1))
        await until(lambda: bodies[0].held_bytes == SIZE_BYTES - len(PART))
        writer.write(PART)
        assert (await answer_of(reader))[1] == b"ok"
    assert bytes(taking.bodies[0]) == PART * COUNT


async def test_what_finds_no_room_in_memory_to_be_judged_is_told_to_come_again(
    monkeypatch, serving, upstream, bodies
):
    server = await upstream(Taking())
    async with serving(server.port, POLICY) as proxy:
        reader, writer = await begun(proxy, bodies)
        monkeypatch.setattr(arriving, "BODIES_BYTES_MAX", SIZE_BYTES - 1)
        writer.write(PART)
        head, told = await answer_of(reader)
        assert head.startswith(b"HTTP/1.1 413")
        assert b"send it again" in told
    assert server.connections == 0


async def test_bodies_that_come_slowly_give_way(monkeypatch, serving, upstream, bodies):
    taking = Taking()
    server = await upstream(taking)
    each_bytes = 12 * len(PART)
    monkeypatch.setattr(arriving, "BODIES_BYTES_MAX", 3 * each_bytes + 1000)
    monkeypatch.setattr(arriving, "SLOW_SECONDS", 0.0)
    async with serving(server.port, POLICY) as proxy:
        slow = []
        for number in range(3):
            slow.append(await proxy.connect())
            slow[-1][1].write(put(proxy, each_bytes, key=b"s%d" % number) + PART * 11)
            held_bytes = 11 * len(PART) * (number + 1)
            await until(lambda held=held_bytes: bodies and bodies[0].held_bytes == held)
        reader, writer = await proxy.connect()
        writer.write(put(proxy, each_bytes, key=b"quick") + PART * 12)
        assert (await answer_of(reader))[1] == b"ok"
        told = []
        for reader, writer in slow:
            writer.write(PART)
            told.append((await answer_of(reader))[0][9:12])
        assert told == [b"413", b"200", b"200"]  # the one that began first made room
