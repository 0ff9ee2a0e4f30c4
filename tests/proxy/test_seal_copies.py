"""Copies of seals: to a file, a URL, the system's log; what fails waits and is told."""

import asyncio
import contextlib
import socket
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from proxy import seal_copies
from proxy.seal_copies import Copies, shown
from tests.proxy.looked_at import serving


class Collector(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        taken: list[tuple[str, str | None, bytes]] = self.server.taken  # type: ignore[attr-defined]
        taken.append((self.path, self.headers["Authorization"], self.rfile.read(length)))
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Collector)
    server.taken, server.status = [], 204  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def sent(copies: Copies, *lines: bytes) -> Copies:
    for line in lines:
        copies.add(line)
    copies.send()
    return copies


def test_a_file_grows_by_a_line_each_and_is_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "seals"
    copies = sent(Copies(str(path)), b"{1}", b"{2}")
    sent(copies, b"{3}")
    assert path.read_bytes() == b"{1}\n{2}\n{3}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (copies.waiting, copies.error) == (0, "")


def test_what_cannot_be_written_waits_in_order(tmp_path: Path) -> None:
    path = tmp_path / "later" / "seals"
    copies = sent(Copies(str(path)), b"{1}", b"{2}")
    assert copies.waiting == 2
    assert "No such file or directory" in copies.error
    path.parent.mkdir()
    sent(copies, b"{3}")
    assert path.read_bytes() == b"{1}\n{2}\n{3}\n"
    assert (copies.waiting, copies.error) == (0, "")


def test_the_newest_are_kept_where_too_many_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal_copies, "WAITING_MAX", 2)
    copies = sent(Copies(str(tmp_path / "later" / "seals")), b"{1}", b"{2}", b"{3}")
    assert copies.waiting == 2
    (tmp_path / "later").mkdir()
    copies.send()
    assert (tmp_path / "later" / "seals").read_bytes() == b"{2}\n{3}\n"


def test_a_url_gets_each_as_a_post(collector: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Straight: a proxy of the environment may be this one."""
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    at = f"127.0.0.1:{collector.server_port}"
    copies = sent(Copies(f"http://me:p%40ss@{at}/take?from=here"), b"{1}", b"{2}")
    assert (copies.waiting, copies.error) == (0, "")
    assert collector.taken == [  # type: ignore[attr-defined]
        ("/take?from=here", "Basic bWU6cEBzcw==", b"{1}"),
        ("/take?from=here", "Basic bWU6cEBzcw==", b"{2}"),
    ]


def test_a_url_that_does_not_take_it_is_tried_again(collector: HTTPServer) -> None:
    collector.status = 503  # type: ignore[attr-defined]
    copies = sent(Copies(f"http://127.0.0.1:{collector.server_port}"), b"{1}")
    assert (copies.waiting, copies.error) == (1, "it answered 503")
    collector.status = 200  # type: ignore[attr-defined]
    sent(copies)
    assert (copies.waiting, copies.error) == (0, "")


def test_nobody_at_the_url_is_told() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        copies = sent(Copies(f"http://127.0.0.1:{unused.getsockname()[1]}/"), b"{1}")
    assert (copies.waiting, "refused" in copies.error) == (1, True)


@contextlib.contextmanager
def answering(head: bytes, pieces: int) -> Iterator[str]:
    """Takes one connection, says the head, and then one piece of a header now and then; the URL.
    Without pieces it says nothing more until the end of the block."""
    over = threading.Event()

    def answer() -> None:
        taken, _ = listener.accept()
        with taken, contextlib.suppress(OSError):
            taken.recv(65_536)
            taken.sendall(head)
            for _ in range(pieces):
                taken.sendall(b"x")
                over.wait(0.02)
            over.wait()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            over.set()
            thread.join()


@pytest.mark.parametrize(
    "head, pieces", [(b"HTTP/1.1 200 OK\r\n", 500), (b"HTTP/1.1 200 OK\r\n", 0), (b"", 0)]
)
def test_a_url_that_answers_by_drips_or_not_at_all_has_one_bound_in_time(
    head: bytes, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seal_copies, "COPY_SECONDS", 0.25)
    with answering(head, pieces) as url:
        copies = sent(Copies(url), b"{1}")
    assert (copies.waiting, copies.error) == (1, "it took longer than 0.25 seconds")


def test_a_url_by_tls_gets_it_where_its_certificate_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(tmp_path) as service:
        url = f"https://localhost:{service.port}/take"
        copies = sent(Copies(url), b"{1}")
        assert (copies.waiting, service.asked) == (1, [])
        assert "certificate verify failed" in copies.error
        monkeypatch.setenv("SSL_CERT_FILE", str(service.ca))
        sent(copies)
    assert (copies.waiting, copies.error) == (0, "")
    ((method, path, headers),) = service.asked
    assert (method, path, headers["host"]) == ("POST", "/take", url.split("/")[2])


def test_tls_that_is_never_agreed_on_has_the_same_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_copies, "COPY_SECONDS", 0.25)
    drip = b"\x16\x03\x03\x3f\xff"  # the head of a long record
    with answering(drip, 500) as url:
        copies = sent(Copies(url.replace("http:", "https:")), b"{1}")
    assert (copies.waiting, copies.error) == (1, "it took longer than 0.25 seconds")


def test_a_copy_under_way_holds_up_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seal_copies, "COPY_SECONDS", 5.0)
    with answering(b"", 0) as url:
        copies = Copies(url)
        copies.add(b"{1}")

        async def ends_at_once() -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    await copies.sending()

        asyncio.run(ends_at_once())
        assert (copies.waiting, copies.error) == (1, "")  # else it was waited for
        (thread,) = [thread for thread in threading.enumerate() if thread.name == "seal copies"]
        assert thread.daemon
    thread.join()
    assert copies.error


async def test_what_was_sent_in_a_thread_is_told(tmp_path: Path) -> None:
    copies = Copies(str(tmp_path / "seals"))
    copies.add(b"{1}")
    await copies.sending()
    assert (copies.waiting, (tmp_path / "seals").read_bytes()) == (0, b"{1}\n")


def test_the_systems_log_gets_each_as_a_notice(tmp_path: Path) -> None:
    place = tmp_path / "log"
    copies = sent(Copies("syslog", (str(tmp_path / "none"), str(place))), b"{1}")
    assert "there is no syslog at" in copies.error
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.bind(str(place))
        sent(copies)
        assert log.recv(100) == b"<85>pullcord: {1}"
    assert (copies.waiting, copies.error) == (0, "")


def test_what_is_secret_in_a_url_is_not_shown() -> None:
    url = "https://me:secret@host.example:8443/take?token=secret"
    assert shown(url) == "https://host.example:8443/take"
    assert shown("http://host.example") == "http://host.example"
    assert shown("/var/seals") == "/var/seals"
    assert shown("syslog") == "syslog"
