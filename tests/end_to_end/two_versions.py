"""An agent's one call through a proxy, by HTTP/1.1 or HTTP/2, and all that it was told."""

import asyncio
from dataclasses import dataclass, field
from typing import Any

import h2.config
import h2.connection
import h2.events
import h11

HOST = "api.test"


@dataclass(frozen=True, slots=True)
class Sent:
    """What an agent asks. Without a body it is a GET."""

    path: str
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def method(self) -> str:
        return "POST" if self.body else "GET"


@dataclass(slots=True)
class Told:
    """`whole` when the answer ended in order. Names of headers are lower case."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    interim: list[int] = field(default_factory=list)
    whole: bool = False

    @property
    def reason(self) -> str:
        """Why pullcord decided as it did, by its own header."""
        words = dict(
            word.strip().partition("=")[::2]
            for word in self.headers.get("pullcord-decision", "").split(";")
        )
        return words.get("reason", "")


@dataclass(slots=True)
class Agent:
    """One connection through the proxy, which is never replaced by another."""

    proxy: Any
    protocol: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @classmethod
    async def connect(cls, proxy: Any, protocol: str) -> "Agent":
        if protocol == "plain":
            return cls(proxy, protocol, *await proxy.connect())
        alpn = "h2" if protocol == "http2" else "http/1.1"
        return cls(proxy, protocol, *await proxy.tunnel(HOST, alpn=[alpn]))

    async def ask(self, sent: Sent) -> Told:
        exchange = self._http2 if self.protocol == "http2" else self._http1
        return await exchange(sent)

    def leave(self) -> None:
        self.writer.transport.abort()

    async def _read(self) -> bytes:
        try:
            return await self.reader.read(65536)
        except OSError:
            return b""

    def _http1_bytes(self, conn: h11.Connection, sent: Sent) -> bytes:
        fields = [("Host", HOST), *sent.headers]
        target = sent.path
        if self.protocol == "plain":
            target = f"http://{HOST}{sent.path}"
            name, _, value = self.proxy.credentials().decode().strip().partition(": ")
            fields.append((name, value))
        if sent.body:
            fields.append(("Content-Length", str(len(sent.body))))
        head = conn.send(h11.Request(method=sent.method, target=target, headers=fields))
        body = conn.send(h11.Data(data=sent.body)) if sent.body else b""
        return (head or b"") + (body or b"") + (conn.send(h11.EndOfMessage()) or b"")

    async def _http1(self, sent: Sent) -> Told:
        conn, told = h11.Connection(h11.CLIENT), Told()
        self.writer.write(self._http1_bytes(conn, sent))
        while True:
            try:
                event = conn.next_event()
            except h11.RemoteProtocolError:
                return told
            if event is h11.NEED_DATA:
                conn.receive_data(await self._read())
            elif isinstance(event, h11.InformationalResponse):
                told.interim.append(event.status_code)
            elif isinstance(event, h11.Response):
                told.status = event.status_code
                told.headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                told.body += event.data
            elif isinstance(event, h11.EndOfMessage):
                told.trailers = {name.decode(): value.decode() for name, value in event.headers}
                told.whole = True
                return told
            else:
                return told

    async def _http2(self, sent: Sent) -> Told:
        told, config = Told(), h2.config.H2Configuration(header_encoding="utf-8")
        conn = h2.connection.H2Connection(config)
        conn.initiate_connection()
        head = {":method": sent.method, ":scheme": "https", ":authority": HOST, ":path": sent.path}
        conn.send_headers(1, [*head.items(), *sent.headers], end_stream=not sent.body)
        left = sent.body
        while True:
            while left and (room := conn.local_flow_control_window(1)):
                part = left[: min(room, conn.max_outbound_frame_size)]
                left = left[len(part) :]
                conn.send_data(1, part, end_stream=not left)
            self.writer.write(conn.data_to_send())
            data = await self._read()
            if not data:
                return told
            for event in conn.receive_data(data):
                if _heard(conn, event, told):
                    return told


def _heard(conn: h2.connection.H2Connection, event: h2.events.Event, told: Told) -> bool:
    """Whether that was the last of it."""
    if isinstance(event, h2.events.InformationalResponseReceived):
        fields: dict[Any, Any] = dict(event.headers)
        told.interim.append(int(fields[":status"]))
    elif isinstance(event, h2.events.ResponseReceived):
        told.headers = {str(name): str(value) for name, value in event.headers}
        told.status = int(told.headers.pop(":status"))
    elif isinstance(event, h2.events.DataReceived):
        told.body += event.data
        conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
    elif isinstance(event, h2.events.TrailersReceived):
        told.trailers = {str(name): str(value) for name, value in event.headers}
    elif isinstance(event, h2.events.StreamEnded):
        told.whole = True
    return told.whole or isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated)
