"""Connections that stay open through a proxy, each held in the hand: streams, WebSockets, HTTP/2.

They never reconnect by themselves, and tell at which nanosecond (time.time_ns) they were cut.
Together with `Line` they are the ways by which a call comes in.
"""

import base64
import os
import socket
import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import h2.config
import h2.connection
import h2.events

from tests.end_to_end.line import ANSWER_SECONDS, Line, Refused, Told
from tests.end_to_end.origin import HOST
from tests.end_to_end.running import Run

CLOSE = 0x88  # a WebSocket's last frame: RFC 6455, section 5.2
ENDED = b"0\r\n\r\n"  # what ends a chunked body: RFC 9112, section 7.1


class Raw:
    """One call on a connection of its own, byte by byte. Raises Refused when it is refused."""

    def __init__(self, run: Run, method: str, path: str, *, tls: bool, **headers: str) -> None:
        self.line = Line(run, tls=tls)
        self.sock = self.line.sock
        self.read = b""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if not tls:
            fields |= self.line.credentials
        target = path if tls else f"http://{HOST}{path}"
        lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        if method != "GET":
            lines.append("Content-Length: 0")
        try:
            self.sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
            self._until(b"\r\n\r\n")
        except BaseException:
            self.close()
            raise
        told = _parsed(self.read)
        self.read = told.body
        if told.status not in (101, 200):
            self.close()
            raise Refused(told)

    def _until(self, mark: bytes) -> None:
        while mark not in self.read:
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionResetError(f"closed after {self.read!r}")
            self.read += data

    def close(self) -> None:
        self.line.close()


class Stream(Raw):
    """Events without end, the first of which has come."""

    def __init__(self, run: Run, path: str, *, tls: bool, method: str = "GET") -> None:
        super().__init__(run, method, path, tls=tls)
        self._until(b"data:")

    def cut_ns(self) -> int:
        """Reads until it is cut. Raises TimeoutError when it is not; nor may it end in order."""
        deadline = time.monotonic() + (self.sock.gettimeout() or ANSWER_SECONDS)
        try:
            while data := self.sock.recv(65536):
                self.read = (self.read + data)[-64:]
                if time.monotonic() > deadline:
                    raise TimeoutError("it flows on")
        except TimeoutError:
            raise
        except OSError:
            pass
        at_ns = time.time_ns()
        assert not self.read.endswith(ENDED), "a cut stream looks like a whole one"
        return at_ns


class WebSocket(Raw):
    def __init__(self, run: Run, path: str, *, tls: bool) -> None:
        key = base64.b64encode(os.urandom(16)).decode()
        asks = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec_WebSocket_Version": "13"}
        super().__init__(run, "GET", path, tls=tls, Sec_WebSocket_Key=key, **asks)
        self._until(b"tick")
        self.read = b""
        self.reason = ""

    def say(self, text: str) -> None:
        """One masked text frame (section 5.3); the mask is zero, so the words stand as they are."""
        data = text.encode()
        self.sock.sendall(bytes((0x81, 0x80 | len(data))) + bytes(4) + data)

    def cut_ns(self) -> int:
        """Reads until it is closed, by its last frame or without. Raises TimeoutError.

        The last frame says why (section 5.5.1): two bytes of a code, then words, in `reason`.
        """
        deadline = time.monotonic() + (self.sock.gettimeout() or ANSWER_SECONDS)
        try:
            while data := self.sock.recv(65536):
                if time.monotonic() > deadline:
                    raise TimeoutError("it flows on")
                self.read = (self.read + data).replace(b"\x81\x04tick", b"")
                if self.read[:1] == bytes((CLOSE,)):
                    self.reason = self.read[4:].decode("utf-8", "replace")
                    break
        except TimeoutError:
            raise
        except OSError:
            pass
        return time.time_ns()


@dataclass(eq=False, slots=True)
class _Answer:
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    ended_ns: int = 0
    reset: bool = False


class Http2:
    """A tunnel that speaks HTTP/2 alone. Each stream may carry credentials of its own."""

    def __init__(self, run: Run, seconds: float = ANSWER_SECONDS) -> None:
        """Connects. Raises Refused."""
        sock = connected(run, seconds)
        context = ssl.create_default_context(cafile=run.environment["SSL_CERT_FILE"])
        context.set_alpn_protocols(["h2"])
        try:
            self.sock = context.wrap_socket(sock, server_hostname=HOST)
        except BaseException:
            sock.close()
            raise
        config = h2.config.H2Configuration(header_encoding="utf-8")
        self._connection = h2.connection.H2Connection(config)
        self._connection.initiate_connection()
        self.answers: dict[int, _Answer] = {}
        self._flush()

    def begin(self, method: str, path: str, body: str = "", proxy_authorization: str = "") -> int:
        """Sends a request and gives the number of its stream."""
        stream = self._connection.get_next_available_stream_id()
        fields = [(":method", method), (":scheme", "https"), (":authority", HOST), (":path", path)]
        if proxy_authorization:
            fields.append(("proxy-authorization", proxy_authorization))
        self.answers[stream] = _Answer()
        self._connection.send_headers(stream, fields, end_stream=not body)
        if body:
            self._connection.send_data(stream, body.encode(), end_stream=True)
        self._flush()
        return stream

    def ask(self, method: str, path: str, body: str = "") -> Told:
        """One whole exchange. Raises OSError when it is cut instead."""
        return self.told(self.begin(method, path, body))

    def told(self, stream: int) -> Told:
        """The whole answer to a request that was begun. Raises OSError when it is cut instead."""
        answer = self.answers[stream]
        while not answer.ended_ns:
            self.pump()
        if answer.reset:
            raise ConnectionResetError(f"stream {stream} was reset")
        return Told(answer.status, answer.headers, answer.body)

    def flows(self, stream: int) -> None:
        """Waits for the first event of an endless stream. Raises Refused."""
        answer = self.answers[stream]
        while not (answer.body or answer.ended_ns):
            self.pump()
        if answer.status != 200:
            raise Refused(Told(answer.status, answer.headers, answer.body))

    def pump(self) -> bool:
        """Reads once. Whether the connection is still there. Raises TimeoutError."""
        try:
            data = self.sock.recv(65536)
        except TimeoutError:
            raise
        except OSError:
            data = b""
        at_ns = time.time_ns()
        for event in self._connection.receive_data(data) if data else ():
            self._take(event, at_ns)
        if not data:
            for answer in self.answers.values():
                answer.ended_ns, answer.reset = answer.ended_ns or at_ns, True
            return False
        self._flush()
        return True

    def _take(self, event: h2.events.Event, at_ns: int) -> None:
        answer = self.answers.get(getattr(event, "stream_id", 0) or 0, _Answer())
        if isinstance(event, h2.events.ResponseReceived):
            answer.headers = {str(name): str(value) for name, value in event.headers}
            answer.status = int(answer.headers[":status"])
        elif isinstance(event, h2.events.DataReceived):
            answer.body = (answer.body + event.data)[-65536:]
            size = event.flow_controlled_length
            self._connection.acknowledge_received_data(size, event.stream_id)
        elif isinstance(event, h2.events.StreamEnded | h2.events.StreamReset):
            answer.ended_ns = at_ns
            answer.reset = isinstance(event, h2.events.StreamReset)

    def _flush(self) -> None:
        self.sock.sendall(self._connection.data_to_send())

    def close(self) -> None:
        self.sock.close()


def basic(run: Run) -> str:
    url = urlsplit(run.proxy_url)
    return "Basic " + base64.b64encode(f"{url.username}:{url.password}".encode()).decode()


def connected(run: Run, seconds: float) -> socket.socket:
    """A tunnel to HOST, before TLS. Raises Refused."""
    port = urlsplit(run.proxy_url).port or 0
    sock = socket.create_connection(("127.0.0.1", port), timeout=seconds)
    try:
        told = raw_answer(sock, "CONNECT", f"{HOST}:443", {"Proxy-Authorization": basic(run)})
    except BaseException:
        sock.close()
        raise
    if told.status != 200:
        sock.close()
        raise Refused(told)
    return sock


def raw_answer(sock: socket.socket, method: str, target: str, fields: dict[str, str]) -> Told:
    """One request without a body, and the head of its answer."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}"]
    lines += [f"{name}: {value}" for name, value in fields.items()]
    sock.sendall("\r\n".join(lines).encode() + b"\r\n\r\n")
    read = b""
    while b"\r\n\r\n" not in read:
        data = sock.recv(65536)
        if not data:
            raise ConnectionResetError(f"closed after {read!r}")
        read += data
    return _parsed(read)


def _parsed(read: bytes) -> Told:
    """A whole head, and what came behind it."""
    head, _, body = read.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    named = (line.partition(":") for line in lines)
    headers = {name.lower(): value.strip() for name, _, value in named}
    return Told(int(first.split(" ")[1]), headers, body)
