"""Connections to upstreams that are shared: what is kept, for whom, for how long, and how many."""

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Callable
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from proxy.authority import Authority
from proxy.dial import AddressRefused, Dialer, OwnListener
from proxy.engines import http1_pool
from proxy.engines.http1_certificates import upstream_context
from proxy.engines.http1_pool import Pool, Untrusted
from proxy.engines.http1_upstream import Upstream
from tests.end_to_end.misbehaving import accepting
from tests.proxy.engines.conftest import TlsUpstream, tls_context
from tests.proxy.engines.listening import HERE, WAIT_SECONDS, asked, dialer, pool, where
from tests.proxy.engines.test_mitm_upstream import OK, answering

Start = Callable[..., Awaitable[Any]]


async def keep_alive(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(OK)


async def called(at: Pool, port: int, *, fresh: bool = False, host: str = "api.test") -> Upstream:
    connection = await at.take(where(port, host=host), HERE, fresh=fresh)
    assert (await asked(connection)).is_whole
    at.give_back(connection)
    return connection


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_connection_is_used_again_by_whoever_comes_next(upstream: Start) -> None:
    made, at = await upstream(keep_alive), pool()
    first = await called(at, made.port)
    assert await called(at, made.port) is first
    assert (made.connections, first.was_pooled) == (1, True)
    at.close()
    assert not first.is_open


async def test_a_write_has_one_of_its_own(upstream: Start) -> None:
    made, at = await upstream(keep_alive), pool()
    await called(at, made.port)
    second = await called(at, made.port, fresh=True)
    assert (made.connections, second.was_pooled) == (2, False)
    at.close()


async def test_another_name_is_another_address(upstream: Start) -> None:
    made, at = await upstream(keep_alive), pool()
    for host in ("a.test", "b.test", "a.test"):
        await called(at, made.port, host=host)
    assert made.connections == 2
    at.close()


@pytest.mark.parametrize(
    "said",
    [OK + b"more", b"HTTP/1.0 200 OK\r\n\r\nok", OK.replace(b"C", b"Connection: close\r\nC")],
)
async def test_what_cannot_be_used_again_is_closed(upstream: Start, said: bytes) -> None:
    made, at = await upstream(answering(said)), pool()
    connection = await called(at, made.port)
    assert not connection.is_open


async def test_one_that_ends_while_it_rests_is_forgotten(upstream: Start) -> None:
    made, at = await upstream(answering(OK)), pool()
    first = await called(at, made.port)
    await until(lambda: not first.is_open)
    await called(at, made.port)
    assert made.connections == 2


async def test_one_that_is_spoken_on_while_it_rests_is_closed(upstream: Start) -> None:
    speaks = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await speaks.wait()
        writer.write(OK)
        await reader.read()

    made, at = await upstream(script), pool()
    first = await called(at, made.port)
    speaks.set()
    await until(lambda: not first.is_open)


async def test_one_rests_for_a_while_only(upstream: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_pool, "IDLE_SECONDS", 0.05)
    made, at = await upstream(keep_alive), pool()
    first = await called(at, made.port)
    await until(lambda: not first.is_open)
    await called(at, made.port)
    assert made.connections == 2
    at.close()


async def test_one_is_kept_for_a_while_only(
    upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name may have moved since."""
    monkeypatch.setattr(http1_pool, "KEPT_SECONDS", -1.0)
    made, at = await upstream(keep_alive), pool()
    first = await called(at, made.port)
    assert not first.is_open


async def test_few_rest_in_all_and_the_one_that_rested_longest_goes(
    upstream: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http1_pool, "IDLE_UPSTREAMS_MAX", 3)
    made, at = await upstream(keep_alive), pool()
    used = [await called(at, made.port, host=f"h{number}.test") for number in range(5)]
    assert [one.is_open for one in used] == [False, False, True, True, True]
    at.close()


async def test_few_rest_at_one_address(upstream: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_pool, "IDLE_EACH_MAX", 2)
    made, at = await upstream(keep_alive), pool()
    used = [await at.take(where(made.port), HERE, fresh=True) for _ in range(4)]
    for one in used:
        await asked(one)
        at.give_back(one)
    assert [one.is_open for one in used] == [False, False, True, True]
    assert await at.take(where(made.port), HERE, fresh=False) is used[-1]
    at.close()


async def test_an_idle_one_makes_room_for_a_needed_one(upstream: Start) -> None:
    made, at = await upstream(keep_alive), pool(room=2)
    used = [await called(at, made.port, host=f"h{number}.test") for number in range(4)]
    assert [one.is_open for one in used] == [False, False, True, True]
    at.close()


async def test_none_is_dialled_beyond_the_room(upstream: Start) -> None:
    made, at = await upstream(keep_alive), pool(room=2)
    used = [await at.take(where(made.port), HERE, fresh=True) for _ in range(2)]
    with pytest.raises(OSError, match="too many connections to upstreams"):
        await at.take(where(made.port), HERE, fresh=True)
    used[0].abort()
    await called(at, made.port)
    used[1].abort()
    at.close()


async def test_a_failed_dial_takes_no_room(upstream: Start) -> None:
    made, at = await upstream(keep_alive), pool(room=1)
    for _ in range(3):
        with pytest.raises(OSError, match="cannot connect"):
            await at.take(where(1), HERE, fresh=False)
    await called(at, made.port)
    at.close()


# Who may go where


async def test_a_kept_connection_is_vetted_for_each_tool(upstream: Start) -> None:
    made, at = await upstream(keep_alive), pool()
    await called(at, made.port)
    with pytest.raises(AddressRefused):
        await at.take(where(made.port), (), fresh=False)
    other = (ip_network("127.0.0.1/32"),)
    connection = await at.take(where(made.port), other, fresh=False)
    assert (made.connections, connection.vetted) == (1, other)
    connection.abort()


async def test_the_own_listener_is_no_upstream(upstream: Start) -> None:
    made = await upstream(keep_alive)
    at = Pool(
        Dialer(frozenset({made.port}), 5.0, dialer().resolve), ssl.create_default_context(), 9
    )
    with pytest.raises(OwnListener):
        await at.take(where(made.port), HERE, fresh=False)


# TLS


def trusting(ca: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca))


async def test_inside_tls_connections_are_kept_too(tls_upstream: TlsUpstream) -> None:
    at = pool(trusting(tls_upstream.ca))
    for _ in range(3):
        connection = await at.take(where(tls_upstream.port, is_tls=True), HERE, fresh=False)
        assert (await asked(connection)).body == b"ok"
        at.give_back(connection)
    assert tls_upstream.connections == 1
    at.close()


async def test_the_clear_and_tls_are_told_apart(tls_upstream: TlsUpstream) -> None:
    at = pool(trusting(tls_upstream.ca))
    connection = await at.take(where(tls_upstream.port, is_tls=True), HERE, fresh=False)
    await asked(connection)
    at.give_back(connection)
    plain = await at.take(where(tls_upstream.port), HERE, fresh=False)
    assert plain is not connection
    plain.abort()
    at.close()


async def test_an_upstream_that_nobody_vouches_for(tls_upstream: TlsUpstream) -> None:
    at = pool(ssl.create_default_context(), room=1)
    for _ in range(2):
        with pytest.raises(Untrusted, match=r"^Certificate verify failed: "):
            await at.take(where(tls_upstream.port, is_tls=True), HERE, fresh=False)
    assert tls_upstream.received == b""


async def test_an_upstream_of_another_name(tls_upstream: TlsUpstream) -> None:
    at = pool(trusting(tls_upstream.ca))
    for host in ("other.test", "127.0.0.1"):
        with pytest.raises(Untrusted, match=r"^Certificate verify failed: .*mismatch"):
            await at.take(where(tls_upstream.port, is_tls=True, host=host), HERE, fresh=False)


@pytest.mark.parametrize("host", ["a" * 64 + ".test", "a..test"])
async def test_a_name_that_tls_cannot_say(tls_upstream: TlsUpstream, host: str) -> None:
    at = pool(trusting(tls_upstream.ca), room=1)
    for _ in range(2):
        with pytest.raises(OSError, match="failed: not a host name"):
            await at.take(where(tls_upstream.port, is_tls=True, host=host), HERE, fresh=False)


@pytest.mark.parametrize(
    "fault, words",
    [
        ("resets at accept", "it closed the connection"),
        ("closes at accept", "it closed the connection"),
        ("speaks no TLS", "WRONG_VERSION_NUMBER|RECORD_LAYER_FAILURE|PACKET_LENGTH"),
        ("is silent at accept", "did not agree on TLS within 0.2 seconds"),
    ],
)
async def test_a_handshake_that_fails_is_told_in_words(fault: str, words: str) -> None:
    at = pool(ssl.create_default_context(), room=1, connect_timeout_seconds=0.2)
    async with accepting(fault) as port:
        assert isinstance(port, int)
        with pytest.raises(OSError, match=words) as told:
            await at.take(where(port, is_tls=True), HERE, fresh=False)
    assert "127.0.0.1" not in str(told.value)
    assert not at._open


async def test_a_take_that_is_given_up_leaves_nothing_open(tmp_path: Path) -> None:
    ended = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65536):
                pass
        ended.set()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    at = pool(ssl.create_default_context(), room=1)
    port = server.sockets[0].getsockname()[1]
    taking = asyncio.ensure_future(at.take(where(port, is_tls=True), HERE, fresh=False))
    await until(lambda: bool(at._open))
    taking.cancel()
    async with asyncio.timeout(WAIT_SECONDS):
        await ended.wait()
    assert (taking.cancelled(), at._open) == (True, set())
    server.close()


async def test_nothing_is_kept_after_the_end(upstream: Start) -> None:
    made, at = await upstream(keep_alive), pool()
    connection = await at.take(where(made.port), HERE, fresh=False)
    await asked(connection)
    at.close()
    assert connection.is_open
    at.give_back(connection)
    assert not connection.is_open


async def test_an_upstream_is_offered_http1_alone(tmp_path: Path) -> None:
    ca = tmp_path / "upstream.pem"
    context = tls_context(ca)
    context.set_alpn_protocols(["h2", "http/1.1"])
    chosen = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        chosen.append(writer.get_extra_info("ssl_object").selected_alpn_protocol())
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    authority = Authority(tmp_path, ca, ca, ca, "")
    at = pool(upstream_context(authority))
    port = server.sockets[0].getsockname()[1]
    connection = await at.take(where(port, is_tls=True), HERE, fresh=False)
    await until(lambda: bool(chosen))
    assert chosen == ["http/1.1"]
    connection.abort()
    server.close()
