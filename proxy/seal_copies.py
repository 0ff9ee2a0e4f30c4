"""Copies of the seals, for where whoever can write the ledger cannot: a file, a URL, syslog.

Whatever fails here stops no call: a copy waits, is tried again, and `status` tells.
"""

import asyncio
import base64
import contextlib
import os
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from http.client import HTTP_PORT, HTTPS_PORT, HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import unquote, urlsplit

from proxy.settings import SYSLOG, is_url

COPY_SECONDS = 5.0  # one copy may take; nobody waits for it
WAITING_MAX = 1_000  # copies that wait for a place that fails: most of a day

_LOGS = ("/dev/log", "/var/run/syslog")  # Linux, macOS
_PRIORITY = 10 * 8 + 5  # authpriv, notice (RFC 5424, section 6.2.1)


def shown(target: str) -> str:
    """Without what is secret in a URL: its user, password and query."""
    if not is_url(target):
        return target
    parts = urlsplit(target)
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


class Copies:
    """Of one place. `add` and `sending` are for the loop; `send` blocks, in any one thread.
    `sent_seq` is the row that the last copy which arrived is over."""

    def __init__(self, target: str, logs: tuple[str, ...] = _LOGS) -> None:
        self.target = target
        self.error = ""
        self.sent_seq: int | None = None
        self._waiting: deque[tuple[int, bytes]] = deque(maxlen=WAITING_MAX)
        self._logs = logs
        self._is_stopped = False

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, line: bytes, seq: int = 0) -> None:
        """A seal over that row."""
        self._waiting.append((seq, line))

    def stop(self) -> None:
        """Send no more than the one that is on its way."""
        self._is_stopped = True

    async def sending(self) -> None:
        """`send` in a thread of its own, for which no end of the process waits: a disk or a name
        server that hangs holds up neither that nor the threads that others share."""
        loop = asyncio.get_running_loop()
        sent = loop.create_future()

        def end() -> None:
            if not sent.done():
                sent.set_result(None)

        def run() -> None:
            try:
                self.send()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    loop.call_soon_threadsafe(end)

        threading.Thread(target=run, name="seal copies", daemon=True).start()
        await sent

    def send(self) -> None:
        """All that waits, in order, up to the first that fails."""
        while self._waiting and not self._is_stopped:
            one = self._waiting[0]
            try:
                self._sent(one[1])
            except (OSError, HTTPException, ValueError) as error:
                self.error = str(error) or type(error).__name__
                return
            self.sent_seq = one[0]
            if self._waiting and self._waiting[0] is one:  # else it gave way to a newer one
                self._waiting.popleft()
        self.error = ""

    def _sent(self, line: bytes) -> None:
        if self.target == SYSLOG:
            _log(self._logs, line)
        elif is_url(self.target):
            _post(self.target, line)
        else:
            _append(Path(self.target), line)


def _append(path: Path, line: bytes) -> None:
    """On the disk, whole or not at all."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o600)
    try:
        before = os.fstat(descriptor).st_size
        line += b"\n"
        if os.write(descriptor, line) < len(line):
            os.ftruncate(descriptor, before)
            raise OSError(f"{path} has no room")
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _post(url: str, line: bytes) -> None:
    """Straight to it, never through a proxy of the environment, which may be this one."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    context: ssl.SSLContext | None = None
    connection: HTTPConnection
    if parts.scheme == "https":
        context, port = ssl.create_default_context(), parts.port or HTTPS_PORT
        connection = HTTPSConnection(host, port, context=context)
    else:
        connection = HTTPConnection(host, parts.port or HTTP_PORT)
    headers = {"Content-Type": "application/json"}
    if parts.username is not None:
        name = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(name.encode()).decode()}"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    with _connected(host, connection.port) as connection.sock:
        if context is not None:
            connection.sock = context.wrap_socket(connection.sock, server_hostname=host)
        try:
            connection.request("POST", path, line, headers)
            status = connection.getresponse().status
        finally:
            connection.close()
    if not 200 <= status < 300:
        raise OSError(f"it answered {status}")


@contextlib.contextmanager
def _connected(host: str, port: int) -> Iterator[socket.socket]:
    """A connection that is cut when the time is over: a timeout of a socket starts anew with each
    byte. Raises TimeoutError then, whatever came until then."""
    until_seconds = time.monotonic() + COPY_SECONDS
    connection = _dialled(host, port, until_seconds)
    # TLS takes the one over; what cuts it must stay.
    with connection, connection.dup() as same:
        is_late = threading.Event()

        def cut() -> None:
            is_late.set()
            with contextlib.suppress(OSError):  # it has ended
                same.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(max(until_seconds - time.monotonic(), 0), cut)
        timer.daemon = True
        timer.start()
        try:
            yield connection
        except (OSError, HTTPException):
            if not is_late.is_set():
                raise
        finally:
            timer.cancel()
        if is_late.is_set():
            raise TimeoutError(f"it took longer than {COPY_SECONDS:g} seconds")


def _dialled(host: str, port: int, until_seconds: float) -> socket.socket:
    """Its first address that takes a connection. Raises OSError."""
    failure = OSError("it has no address")
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # it has bounds of its own
    for family, kind, protocol, _, address in found:
        connection = socket.socket(family, kind, protocol)
        try:
            connection.settimeout(max(until_seconds - time.monotonic(), 0.001))
            connection.connect(address)
        except OSError as failed:
            connection.close()
            failure = failed
        else:
            connection.settimeout(None)  # from here on it is cut in time
            return connection
    raise failure


def _log(places: tuple[str, ...], line: bytes) -> None:
    place = next((place for place in places if os.path.exists(place)), None)
    if place is None:
        raise OSError(f"there is no syslog at {' or '.join(places)}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.settimeout(COPY_SECONDS)
        log.connect(place)
        log.send(b"<%d>pullcord: %s" % (_PRIORITY, line))
