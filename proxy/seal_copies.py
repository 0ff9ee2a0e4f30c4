"""Copies of the seals, for where whoever can write the ledger cannot: a file, a URL, syslog.

Whatever fails here stops no call: a copy waits, is tried again, and `status` tells.
"""

import base64
import os
import socket
import ssl
from collections import deque
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from urllib.parse import unquote, urlsplit

from proxy.settings import SYSLOG, is_url

COPY_SECONDS = 5.0  # one copy may take; nobody waits for it
WAITING_MAX = 1_000  # copies that wait for a place that fails: most of a day

_LOGS = ("/dev/log", "/var/run/syslog")  # Linux, macOS
_PRIORITY = 10 * 8 + 5  # authpriv, notice (RFC 5424, section 6.2.1)


def shown(target: str) -> str:
    """Without what may be secret in a URL."""
    if not is_url(target):
        return target
    parts = urlsplit(target)
    return f"{parts.scheme}://{parts.hostname or ''}"


class Copies:
    """Of one place. `add` and `is_due` are for the loop; `send` blocks, in any one thread."""

    def __init__(self, target: str, logs: tuple[str, ...] = _LOGS) -> None:
        self.target = target
        self.error = ""
        self._waiting: deque[bytes] = deque(maxlen=WAITING_MAX)
        self._logs = logs

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, line: bytes) -> None:
        self._waiting.append(line)

    def send(self) -> None:
        """All that waits, in order, up to the first that fails."""
        while self._waiting:
            line = self._waiting[0]
            try:
                self._sent(line)
            except (OSError, HTTPException, ValueError) as error:
                self.error = str(error) or type(error).__name__
                return
            if self._waiting and self._waiting[0] is line:  # else it gave way to a newer one
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
    connection: HTTPConnection
    if parts.scheme == "https":
        context = ssl.create_default_context()
        connection = HTTPSConnection(host, parts.port, timeout=COPY_SECONDS, context=context)
    else:
        connection = HTTPConnection(host, parts.port, timeout=COPY_SECONDS)
    headers = {"Content-Type": "application/json"}
    if parts.username is not None:
        name = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = f"Basic {base64.b64encode(name.encode()).decode()}"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        connection.request("POST", path, line, headers)
        status = connection.getresponse().status
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise OSError(f"it answered {status}")


def _log(places: tuple[str, ...], line: bytes) -> None:
    place = next((place for place in places if os.path.exists(place)), None)
    if place is None:
        raise OSError(f"there is no syslog at {' or '.join(places)}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        log.settimeout(COPY_SECONDS)
        log.connect(place)
        log.send(b"<%d>pullcord: %s" % (_PRIORITY, line))
