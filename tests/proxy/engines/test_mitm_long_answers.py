"""Long answers of claimed writes: they flow, are kept in sealed files, and are given again."""

import asyncio
import hashlib
import os
import stat
from contextlib import closing, suppress

import pytest

from ledger import answer_files, answer_room, answer_writer
from ledger.answer_files import AnswerReader
from ledger.connection import open_reader
from tests.engine import HTTP2
from tests.proxy.engines.conftest import POLICY, tls_context
from tests.proxy.engines.uploading import answer_of, h2_upload

SECRET = b"sk-live-THIS-STANDS-IN-THE-ANSWER"
BODY = (SECRET + b"." * 31) * 81920  # 5 MiB
LONG = b"HTTP/1.1 201 Made\r\nX-Odd: caf\xe9\r\nContent-Length: %d\r\n\r\n" % len(BODY)


def post(proxy, key=b"k1", run="r1"):
    line = b"POST http://api.test/reports HTTP/1.1\r\nHost: api.test\r\n"
    named = b"Idempotency-Key: %b\r\n" % key
    return line + proxy.credentials(run) + named + b"Content-Length: 2\r\n\r\n{}"


def answering(head=LONG, body=BODY, calls=None):
    async def script(reader, writer):
        while await reader.readuntil(b"\r\n\r\n"):
            if calls is not None:
                calls.append(1)
            await reader.readexactly(2)
            writer.write(head + body)
            await writer.drain()

    return script


async def asked(proxy, request):
    reader, writer = await proxy.connect()
    writer.write(request)
    answer = await answer_of(reader)
    writer.close()
    return answer


def files(proxy):
    return sorted((proxy.data / "answers").iterdir())


async def no_file(proxy):
    """It is removed behind the call."""
    async with asyncio.timeout(10):
        while files(proxy):
            await asyncio.sleep(0.01)


def fields(head):
    """The headers of an answer, without those that are ours."""
    lines = [
        one.partition(b":")[0].lower() + one.partition(b":")[2] for one in head.split(b"\r\n")[1:]
    ]
    ours = (b"pullcord-decision", b"idempotent-replayed", b"connection")
    return sorted(one for one in lines if one and not one.lower().startswith(ours))


async def test_a_long_answer_is_given_again_after_a_restart(upstream, serving):
    calls: list[int] = []
    server = await upstream(answering(calls=calls))
    async with serving(server.port) as proxy:
        first, body = await asked(proxy, post(proxy))
        assert body == BODY
        assert b"Idempotent-Replayed" not in first
        (file,) = files(proxy)
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
        assert SECRET not in file.read_bytes()
    async with serving(server.port) as proxy:
        for key in (b"k1", b"k2"):  # by its key, and by its body
            again, body = await asked(proxy, post(proxy, key))
            assert hashlib.sha256(body).digest() == hashlib.sha256(BODY).digest()
            assert again.startswith(b"HTTP/1.1 201")
            assert b"Idempotent-Replayed: true" in again
            assert fields(again) == fields(first)
    assert len(calls) == 1
    for path in proxy.data.rglob("*"):
        assert not path.is_file() or SECRET not in path.read_bytes(), path


async def test_a_stored_answer_that_cannot_be_read_on_is_cut(upstream, serving, monkeypatch):
    def failing(*_args):
        raise RuntimeError("injected")

    calls: list[int] = []
    server = await upstream(answering(calls=calls))
    async with serving(server.port) as proxy:
        await asked(proxy, post(proxy))
        monkeypatch.setattr(AnswerReader, "read", failing)
        reader, writer = await proxy.connect()
        writer.write(post(proxy))
        with suppress(OSError):
            got = await reader.read()
        writer.close()
    assert len(got) < len(BODY)
    assert len(calls) == 1


async def test_a_chunked_long_answer_is_given_again_with_its_length(upstream, serving):
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server = await upstream(answering(head, b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)))
    async with serving(server.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(post(proxy))
        got = bytearray()
        while not got.endswith(b"\r\n0\r\n\r\n"):
            got += await reader.read(65536)
        writer.close()
        again, body = await asked(proxy, post(proxy))
        assert body == BODY
        assert b"chunked" not in again


async def test_answers_of_an_upstreams_failure_are_given_again_too(upstream, serving):
    calls: list[int] = []
    head = b"HTTP/1.1 500 No\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    server = await upstream(answering(head, calls=calls))
    async with serving(server.port) as proxy:
        await asked(proxy, post(proxy))
        again, body = await asked(proxy, post(proxy))
        assert again.startswith(b"HTTP/1.1 500")
        assert body == BODY
        assert [call["state"] for call in proxy.calls()] == ["unknown", "replayed"]
    assert len(calls) == 1


@pytest.mark.parametrize("damage", ["a byte", "its end", "gone", "another"])
async def test_a_damaged_file_is_never_given(upstream, serving, damage):
    calls: list[int] = []
    server = await upstream(answering(calls=calls))
    async with serving(server.port) as proxy:
        await asked(proxy, post(proxy))
        (file,) = files(proxy)
        whole = file.read_bytes()
        if damage == "a byte":
            file.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
        elif damage == "its end":
            os.truncate(file, len(whole) - 65536)
        elif damage == "gone":
            file.unlink()
        else:
            await asked(proxy, post(proxy, b"k2", run="r2").replace(b"{}", b"[]"))
            other = next(one for one in files(proxy) if one != file)
            other.rename(file)
        head, body = await asked(proxy, post(proxy))
        assert head.startswith(b"HTTP/1.1 409")
        assert b"done_but_not_stored" in body
        assert b"x-should-retry: false" in head
    assert len(calls) == (2 if damage == "another" else 1)


async def test_an_answer_that_breaks_off_is_not_kept(upstream, serving):
    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        await reader.readexactly(2)
        writer.write(LONG + BODY[: 3 << 20])
        await writer.drain()

    server = await upstream(script)
    async with serving(server.port) as proxy:
        reader, writer = await proxy.connect()
        writer.write(post(proxy))
        await reader.read()
        writer.close()
        head, body = await asked(proxy, post(proxy))
        assert head.startswith(b"HTTP/1.1 409")
        assert b"done_but_not_stored" in body
        await no_file(proxy)


@pytest.mark.parametrize("limit", ["ANSWER_FILE_BYTES_MAX", "ANSWER_FILES_BYTES_MAX"])
async def test_what_is_beyond_a_limit_is_not_kept(upstream, serving, monkeypatch, limit):
    monkeypatch.setattr(answer_room, limit, len(BODY) - 1)
    server = await upstream(answering())
    async with serving(server.port) as proxy:
        assert (await asked(proxy, post(proxy)))[1] == BODY
        head, body = await asked(proxy, post(proxy))
        assert head.startswith(b"HTTP/1.1 409")
        assert b"done_but_not_stored" in body
        await no_file(proxy)


async def test_an_answer_that_nobody_is_given_again_takes_no_room(upstream, serving):
    server = await upstream(answering())
    policy = POLICY.replace("[POST, PUT]}", '[POST, PUT]}, idempotency: {missing: "off"}')
    async with serving(server.port, policy) as proxy:
        request = post(proxy).replace(b"Idempotency-Key: k1\r\n", b"")
        assert (await asked(proxy, request))[1] == BODY
        assert not (proxy.data / "answers").exists() or files(proxy) == []


async def test_a_file_goes_with_its_claim(upstream, serving):
    server = await upstream(answering())
    async with serving(server.port) as proxy:
        await asked(proxy, post(proxy))
        (file,) = files(proxy)
        (call,) = proxy.calls()
        store = proxy.service.decider._store

        def expire(store):
            store._conn.execute("UPDATE claim SET expires_us = 1")
            store.reap()

        os.utime(file, (0, 0))
        await proxy.service.decider.act(expire)
        store._sweep_us = 0
        await proxy.service.decider.act(lambda store: store.reap())
        assert not file.exists()
        assert call["state"] == "done"


async def test_what_a_crash_left_is_swept_at_the_start(upstream, serving, tmp_path):
    server = await upstream(answering())
    answers = tmp_path / "data" / "answers"
    answers.mkdir(parents=True)
    for name in ("abc.part", "17-abc", "stray"):
        (answers / name).write_bytes(b"left over")
        os.utime(answers / name, (0, 0))
    writing = answer_files.AnswerFiles(tmp_path / "data", lambda step: step()).begin(0.0)
    writing.add(bytes(2**20))
    os.utime(writing._path, (0, 0))
    async with serving(server.port) as proxy:
        assert [path.name for path in files(proxy)] == [writing._path.name]
        await asked(proxy, post(proxy))
    writing.drop()
    async with serving(server.port) as proxy:
        assert len(files(proxy)) == 1
        with closing(open_reader(proxy.data)) as ledger:
            ((name,),) = ledger.execute("SELECT file FROM answer").fetchall()
        assert [path.name for path in files(proxy)] == [name]


@HTTP2
async def test_a_long_answer_by_http2(tmp_path, serving):
    ca = tmp_path / "upstream.pem"
    server = await asyncio.start_server(answering(), "127.0.0.1", 0, ssl=tls_context(ca))
    async with serving(server.sockets[0].getsockname()[1], upstream_ca=ca) as proxy:
        for _ in range(2):
            reader, writer = await proxy.tunnel("api.test", alpn=["h2"])
            assert await h2_upload(reader, writer, 2, parts=[b"{}"]) == ("201", BODY)
            writer.close()
        assert [call["state"] for call in proxy.calls()] == ["done", "replayed"]
    server.close()


async def test_an_agent_that_reads_slowly_holds_its_replay_back(upstream, serving, monkeypatch):
    server = await upstream(answering())
    reads: list[int] = []
    told = AnswerReader.read

    def counted(reader):
        reads.append(1)
        return told(reader)

    async with serving(server.port) as proxy:
        await asked(proxy, post(proxy))
        monkeypatch.setattr(AnswerReader, "read", counted)
        reader, writer = await proxy.connect()
        writer.write(post(proxy))
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.5)
        checked = len(BODY) // answer_writer.PART_BYTES
        assert checked < len(reads) < 2 * checked
        writer.close()
