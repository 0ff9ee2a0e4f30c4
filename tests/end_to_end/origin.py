"""An upstream in the tests' own process: it counts what reaches it, echoes it, and can wait.

In the clear and by TLS, under one name. What arrived is noted before it is answered.
"""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.end_to_end import certificates

HOST = "api.origin.example"
HELD = "/held/"  # what comes under this path is answered when the gate is open
DROPPED = "/dropped/"  # and this never: the connection ends instead
GARBLED = "/garbled/"  # and this with the request's body in the place of an answer's head
GATE_SECONDS = 20.0
WAIT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Arrived:
    """One request, as it arrived. Header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: str


@dataclass(slots=True)
class Origin:
    """`pause_seconds` is asked before each answer; `echoed` are headers to answer with."""

    ca: Path
    routes: dict[str, int] = field(default_factory=dict)
    arrived: list[Arrived] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    pause_seconds: Callable[[], float] = lambda: 0.0
    status: int = 200

    def paths(self, start: int = 0) -> list[str]:
        return [each.path for each in self.arrived[start:]]

    def wait_for(self, path: str) -> None:
        """Until a request for this path has arrived."""
        deadline = time.monotonic() + WAIT_SECONDS
        while path not in self.paths():
            assert time.monotonic() < deadline, f"{path} never arrived"
            time.sleep(0.01)

    def answer(self, request: Arrived) -> tuple[tuple[tuple[str, str], ...], bytes] | None:
        """Headers and body of the answer; None ends the connection without one."""
        self.arrived.append(request)
        if request.path.startswith(DROPPED):
            return None
        if request.path.startswith(HELD):
            self.gate.wait(GATE_SECONDS)
        time.sleep(self.pause_seconds())
        body = json.dumps({"number": len(self.arrived), "path": request.path, "was": request.body})
        copied = [(name, value) for name, value in request.headers.items() if name in _ECHOED]
        return tuple((f"X-Echo-{name}", value) for name, value in copied), body.encode()

    def status_of(self, path: str) -> int:
        """With what an answer to this path begins."""
        return self.status


_ECHOED = ("authorization", "cookie", "x-api-key")


@contextmanager
def serving(folder: Path) -> Iterator[Origin]:
    """Until the end of the block, which opens the gate."""
    with serving_as(folder, Origin) as origin:
        yield origin


@contextmanager
def serving_as[Made: Origin](folder: Path, make: Callable[[Path], Made]) -> Iterator[Made]:
    """The same, by what is made of the path of its authority."""
    files = certificates.make(folder, [HOST, "localhost"])
    origin = make(files.ca)
    with ExitStack() as closing:
        closing.callback(origin.gate.set)
        for port, context in ((80, None), (443, _tls(files))):
            server = _Server(("127.0.0.1", 0), _handler(origin))
            if context is not None:
                server.socket = context.wrap_socket(
                    server.socket, server_side=True, do_handshake_on_connect=False
                )
            thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
            thread.start()
            closing.callback(thread.join)
            closing.callback(server.shutdown)
            closing.callback(server.server_close)
            origin.routes[f"{HOST}:{port}"] = server.server_port
        yield origin


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A proxy that is killed hangs up in the middle of things; that is no error here."""


def _tls(files: certificates.Certificates) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.chain, files.key)
    return context


def _handler(origin: Origin) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            body = self.rfile.read(length).decode("latin-1")
            told = origin.answer(Arrived(self.command, self.path, headers, body))
            if self.path.startswith(GARBLED):
                self.wfile.write(body.encode("latin-1"))
                self.close_connection = True
                return
            if told is None:
                self.close_connection = True
                return
            self.send_response(origin.status_of(self.path))
            for name, value in (*told[0], ("Content-Type", "application/json")):
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(told[1])))
            self.end_headers()
            self.wfile.write(told[1])

        do_GET = do_POST = do_PUT = do_DELETE = answer

        def log_message(self, format: str, *args: Any) -> None:
            """What arrived is in `origin.arrived`."""

    return Handler
