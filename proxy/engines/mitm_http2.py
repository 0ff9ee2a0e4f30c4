"""mitmproxy's HTTP/2 towards the client, with bounds: on the streams that are being worked on, and
on those that a client opens only to reset them (CVE-2023-44487). Checked on 12.2.3.
"""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, RequestReceived, StreamReset
from h2.exceptions import FrameTooLargeError
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as mhttp
from mitmproxy.proxy.layers.http import _http2, _http_h2

from proxy.engines.mitm_events import Taken

STREAMS_MAX = 100  # what we announce; a stream counts until its call is over, reset or not
RESETS_MAX = 500  # of one connection within RESETS_SECONDS: more is a flood, and it is closed
RESETS_SECONDS = 30.0
WINDOW_BYTES = 1024 * 1024  # of one stream; more of an upload that waits stays with its client


class Connection(_http_h2.BufferedH2Connection):
    """hyper-h2 waits for all of a frame, up to 16 MB, before it says that it is too long."""

    def receive_data(self, data: bytes) -> list[Event]:
        heard: list[Event] = super().receive_data(data)
        waiting = self.incoming_buffer._data
        if int.from_bytes(waiting[:3]) > self.max_inbound_frame_size:
            raise FrameTooLargeError("a frame is longer than was agreed")
        return heard


class Http2Server(_http2.Http2Server):
    """The client's side. `streams` are those that the HTTP layer is not done with."""

    def __init__(self, context: Context, live: Mapping[int, Any]) -> None:
        super().__init__(context)
        self.h2_conn = Connection(self.h2_conf)
        self.h2_conn.local_settings.initial_window_size = WINDOW_BYTES
        self.h2_conn.local_settings.acknowledge()  # else the old ones are sent
        self._live = live
        self._waiting_bytes: Counter[int] = Counter()
        self._resets = 0
        self._counted_since_seconds = time.monotonic()

    def handle_h2_event(self, event: Any) -> layer.CommandGenerator[bool]:
        if isinstance(event, RequestReceived):
            if len(self._live) >= STREAMS_MAX:
                return (yield from self._refuse_stream(event.stream_id))
        elif isinstance(event, DataReceived) and event.stream_id in self.streams:
            yield from self._data(event)
            return False
        elif isinstance(event, StreamReset):
            if event.stream_id not in self.streams:  # forgotten when its request ended
                gone = "stream reset by client"
                cancelled = mhttp.RequestProtocolError(
                    event.stream_id, gone, mhttp.ErrorCode.CANCEL
                )
                yield mhttp.ReceiveHttp(cancelled)
            if (yield from self._flooded()):
                return True
        return (yield from super().handle_h2_event(event))

    def _handle_event(self, event: events.Event) -> layer.CommandGenerator[None]:
        if not isinstance(event, Taken):
            yield from super()._handle_event(event)
            return
        size_bytes = self._waiting_bytes.pop(event.stream_id, 0)
        if size_bytes:
            self.h2_conn.acknowledge_received_data(size_bytes, event.stream_id)
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())

    def _data(self, event: DataReceived) -> layer.CommandGenerator[None]:
        """mitmproxy's, but an upload that waits is not told to go on: its window closes."""
        if event.data or not event.stream_ended:
            yield mhttp.ReceiveHttp(self.ReceiveData(event.stream_id, event.data))
        upload = getattr(self._live.get(event.stream_id), "upload", None)
        if upload is not None and upload.waits:
            self._waiting_bytes[event.stream_id] += event.flow_controlled_length
        else:
            size_bytes = event.flow_controlled_length
            self.h2_conn.acknowledge_received_data(size_bytes, event.stream_id)

    def _refuse_stream(self, stream_id: int) -> layer.CommandGenerator[bool]:
        """Nothing of it was looked at, so the client may send it again (RFC 9113, 8.7)."""
        if not self.is_closed(stream_id):
            self.h2_conn.reset_stream(stream_id, ErrorCodes.REFUSED_STREAM)
            yield commands.SendData(self.conn, self.h2_conn.data_to_send())
        return (yield from self._flooded())

    def _flooded(self) -> layer.CommandGenerator[bool]:
        """Count one stream that was opened in vain; whether the connection was closed for it."""
        now_seconds = time.monotonic()
        if now_seconds - self._counted_since_seconds > RESETS_SECONDS:
            self._resets, self._counted_since_seconds = 0, now_seconds
        self._resets += 1
        if self._resets <= RESETS_MAX:
            return False
        yield from self.protocol_error("too many streams reset", ErrorCodes.ENHANCE_YOUR_CALM)
        return True
