"""mitmproxy's HTTP/2 towards the client, with bounds: on the streams that are being worked on, and
on those that a client opens only to reset them (CVE-2023-44487). Checked on 12.2.3.
"""

import time
from collections.abc import Sized
from typing import Any

from h2.errors import ErrorCodes
from h2.events import RequestReceived, StreamReset
from mitmproxy.proxy import commands, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as mhttp
from mitmproxy.proxy.layers.http import _http2

STREAMS_MAX = 100  # what we announce; a stream counts until its call is over, reset or not
RESETS_MAX = 500  # of one connection within RESETS_SECONDS: more is a flood, and it is closed
RESETS_SECONDS = 30.0


class Http2Server(_http2.Http2Server):
    """The client's side. `streams` are those that the HTTP layer is not done with."""

    def __init__(self, context: Context, live: Sized) -> None:
        super().__init__(context)
        self._live = live
        self._resets = 0
        self._counted_since_seconds = time.monotonic()

    def handle_h2_event(self, event: Any) -> layer.CommandGenerator[bool]:
        if isinstance(event, RequestReceived):
            if len(self._live) >= STREAMS_MAX:
                return (yield from self._refuse_stream(event.stream_id))
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
