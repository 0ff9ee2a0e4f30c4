"""Uploads of tools with `stream: true`, for their tests: clients, an upstream, what was settled."""

import asyncio
from typing import Any

import h2.config
import h2.connection
import h2.events

POLICY = """
version: 1
tools:
  files.put:
    match: {host: "*.test", method: [PUT, POST], path: "/files/{name}"}
    stream: true
    body_bytes_max: 50000000
    allow_addresses: [127.0.0.0/8]
  free.put:
    match: {host: "*.test", method: PUT, path: "/free/{name}"}
    stream: true
    idempotency: {missing: "off"}
    allow_addresses: [127.0.0.0/8]
  api.rest: {match: {host: "*.test"}, allow_addresses: [127.0.0.0/8]}
"""
CEILING = """
ceilings:
  - {per: run, count: bytes_up, at_most: 100000, within: 1m, then: throttle}
"""
PART = b"0123456789abcdef" * 4096  # 64 KiB
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def put(proxy, size=None, key=b"k1", path=b"/files/a", run="r1", more=b""):
    """The head of an upload; in chunks where no size is told."""
    framing = b"Transfer-Encoding: chunked" if size is None else b"Content-Length: %d" % size
    line = b"PUT http://api.test%b HTTP/1.1\r\nHost: api.test\r\n" % path
    named = b"Idempotency-Key: %b\r\n" % key if key else b""
    return line + proxy.credentials(run) + named + more + framing + b"\r\n\r\n"


def chunk(part):
    return b"%x\r\n%b\r\n" % (len(part), part)


class Taking:
    """An upstream that tells when a head came and how much of a body, and reads when it may."""

    def __init__(self, answer=OK):
        self.heads, self.bodies, self.ended = [], [], []
        self.came, self.may_read = asyncio.Event(), asyncio.Event()
        self.may_read.set()
        self.answer = answer
        self.closes = False

    async def __call__(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        body = bytearray()
        self.bodies.append(body)
        self.came.set()
        lower = head.lower()
        length = None
        if b"content-length: " in lower:
            length = int(lower.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while length is None or len(body) < length:
            await self.may_read.wait()
            try:
                part = await reader.read(65536)
            except OSError:
                part = b""
            if not part:
                self.ended.append("cut")
                return
            body += part
            if length is None and body.endswith(b"0\r\n\r\n"):
                break
        self.ended.append("whole")
        writer.write(self.answer)
        await writer.drain()
        if self.closes:
            writer.close()


async def of_chunks(body):
    """What the chunks hold."""
    found, rest = bytearray(), bytes(body)
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        found += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return bytes(found)


async def answer_of(reader):
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head, await reader.readexactly(length)


async def settled(proxy, count=1):
    """The ledger's calls, once so many are settled."""
    while True:
        calls = [call for call in proxy.calls() if call["state"] != "pending"]
        if len(calls) >= count:
            return calls
        await asyncio.sleep(0.01)


async def h2_upload(reader, writer, size, key="k1", parts=(PART,), told=True, ends=True):
    """Send an upload by HTTP/2 within its windows; the status and the body of its answer."""
    config = h2.config.H2Configuration(header_encoding="latin-1")
    conn = h2.connection.H2Connection(config)
    conn.initiate_connection()
    stream = conn.get_next_available_stream_id()
    headers = [
        (":method", "PUT"),
        (":scheme", "https"),
        (":authority", "api.test"),
        (":path", "/files/a"),
        ("idempotency-key", key),
    ]
    conn.send_headers(stream, headers + ([("content-length", str(size))] if told else []))
    left = bytearray(b"".join(parts))
    status, body, over = "", bytearray(), False
    while not over:
        while left and (most := min(conn.local_flow_control_window(stream), 16_384)):
            conn.send_data(stream, bytes(left[:most]), end_stream=ends and len(left) <= most)
            del left[:most]
        writer.write(conn.data_to_send())
        data = await reader.read(65536)
        for event in conn.receive_data(data) if data else ():
            if isinstance(event, h2.events.ResponseReceived):
                fields: dict[Any, Any] = dict(event.headers)
                status = fields[":status"]
            elif isinstance(event, h2.events.DataReceived):
                body += event.data
                conn.acknowledge_received_data(event.flow_controlled_length, stream)
            over = over or isinstance(event, h2.events.StreamEnded | h2.events.StreamReset)
        over = over or not data
    return status, bytes(body)
