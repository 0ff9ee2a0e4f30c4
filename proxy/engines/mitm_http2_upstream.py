"""mitmproxy's HTTP/2 towards an upstream, bent so that it tells which requests the upstream has
provably not processed, and lets one that goes away finish what it has (RFC 9113, 6.8 and 8.7).

It replaces mitmproxy's own at import, because that offers no other way to supply it. Checked on
12.2.3.
"""

from typing import Any, TypeGuard

from h2.errors import ErrorCodes
from h2.events import Event, InformationalResponseReceived, StreamReset
from mitmproxy.connection import ConnectionState
from mitmproxy.proxy import events, layer
from mitmproxy.proxy.context import Context
from mitmproxy.proxy.layers import http as mhttp
from mitmproxy.proxy.layers.http import _http2

from proxy.engines.mitm_events import not_processed
from proxy.engines.mitm_http2 import Connection

Commands = layer.CommandGenerator[None]


class GoingAway(Event):
    """The upstream takes no stream after this one. Those up to it go on, unless `at_once`."""

    def __init__(self, last_stream_id: int, *, at_once: bool) -> None:
        self.last_stream_id = last_stream_id
        self.at_once = at_once


class _Connection(Connection):
    """hyper-h2 takes no frame any more after a GOAWAY, though streams that go on need theirs."""

    def _receive_goaway_frame(self, frame: Any) -> tuple[list[Any], list[Any]]:
        last = frame.last_stream_id
        return [], [GoingAway(last, at_once=frame.error_code != ErrorCodes.NO_ERROR)]


class Http2Client(_http2.Http2Client):
    """The upstream's side."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.h2_conn = _Connection(self.h2_conf)
        self.h2_conn.local_settings.enable_push = 0
        self.h2_conn.local_settings.acknowledge()  # else the old ones are sent
        self._hinted: set[int] = set()  # streams that had an interim answer
        self._over = False  # no request may be sent any more

    def _handle_event(self, event: events.Event) -> Commands:
        is_new = isinstance(event, mhttp.HttpEvent) and event.stream_id not in self.our_stream_id
        if self._over and is_new:
            if isinstance(event, mhttp.RequestHeaders):
                yield not_processed(event.stream_id)
            return
        yield from super()._handle_event(event)
        if self._over:
            waiting = list(self.stream_queue)  # for room among the streams; nothing was sent
            self.stream_queue.clear()
            for stream_id in waiting:
                yield not_processed(stream_id)

    def done(self, event: events.Event) -> Commands:
        """The connection ended. A request that comes now was not sent."""
        if isinstance(event, mhttp.RequestHeaders):
            yield not_processed(event.stream_id)

    def close_connection(self, msg: str) -> Commands:
        self._over = True
        yield from super().close_connection(msg)

    def handle_h2_event(self, event: Event) -> layer.CommandGenerator[bool]:
        if isinstance(event, GoingAway):
            return (yield from self._goes_away(event))
        if isinstance(event, InformationalResponseReceived):
            self._hinted.add(event.stream_id)
        if self._is_refusal(event):
            yield from self._unprocessed(event.stream_id)
        elif (yield from super().handle_h2_event(event)):
            return True
        if self._over and not self.streams:
            yield from self.close_connection("the upstream has gone away")
            return True
        return False

    def _goes_away(self, event: GoingAway) -> layer.CommandGenerator[bool]:
        self._over = True
        self.conn.state &= ~ConnectionState.CAN_WRITE  # so no more requests are given to it
        for stream_id in [known for known in self.streams if known > event.last_stream_id]:
            if self._is_unanswered(stream_id):
                yield from self._unprocessed(stream_id)
        if event.at_once or not self.streams:
            yield from self.close_connection("the upstream has gone away")
            return True
        return False

    def _is_refusal(self, event: Event) -> TypeGuard[StreamReset]:
        if not isinstance(event, StreamReset) or event.error_code != ErrorCodes.REFUSED_STREAM:
            return False
        return self._is_unanswered(event.stream_id)

    def _is_unanswered(self, stream_id: int) -> bool:
        """Whether nothing of an answer has come; else who says "not processed" is wrong."""
        expects = self.streams.get(stream_id) is _http2.StreamState.EXPECTING_HEADERS
        return expects and stream_id not in self._hinted

    def _unprocessed(self, stream_id: int) -> Commands:
        del self.streams[stream_id]
        yield not_processed(stream_id)


setattr(mhttp, "Http2Client", Http2Client)  # noqa: B010 - mypy knows it is a class
