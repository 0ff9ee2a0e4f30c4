"""Uploads and answers of hundreds of megabytes go through the real program, in bounded memory."""

import base64
import hashlib
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.end_to_end.memory import Memory, family
from tests.end_to_end.running import Proxy, Run
from tests.proxy.engines.conftest import tls_context

POLICY = """
version: 1
tools:
  files.put:
    match: {host: api.test, method: PUT, path: "/files/{name}"}
    stream: true
    allow_addresses: [127.0.0.0/8]
  files.get:
    match: {host: api.test, method: GET, path: "/files/{name}"}
    allow_addresses: [127.0.0.0/8]
  reports.make:
    match: {host: api.test, method: POST, path: /reports}
    allow_addresses: [127.0.0.0/8]
"""
LARGE_BYTES = (200 if int(os.environ.get("ROUNDS", "3")) > 3 else 64) * 1024 * 1024
MORE_BYTES_MAX = 32 * 1024 * 1024
WAITING, WAITING_BYTES = 40, 12 * 1024 * 1024  # requests that do not end, and each
MORE_WAITING_BYTES_MAX = 1536 * 1024  # for each of them
ANSWER_BYTES = 40 * 1024 * 1024
BLOCK = os.urandom(256 * 1024)

pytestmark = [
    pytest.mark.proof,
    pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc"),
]


@dataclass(eq=False)
class Sink:
    """An upstream in threads: hashes what it is sent, and answers reports at length."""

    ca: Path
    digests: list[str] = field(default_factory=list)
    ports: dict[str, int] = field(default_factory=dict)
    sent_bytes: int = 0  # of answers

    def listen(self, name: str, context: ssl.SSLContext | None) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0))
        self.ports[f"api.test:{name}"] = listener.getsockname()[1]
        threading.Thread(target=self._accept, args=(listener, context), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket, context: ssl.SSLContext | None) -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connected, context), daemon=True).start()

    def _serve(self, connected: socket.socket, context: ssl.SSLContext | None) -> None:
        with suppress(OSError), connected:
            side = context.wrap_socket(connected, server_side=True) if context else connected
            with side:
                self._taken(side)

    def _taken(self, side: socket.socket) -> None:
        head, rest = _head(side)
        left, digest = _length(head) - len(rest), hashlib.sha256(rest)
        while left > 0:
            part = side.recv(1 << 18)
            if not part:
                self.digests.append("cut")
                return
            digest.update(part)
            left -= len(part)
        self.digests.append(digest.hexdigest())
        if head.startswith(b"PUT"):
            side.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            return
        answer_bytes = LARGE_BYTES if head.startswith(b"GET") else ANSWER_BYTES
        side.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % answer_bytes)
        for _ in range(answer_bytes // len(BLOCK)):
            side.sendall(BLOCK)
            self.sent_bytes += len(BLOCK)


def _head(side: socket.socket) -> tuple[bytes, bytes]:
    read = b""
    while b"\r\n\r\n" not in read:
        part = side.recv(65536)
        assert part, read
        read += part
    head, _, rest = read.partition(b"\r\n\r\n")
    return head, rest


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)


@contextmanager
def running(folder: Path, workers: int) -> Iterator[tuple[Sink, Proxy]]:
    sink = Sink(folder / "upstream.pem")
    context = tls_context(sink.ca)
    with closing(sink.listen("443", context)), closing(sink.listen("80", None)):
        (folder / "proxy").mkdir()
        proxy = Proxy(folder / "proxy", POLICY, sink.ca, sink.ports, workers=workers)
        proxy.start()
        try:
            yield sink, proxy
        finally:
            if proxy.process is not None:
                proxy.end(signal.SIGTERM)
        assert [one for one in proxy.broken() if "engine." in one] == []


@contextmanager
def line(run: Run, *, tls: bool) -> Iterator[tuple[socket.socket, bytes, bytes]]:
    """A connection to the proxy, how a target begins on it, and the credentials that go with it."""
    where, _, port = run.proxy_url.rpartition("@")[2].rstrip("/").partition(":")
    name, _, token = run.proxy_url.partition("://")[2].rpartition("@")[0].partition(":")
    basic = base64.b64encode(f"{name}:{token}".encode())
    credentials = b"Proxy-Authorization: Basic " + basic + b"\r\n"
    with socket.create_connection((where, int(port)), timeout=60) as plain:
        if not tls:
            yield plain, b"http://api.test", credentials
            return
        plain.sendall(
            b"CONNECT api.test:443 HTTP/1.1\r\nHost: api.test:443\r\n" + credentials + b"\r\n"
        )
        assert b" 200 " in _head(plain)[0]
        context = ssl.create_default_context(cafile=run.environment["SSL_CERT_FILE"])
        with context.wrap_socket(plain, server_hostname="api.test") as side:
            yield side, b"", b""


def upload(run: Run, key: bytes, *, tls: bool) -> tuple[bytes, str]:
    """The head of the answer, and the digest of what was sent."""
    with line(run, tls=tls) as (side, start, credentials):
        side.sendall(
            b"PUT %b/files/a HTTP/1.1\r\nHost: api.test\r\n" % start
            + credentials
            + b"Idempotency-Key: %b\r\nContent-Length: %d\r\n\r\n" % (key, LARGE_BYTES)
        )
        digest = hashlib.sha256()
        for _ in range(LARGE_BYTES // len(BLOCK)):
            side.sendall(BLOCK)
            digest.update(BLOCK)
        return _head(side)[0], digest.hexdigest()


def report(run: Run, *, tls: bool) -> tuple[bytes, str]:
    """The head of a long answer, and the digest of its body."""
    with line(run, tls=tls) as (side, start, credentials):
        side.sendall(
            b"POST %b/reports HTTP/1.1\r\nHost: api.test\r\n" % start
            + credentials
            + b"Content-Length: 2\r\n\r\n{}"
        )
        head, body = _head(side)
        left, digest = _length(head) - len(body), hashlib.sha256(body)
        while left > 0:
            part = side.recv(1 << 18)
            assert part
            digest.update(part)
            left -= len(part)
        return head, digest.hexdigest()


def memory_of(proxy: Proxy) -> Memory:
    assert proxy.process is not None
    return Memory(proxy.process.pid)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_large_upload_takes_little_memory(tmp_path: Path, workers: int, tls: bool) -> None:
    """About 20 s each, and 30 s with 200 MB."""
    with running(tmp_path, workers) as (sink, proxy):
        run = proxy.mint()
        report(run, tls=tls)  # what a first call loads is not the body's
        memory = memory_of(proxy)
        head, sent = upload(run, b"k1", tls=tls)
        assert head.startswith(b"HTTP/1.1 200"), head
        assert sink.digests[-1] == sent
        more_bytes = memory.more_bytes()
        print(f"{workers} workers, tls={tls}: {more_bytes / 2**20:.1f} MiB more")
        assert more_bytes <= MORE_BYTES_MAX
        head, _ = _replayed(run, tls=tls)
        assert b"Idempotent-Replayed: true" in head
        (row,) = [row for row in proxy.calls(run) if row["tool"] == "files.put"][:1]
        assert row["state"] == "done"


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_long_requests_that_do_not_end_wait_on_the_disk(
    tmp_path: Path, tls: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Forty clients have sent all of 12 MiB each but the last block; then the first ends."""
    with running(tmp_path, 1) as (sink, proxy), ExitStack() as stack:
        run = proxy.mint()
        report(run, tls=tls)  # what a first call loads is not a body's
        memory = memory_of(proxy)
        sides = []
        for _ in range(WAITING):
            side, start, credentials = stack.enter_context(line(run, tls=tls))
            asked = b"POST %b/reports HTTP/1.1\r\nHost: api.test\r\n" % start
            side.sendall(asked + credentials + b"Content-Length: %d\r\n\r\n" % WAITING_BYTES)
            for _ in range(WAITING_BYTES // len(BLOCK) - 1):
                side.sendall(BLOCK)
            sides.append(side)
        more_bytes = memory.more_bytes()
        with capsys.disabled():
            sent_bytes = WAITING * WAITING_BYTES
            print(f"\ntls={tls}: {more_bytes / 2**20:.1f} MiB more for {sent_bytes >> 20} MiB")
        assert more_bytes <= WAITING * MORE_WAITING_BYTES_MAX
        whole = hashlib.sha256(BLOCK * (WAITING_BYTES // len(BLOCK))).hexdigest()
        sides[0].sendall(BLOCK)
        head, _ = _head(sides[0])
        assert head.startswith(b"HTTP/1.1 200"), head
        assert sink.digests[-1] == whole


def _replayed(run: Run, *, tls: bool) -> tuple[bytes, bytes]:
    """Asked again, without a byte of the body."""
    with line(run, tls=tls) as (side, start, credentials):
        side.sendall(
            b"PUT %b/files/a HTTP/1.1\r\nHost: api.test\r\n" % start
            + credentials
            + b"Idempotency-Key: k1\r\nContent-Length: %d\r\n\r\n" % LARGE_BYTES
        )
        return _head(side)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_large_download_takes_little_memory_however_slowly_it_is_read(
    tmp_path: Path, tls: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """A client that does not read stalls its upstream, and nobody else's calls."""
    with running(tmp_path, 1) as (sink, proxy):
        run = proxy.mint()
        report(run, tls=tls)  # what a first call loads is not the body's
        memory = memory_of(proxy)
        sink.sent_bytes = 0
        with line(run, tls=tls) as (side, start, credentials):
            asked = b"GET %b/files/a HTTP/1.1\r\nHost: api.test\r\n" % start
            side.sendall(asked + credentials + b"\r\n")
            head, body = _head(side)
            stalled_bytes = _until(lambda: _standing(sink))
            assert report(proxy.mint(), tls=tls)[0].startswith(b"HTTP/1.1 200")
            left = _length(head) - len(body)
            while left > 0:
                part = side.recv(1 << 18)
                assert part
                left -= len(part)
        more_bytes = memory.more_bytes()
        with capsys.disabled():
            print(
                f"\na download, tls={tls}: {more_bytes / 2**20:.1f} MiB more; it stood still after "
                f"{stalled_bytes / 2**20:.1f} MiB of {LARGE_BYTES / 2**20:.0f}"
            )
        assert stalled_bytes < LARGE_BYTES // 2
        assert more_bytes <= MORE_BYTES_MAX


def _standing(sink: Sink) -> int | None:
    """How much was sent, once that does not grow for half a second."""
    before = sink.sent_bytes
    time.sleep(0.5)
    return before if before == sink.sent_bytes else None


@pytest.mark.parametrize("workers", [1, 2])
def test_a_long_answer_outlives_a_kill_and_takes_little_memory(
    tmp_path: Path, workers: int
) -> None:
    """About 20 s each."""
    with running(tmp_path, workers) as (sink, proxy):
        run = proxy.mint()
        _, first = report(run, tls=True)
        proxy.end(signal.SIGKILL)
        proxy.start()
        assert report(run, tls=True)[1] == first  # what a first call loads is not the answer's
        memory = memory_of(proxy)
        head, again = report(run, tls=True)
        assert b"Idempotent-Replayed: true" in head
        assert again == first
        more_bytes = memory.more_bytes()
        print(f"{workers} workers, a replay: {more_bytes / 2**20:.1f} MiB more")
        assert more_bytes <= MORE_BYTES_MAX
        assert len(sink.digests) == 1
        held = [path for path in (proxy.folder / "data").rglob("*") if path.is_file()]
        assert all(BLOCK[:64] not in path.read_bytes() for path in held)


@pytest.mark.parametrize("victim", ["everything", "its engine"])
def test_a_kill_while_a_long_answer_flows_leaves_it_done_and_not_stored(
    tmp_path: Path, victim: str
) -> None:
    with running(tmp_path, 2 if victim == "its engine" else 1) as (sink, proxy):
        run, answers = proxy.mint(), proxy.folder / "data" / "answers"
        with line(run, tls=False) as (side, start, credentials):
            side.sendall(
                b"POST %b/reports HTTP/1.1\r\nHost: api.test\r\n" % start
                + credentials
                + b"Content-Length: 2\r\n\r\n{}"
            )
            _head(side)
            (left,) = _until(lambda: _unfinished(answers))
            if victim == "everything":
                proxy.end(signal.SIGKILL)
            else:
                os.kill(_holder(proxy, left), signal.SIGKILL)
                while side.recv(1 << 20):
                    pass
        if victim == "everything":
            proxy.start()
        head, _ = _until(lambda: _answered(run))
        assert head.startswith(b"HTTP/1.1 409")
        assert len(sink.digests) == 1
        (row, *_, refused) = proxy.calls(run)
        assert (row["state"], refused["reason"]) == ("done", "done_but_not_stored")
        assert _unfinished(answers) == [left]  # so young that somebody may be about to lock it
        os.utime(left, (0, 0))
        proxy.stop()
        proxy.start()
        assert list(answers.iterdir()) == []
        assert report(run, tls=False)[0].startswith(b"HTTP/1.1 409")


def _until[T](look: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + 30
    while not (found := look()):
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)
    return found


def _unfinished(answers: Path) -> list[Path]:
    return list(answers.glob("*.part"))


def _answered(run: Run) -> tuple[bytes, str] | None:
    """None while the engine's death is news still."""
    with suppress(OSError, AssertionError):
        told = report(run, tls=False)
        return None if told[0].startswith(b"HTTP/1.1 503") else told
    return None


def _holder(proxy: Proxy, path: Path) -> int:
    """The process that has this file open."""
    assert proxy.process is not None
    for pid in family(proxy.process.pid):
        for handle in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if handle.readlink() == path:
                    return pid
    raise ValueError(path)
