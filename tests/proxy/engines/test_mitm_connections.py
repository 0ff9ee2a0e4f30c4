"""Connections without end, of clients and to upstreams: open files are bounded, and known callers
keep their place."""

import asyncio
import contextlib
import errno
import resource
import socket
from collections import Counter

from proxy.engines import handles
from tests.engine import ROOMS
from tests.proxy.engines import inside
from tests.proxy.engines.conftest import whole_answer
from tests.proxy.engines.test_mitm_floods import until
from tests.proxy.engines.test_mitm_upstream import OK, answering, get


def test_the_limit_on_open_files_is_raised_and_divided():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))
        room = handles.room()
        raised, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        assert raised == min(hard, handles.OPEN_FILES_MAX)
        assert room.clients + room.upstreams + 2 * handles.RESERVED_FILES <= raised
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_connection_too_many_is_hung_up_on_and_takes_nobodys_place(
    upstream, serving, monkeypatch
):
    monkeypatch.setattr(handles, "room", lambda: handles.Room(2 * ROOMS, 2 * ROOMS))
    made = await upstream(keep_alive)
    async with serving(made.port) as proxy:
        kept = [await proxy.connect() for _ in range(2)]
        for reader, writer in kept:
            writer.write(get(proxy))
            assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200")
        third, _ = await proxy.connect()
        assert await third.read() == b""
        for _, writer in kept:
            writer.close()
            await writer.wait_closed()
        answer = b""
        while not answer:  # until both are known to be gone
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                answer = await proxy.exchange(get(proxy))
            await asyncio.sleep(0.01)
        assert answer.startswith(b"HTTP/1.1 200")


class Full(socket.socket):
    """A listener of a process that may open no more files."""

    asked = 0

    def accept(self):
        self.asked += 1
        raise OSError(errno.EMFILE, "Too many open files")


async def test_a_kernel_without_room_is_asked_again_once_and_later(upstream, serving, monkeypatch):
    inside.set_constant(monkeypatch, "ACCEPT_PAUSE_SECONDS", 0.05)
    busy = asyncio.Event()

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        busy.set()
        await reader.read()

    made = await upstream(script)
    async with serving(made.port) as proxy:
        _, writer = await proxy.connect()
        writer.write(get(proxy))
        await busy.wait()
        (live,) = proxy.gate.live.values()
        loop, engine = asyncio.get_running_loop(), live.engine
        with Full() as full:
            loop.remove_reader(engine._listener)
            engine._accept(full)
            assert full.asked == 1
            reader, writer = await proxy.connect()
            writer.write(b"no request\r\n\r\n")
            assert (await whole_answer(reader)).startswith(b"HTTP/1.1 400")
        assert full.asked == 1


async def test_a_stranger_makes_room_for_the_next(upstream, serving, monkeypatch):
    monkeypatch.setattr(handles, "room", lambda: handles.Room(3 * ROOMS, 3 * ROOMS))
    made = await upstream(keep_alive)
    async with serving(made.port) as proxy:
        known, writer = await proxy.connect()
        writer.write(get(proxy))
        assert (await whole_answer(known)).startswith(b"HTTP/1.1 200")
        strangers = [await proxy.connect() for _ in range(10)]
        assert (await proxy.exchange(get(proxy))).startswith(b"HTTP/1.1 200")
        for reader, _ in strangers[:-2]:
            assert await gone(reader)
        writer.write(get(proxy))
        assert (await whole_answer(known)).startswith(b"HTTP/1.1 200")


async def gone(reader):
    with contextlib.suppress(ConnectionError):
        return await reader.read() == b""
    return True


async def test_who_asks_for_nothing_is_hung_up_on(upstream, serving, monkeypatch):
    inside.set_constant(monkeypatch, "FIRST_CALL_SECONDS", 0.2)
    inside.set_constant(monkeypatch, "SWEEP_SECONDS", 0.05)
    made = await upstream(answering(OK))
    async with serving(made.port, identity="token") as proxy:
        silent, _ = await proxy.connect()
        refused, writer = await proxy.connect()
        while True:  # asking in vain keeps no connection
            writer.write(get(proxy))
            try:
                assert b" 407 " in await whole_answer(refused)
            except (OSError, asyncio.IncompleteReadError):
                break
            await asyncio.sleep(0.05)
        assert await silent.read() == b""


async def test_who_has_asked_is_not_hung_up_on(upstream, serving, monkeypatch):
    inside.set_constant(monkeypatch, "FIRST_CALL_SECONDS", 0.1)
    inside.set_constant(monkeypatch, "SWEEP_SECONDS", 0.02)
    made = await upstream(answering(OK))
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        for _ in range(2):
            writer.write(get(proxy))
            assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0.3)  # several sweeps after the deadline of those who have not


async def keep_alive(reader, writer):
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(OK)


async def test_idle_upstream_connections_of_a_client_are_few(upstream, serving, monkeypatch):
    most = 8
    inside.set_constant(monkeypatch, "IDLE_UPSTREAMS_MAX", most)
    open_now: Counter[str] = Counter()

    async def script(reader, writer):
        open_now["now"] += 1
        try:
            await keep_alive(reader, writer)
        finally:
            open_now["now"] -= 1

    made = await upstream(script)
    async with serving(made.port) as proxy:
        reader, writer = await proxy.connect()
        for number in range(3 * most):
            writer.write(get(proxy, host=b"h%d.test" % number))
            assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200")
        await until(lambda: open_now["now"] <= most)
        # The one used last is there still.
        before = made.connections
        writer.write(get(proxy, host=b"h%d.test" % number))
        assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200")
        assert made.connections == before


async def test_an_idle_upstream_connection_makes_room_for_a_needed_one(
    upstream, serving, monkeypatch
):
    monkeypatch.setattr(handles, "room", lambda: handles.Room(100 * ROOMS, 2 * ROOMS))
    made = await upstream(keep_alive)
    async with serving(made.port) as proxy:
        readers = []
        for number in range(4):
            reader, writer = await proxy.connect()
            writer.write(get(proxy, host=b"h%d.test" % number))
            assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200")
            readers.append(reader)
    assert made.connections == 4


async def test_no_connection_is_dialled_beyond_the_room(upstream, serving, monkeypatch):
    monkeypatch.setattr(handles, "room", lambda: handles.Room(100 * ROOMS, 2 * ROOMS))
    busy = asyncio.Event()

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await busy.wait()
        writer.write(OK)

    made = await upstream(script)
    async with serving(made.port) as proxy:
        held = []
        for _ in range(2):
            reader, writer = await proxy.connect()
            writer.write(get(proxy))
            held.append(reader)
        await until(lambda: made.connections == 2)
        answer = await proxy.exchange(get(proxy))
        assert answer.startswith(b"HTTP/1.1 502")
        assert b"reason=not_sent" in answer
        busy.set()
        for reader in held:
            assert (await whole_answer(reader)).startswith(b"HTTP/1.1 200")
