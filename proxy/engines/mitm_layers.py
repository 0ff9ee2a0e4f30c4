"""mitmproxy's protocol layers, bent where they fail open, hang or forget (notes/mitmproxy.md).

Some names inside mitmproxy are replaced at import because it offers no other way to supply them:
the HTTP/1 client (1xx answers, trailers), the WebSocket layer (cut, bounded messages), the error
page, and a check of its own types that costs a tenth of a call. Everything else is a subclass that
`next_layer` puts in place. Checked on 12.2.3.
"""

from dataclasses import dataclass
from typing import Any

import h11
from h11._readers import ChunkedReader
from mitmproxy import flow as mflow
from mitmproxy import http
from mitmproxy.connection import Connection, Server
from mitmproxy.net.http import http1, status_codes
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as mhttp
from mitmproxy.proxy.layers import websocket as mwebsocket
from mitmproxy.proxy.layers.http import _http1, _http2
from wsproto import events as ws_events
from wsproto.connection import ConnectionState as WebSocketState

from proxy.head import HEAD_BYTES_MAX

DRAIN_BYTES_MAX = 64 * 1024 * 1024  # a refused upload is read this far so that the 413 arrives
MESSAGE_BYTES_MAX = 16 * 1024 * 1024  # one WebSocket message, all its fragments
ANSWER_HELD_BYTES_MAX = 1024 * 1024  # a write's answer up to this is held until it is durable

Commands = layer.CommandGenerator[None]


@dataclass
class CutFlow(events.Event):
    """Ask the layers to end one flow at once, on both sides."""

    flow: http.HTTPFlow
    reason: str


@dataclass
class DialledHook(commands.StartHook):
    """An upstream connection for the flow stands; its request has not been written yet."""

    flow: http.HTTPFlow


@dataclass
class SettleHook(commands.StartHook):
    """A write's answer is about to flow, or the end of it: its outcome must be durable first."""

    flow: http.HTTPFlow


class Stream(mhttp.HttpStream):
    """One exchange. `flow.metadata` carries what the engine knows of it (see mitm.Exchange)."""

    answering = False
    """Whether the head of an answer went to the client; after that only a cut can end it."""

    finished = False
    """Whether an answer of ours ended the exchange."""

    def __init__(self, context: Context, stream_id: int, body_bytes_max: int) -> None:
        super().__init__(context, stream_id)
        self.body_bytes_max = body_bytes_max
        self.body_bytes = 0

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, CutFlow):
            return  # mid-hook or already done; the hook's own checks end it
        yield from super()._handle_event(event)

    def state_consume_request_body(self, event: events.Event) -> Commands:
        if isinstance(event, mhttp.RequestData):
            self.body_bytes += len(event.data)
            if self.body_bytes > DRAIN_BYTES_MAX:
                yield commands.CloseConnection(self.context.client)
                return
            if self.body_bytes > self.body_bytes_max or self.flow.response is not None:
                self.flow.metadata["body_too_large"] = self.body_bytes > self.body_bytes_max
                self.request_body_buf.clear()
                return
        yield from super().state_consume_request_body(event)

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        ok = yield from super().make_server_connection()
        if not ok or (yield from self.check_killed(True)):
            return False
        yield DialledHook(self.flow)
        if self.flow.response is None:
            return True
        yield from self._answer_and_finish()
        return False

    def start_response_stream(self) -> Commands:
        if self.flow.metadata.get("settle_first"):
            yield SettleHook(self.flow)
            if self.flow.metadata.get("not_recorded"):
                yield commands.CloseConnection(self.context.server)
                yield from self._answer_and_finish()
                return
        self.answering = True
        yield from super().start_response_stream()

    def state_stream_response_body(self, event: events.Event) -> Commands:
        last = isinstance(event, mhttp.ResponseEndOfMessage)
        if last and self.flow.metadata.get("settle_last"):
            yield SettleHook(self.flow)
            if self.flow.metadata.get("not_recorded"):
                self.server_state = self.state_errored
                lost = mhttp.ResponseProtocolError(
                    self.stream_id, "the outcome is not recorded", mhttp.ErrorCode.KILL
                )
                yield mhttp.SendHttp(lost, self.context.client)
                yield mhttp.DropStream(self.stream_id)
                return
        yield from super().state_stream_response_body(event)

    def state_consume_response_body(self, event: events.Event) -> Commands:
        yield from super().state_consume_response_body(event)
        held = self.response_body_buf
        response = self.flow.response
        if len(held) > ANSWER_HELD_BYTES_MAX and response and "tee" in self.flow.metadata:
            start = mhttp.ResponseData(self.stream_id, bytes(held))
            held.clear()
            response.stream = self.flow.metadata["tee"]
            yield from self.start_response_stream()
            if self.answering and self.server_state == self.state_stream_response_body:
                yield from self.state_stream_response_body(start)

    def send_response(self, already_streamed: bool = False) -> Commands:
        yield from super().send_response(already_streamed)
        self.answering = True
        own = self.flow.metadata.get("own_connection") and not self.flow.websocket
        if own and self.context.server.connected:
            # A write's connection is not used again: a stale one looks like an unknown outcome.
            yield commands.CloseConnection(self.context.server)

    def handle_protocol_error(
        self, event: mhttp.RequestProtocolError | mhttp.ResponseProtocolError
    ) -> Commands:
        if self.finished:
            return  # queued while the answer was made: the upstream's own end of a cut
        finishing = self.flow.metadata.get("finish_alone", False)
        if isinstance(event, mhttp.RequestProtocolError) and finishing:
            return  # the agent left; its write is finished and recorded (design, section 3.6)
        open_to_answer = (
            isinstance(event, mhttp.ResponseProtocolError)
            and not self.answering
            and self.client_state == self.state_done
            and self.server_state not in (self.state_done, self.state_errored)
        )
        if not open_to_answer:
            yield from super().handle_protocol_error(event)
            return
        self.flow.response = None
        self.flow.error = mflow.Error(event.message)
        yield mhttp.HttpErrorHook(self.flow)
        yield from self._answer_and_finish()

    def _answer_and_finish(self) -> Commands:
        """Send the answer that a hook left in the flow, and end the exchange cleanly."""
        response = self.flow.response or http.Response.make(502)
        self.flow.response = response
        self.answering = True
        self.server_state = self.state_done
        content = response.raw_content
        yield mhttp.SendHttp(
            mhttp.ResponseHeaders(self.stream_id, response, not content), self.context.client
        )
        if content:
            yield mhttp.SendHttp(mhttp.ResponseData(self.stream_id, content), self.context.client)
        self.finished = True
        yield from self.flow_done()


class HttpLayer(mhttp.HttpLayer):
    """Makes our streams, gives each write a connection of its own, and routes cuts."""

    def __init__(self, context: Context, mode: mhttp.HTTPMode, body_bytes_max: int) -> None:
        super().__init__(context, mode)
        self.body_bytes_max = body_bytes_max
        if context.client.alpn != b"h2":
            self.connections[context.client] = Http1Server(context.fork())

    def make_stream(self, stream_id: int) -> Commands:
        stream = Stream(self.context.fork(), stream_id, self.body_bytes_max)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def get_connection(self, event: Any, *, reuse: bool = True) -> Commands:
        stream = self.command_sources.get(event)
        own = isinstance(stream, Stream) and stream.flow.metadata.get("own_connection")
        for connection in [known for known in self.connections if _is_over(known)]:
            del self.connections[connection]  # else one failed dial fails the tunnel for good
        yield from super().get_connection(event, reuse=reuse and not own)

    def _handle_event(self, event: events.Event) -> Commands:
        if not isinstance(event, CutFlow):
            yield from super()._handle_event(event)
            return
        for stream_id, stream in list(self.streams.items()):
            if stream.child_layer is not None:
                yield from self.event_to_child(stream, event)
            elif getattr(stream, "flow", None) is event.flow:
                yield from self._cut(stream_id, stream, event)

    def _cut(self, stream_id: int, stream: mhttp.HttpStream, event: CutFlow) -> Commands:
        idle = (stream.state_uninitialized, stream.state_done, stream.state_errored)
        server = self.connections.get(event.flow.server_conn)
        if server is not None and stream.server_state not in idle:
            error = mhttp.RequestProtocolError(stream_id, event.reason, mhttp.ErrorCode.CANCEL)
            yield from self.event_to_child(server, error)
        for connection, waiting in self.waiting_for_establishment.items():
            if any(self.command_sources.get(command) is stream for command in waiting):
                yield commands.CloseConnection(connection)
        killed = mhttp.ResponseProtocolError(stream_id, event.reason, mhttp.ErrorCode.KILL)
        yield from self.event_to_child(stream, killed)


def _is_over(connection: Connection) -> bool:
    """Whether an upstream connection ended, or never began, and no event of it can come."""
    if not isinstance(connection, Server):
        return False
    never_began = connection.error is not None and connection.timestamp_tcp_setup is None
    return never_began or connection.timestamp_end is not None


class _WithoutTrailers:
    """Drops chunked trailers, which RFC 9110 section 6.5.1 allows; mitmproxy would crash."""

    def __init__(self, reader: ChunkedReader) -> None:
        self._reader = reader

    def __call__(self, buffer: Any) -> Any:
        event = self._reader(buffer)
        return h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) else event

    def read_eof(self) -> Any:
        return self._reader.read_eof()


class _Http1Body:
    """Gives an HTTP/1 connection body readers that drop trailers."""

    @property
    def body_reader(self) -> Any:
        return self._body_reader

    @body_reader.setter
    def body_reader(self, reader: Any) -> None:
        chunked = isinstance(reader, ChunkedReader)
        self._body_reader = _WithoutTrailers(reader) if chunked else reader


class Http1Server(_Http1Body, _http1.Http1Server):
    """The client's side, with a bound on the head."""

    def read_headers(self, event: events.ConnectionEvent) -> Commands:
        yield from super().read_headers(event)
        if self.request is None and len(self.buf) > HEAD_BYTES_MAX:
            yield commands.SendData(self.conn, _error_page(431))
            yield commands.CloseConnection(self.conn)
            self.state = self.done


class Http1Client(_Http1Body, _http1.Http1Client):
    """The upstream's side: interim answers are skipped, a flooding head is an error."""

    def read_headers(self, event: events.ConnectionEvent) -> Commands:
        if isinstance(event, events.DataReceived) and self.request is not None:
            while _is_interim(bytes(self.buf)[:13]):
                if self.buf.maybe_extract_lines() is None:
                    break
            if len(self.buf) > HEAD_BYTES_MAX and b"\r\n\r\n" not in bytes(self.buf):
                yield commands.CloseConnection(self.conn)
                yield mhttp.ReceiveHttp(
                    mhttp.ResponseProtocolError(
                        self.stream_id or 0,
                        "the answer's head is too large",
                        mhttp.ErrorCode.GENERIC_SERVER_ERROR,
                    )
                )
                return
            if not self.buf:
                return
        yield from super().read_headers(event)


def _is_interim(start: bytes) -> bool:
    """`HTTP/1.1 1xx`, except 101 which switches protocols (RFC 9110 section 15.2)."""
    return start[:7] == b"HTTP/1." and start[8:10] == b" 1" and start[9:12] != b"101"


class WebsocketLayer(mwebsocket.WebsocketLayer):
    """Can be cut, and refuses a message that grows without end."""

    def relay_messages(self, event: Any) -> Commands:
        if isinstance(event, CutFlow):
            if event.flow is self.flow:
                yield from self._cut(event.reason, 1008)
            return
        yield from super().relay_messages(event)
        for side in (self.client_ws, self.server_ws):
            if sum(map(len, side.frame_buf)) > MESSAGE_BYTES_MAX:
                yield from self._cut("message too large", 1009)
                return

    def _cut(self, reason: str, code: int) -> Commands:
        data = self.flow.websocket
        if data is None or not self.flow.live:
            return
        data.closed_by_client, data.close_code, data.close_reason = False, code, reason
        for side in (self.client_ws, self.server_ws):
            if side.state is WebSocketState.OPEN:
                yield side.send2(ws_events.CloseConnection(code, reason[:120]))
            yield commands.CloseConnection(side.conn)
        yield mwebsocket.WebsocketEndHook(self.flow)
        self.flow.live = False
        self._handle_event = self.done


def _error_page(status_code: int, message: str = "") -> bytes:
    """For what is refused before it is a request. Says nothing of addresses or software."""
    headers = http.Headers(content_type="application/problem+json", connection="close")
    page = http.Response.make(status_code, _problem(status_code), headers)
    return bytes(http1.assemble_response(page))


def _problem(status_code: int, message: str = "") -> bytes:
    title = status_codes.RESPONSES.get(status_code, "refused")
    return b'{"title":"%s","status":%d}' % (title.encode(), status_code)


def _unchecked(data: http.MessageData) -> None:
    """mitmproxy checks the type of each field of each message that its own parser made: a tenth
    of a call. Whether a message may pass is judged from its bytes, in proxy/head.py."""


for _module, _name, _ours in (
    (http.MessageData, "__post_init__", _unchecked),
    (mhttp, "Http1Client", Http1Client),
    (mwebsocket, "WebsocketLayer", WebsocketLayer),
    (_http1, "make_error_response", _error_page),
    (_http2, "format_error", _problem),
):
    setattr(_module, _name, _ours)
