"""What the hooks of an answer do: judge nothing, count and hold what must be, settle the call."""

import asyncio
from typing import TYPE_CHECKING

from mitmproxy import http
from mitmproxy.net.http.http1 import expected_http_body_size

from policies.verdict import Reason
from proxy import head
from proxy.engines import faults
from proxy.engines import mitm_wire as wire
from proxy.engines.flowing import way_of
from proxy.engines.mitm_events import NotProcessed
from proxy.engines.mitm_exchange import Exchange
from proxy.held import OneBehind
from proxy.refuse import Refusal
from proxy.usage_asked import WithoutUsage

if TYPE_CHECKING:
    from proxy.engines.mitm_client import Handler
    from proxy.engines.mitm_uploads import Upload


def response_headers(handler: "Handler", flow: http.HTTPFlow) -> None:
    exchange: Exchange | None = flow.metadata.get("exchange")
    response = flow.response
    if exchange is None or response is None:
        return
    live = exchange.live
    exchange.touch(handler.engine.timeouts.idle_seconds)
    upgraded = response.status_code == 101
    response.headers = http.Headers(
        head.agent_headers(response.headers.fields, live.decision, websocket=upgraded)
    )
    if live.catch is not None:
        live.catch.headed(response.status_code, response.headers.fields)
    if upgraded:
        exchange.status = response.status_code
        return
    _ended_by_its_framing(flow.request, response)
    kind = response.headers.get("content-type", "")
    coding = response.headers.get("content-encoding", "")
    handler.engine.gate.answering(live, kind, coding)
    exchange.status = response.status_code
    if live.spending is not None:
        flow.metadata["take"] = exchange.take
    asked = flow.metadata.get("usage_asked", False)
    way = way_of(live, kind, coding, usage_asked=asked)
    exchange.held = way.held
    if isinstance(way.held, WithoutUsage):
        _of_any_length(flow.request, response)
    if way.settles_last:
        flow.metadata["settle_last"] = True
    elif way.settles_first:
        flow.metadata["settle_first"] = True  # read by the layer if it outgrows the buffer
        return
    response.stream = exchange.tee


def _ended_by_its_framing(request: http.Request, response: http.Response) -> None:
    """An answer that ends with its connection is chunked for the agent, who could not tell one that
    broke off from a whole one else (RFC 9112, section 8)."""
    if request.http_version == "HTTP/1.1" and expected_http_body_size(request, response) == -1:
        response.headers["transfer-encoding"] = "chunked"
        response.http_version = "HTTP/1.1"


def _of_any_length(request: http.Request, response: http.Response) -> None:
    """Its length cannot be told any more, since something is taken out of it."""
    if response.headers.pop("content-length", None) is None or request.is_http2:
        return
    if request.http_version == "HTTP/1.1":
        response.headers["transfer-encoding"] = "chunked"
        response.http_version = "HTTP/1.1"
    else:
        wire.closing(response)


async def draw(handler: "Handler", flow: http.HTTPFlow) -> None:
    """A stream came to more than it was granted: more is granted, or it is cut."""
    exchange: Exchange = flow.metadata["exchange"]
    engine, live = handler.engine, exchange.live
    try:
        exchange.drawing = engine.spawn(engine.gate.draw(live))
        await asyncio.wait({exchange.drawing})  # a cut ends it
        rule = exchange.cut_by or exchange.drawing.result()
    finally:
        exchange.release()
    if rule:
        engine.cut([live], rule)
    else:
        del flow.metadata["denied"]


async def answered(handler: "Handler", flow: http.HTTPFlow) -> None:
    exchange: Exchange | None = flow.metadata.get("exchange")
    response = flow.response
    if exchange is None or response is None or response.status_code == 101:
        return
    if not response.stream and response.raw_content:
        handler.engine.gate.body(exchange.live, response.raw_content)
    _own_trailers(flow, response)
    reply = await settle(exchange, flow, complete=True)
    if reply is not None:
        flow.response = wire.response(reply)
    if "upload" in flow.metadata:
        flow.metadata["upload"].linger(flow.response)


async def settle_before(handler: "Handler", flow: http.HTTPFlow) -> None:
    """Before a long answer to a write flows, or the last of an event stream.

    The exchange goes on: its deadline holds, and a halt cuts what is left of it.
    """
    exchange: Exchange = flow.metadata["exchange"]
    live, first = exchange.live, flow.metadata.pop("settle_first", False)
    if first:
        live.answer = None  # what is held of it comes again, as it flows
    if flow.response is not None:
        _own_trailers(flow, flow.response)
    reply = await settle(exchange, flow, complete=True, ended=False)
    if first and reply is None:
        handler.engine.gate.keep_long(live)
        if live.file is not None:  # whoever has all of it can be given it again
            flow.metadata["settle_last"], exchange.held = True, OneBehind()
    elif flow.response is not None:
        await handler.engine.gate.keep(live, flow.response.status_code, wire.fields(flow.response))
    if reply is not None:
        flow.metadata["not_recorded"] = True
        flow.response = wire.response(reply)


def _own_trailers(flow: http.HTTPFlow, response: http.Response) -> None:
    """HTTP/1 has none here, and an upstream speaks in our name in none of them."""
    if response.trailers is not None:
        kept = head.agent_trailers(response.trailers.fields) if flow.request.is_http2 else ()
        response.trailers = http.Headers(kept) if kept else None


async def failed(handler: "Handler", flow: http.HTTPFlow) -> None:
    """The exchange broke. Settle it by what is known to have left, and say so to the agent."""
    handler.engine.forget(flow)
    exchange: Exchange | None = flow.metadata.get("exchange")
    if exchange is None:
        return
    message = exchange.cut_by or _left(flow) or (flow.error.msg if flow.error else "")
    error = faults.words_of(exchange.live, exchange.cut_by, message)
    reply = await settle(exchange, flow, complete=False, error=error)
    if reply is not None:
        flow.response = wire.response(reply)


def _left(flow: http.HTTPFlow) -> str:
    """How far an upload was when its client left; empty where none did."""
    upload: Upload | None = flow.metadata.get("upload")
    if upload is None or upload.over or not flow.metadata.get("left"):
        return ""
    return faults.left_after(upload.body_bytes, flow.request.headers.get("content-length", ""))


async def settle(
    exchange: Exchange,
    flow: http.HTTPFlow,
    *,
    complete: bool,
    ended: bool = True,
    fault: Reason | None = None,
    error: str = "",
) -> Refusal | None:
    """Once for each exchange. `fault` is what went wrong, where the caller knows."""
    handler = exchange.handler
    response = flow.response if complete else None
    if not complete and _is_unprocessed(exchange, flow):
        exchange.live.sent = False  # it says so itself, so the write may be made again
    if not complete and fault is None and exchange.live.stopped is None:
        refused = handler.not_dialled.pop((flow.request.host, flow.request.port), None)
        fault = faults.fault_of(exchange.live, exchange.cut_by, refused, error)
    reply = await handler.engine.gate.settle(
        exchange.live,
        status=response.status_code if response is not None else exchange.status,
        headers=wire.fields(response) if response is not None else (),
        complete=complete,
        ended=ended,
        fault=fault,
        left=flow.metadata.get("left", False) and not exchange.cut_by,
        rule=exchange.cut_by,
        error=error,
    )
    if ended:
        handler.over(exchange)
    return reply


def _is_unprocessed(exchange: Exchange, flow: http.HTTPFlow) -> bool:
    """Whether the upstream says so in its protocol, and has said nothing else."""
    said = flow.error is not None and isinstance(flow.error.msg, NotProcessed)
    return said and exchange.status is None


# WebSocket: one write; every message of the client's looks at the cords again and counts


async def message(handler: "Handler", flow: http.HTTPFlow) -> None:
    exchange: Exchange = flow.metadata["exchange"]
    data = flow.websocket
    if data is None:
        raise RuntimeError("a WebSocket message without a WebSocket")
    said = data.messages[-1]
    del data.messages[:-1]  # mitmproxy would keep them all
    exchange.touch(handler.engine.timeouts.idle_seconds)
    if not said.from_client:
        handler.engine.gate.body(exchange.live, said.content)
        return
    stop = await handler.engine.gate.message(exchange.live, said.content)
    if stop is not None:
        said.drop()
        handler.engine.cut([exchange.live], stop)


async def websocket_end(handler: "Handler", flow: http.HTTPFlow) -> None:
    exchange: Exchange = flow.metadata["exchange"]
    complete = not exchange.cut_by
    await settle(exchange, flow, complete=complete, error=exchange.cut_by)
