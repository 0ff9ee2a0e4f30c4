"""The control port over real sockets: what it holds open, for how long, and what it reads."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import pytest

from proxy import control_port, control_service
from proxy.control_port import CONNECTIONS_MAX, bound_to
from proxy.control_socket import ControlError
from tests.proxy.controlled import Controlled, controlled


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        yield made


def test_a_port_in_use_is_told_with_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(
            ControlError, match=f"cannot listen for control on {address}.*--control"
        ):
            bound_to(address)


async def test_the_port_goes_with_its_proxy(tmp_path: Path) -> None:
    async with controlled(tmp_path) as running:
        assert (await running.at_port("GET", "/healthz"))[0] == 200
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", running.port))


@pytest.mark.parametrize("sent", [b"", b"GET /healthz HTTP/1.1\r\nHost: a\r\nX-A: "])
async def test_a_connection_that_asks_nothing_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(control_port, "HEAD_SECONDS", 0.05)
    async with controlled(tmp_path) as running, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(sent)
        assert await reader.read() == b""
        writer.close()


async def test_a_body_that_does_not_come_is_not_waited_for(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_service, "BODY_SECONDS", 0.05)
    secret = await running.enrolled("pull")
    async with asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        head = f"POST /v1/pull HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\n"
        writer.write(
            f"{head}Authorization: Bearer {secret}\r\nContent-Length: 9\r\n\r\n{{".encode()
        )
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
        writer.close()


async def test_only_so_many_connections_are_held_and_the_socket_stays_open(
    running: Controlled,
) -> None:
    asking = f"GET /healthz HTTP/1.1\r\nHost: localhost:{running.port}\r\n\r\n".encode()

    async def answered() -> asyncio.StreamWriter | None:
        """A connection that was answered and stays open; None for one that was hung up on."""
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            writer.write(asking)
            await reader.readuntil(b"true}")
            return writer
        writer.close()
        return None

    async with asyncio.timeout(20):
        held = [await answered() for _ in range(CONNECTIONS_MAX)]
        assert None not in held
        assert await answered() is None
        assert await running.asked("GET", "/healthz") == {"ok": True}
        for writer in held:
            assert writer is not None
            writer.close()
            await writer.wait_closed()
        while (late := await answered()) is None:
            await asyncio.sleep(0.01)
        late.close()


@pytest.mark.parametrize("framing", ["length", "chunked"])
async def test_a_body_that_is_too_long_is_not_taken(running: Controlled, framing: str) -> None:
    secret = await running.enrolled("pull")
    body = b'{"level": "halt", "scope": "global", "reason": "' + b"x" * 70_000 + b'"}'
    head = f"POST /v1/pull HTTP/1.1\r\nHost: 127.0.0.1:{running.port}\r\nConnection: close\r\n"
    head += f"Authorization: Bearer {secret}\r\n"
    if framing == "length":
        sent = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
    else:
        sent = head.encode() + b"Transfer-Encoding: chunked\r\n\r\n"
        sent += b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(sent)
    assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    writer.close()
    assert running.service.decider.pulls == {}


async def test_a_head_that_is_too_long_is_neither_taken_nor_logged(
    running: Controlled, caplog: pytest.LogCaptureFixture
) -> None:
    status, _, _ = await running.at_port("GET", "/healthz", headers={"X-A": "a" * 7_000})
    assert status == 200
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    head = b"GET /healthz HTTP/1.1\r\nAuthorization: Bearer " + b"a" * 20_000
    writer.write(head + b"\r\n\r\n")
    assert (await reader.readline())[9:12] == b"400"
    writer.close()
    assert caplog.text == ""
