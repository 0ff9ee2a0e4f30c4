"""One connection of an agent's through the proxy, held in the hand: it never reconnects by itself.

Clients of the world hide a lost connection behind a new one; here it is seen.
"""

import base64
import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.end_to_end.origin import HOST
from tests.end_to_end.running import Run

ANSWER_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Told:
    """One answer. Header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def reason(self) -> str | None:
        """Why pullcord decided as it did, by its own header."""
        words = dict(
            word.strip().partition("=")[::2]
            for word in self.headers.get("pullcord-decision", "").split(";")
        )
        return words.get("reason")

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Refused(Exception):
    """The proxy refused the tunnel."""

    def __init__(self, told: Told) -> None:
        super().__init__(f"CONNECT was answered with {told.status}: {told.body!r}")
        self.told = told


class Line:
    """Plain HTTP by absolute URIs, or TLS inside a tunnel, on one connection."""

    def __init__(self, run: Run, *, tls: bool, seconds: float = ANSWER_SECONDS) -> None:
        """Connects. Raises Refused."""
        url = urlsplit(run.proxy_url)
        named = base64.b64encode(f"{url.username}:{url.password}".encode()).decode()
        self.credentials = {"Proxy-Authorization": f"Basic {named}"}
        self.sock = socket.create_connection(("127.0.0.1", url.port or 0), timeout=seconds)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._tls = tls
        try:
            if tls:
                self._tunnel()
                context = _context(run.environment["SSL_CERT_FILE"])
                self.sock = context.wrap_socket(self.sock, server_hostname=HOST)
        except BaseException:
            self.sock.close()
            raise
        self._client = http.client.HTTPConnection(HOST)
        self._client.sock = self.sock
        self._client.auto_open = 0

    def _tunnel(self) -> None:
        fields = {"Host": f"{HOST}:443", **self.credentials}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self.sock.sendall(f"CONNECT {HOST}:443 HTTP/1.1\r\n{head}\r\n".encode())
        answer = http.client.HTTPResponse(self.sock)
        try:
            answer.begin()
            if answer.status != 200:
                raise Refused(_told(answer))
        finally:
            answer.close()

    def ask(self, method: str, path: str, body: str | None = None, **headers: str) -> Told:
        """Underscores in the names of headers stand for dashes. Raises OSError, HTTPException."""
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        if not self._tls:
            path = f"http://{HOST}{path}"
            fields = self.credentials | fields
        self._client.request(method, path, body, fields)
        return _told(self._client.getresponse())

    def close(self) -> None:
        self._client.close()


def _told(answer: http.client.HTTPResponse) -> Told:
    headers = {name.lower(): value for name, value in answer.getheaders()}
    return Told(answer.status, headers, answer.read())


_CONTEXTS: dict[str, ssl.SSLContext] = {}


def _context(ca: str) -> ssl.SSLContext:
    """Reading a bundle takes as long as a dozen calls."""
    if ca not in _CONTEXTS:
        _CONTEXTS[ca] = ssl.create_default_context(cafile=ca)
    return _CONTEXTS[ca]


@contextmanager
def opened(run: Run, *, tls: bool) -> Iterator[Line]:
    line = Line(run, tls=tls)
    try:
        yield line
    finally:
        line.close()


def asked(run: Run, method: str, path: str, body: str | None = None, *, tls: bool = False) -> Told:
    """One call on a connection of its own; a refused tunnel is its answer."""
    try:
        with opened(run, tls=tls) as line:
            return line.ask(method, path, body)
    except Refused as refused:
        return refused.told
