"""Copies of seals: to a file, a URL, the system's log; what fails waits and is told."""

import socket
import stat
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from proxy import seal_copies
from proxy.seal_copies import Copies, shown


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
    assert shown("https://me:secret@host.example/take?token=secret") == "https://host.example"
    assert shown("/var/seals") == "/var/seals"
    assert shown("syslog") == "syslog"
