"""mitmproxy's HTTP layers, bent where they fail open, hang or forget (notes/mitmproxy.md).

A check of its own types that costs a tenth of a call is left out at import. Everything else is a
subclass that `next_layer` puts in place. Checked on 12.2.3.
"""

from typing import Any

from mitmproxy import flow as mflow
from mitmproxy import http
from mitmproxy.connection import Connection, Server
from mitmproxy.net.http.validate import validate_headers
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as mhttp
from mitmproxy.proxy.layers import modes

from policies.verdict import Reason
from proxy import head
from proxy.engines import (
    mitm_stored,
    mitm_websocket,  # noqa: F401 - it puts its layer in mitmproxy's place
)
from proxy.engines.mitm_events import (
    BrokenBody,
    CallerHook,
    CutFlow,
    DialledHook,
    DrawHook,
    PartHook,
    SettleHook,
    Taken,
    Unended,
    UnendedHook,
)
from proxy.engines.mitm_http1 import VERSIONS, Http1Server
from proxy.engines.mitm_http2 import Http2Server
from proxy.engines.mitm_uploads import Upload
from proxy.engines.waits import ANSWER_HELD_BYTES_MAX, DRAIN_BYTES_MAX

Commands = layer.CommandGenerator[None]


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
        self.bodiless = False

    @property
    def upload(self) -> Upload | None:
        """Where the body flows on as it comes."""
        return self.flow.metadata.get("upload") if hasattr(self, "flow") else None

    @property
    def is_uploading(self) -> bool:
        """Whether more of such a body is to come."""
        return self.upload is not None and not self.upload.over

    def handle_event(self, event: events.Event) -> Commands:
        """While a hook is awaited events queue; a call that waits must know of this one now."""
        if isinstance(event, mhttp.RequestProtocolError) and hasattr(self, "flow"):
            self.flow.metadata["client_left"] = True
        yield from super().handle_event(event)
        upload = self.upload
        if upload is None:
            return
        waited = upload.waits
        queued = self._paused_event_queue if self._paused else ()
        upload.pace(waits=any(isinstance(one, mhttp.RequestData) for one in queued))
        if waited and not upload.waits and self.flow.request.is_http2:
            yield mhttp.SendHttp(Taken(self.stream_id), self.context.client)

    def _handle_event(self, event: events.Event) -> Commands:
        if isinstance(event, CutFlow):
            return  # mid-hook or already done; the hook's own checks end it
        if isinstance(event, BrokenBody):
            self.flow.metadata["fault"] = head.Fault(Reason.MALFORMED_REQUEST, event.why)
        if isinstance(event, BrokenBody) and self.client_state == self.state_stream_request_body:
            yield from self._broken_off(event.why)
            return
        if isinstance(event, Unended | BrokenBody):
            if self.client_state == self.state_consume_request_body:
                yield from self._refuse_at_once(UnendedHook(self.flow))
            return
        yield from super()._handle_event(event)

    # The request

    def state_wait_for_request_headers(self, event: mhttp.RequestHeaders) -> Commands:
        self.bodiless = event.end_stream
        yield from super().state_wait_for_request_headers(event)

    def check_invalid(self, request: bool) -> layer.CommandGenerator[bool]:
        if not request:
            return False  # `_broken` has looked at it
        self.flow.metadata["stream_id"] = self.stream_id  # the flow was made just before
        self.flow.metadata["bodiless"] = self.bodiless
        invalid = yield from super().check_invalid(True)
        if invalid:
            yield mhttp.DropStream(self.stream_id)
        return invalid

    def check_killed(self, emit_error_hook: bool) -> layer.CommandGenerator[bool]:
        """Asked after each hook; after the one on the head, too, whose body is not wanted then."""
        if (yield from super().check_killed(emit_error_hook)):
            return True
        if not self.flow.metadata.pop("not_wanted", False):
            return False
        yield from self._refuse_at_once(None)
        return True

    def state_consume_request_body(self, event: events.Event) -> Commands:
        if isinstance(event, mhttp.RequestData):
            self.body_bytes += len(event.data)
            if self.body_bytes > DRAIN_BYTES_MAX:
                yield commands.CloseConnection(self.context.client)
                return
            arriving = self.flow.metadata.get("arriving")
            if arriving is None:
                return  # its own hook failed, and left the answer
            if arriving.is_beyond(self.body_bytes):
                yield CallerHook(self.flow)
                if (yield from self.check_killed(True)):
                    return
            too_large = self.body_bytes > self.body_bytes_max
            if too_large or self.flow.response is not None or not arriving.take(event.data):
                self.flow.metadata["body_too_large"] = too_large
                arriving.release()
            return
        yield from super().state_consume_request_body(event)

    def state_stream_request_body(self, event: events.Event) -> Commands:
        upload = self.upload
        if upload is None or "unsent" in self.flow.metadata:
            return  # the cut that follows ends it
        if isinstance(event, mhttp.RequestData) and upload.take(event.data):
            self.flow.metadata["unsent"] = True
            yield PartHook(self.flow)
            if "unsent" in self.flow.metadata or self.client_state == self.state_errored:
                return
        yield from super().state_stream_request_body(event)

    def _broken_off(self, why: str) -> Commands:
        """Nobody can say where the body ends of which the upstream has a part already."""
        unsent = mhttp.RequestProtocolError(self.stream_id, why, mhttp.ErrorCode.CANCEL)
        yield mhttp.SendHttp(unsent, self.context.server)
        failed = mhttp.ResponseProtocolError(self.stream_id, why, mhttp.ErrorCode.KILL)
        yield from self.handle_protocol_error(failed)

    def _refuse_at_once(self, asking: commands.StartHook | None) -> Commands:
        """Answer before the request ended; what still comes of it is dropped."""
        self.client_state = self.state_errored
        if asking is not None:
            yield asking
        if (yield from self.check_killed(True)):
            return
        yield from self._answer_and_finish()
        if asking is not None and not self.flow.request.is_http2:
            # Nobody can say where the next request starts.
            yield commands.CloseConnection(self.context.client)

    def make_server_connection(self) -> layer.CommandGenerator[bool]:
        ok = yield from super().make_server_connection()
        if not ok or (yield from self.check_killed(True)):
            return False
        yield DialledHook(self.flow)
        if self.flow.response is None:
            return True
        yield from self._answer_and_finish()
        return False

    # The answer

    def state_wait_for_response_headers(self, event: mhttp.ResponseHeaders) -> Commands:
        broken = self._broken(event.response)
        if not broken:
            yield from super().state_wait_for_response_headers(event)
            return
        unread = mhttp.RequestProtocolError(self.stream_id, broken, mhttp.ErrorCode.CANCEL)
        yield mhttp.SendHttp(unread, self.context.server)
        failed = mhttp.ResponseProtocolError(
            self.stream_id, broken, mhttp.ErrorCode.GENERIC_SERVER_ERROR
        )
        yield from self.handle_protocol_error(failed)

    def _broken(self, response: http.Response) -> str:
        """Why this head is no answer to this request; empty when it is one."""
        spoken = (b"HTTP/2.0",) if self.context.server.alpn == b"h2" else VERSIONS
        wrong = response.data.http_version not in spoken
        if wrong or (response.status_code == 101 and not self._is_handshake(response)):
            return "the answer is of another protocol"
        try:
            validate_headers(response)
        except ValueError:
            return "the answer's length is ambiguous"
        return head.broken_answer(response.status_code, response.headers.fields)

    def _is_handshake(self, response: http.Response) -> bool:
        asked = self.flow.request.headers
        return (
            head.is_websocket(asked.fields)
            and asked.get("sec-websocket-version", "").strip() == "13"
            and head.is_websocket(response.headers.fields)
        )

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
        known = self.flow.metadata
        take = None if "denied" in known else known.get("take")
        if take and isinstance(event, mhttp.ResponseData) and take(event.data):
            yield DrawHook(self.flow)
        if "denied" in known:
            return  # the cut that follows ends it
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
        if "stored" in self.flow.metadata:
            yield from self._answer_and_finish()
            return
        yield from super().send_response(already_streamed)
        self.answering = True
        own = self.flow.metadata.get("own_connection") and not self.flow.websocket
        if own and self.context.server.connected:
            # A write's connection is not used again: a stale one looks like an unknown outcome.
            yield commands.CloseConnection(self.context.server)
        if self.client_state == self.state_stream_request_body:
            self.client_state = self.state_errored  # answered before it ended
            self.finished = True
            yield from self.flow_done()

    def handle_protocol_error(
        self, event: mhttp.RequestProtocolError | mhttp.ResponseProtocolError
    ) -> Commands:
        over = self.client_state == self.state_done and self.server_state == self.state_done
        if self.finished or over:
            return  # queued while the answer was made or recorded: a cut, or the upstream's end
        finishing = self.flow.metadata.get("finish_alone", False) and not self.is_uploading
        if isinstance(event, mhttp.RequestProtocolError) and finishing:
            return  # the agent left; its write is finished and recorded (design, section 3.6)
        if isinstance(event, mhttp.RequestProtocolError) and self.upload is not None:
            self.upload.abort()
        if isinstance(event, mhttp.RequestProtocolError):
            self.flow.metadata["left"] = True
        open_to_answer = (
            isinstance(event, mhttp.ResponseProtocolError)
            and not self.answering
            and (self.client_state == self.state_done or self.is_uploading)
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
        if self.upload is not None:
            self.upload.linger(response)
            self.client_state = self.state_errored  # what still comes of it is dropped
        self.answering = True
        self.server_state = self.state_errored  # what still comes of an answer is dropped
        content, is_stored = response.raw_content, "stored" in self.flow.metadata
        head = mhttp.ResponseHeaders(self.stream_id, response, not (content or is_stored))
        yield mhttp.SendHttp(head, self.context.client)
        if content:
            yield mhttp.SendHttp(mhttp.ResponseData(self.stream_id, content), self.context.client)
        if is_stored and not (yield from mitm_stored.body(self)):
            yield mhttp.DropStream(self.stream_id)
            return
        if is_stored and response.trailers:
            last = mhttp.ResponseTrailers(self.stream_id, response.trailers)
            yield mhttp.SendHttp(last, self.context.client)
        self.finished = True
        yield from self.flow_done()


class InTunnel(modes.HttpProxy):
    """The outermost layer of a client whose CONNECT was answered before it came here."""


class HttpLayer(mhttp.HttpLayer):
    """Makes our streams, gives each write a connection of its own, and routes cuts."""

    streams: dict[int, mhttp.HttpStream]

    def __init__(self, context: Context, mode: mhttp.HTTPMode, body_bytes_max: int) -> None:
        super().__init__(context, mode)
        self.body_bytes_max = body_bytes_max
        self.connections[context.client] = (
            Http2Server(context.fork(), self.streams)
            if context.client.alpn == b"h2"
            else Http1Server(context.fork())
        )

    def make_stream(self, stream_id: int) -> Commands:
        stream = Stream(self.context.fork(), stream_id, self.body_bytes_max)
        self.streams[stream_id] = stream
        yield from self.event_to_child(stream, events.Start())

    def get_connection(self, event: Any, *, reuse: bool = True) -> Commands:
        stream = self.command_sources.get(event)
        known = stream.flow.metadata if isinstance(stream, Stream) else {}
        own = known.get("own_connection")
        for connection in [known for known in self.connections if _is_over(known)]:
            del self.connections[connection]  # else one failed dial fails the tunnel for good
        for command in super().get_connection(event, reuse=reuse and not own):
            if "upload" in known and isinstance(command, commands.OpenConnection):
                # HTTP/1 alone: of an HTTP/2 upstream that reads slowly all would be held here.
                command.connection.alpn_offers = (b"http/1.1",)
            yield command

    def _handle_event(self, event: events.Event) -> Commands:
        if not isinstance(event, CutFlow | Unended):
            yield from super()._handle_event(event)
            return
        stream_id = event.flow.metadata.get("stream_id", 0)
        stream = self.streams.get(stream_id)
        if stream is None or getattr(stream, "flow", None) is not event.flow:
            for tunnel in [one for one in self.streams.values() if one.child_layer is not None]:
                yield from self.event_to_child(tunnel, event)
        elif isinstance(event, Unended) or stream.child_layer is not None:
            yield from self.event_to_child(stream, event)
        else:
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


def _unchecked(data: http.MessageData) -> None:
    """mitmproxy checks the type of each field of each message that its own parser made: a tenth
    of a call. Whether a message may pass is judged from its bytes, in proxy/head.py."""


setattr(http.MessageData, "__post_init__", _unchecked)  # noqa: B010 - mypy knows it is a method
