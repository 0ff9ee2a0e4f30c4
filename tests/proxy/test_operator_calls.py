"""An operator's call on real sockets, by TLS: bounded, vetted, never led elsewhere, stopped by a
halt."""

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from policies.addresses import IPNetwork
from policies.load import load
from policies.verdict import Level, Pull, Scope
from proxy import operator_calls
from proxy.credentials import Credential
from proxy.dial import AddrInfo, Dialer
from proxy.operator_calls import ANSWER_BYTES_MAX, Heard, Plan, Unheard, made, stopped
from tests.proxy.looked_at import Service, serving

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))
OPS = Credential("ops", frozenset({"localhost"}), "authorization", "Bearer secret", ("secret",))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as served:
        yield served


def plan(
    service: Service,
    target: str = "/v1/charges?a=%5Bb%5D&c=d%2Fe",
    allow: Sequence[IPNetwork] = LOOPBACK,
    host: str = "localhost",
    method: str = "GET",
    headers: tuple[tuple[str, str], ...] = (),
) -> Plan:
    return Plan(
        "look", method, host, service.port, target, headers, "ops", OPS, "", tuple(allow)
    )  # fmt: skip


async def asked(
    service: Service, a_plan: Plan | None = None, own: frozenset[int] = frozenset()
) -> Heard:
    return await made(a_plan or plan(service), Dialer(own), service.ca, str)


async def unheard(service: Service, a_plan: Plan, **rest: frozenset[int]) -> str:
    with pytest.raises(Unheard) as told:
        await asked(service, a_plan, **rest)
    return str(told.value)


async def test_it_asks_what_was_planned_as_it_was_spelled(service: Service) -> None:
    service.says(200, '{"data": []}')
    heard = await asked(service, plan(service, headers=(("accept", "text/plain"), ("x-a", "b"))))
    ((method, path, headers),) = service.asked
    assert (method, path) == ("GET", "/v1/charges?a=%5Bb%5D&c=d%2Fe")
    assert headers["authorization"] == "Bearer secret"
    assert headers["host"] == f"localhost:{service.port}"
    assert (headers["accept"], headers["x-a"]) == ("text/plain", "b")
    assert headers["accept-encoding"] == "identity"
    assert (heard.status, heard.media_type, heard.body) == (
        200,
        "application/json",
        b'{"data": []}',
    )
    assert not heard.is_cut
    assert "secret" not in repr(plan(service))


async def test_head_has_no_body(service: Service) -> None:
    assert (await asked(service, plan(service, method="HEAD"))).body == b""
    assert service.asked[0][0] == "HEAD"


async def test_a_redirect_is_not_followed(service: Service) -> None:
    service.says(302, "", Location=f"https://localhost:{service.port}/elsewhere")
    heard = await asked(service)
    assert (heard.status, heard.location[-10:]) == (302, "/elsewhere")
    assert len(service.asked) == 1


async def test_a_cookie_and_a_proxy_of_the_environment_count_for_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    service.says(200, "{}", Set_Cookie="a=b")
    await asked(service)
    await asked(service)
    assert "cookie" not in service.asked[1][2]


async def test_a_long_answer_is_cut(service: Service) -> None:
    service.says(200, b"x" * (3 * ANSWER_BYTES_MAX))
    heard = await asked(service)
    assert (len(heard.body), heard.is_cut) == (ANSWER_BYTES_MAX, True)


async def test_a_coded_answer_is_not_decoded(service: Service) -> None:
    service.says(200, b"\x1f\x8b\x08 and so on", Content_Encoding="gzip")
    heard = await asked(service)
    assert (heard.coding, heard.body[:2]) == ("gzip", b"\x1f\x8b")


async def test_who_is_silent_is_given_up(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator_calls, "ANSWER_SECONDS", 0.3)
    service.held.clear()
    told = await unheard(service, plan(service))
    assert told == "localhost did not answer within 0.3 seconds"


async def test_a_certificate_that_is_not_trusted_ends_it_before_a_byte(
    service: Service, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    with serving(tmp_path / "other") as stranger:
        with pytest.raises(Unheard, match="the certificate of localhost is not trusted"):
            await made(plan(stranger), Dialer(frozenset()), service.ca, str)
        assert stranger.asked == []


async def test_a_certificate_of_another_name_ends_it(tmp_path: Path) -> None:
    with serving(tmp_path, ("other.example",)) as stranger:
        told = await unheard(stranger, plan(stranger))
        assert "the certificate of localhost is not trusted" in told
        assert stranger.asked == []


# ---------------------------------------------------------------------------- where it may go


async def test_a_private_address_is_refused_unless_the_tool_allows_it(service: Service) -> None:
    told = await unheard(service, plan(service, allow=()))
    assert "localhost leads to an address that is no public destination (loopback)" in told
    assert service.asked == []


@pytest.mark.parametrize("host", ["169.254.169.254", "10.0.0.1", "127.0.0.1", "::1", "0.0.0.0"])
async def test_an_address_in_the_policy_is_vetted_like_a_name(service: Service, host: str) -> None:
    told = await unheard(service, plan(service, allow=(), host=host))
    assert "no public destination" in told
    assert service.asked == []


async def test_metadata_is_refused_also_where_its_block_is_allowed(service: Service) -> None:
    wide = (ip_network("169.254.0.0/16"),)
    told = await unheard(service, plan(service, allow=wide, host="169.254.169.254"))
    assert "no public destination" in told


async def test_an_own_listener_is_refused_whatever_is_allowed(service: Service) -> None:
    told = await unheard(service, plan(service), own=frozenset({service.port}))
    assert told == f"localhost:{service.port} is pullcord itself, which is never a destination"
    assert service.asked == []


async def test_the_address_that_was_vetted_is_the_one(service: Service) -> None:
    """A name that leads elsewhere when it is asked a second time leads nowhere."""
    answers = [("127.0.0.1", service.port), ("10.0.0.1", service.port)]

    async def rebound(host: str, port: int) -> Sequence[AddrInfo]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", answers.pop(0))]

    heard = await made(plan(service), Dialer(frozenset(), 5.0, rebound), service.ca, str)
    assert heard.status == 200
    assert len(answers) == 1


async def test_nobody_there_is_told_without_an_address(service: Service) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nobody = Plan("look", "GET", "localhost", port, "/", (), "", None, "", LOOPBACK)
    told = await unheard(service, nobody)
    assert "localhost" in told
    assert "127.0.0.1" not in told


async def test_what_is_no_http_is_told_so(tmp_path: Path, service: Service) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")

    async def garbage(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"\x00\x01 Bearer secret\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(garbage, "127.0.0.1", 0, ssl=context)
    async with server:
        port = server.sockets[0].getsockname()[1]
        odd = Plan("look", "GET", "localhost", port, "/", (), "ops", OPS, "", LOOPBACK)
        told = await unheard(service, odd)
    assert "secret" not in told


async def test_a_connection_in_the_clear_is_none(tmp_path: Path, service: Service) -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.read(1_000))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    seen: list[bytes] = []
    server = await asyncio.start_server(plain, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        odd = Plan("look", "GET", "localhost", port, "/", (), "ops", OPS, "", LOOPBACK)
        told = await unheard(service, odd)
    assert told == "localhost and pullcord could not agree on TLS"
    assert b"secret" not in b"".join(seen)


# ---------------------------------------------------------------------------- halts


async def test_a_halt_stops_it_before_its_first_byte(service: Service) -> None:
    with pytest.raises(Unheard, match="halted"):
        await made(plan(service), Dialer(frozenset()), service.ca, lambda: "halted")
    assert service.asked == []


async def test_a_halt_that_comes_meanwhile_ends_it(service: Service) -> None:
    service.held.clear()

    def stops() -> str:
        return "halted" if service.asked else ""

    began = time.monotonic()
    with pytest.raises(Unheard, match="halted"):
        await made(plan(service), Dialer(frozenset()), service.ca, stops)
    assert time.monotonic() - began < operator_calls.ANSWER_SECONDS / 2


def test_only_halts_of_everything_and_of_the_tool_stop_operators() -> None:
    policy = load("version: 1\ntools:\n  look: {match: {host: a.example}}\n")

    def cord(level: Level, scope: Scope, subject: str) -> Pull:
        return Pull(level, scope, subject, "looks wrong", "ann", 1)

    passing = [
        cord(Level.HALT, Scope.RUN, "r1"),
        cord(Level.HALT, Scope.TENANT, "acme"),
        cord(Level.HALT, Scope.RELEASE, "l"),
        cord(Level.HALT, Scope.TOOL, "other"),
        cord(Level.FREEZE, Scope.GLOBAL, ""),
    ]
    pulls = {(each.level, each.scope, each.subject): each for each in passing}
    assert stopped(policy, pulls, "look") == ""
    for scope, subject in ((Scope.GLOBAL, ""), (Scope.TOOL, "look")):
        halt = {(Level.HALT, scope, subject): cord(Level.HALT, scope, subject)}
        assert "stands, and stops operators, too" in stopped(policy, halt, "look")
    written = load(
        "version: 1\nhalted: {global: true}\ntools:\n  look: {match: {host: a.example}}\n"
    )
    assert "the halt of everything" in stopped(written, {}, "look")


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST", "GET"])
async def test_a_connection_that_breaks_off_is_not_tried_again(
    service: Service, method: str
) -> None:
    """The HTTP library would, by some methods."""
    service.drops = True
    assert "broke off" in await unheard(service, plan(service, method=method))
    assert len(service.asked) == 1


async def test_a_body_goes_with_it_and_who_calls_knows_when_it_leaves(service: Service) -> None:
    sent: list[int] = []
    with_body = replace(
        plan(service, method="POST", headers=(("content-type", "application/json"),)),
        body=b'{"a": 1}',
    )
    heard = await made(
        with_body, Dialer(frozenset()), service.ca, str, lambda: sent.append(len(service.asked))
    )
    assert (heard.status, service.bodies, sent) == (200, [b'{"a": 1}'], [0])
    assert service.asked[0][2]["content-type"] == "application/json"
    sent.clear()
    nowhere = replace(with_body, allow=())
    with pytest.raises(Unheard):
        await made(nowhere, Dialer(frozenset()), service.ca, str, lambda: sent.append(1))
    assert sent == []


@pytest.mark.parametrize("level", [Level.HALT, Level.FREEZE])
def test_a_freeze_stops_what_changes_something(level: Level) -> None:
    cord = Pull(level, Scope.GLOBAL, "", "", "ann", 0)
    pulls = {(level, Scope.GLOBAL, ""): cord}
    policy = load("version: 1\n")
    assert bool(stopped(policy, pulls, "pay")) is (level is Level.HALT)
    assert stopped(policy, pulls, "pay", (Level.HALT, Level.FREEZE))
