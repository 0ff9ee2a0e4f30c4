"""An upstream that goes on for ever, as one process: streams, WebSockets, HTTP/2; and quick writes.

What arrives is noted with the moment at which its first byte was read, by the monotonic clock that
all processes of the machine share. Paths say what is wanted: `/stream/` events without end,
`/socket/` a WebSocket, `/mute/` no answer ever, anything else an answer at once. The port `deaf`
takes connections and says nothing, not even the server's half of TLS.
"""

import asyncio
import base64
import hashlib
import json
import os
import socket
import time
from collections.abc import Callable
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions

from tests.end_to_end.upstreams.serving import FOLDER, announce, listener, tls

TICK_SECONDS = 0.2
EVENT = b"data: tick\n\n"
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3
TEXT, CLOSE = 1, 8  # opcodes: section 5.2
ANSWER = b'{"made": true}'

TICKING: set[Callable[[], None]] = set()
NOTES = os.open(FOLDER / "arrived.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


def note(at_ns: int, method: str, path: str, run: str) -> None:
    line = json.dumps({"at_ns": at_ns, "method": method, "path": path, "run": run})
    os.write(NOTES, line.encode() + b"\n")


class Http1(asyncio.Protocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.waiting = b""
        self.first_ns = 0
        self.path = ""
        self.run = ""
        self.is_socket = False
        self.tick: Callable[[], None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if not self.waiting:
            self.first_ns = time.monotonic_ns()
        self.waiting += data
        while self.waiting and (self._message() if self.is_socket else self._request()):
            self.first_ns = time.monotonic_ns()

    def connection_lost(self, error: Exception | None) -> None:
        TICKING.discard(self.tick)
        if self.waiting and not self.is_socket:
            note(self.first_ns, "PART", self.waiting[:64].decode("latin-1"), "")

    def _request(self) -> bool:
        """One whole request, if it is there."""
        head, end, rest = self.waiting.partition(b"\r\n\r\n")
        if not end:
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        length = int(fields.get("content-length", "0"))
        if len(rest) < length:
            return False
        self.waiting = rest[length:]
        method, self.path, _ = first.split(" ")
        self.run = fields.get("x-run-id", "")
        note(self.first_ns, method, self.path, self.run)
        self._answer(fields)
        return True

    def _answer(self, fields: dict[str, str]) -> None:
        if self.path.startswith("/stream/"):
            head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
            self.transport.write(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
            self._ticks(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        elif self.path.startswith("/socket/"):
            self.is_socket = True
            digest = hashlib.sha1(fields["sec-websocket-key"].encode() + GUID)
            accept = base64.b64encode(digest.digest()).decode()
            head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            head += f"Connection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
            self.transport.write(head.encode())
            self._ticks(b"\x81\x04tick")
        elif not self.path.startswith("/mute/"):
            head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(ANSWER)}"
            self.transport.write(head.encode() + b"\r\n\r\n" + ANSWER)

    def _ticks(self, data: bytes) -> None:
        self.tick = lambda: self.transport.write(data)
        TICKING.add(self.tick)
        self.tick()

    def _message(self) -> bool:
        """One frame of the client's, all of which are short and masked (section 5.2)."""
        if len(self.waiting) < 6:
            return False
        size = 6 + (self.waiting[1] & 0x7F)
        if len(self.waiting) < size:
            return False
        opcode, self.waiting = self.waiting[0] & 0x0F, self.waiting[size:]
        if opcode <= TEXT + 1:
            note(self.first_ns, "MESSAGE", self.path, self.run)
        if opcode == CLOSE:
            self.transport.close()
        return True


class Http2(asyncio.Protocol):
    def __init__(self, transport: asyncio.Transport) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding="utf-8")
        self.transport = transport
        self.connection = h2.connection.H2Connection(config)
        self.paths: dict[int, str] = {}
        self.ticks: dict[int, Callable[[], None]] = {}
        self.connection.initiate_connection()
        self._flush()

    def data_received(self, data: bytes) -> None:
        read_ns = time.monotonic_ns()
        for event in self.connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                fields = {str(name): str(value) for name, value in event.headers}
                self.paths[event.stream_id] = fields[":path"]
                note(read_ns, fields[":method"], fields[":path"], fields.get("x-run-id", ""))
            elif isinstance(event, h2.events.DataReceived):
                size = event.flow_controlled_length
                self.connection.acknowledge_received_data(size, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                self._answer(event.stream_id)
            elif isinstance(event, h2.events.StreamReset):
                TICKING.discard(self.ticks.pop(event.stream_id, lambda: None))
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        TICKING.difference_update(self.ticks.values())

    def _answer(self, stream: int) -> None:
        path = self.paths.pop(stream)
        if path.startswith("/mute/"):
            return
        endless = path.startswith("/stream/")
        kind = "text/event-stream" if endless else "application/json"
        self.connection.send_headers(stream, [(":status", "200"), ("content-type", kind)])
        self.connection.send_data(stream, EVENT if endless else ANSWER, end_stream=not endless)
        if endless:
            self.ticks[stream] = lambda: self._tick(stream)
            TICKING.add(self.ticks[stream])

    def _tick(self, stream: int) -> None:
        try:
            self.connection.send_data(stream, EVENT)
        except h2.exceptions.ProtocolError:
            TICKING.discard(self.ticks.pop(stream, lambda: None))
        self._flush()

    def _flush(self) -> None:
        self.transport.write(self.connection.data_to_send())


class Either(asyncio.Protocol):
    """HTTP/2 where the client asked for it, else HTTP/1.1."""

    def connection_made(self, transport: Any) -> None:
        second = transport.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        protocol: asyncio.Protocol = Http2(transport) if second else Http1()
        transport.set_protocol(protocol)
        if not second:
            protocol.connection_made(transport)


async def main() -> None:
    loop = asyncio.get_running_loop()
    plain, secure, deaf = listener(), listener(), listener()
    await loop.create_server(Http1, sock=plain)
    await loop.create_server(Either, sock=secure, ssl=tls("h2", "http/1.1"))
    await loop.create_server(asyncio.Protocol, sock=deaf)
    announce(plain=plain, secure=secure, deaf=deaf)
    while True:
        await asyncio.sleep(TICK_SECONDS)
        for tick in list(TICKING):
            tick()


if __name__ == "__main__":
    asyncio.run(main())
