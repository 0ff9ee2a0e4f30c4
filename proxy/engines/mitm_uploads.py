"""Uploads that flow on as they come (`stream: true`): judged by their heads, then counted and
hashed on the way.

Their bytes are nowhere held: while the stream waits for a verdict, a connection or a count, its
client is not read. Refused halfway, the rest is read for a while and dropped, so that the client
reads the answer.
"""

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mitmproxy import http

from policies.call import Request
from policies.verdict import Reason
from proxy import head
from proxy.engines import mitm_wire as wire
from proxy.engines.mitm_exchange import Exchange
from proxy.engines.mitm_pace import PacedReader, reader_of
from proxy.engines.waits import UPLOAD_LINGER_SECONDS

if TYPE_CHECKING:
    from proxy.engines.mitm_client import Handler


@dataclass(eq=False, slots=True)
class Upload:
    """One request whose body is not read before its verdict. `waits`: its stream takes nothing
    now. `fresh_bytes` came since the last count."""

    flow: http.HTTPFlow
    handler: "Handler"
    exchange: Exchange | None = None
    digest: Any = field(default_factory=hashlib.sha256)
    body_bytes: int = 0
    fresh_bytes: int = 0
    counts: bool = False
    over: bool = False
    waits: bool = False
    _paused: PacedReader | None = None

    def begin(self, exchange: Exchange) -> None:
        """It was let through."""
        self.exchange = exchange
        self.counts = self.handler.engine.gate.counts_parts(exchange.live)

    def take(self, chunk: bytes) -> bool:
        """One more part. True if it must be asked for before it flows on (`passes`)."""
        self.digest.update(chunk)
        self.body_bytes += len(chunk)
        if self.exchange is None:
            return True
        self.exchange.touch(self.handler.engine.timeouts.idle_seconds)
        if self.exchange.live.catch is not None:
            self.exchange.live.catch.sent(chunk)
        limit = self.exchange.live.tool.body_bytes_max
        if self.counts:
            self.fresh_bytes += len(chunk)
        return self.counts or (limit is not None and self.body_bytes > limit)

    def end(self) -> None:
        """All of it came."""
        self.over = True
        self.flow.request.trailers = None
        if self.exchange is not None:
            self.exchange.live.body_digest = self.digest.digest()
            self.exchange.touch(self.handler.engine.timeouts.first_byte_seconds)

    def pace(self, *, waits: bool) -> None:
        """While its stream waits, an HTTP/1 client is not read. HTTP/2 has its windows for that:
        the rest of such a connection goes on."""
        self.waits = waits
        if waits and self._paused is None and not self.flow.request.is_http2:
            self._paused = reader_of(self.handler.transports.get(self.handler.client))
            if self._paused is not None:
                self._paused.pause()
        elif not waits and self._paused is not None:
            self._paused.resume()
            self._paused = None

    def linger(self, response: http.Response) -> None:
        """It is answered before it ended: nobody can say where the next request starts."""
        if self.over:
            return
        self.over = True
        if not self.flow.request.is_http2:
            wire.closing(response)
            self.handler.leave(None if self.handler.is_stranger else UPLOAD_LINGER_SECONDS)

    def abort(self) -> None:
        """Its client left: what waits to go upstream must not be taken for the whole."""
        if self.exchange is not None and not self.over:
            self.exchange.stop_sending()


def of_head(handler: "Handler", flow: http.HTTPFlow) -> Request | None:
    """The request, if it is one to judge by its head alone."""
    gate = handler.engine.gate
    known = flow.metadata
    plain = head.plain_host(flow.request.host)
    if known["fault"] or flow.error or known.get("bodiless") or not gate.may_stream(plain):
        return None
    request = head.read(wire.head_of(flow, handler.tunnel, handler.sni), streamed=True)
    if isinstance(request, head.Fault) or not gate.streams(request):
        return None
    return request


async def part(handler: "Handler", flow: http.HTTPFlow) -> None:
    """A part that must be asked for: it flows on, or the call is cut before it does. Until then,
    and whatever fails, it is `unsent`."""
    upload: Upload = flow.metadata["upload"]
    exchange, engine = upload.exchange, handler.engine
    if exchange is None:
        raise RuntimeError("an upload flows that nobody let through")
    limit = exchange.live.tool.body_bytes_max
    rule: str | None = exchange.cut_by or None
    if rule is None and limit is not None and upload.body_bytes > limit:
        exchange.live.stopped, rule = Reason.BODY_TOO_LARGE, f"tool:{exchange.live.tool.name}"
    fresh_bytes, upload.fresh_bytes = upload.fresh_bytes, 0
    if rule is None and fresh_bytes:
        rule = await engine.gate.uploaded(exchange.live, fresh_bytes)
    if rule is None:
        del flow.metadata["unsent"]
    else:
        engine.cut([exchange.live], rule)
