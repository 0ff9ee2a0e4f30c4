"""mitmproxy's WebSocket layer, bent so that it can be cut, that no message grows without end, and
that nothing passes beside the messages.

It replaces mitmproxy's own at import, because that offers no other way to supply it. Compression
is never negotiated (proxy/head.py), so a frame is as long as it looks. Checked on 12.2.3.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from mitmproxy.proxy import commands, layer
from mitmproxy.proxy.layers import websocket as mwebsocket
from wsproto import events as ws_events
from wsproto.connection import ConnectionState as WebSocketState

from proxy.engines.mitm_events import CutFlow
from proxy.engines.waits import FRAGMENTS_MAX, MESSAGE_BYTES_MAX

Commands = layer.CommandGenerator[None]


class _Fragments(list[Any]):
    """A message's fragments, each growing in place: mitmproxy adds to the last one."""

    def __init__(self, fragments: Iterable[bytes]) -> None:
        super().__init__(map(bytearray, fragments))

    def append(self, fragment: bytes) -> None:
        super().append(bytearray(fragment))


class WebsocketConnection(mwebsocket.WebsocketConnection):
    """One side. A ping is answered here and goes on without its payload: each side stays alive,
    and no data passes in frames that nobody judges."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.pongs: list[ws_events.Pong] = []
        super().__init__(*args, **kwargs)

    def events(self) -> Iterator[Any]:
        for event in super().events():
            if isinstance(event, ws_events.Ping):
                self.pongs.append(event.response())
                yield ws_events.Ping()
            elif not isinstance(event, ws_events.Pong):
                yield event

    @property
    def frame_buf(self) -> Any:
        return self._fragments

    @frame_buf.setter
    def frame_buf(self, fragments: list[bytes]) -> None:
        self._fragments = _Fragments(fragments)

    def too_large(self) -> bool:
        held = self._fragments
        return len(held) > FRAGMENTS_MAX or sum(map(len, held)) > MESSAGE_BYTES_MAX


class WebsocketLayer(mwebsocket.WebsocketLayer):
    """Can be cut, and refuses a message that grows without end."""

    client_ws: WebsocketConnection
    server_ws: WebsocketConnection

    def relay_messages(self, event: Any) -> Commands:
        if isinstance(event, CutFlow):
            if event.flow is self.flow:
                yield from self._cut(event.reason, 1008)
            return
        yield from super().relay_messages(event)
        for side in (self.client_ws, self.server_ws):
            pongs, side.pongs = side.pongs, []
            if side.state is WebSocketState.OPEN:
                for pong in pongs:
                    yield side.send2(pong)
        if self.client_ws.too_large() or self.server_ws.too_large():
            yield from self._cut("message too large", 1009)

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


for _name, _ours in (
    ("WebsocketConnection", WebsocketConnection),
    ("WebsocketLayer", WebsocketLayer),
):
    setattr(mwebsocket, _name, _ours)
