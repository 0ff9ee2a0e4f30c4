"""One POST of an alert: by TLS that is verified, bounded, and told in words of ours."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy import sending
from proxy.sending import ANSWER_BYTES_MAX, RETRY_AFTER_SECONDS_MAX, Heard, Message, Sender
from tests.proxy.looked_at import Service, serving
from tests.proxy.receiver import receiving

NOW_US = 1_800_000_000_000_000
SECRET = "s3cr3t-of-the-test"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with serving(tmp_path) as served:
        yield served


@asynccontextmanager
async def a_sender(trust: Path | None = None) -> AsyncIterator[Sender]:
    sender = Sender(trust, lambda: NOW_US)
    try:
        yield sender
    finally:
        await sender.close()


async def sent(url: str, trust: Path | None = None) -> Heard:
    async with a_sender(trust) as sender:
        return await sender.post(Message(url, b"{}", (("x-mine", "1"),), (SECRET,)))


async def test_it_posts_json_and_says_who_it_is() -> None:
    async with receiving() as receiver:
        heard = await sent(f"{receiver.url}/a%2Fb?c=%5B")
        (one,) = receiver.got
    assert (heard.status, heard.is_sent, heard.is_final) == (200, True, False)
    assert one.body == b"{}"
    assert one.headers["content-type"] == "application/json"
    assert one.headers["user-agent"] == "pullcord"
    assert one.headers["x-mine"] == "1"


async def test_tls_is_verified(service: Service) -> None:
    url = f"https://localhost:{service.port}/"
    refused = await sent(url)
    assert not refused.is_sent
    assert "the certificate of localhost is not trusted" in refused.said
    assert (await sent(url, service.ca)).is_sent
    assert len(service.asked) == 1


async def test_a_certificate_of_another_name_is_none(service: Service) -> None:
    heard = await sent(f"https://127.0.0.1:{service.port}/", service.ca)
    assert "the certificate of 127.0.0.1 is not trusted" in heard.said


async def test_authorities_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    heard = await sent("https://localhost:1/", tmp_path / "none.pem")
    assert (heard.status, heard.is_final) == (None, False)


async def test_a_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with receiving() as receiver:
        assert (await sent(receiver.url)).is_sent


@pytest.mark.parametrize(
    "status, is_sent, is_final",
    [
        (200, True, False),
        (202, True, False),
        (204, True, False),
        (302, False, True),
        (400, False, True),
        (403, False, True),
        (408, False, False),
        (425, False, False),
        (429, False, False),
        (500, False, False),
        (503, False, False),
    ],
)
def test_what_a_status_means(status: int, is_sent: bool, is_final: bool) -> None:
    heard = Heard(status, "")
    assert (heard.is_sent, heard.is_final) == (is_sent, is_final)


@pytest.mark.parametrize(
    "text, seconds",
    [
        ("", None),
        ("soon", None),
        ("-5", None),
        ("0", 0.0),
        ("120", 120.0),
        ("9" * 50, RETRY_AFTER_SECONDS_MAX),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 0.0),
        ("Fri, 15 Jan 2100 08:00:00 GMT", RETRY_AFTER_SECONDS_MAX),
    ],
)
def test_how_long_to_wait(text: str, seconds: float | None) -> None:
    assert sending._seconds(text, NOW_US) == seconds


async def test_what_comes_back_is_one_short_line_without_secrets() -> None:
    async with receiving() as receiver:
        said = f"no\x1b[31m {SECRET}\r\n\u202e {SECRET.upper()} " + "x" * 1_000
        receiver.always = (500, said, {})
        heard = await sent(receiver.url)
    assert heard.said.startswith("127.0.0.1 answered 500: no [31m [redacted] [redacted] xxx")
    assert len(heard.said) < 300
    assert heard.said.isprintable()


async def test_an_answer_without_end_is_read_up_to_a_bound() -> None:
    async with receiving() as receiver:
        receiver.always = (500, "x" * (10 * ANSWER_BYTES_MAX), {})
        heard = await sent(receiver.url)
    assert heard.status == 500


async def test_one_that_trickles_is_left_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "SEND_SECONDS", 0.3)

    async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        while not writer.is_closing():
            writer.write(b"x")
            await asyncio.sleep(0.02)

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    heard = await sent(f"http://127.0.0.1:{port}/")
    server.close()
    assert heard.said == "127.0.0.1 did not answer within 0.3 seconds"


async def test_what_is_no_http_is_told() -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    heard = await sent(f"http://127.0.0.1:{port}/")
    server.close()
    assert (heard.status, heard.said) == (None, "127.0.0.1 answered what is no HTTP")


async def test_nobody_there_is_told_without_an_address() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        heard = await sent(f"http://localhost:{probe.getsockname()[1]}/")
    assert heard.said == "localhost cannot be reached: Connection refused"


async def test_a_name_that_leads_nowhere_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    heard = await sent("http://nowhere.example/")
    assert heard.said == "nowhere.example does not resolve: Name or service not known"
