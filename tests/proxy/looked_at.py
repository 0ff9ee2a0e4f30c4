"""A service that operators look at: `localhost` by TLS, which answers as it is told and notes what
it was asked."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.end_to_end import certificates


@dataclass(slots=True)
class Service:
    """`said` is what it answers: status, headers, body. `held` answers nothing until it is set.
    `bodies` are those of what it was `asked`. Where it `drops`, it hangs up without an answer."""

    port: int
    ca: Path
    said: tuple[int, dict[str, str], bytes] = (200, {"Content-Type": "application/json"}, b"{}")
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    bodies: list[bytes] = field(default_factory=list)
    drops: bool = False

    def says(self, status: int, body: bytes | str, **headers: str) -> None:
        told = {"Content-Type": "application/json"}
        told |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.said = (status, told, body.encode() if isinstance(body, str) else body)


@contextmanager
def serving(folder: Path, names: tuple[str, ...] = ("localhost",)) -> Iterator[Service]:
    files = certificates.make(folder, names)
    service = Service(0, files.ca)
    service.held.set()
    server = _Server(("127.0.0.1", 0), _handler(service))
    service.port = server.server_port
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.chain, files.key)
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield service
    finally:
        service.held.set()
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Who asks may hang up in the middle of things."""


def _handler(service: Service) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            service.bodies.append(self.rfile.read(int(headers.get("content-length", "0"))))
            service.asked.append((self.command, self.path, headers))
            service.held.wait(30)
            if service.drops:
                return
            status, told, body = service.said
            self.send_response(status)
            for name, value in told.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

        def log_message(self, format: str, *args: Any) -> None:
            """What it was asked is in `service.asked`."""

    return Handler
