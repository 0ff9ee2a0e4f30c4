"""The clients of the load: each has one call in flight, on a connection it keeps or on a new one.

Blocking-style TLS objects on an epoll of their owner's: asyncio's would be slower than some of
what is measured. Any answer but the expected one raises WrongAnswer with a sentence.
"""

import functools
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tests.bench.messages import HEAD_END, Expected, Kind, Requests, Way, connect

ANSWER_SECONDS = 60.0  # a proxy that is silent for so long has lost a call
HEARD_AT_ONCE_BYTES = 262_144


class WrongAnswer(Exception):
    """Something else came back than the upstream said, or nothing at all."""


@dataclass(frozen=True, slots=True)
class Task:
    """`proxy_port` None goes straight to the upstream. Either `seconds` or `calls` is given.

    `credentials` are handed to the clients in turn; `pid` is the process whose CPU counts.
    """

    proxy_port: int | None
    upstream_port: int
    way: Way
    kind: Kind
    clients: int
    trust: str
    credentials: list[str] = field(repr=False)
    pid: int | None = None
    seconds: float = 0.0
    calls: int = 0


class Client:
    """Sends a request, waits for its whole answer, sends the next, all over one connection."""

    def __init__(self, task: Task, credentials: str | None, numbers: Iterator[int]) -> None:
        self._task = task
        self._authority = f"127.0.0.1:{task.upstream_port}"
        self._credentials = credentials
        self._requests = Requests(
            self._authority,
            absolute=task.proxy_port is not None and task.way is Way.PLAIN,
            credentials=credentials,
            kind=task.kind,
            numbers=numbers,
        )
        self._expected = Expected(b"")
        self._heard = bytearray()
        self.sent_ns = 0
        self.sock = self._opened()

    def send(self) -> None:
        self.sent_ns = time.perf_counter_ns()
        self._ask()

    def answered(self) -> bool:
        """Whether the expected answer is here. Raises WrongAnswer for every other one."""
        heard = self._received()
        if heard is None:
            return False  # a session ticket, or half a record
        self._heard += heard
        if self._expected.is_whole(self._heard):
            return True
        said = bytes(self._heard[:900])
        if not heard:
            raise WrongAnswer(f"the connection was closed after {said!r}")
        if self._expected.is_wrong(self._heard):
            raise WrongAnswer(f"not the expected answer: {said.decode('latin-1')}")
        return False

    def close(self) -> None:
        self.sock.close()

    def _opened(self) -> socket.socket:
        task, sock = self._task, self._connected()
        if task.way is not Way.PLAIN:
            if task.proxy_port is not None:
                sock.sendall(connect(self._authority, self._credentials))
                heard = b""
                while not _is_open(heard):
                    heard = _more(heard, sock.recv(HEARD_AT_ONCE_BYTES))
            sock = _trusting(task.trust).wrap_socket(sock, server_hostname="127.0.0.1")
        sock.setblocking(False)
        return sock

    def _connected(self) -> socket.socket:
        port = self._task.proxy_port or self._task.upstream_port
        sock = socket.create_connection(("127.0.0.1", port), timeout=ANSWER_SECONDS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return sock

    def _ask(self) -> None:
        request, self._expected = self._requests.next()
        self._heard.clear()
        self.sock.send(request)

    def _received(self) -> bytes | None:
        try:
            return self.sock.recv(HEARD_AT_ONCE_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None


class NewClient(Client):
    """Opens a connection for each call, with a whole TLS handshake; the time of a call has both."""

    def __init__(self, task: Task, credentials: str | None, numbers: Iterator[int]) -> None:
        super().__init__(task, credentials, numbers)
        self._step: Callable[[], bool] = self._greeted

    def send(self) -> None:
        self.sock.close()
        self.sent_ns = time.perf_counter_ns()
        self.sock = self._connected()
        self._heard.clear()
        if self._task.proxy_port is None:
            self._greet()
        else:
            self.sock.sendall(connect(self._authority, self._credentials))
            self.sock.setblocking(False)
            self._step = self._tunnelled

    def answered(self) -> bool:
        return self._step()

    def _opened(self) -> socket.socket:
        return socket.socket()

    def _tunnelled(self) -> bool:
        heard = self._received()
        if heard is not None:
            self._heard[:] = _more(bytes(self._heard), heard)
            if _is_open(bytes(self._heard)):
                self._greet()
        return False

    def _greet(self) -> None:
        self.sock.setblocking(False)
        self.sock = _trusting(self._task.trust).wrap_socket(
            self.sock, server_hostname="127.0.0.1", do_handshake_on_connect=False
        )
        self._step = self._greeted
        self._greeted()

    def _greeted(self) -> bool:
        if not isinstance(self.sock, ssl.SSLSocket):
            raise WrongAnswer("nothing was sent yet")
        try:
            self.sock.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self._ask()
        self._step = super().answered
        return False


def client(task: Task, credentials: str | None, numbers: Iterator[int]) -> Client:
    kept = Client if task.way is not Way.NEW_TLS else NewClient
    return kept(task, credentials, numbers)


def _more(heard: bytes, more: bytes) -> bytes:
    if not more:
        raise WrongAnswer(f"the tunnel was closed after {heard!r}")
    return heard + more


def _is_open(heard: bytes) -> bool:
    if HEAD_END not in heard:
        return False
    if not heard.startswith(b"HTTP/1.1 200"):
        raise WrongAnswer(f"the tunnel was refused: {heard[:600].decode('latin-1')}")
    return True


@functools.cache
def _trusting(trust: str) -> ssl.SSLContext:
    """Only this authority: what is not intercepted by the proxy under test fails."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(trust)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # mitmproxy's own leaf lacks a key usage
    return context
