"""RPCs over HTTP/2, and requests that do not end: those that wait for an answer are refused."""

import asyncio
import json
from dataclasses import dataclass, field
from urllib.parse import unquote

import h2.config
import h2.connection
import h2.events
import pytest

from proxy.engines import mitm_hooks
from proxy.engines.mitm_events import UnendedHook
from tests.engine import HTTP2
from tests.proxy.engines import inside
from tests.proxy.engines.conftest import TlsUpstream, answer_all, tls_context, whole_answer
from tests.proxy.engines.test_fail_closed import failing

MESSAGE = b"\x00\x00\x00\x00\x02hi"
GRPC_ANSWER = [(":status", "200"), ("content-type", "application/grpc")]


@dataclass
class Answer:
    """What the client was told on one stream."""

    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    trailers: dict[str, str] = field(default_factory=dict)
    end: str = ""


@dataclass
class GrpcUpstream(TlsUpstream):
    released: asyncio.Event = field(default_factory=asyncio.Event)


class Rpc:
    """An HTTP/2 client that decides itself when its half of a stream ends."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        self.conn = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self.conn.initiate_connection()
        self.answers = {}

    def open(self, content_type, path="/shop.Orders/Create"):
        stream = self.conn.get_next_available_stream_id()
        named = {":method": "POST", ":scheme": "https", ":authority": "api.test", ":path": path}
        fields = [*named.items(), ("content-type", content_type), ("te", "trailers")]
        self.conn.send_headers(stream, fields)
        self.answers[stream] = Answer()
        self.flush()
        return stream

    def send(self, stream, data=MESSAGE, *, end):
        self.conn.send_data(stream, data, end_stream=end)
        self.flush()

    def flush(self):
        self.writer.write(self.conn.data_to_send())

    async def answer(self, stream):
        answer = self.answers[stream]
        while not answer.end:
            data = await self.reader.read(65536)
            for event in self.conn.receive_data(data) if data else ():
                self._take(event)
            self.flush()
            if not data:
                answer.end = "closed"
        return answer

    def _take(self, event):
        answer = self.answers.get(getattr(event, "stream_id", 0))
        if answer is None:
            return
        match event:
            case h2.events.ResponseReceived():
                answer.headers = dict(event.headers)
            case h2.events.DataReceived():
                answer.body += event.data
                self.conn.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            case h2.events.TrailersReceived():
                answer.trailers = dict(event.headers)
            case h2.events.StreamEnded():
                answer.end = answer.end or "ended"
            case h2.events.StreamReset():
                answer.end = answer.end or "reset"


@pytest.fixture
async def grpc_upstream(tmp_path):
    """Answers each whole gRPC request with its own body, and status 0 in the trailers: those come
    once they are `released`."""
    made = GrpcUpstream(answer_all, ca=tmp_path / "upstream.pem")
    made.released.set()
    context = tls_context(made.ca)
    context.set_alpn_protocols(["h2"])

    async def serve(reader, writer):
        made.connections += 1
        conn = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        conn.initiate_connection()
        while True:
            writer.write(conn.data_to_send())
            data = await reader.read(65536)
            if not data:
                break
            for event in conn.receive_data(data):
                if isinstance(event, h2.events.DataReceived):
                    made.received += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    conn.send_headers(event.stream_id, GRPC_ANSWER)
                    conn.send_data(event.stream_id, bytes(made.received))
                    writer.write(conn.data_to_send())
                    await made.released.wait()
                    trailers = [("grpc-status", "0"), ("x-order", "o1")]
                    conn.send_headers(event.stream_id, trailers, end_stream=True)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


@pytest.fixture
def soon(monkeypatch):
    """No patience: what pauses is refused at the next sweep."""
    inside.set_constant(monkeypatch, "RPC_PAUSE_SECONDS", 0.05)


@HTTP2
async def test_a_unary_call_gets_its_answer_with_trailers(grpc_upstream, serving):
    async with serving(grpc_upstream.port, upstream_ca=grpc_upstream.ca) as proxy:
        rpc = Rpc(*await proxy.tunnel("api.test", alpn=["h2"]))
        stream = rpc.open("application/grpc")
        rpc.send(stream, end=True)
        answer = await rpc.answer(stream)
    assert (answer.headers[":status"], answer.body, answer.end) == ("200", MESSAGE, "ended")
    assert answer.trailers == {"grpc-status": "0", "x-order": "o1"}
    assert [call["state"] for call in proxy.calls()] == ["done"]


@HTTP2
async def test_an_answer_in_parts_flows_and_its_end_waits_for_the_record(grpc_upstream, serving):
    """No client takes a call for done before the trailers."""
    grpc_upstream.released.clear()
    async with serving(grpc_upstream.port, upstream_ca=grpc_upstream.ca) as proxy:
        rpc = Rpc(*await proxy.tunnel("api.test", alpn=["h2"]))
        stream = rpc.open("application/grpc")
        rpc.send(stream, end=True)
        while not rpc.answers[stream].body:
            for event in rpc.conn.receive_data(await rpc.reader.read(65536)):
                rpc._take(event)
        assert [call["state"] for call in proxy.calls()] == ["pending"]
        grpc_upstream.released.set()
        answer = await rpc.answer(stream)
        assert [call["state"] for call in proxy.calls()] == ["done"]
    assert (answer.body, answer.trailers["grpc-status"]) == (MESSAGE, "0")


@HTTP2
async def test_a_replayed_unary_call_has_its_trailers_too(grpc_upstream, serving):
    """Without them a gRPC client takes the answer for a failure."""
    async with serving(grpc_upstream.port, upstream_ca=grpc_upstream.ca) as proxy:
        rpc = Rpc(*await proxy.tunnel("api.test", alpn=["h2"]))
        answers = []
        for _ in range(2):
            stream = rpc.open("application/grpc")
            rpc.send(stream, end=True)
            answers.append(await rpc.answer(stream))
    first, again = answers
    assert again.headers["idempotent-replayed"] == "true"
    assert (again.body, again.trailers) == (first.body, first.trailers)
    assert "grpc-status" not in again.headers
    assert grpc_upstream.received == MESSAGE


@HTTP2
@pytest.mark.usefixtures("soon")
async def test_a_call_that_streams_both_ways_is_refused_in_grpcs_own_words(grpc_upstream, serving):
    async with serving(grpc_upstream.port, upstream_ca=grpc_upstream.ca) as proxy:
        rpc = Rpc(*await proxy.tunnel("api.test", alpn=["h2"]))
        stream = rpc.open("application/grpc+proto")
        rpc.send(stream, end=False)
        answer = await rpc.answer(stream)
        assert (answer.end, answer.body, answer.headers[":status"]) == ("ended", b"", "200")
        assert answer.headers["grpc-status"] == "12"
        assert "streams both ways" in unquote(answer.headers["grpc-message"])
        # The connection goes on, even with what the refused call still sends.
        rpc.send(stream, end=True)
        following = rpc.open("application/grpc")
        rpc.send(following, end=True)
        assert (await rpc.answer(following)).trailers["grpc-status"] == "0"
        assert not proxy.gate.live
    refused, _ = proxy.calls()
    assert (refused["run"], refused["reason"]) == ("r1", "protocol_unsupported")
    assert grpc_upstream.received == MESSAGE


@HTTP2
@pytest.mark.usefixtures("soon")
async def test_a_call_that_opens_and_sends_nothing_is_refused(grpc_upstream, serving):
    async with serving(grpc_upstream.port, upstream_ca=grpc_upstream.ca) as proxy:
        rpc = Rpc(*await proxy.tunnel("api.test", alpn=["h2"]))
        answer = await rpc.answer(rpc.open("application/grpc"))
    assert answer.headers["grpc-status"] == "12"
    assert grpc_upstream.connections == 0


@HTTP2
async def test_a_call_that_streams_without_a_pause_is_refused_too(
    grpc_upstream, serving, monkeypatch
):
    inside.set_constant(monkeypatch, "RPC_REQUEST_SECONDS", 0.2)
    async with serving(grpc_upstream.port, upstream_ca=grpc_upstream.ca) as proxy:
        rpc = Rpc(*await proxy.tunnel("api.test", alpn=["h2"]))
        stream = rpc.open("application/grpc")
        answered = asyncio.create_task(rpc.answer(stream))
        while not answered.done():
            rpc.send(stream, end=False)
            await asyncio.wait({answered}, timeout=0.02)
        assert answered.result().headers["grpc-status"] == "12"
    assert grpc_upstream.connections == 0


@HTTP2
@pytest.mark.usefixtures("soon")
async def test_another_streaming_rpc_is_refused_as_http(grpc_upstream, serving):
    async with serving(grpc_upstream.port, upstream_ca=grpc_upstream.ca) as proxy:
        rpc = Rpc(*await proxy.tunnel("api.test", alpn=["h2"]))
        stream = rpc.open("application/connect+proto")
        rpc.send(stream, end=False)
        answer = await rpc.answer(stream)
    assert answer.headers[":status"] == "501"
    assert json.loads(answer.body)["reason"] == "protocol_unsupported"


@HTTP2
@pytest.mark.usefixtures("soon")
async def test_a_call_that_its_client_gives_up_leaves_nothing_behind(grpc_upstream, serving):
    async with serving(grpc_upstream.port, upstream_ca=grpc_upstream.ca) as proxy:
        rpc = Rpc(*await proxy.tunnel("api.test", alpn=["h2"]))
        given_up = rpc.open("application/grpc")
        rpc.conn.reset_stream(given_up)
        following = rpc.open("application/grpc")
        rpc.send(following, end=True)
        assert (await rpc.answer(following)).trailers["grpc-status"] == "0"
    assert [call["decision"] for call in proxy.calls()] == ["allow"]


@HTTP2
@pytest.mark.usefixtures("soon")
async def test_a_refusal_that_fails_hangs_nobody(grpc_upstream, serving, monkeypatch):
    monkeypatch.setitem(mitm_hooks.HOOKS, UnendedHook, failing)
    async with serving(grpc_upstream.port, upstream_ca=grpc_upstream.ca) as proxy:
        rpc = Rpc(*await proxy.tunnel("api.test", alpn=["h2"]))
        answer = await rpc.answer(rpc.open("application/grpc"))
    assert answer.headers[":status"] == "503"
    assert grpc_upstream.connections == 0


POST = b"POST http://api.test/w HTTP/1.1\r\nHost: api.test\r\n"


@pytest.mark.parametrize(
    "body",
    [b"Transfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n", b"Content-Length: 9\r\n\r\nhi"],
    ids=["chunked", "by length"],
)
async def test_an_http1_body_that_never_ends_is_refused_and_hung_up_on(tls_upstream, serving, body):
    async with serving(tls_upstream.port, idle_seconds=0.05) as proxy:
        reader, writer = await proxy.connect()
        writer.write(POST + proxy.credentials() + body)
        answer = await whole_answer(reader)
        assert answer.startswith(b"HTTP/1.1 400")
        assert b"its body did not end: nothing of it came for 0.05 s" in answer
        assert await reader.read() == b""
    assert [call["reason"] for call in proxy.calls()] == ["malformed_request"]
    assert tls_upstream.connections == 0
