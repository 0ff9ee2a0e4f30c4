"""What each mitmproxy hook does: translate, ask the gate, translate back.

The table HOOKS is closed: a hook that is not in it raises, and so refuses.
"""

import contextvars
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from mitmproxy import http
from mitmproxy.net import tls as net_tls
from mitmproxy.proxy import commands, layer, server_hooks
from mitmproxy.proxy.layers import http as mhttp
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers import tls as mtls
from mitmproxy.proxy.layers import websocket as mwebsocket

from policies.call import Dialect, Request
from policies.verdict import Reason
from proxy import head
from proxy.dial import AddressRefused
from proxy.engines import mitm_wire as wire
from proxy.engines.mitm_exchange import Exchange
from proxy.engines.mitm_layers import DialledHook, HttpLayer, SettleHook
from proxy.gate import Live
from proxy.held import HeldResult
from proxy.refuse import Refusal

if TYPE_CHECKING:
    from proxy.engines.mitm import Handler

_CLOSING = frozenset((400, 413, 431))  # after these nobody can say where the next request starts

Hook = Callable[["Handler", Any], Awaitable[None] | None]

DIALLING: contextvars.ContextVar["Handler"] = contextvars.ContextVar("dialling")
"""The connection on whose behalf the current task dials."""


# The connection: CONNECT, what follows it, TLS


async def _connect(handler: "Handler", flow: http.HTTPFlow) -> None:
    request = flow.request
    credentials, fault, _ = wire.credentials(request)
    tunnel = wire.Tunnel(request.host, request.port, credentials)
    named = head.Head(
        "CONNECT",
        "https",
        request.host,
        request.port,
        "/",
        request.headers.fields,
        authority=f"{request.host}:{request.port}" if ":" not in request.host else None,
    )
    seen = fault or head.read(named)
    if isinstance(seen, head.Fault):
        reply = await handler.engine.gate.ask(seen, credentials, handler.engine, wire.seen(flow))
        flow.response = wire.closing(wire.response(_as_refusal(reply)))
        return
    refused = await handler.engine.gate.greet(credentials, seen)
    if refused is not None:
        flow.response = wire.response(refused)
        return
    handler.tunnel = tunnel


def _next_layer(handler: "Handler", following: layer.NextLayer) -> None:
    """TLS or HTTP, nothing else: what is neither fails to parse and is answered with 400."""
    start = following.data_client()
    if start[:1] == b"\x16" and len(start) < 3:
        return  # too little to tell a TLS record
    context = following.context
    outermost = isinstance(context.layers[-1], modes.HttpProxy)
    if net_tls.starts_like_tls_record(start) and not outermost:
        server_tls = mtls.ServerTLSLayer(context)
        server_tls.child_layer = mtls.ClientTLSLayer(context)
        following.layer = server_tls
        return
    mode = mhttp.HTTPMode.regular if outermost else mhttp.HTTPMode.transparent
    following.layer = HttpLayer(context, mode, handler.engine.body_bytes_max)


def _client_hello(handler: "Handler", data: Any) -> None:
    """HTTP/1.1 wherever the client offers it: HTTP/2 has no back-pressure here (notes)."""
    client = data.context.client
    handler.sni = data.client_hello.sni
    offers = data.client_hello.alpn_protocols or ()
    client.alpn = b"http/1.1" if b"http/1.1" in offers else None


def _start_client_tls(handler: "Handler", data: Any) -> None:
    handler.engine.tls.tls_start_client(data)


def _start_server_tls(handler: "Handler", data: Any) -> None:
    """The upstream is spoken to in the client's protocol version."""
    if data.context.client.alpn != b"h2":
        data.conn.alpn_offers = (b"http/1.1",)
    handler.engine.tls.tls_start_server(data)


def _server_connect(handler: "Handler", data: Any) -> None:
    DIALLING.set(handler)


async def _gone(handler: "Handler", client: Any) -> None:
    """The client left. Its writes are finished first; what is left over ends as it stands."""
    engine = handler.engine
    mine = [item for item in engine.exchanges.values() if item.handler is handler]
    for item in mine:
        if item.live.is_write and not item.flow.websocket:
            await item.over()
    for item in mine:
        await _settle(item, item.flow, complete=False, error="client left")


# The request


def _request_headers(handler: "Handler", flow: http.HTTPFlow) -> None:
    """Inside a tunnel the CONNECT's credentials speak, unless the request brings its own."""
    credentials, fault, sent = wire.credentials(flow.request)
    if not sent and handler.tunnel is not None:
        credentials = handler.tunnel.credentials
    flow.metadata["credentials"] = credentials
    flow.metadata["fault"] = fault


async def _request(handler: "Handler", flow: http.HTTPFlow) -> None:
    if flow.response is not None:
        return
    engine = handler.engine
    request: Request | head.Fault = flow.metadata["fault"] or head.read(
        wire.head_of(flow, handler.tunnel, handler.sni), flow.request.raw_content or b""
    )
    if flow.metadata.get("body_too_large"):
        limit = f"more than {engine.body_bytes_max} bytes"
        request = head.Fault(Reason.BODY_TOO_LARGE, limit)
    answer = await engine.gate.ask(request, flow.metadata["credentials"], engine, wire.seen(flow))
    if isinstance(answer, Refusal):
        flow.response = wire.response(answer)
        if isinstance(request, head.Fault) or answer.status in _CLOSING:
            wire.closing(flow.response)
        return
    _forward(handler, flow, answer)


def _forward(handler: "Handler", flow: http.HTTPFlow, live: Live) -> None:
    engine, request = handler.engine, flow.request
    exchange = Exchange(live, flow, handler, 0.0)
    exchange.touch(engine.timeouts.first_byte_seconds)
    engine.exchanges[live.call_id] = exchange
    flow.metadata["exchange"] = exchange
    flow.metadata["tee"] = exchange.tee
    flow.metadata["own_connection"] = flow.metadata["finish_alone"] = live.is_write
    handler.allowed[request.host, request.port] = live.tool.allow_addresses
    request.headers = http.Headers(
        head.upstream_headers(
            request.headers.fields,
            live.identity,
            engine.gate.tag_headers,
            tagged=live.tool.tags,
            http2=request.is_http2,
        )
    )
    request.trailers = None


async def _dialled(handler: "Handler", flow: http.HTTPFlow) -> None:
    exchange: Exchange = flow.metadata["exchange"]
    refused = handler.engine.gate.sent(exchange.live)
    if refused is not None:
        await _settle(exchange, flow, complete=False, error="stopped before it was sent")
        flow.response = wire.response(refused)


# The answer


def _response_headers(handler: "Handler", flow: http.HTTPFlow) -> None:
    exchange: Exchange | None = flow.metadata.get("exchange")
    response = flow.response
    if exchange is None or response is None:
        return
    live = exchange.live
    exchange.touch(handler.engine.timeouts.idle_seconds)
    exchange.status = response.status_code
    upgraded = response.status_code == 101
    response.headers = http.Headers(
        head.agent_headers(response.headers.fields, live.decision, websocket=upgraded)
    )
    if upgraded:
        return
    events = response.headers.get("content-type", "").startswith("text/event-stream")
    if events and live.is_write:
        flow.metadata["settle_last"] = True
        if live.call.dialect is Dialect.MCP and "content-encoding" not in response.headers:
            exchange.held = HeldResult()
    elif live.is_write:
        flow.metadata["settle_first"] = True  # read by the layer if it outgrows the buffer
        return
    response.stream = exchange.tee


async def _answered(handler: "Handler", flow: http.HTTPFlow) -> None:
    exchange: Exchange | None = flow.metadata.get("exchange")
    response = flow.response
    if exchange is None or response is None or response.status_code == 101:
        return
    if not response.stream and response.raw_content:
        handler.engine.gate.body(exchange.live, response.raw_content)
    response.trailers = None if not flow.request.is_http2 else response.trailers
    reply = await _settle(exchange, flow, complete=True)
    if reply is not None:
        flow.response = wire.response(reply)


async def _settle_before(handler: "Handler", flow: http.HTTPFlow) -> None:
    """Before a long answer to a write flows, or the last of an event stream.

    The exchange goes on: its deadline holds, and a halt cuts what is left of it.
    """
    exchange: Exchange = flow.metadata["exchange"]
    if flow.metadata.get("settle_first"):
        exchange.live.answer = None  # too long to be kept for a replay
    reply = await _settle(exchange, flow, complete=True, ended=False)
    if reply is not None:
        flow.metadata["not_recorded"] = True
        flow.response = wire.response(reply)


async def _failed(handler: "Handler", flow: http.HTTPFlow) -> None:
    """The exchange broke. Settle it by what is known to have left, and say so to the agent."""
    exchange: Exchange | None = flow.metadata.get("exchange")
    if exchange is None:
        return
    message = exchange.cut_by or (flow.error.msg if flow.error else "")
    if exchange.live.sent:  # what follows a colon may quote the upstream, and so a secret
        message = message.partition(":")[0] if not exchange.cut_by else message
    reply = await _settle(exchange, flow, complete=False, error=message[:200])
    if reply is not None:
        flow.response = wire.response(reply)


async def _settle(
    exchange: Exchange,
    flow: http.HTTPFlow,
    *,
    complete: bool,
    ended: bool = True,
    error: str = "",
) -> Refusal | None:
    engine = exchange.handler.engine
    response = flow.response if complete else None
    fields = response.headers.fields if response is not None else ()
    fault = None
    if not complete:
        refused = exchange.handler.not_dialled.pop((flow.request.host, flow.request.port), None)
        if exchange.cut_by and exchange.cut_by != "timeout":
            fault = Reason.CUT
        elif refused is not None:
            own = not isinstance(refused, AddressRefused)
            fault = Reason.OWN_LISTENER if own else Reason.ADDRESS_REFUSED
    reply = await engine.gate.settle(
        exchange.live,
        status=response.status_code if response is not None else exchange.status,
        headers=tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields),
        complete=complete,
        ended=ended,
        fault=fault,
        rule=exchange.cut_by,
        error=error,
    )
    if ended:
        engine.exchanges.pop(exchange.live.call_id, None)
        exchange.ended.set()
    return reply


# WebSocket: one write; every message of the client's looks at the cords again and counts


async def _message(handler: "Handler", flow: http.HTTPFlow) -> None:
    exchange: Exchange = flow.metadata["exchange"]
    data = flow.websocket
    if data is None:
        raise RuntimeError("a WebSocket message without a WebSocket")
    message = data.messages[-1]
    del data.messages[:-1]  # mitmproxy would keep them all
    exchange.touch(handler.engine.timeouts.idle_seconds)
    if not message.from_client:
        handler.engine.gate.body(exchange.live, message.content)
        return
    stop = await handler.engine.gate.message(exchange.live)
    if stop is not None:
        message.drop()
        handler.engine.cut([exchange.live], stop)


async def _websocket_end(handler: "Handler", flow: http.HTTPFlow) -> None:
    exchange: Exchange = flow.metadata["exchange"]
    complete = not exchange.cut_by
    await _settle(exchange, flow, complete=complete, error=exchange.cut_by)


# Failures of our own


def refuse_after_failure(handler: "Handler", hook: commands.StartHook, data: Any) -> None:
    """A hook raised. Nothing may pass that it did not judge, and nobody may hang."""
    if isinstance(data, http.HTTPFlow):
        if isinstance(hook, mwebsocket.WebsocketMessageHook) and data.websocket:
            data.websocket.messages[-1].drop()
        else:
            data.response = wire.closing(wire.response(handler.engine.gate.failure()))
        exchange: Exchange | None = data.metadata.pop("exchange", None)
        if exchange is not None:
            handler.engine.spawn(_settle(exchange, data, complete=False, error="our own failure"))
        if isinstance(hook, _ANSWERABLE):
            return
    handler.hang_up()


_ANSWERABLE = (
    mhttp.HttpConnectHook,
    mhttp.HttpRequestHeadersHook,
    mhttp.HttpRequestHook,
    DialledHook,
)
"""Hooks after which the layers send the answer that they find in the flow."""


def _as_refusal(answer: Live | Refusal) -> Refusal:
    if isinstance(answer, Refusal):
        return answer
    raise RuntimeError("a faulty request was admitted")


def _nothing(handler: "Handler", data: Any) -> None:
    return None


HOOKS: dict[type[commands.StartHook], Hook] = {
    server_hooks.ClientConnectedHook: _nothing,
    server_hooks.ClientDisconnectedHook: _gone,
    server_hooks.ServerConnectHook: _server_connect,
    server_hooks.ServerConnectedHook: _nothing,
    server_hooks.ServerConnectErrorHook: _nothing,
    server_hooks.ServerDisconnectedHook: _nothing,
    layer.NextLayerHook: _next_layer,
    mtls.TlsClienthelloHook: _client_hello,
    mtls.TlsStartClientHook: _start_client_tls,
    mtls.TlsStartServerHook: _start_server_tls,
    mtls.TlsEstablishedClientHook: _nothing,
    mtls.TlsEstablishedServerHook: _nothing,
    mtls.TlsFailedClientHook: _nothing,
    mtls.TlsFailedServerHook: _nothing,
    mhttp.HttpConnectHook: _connect,
    mhttp.HttpConnectedHook: _nothing,
    mhttp.HttpConnectErrorHook: _nothing,
    mhttp.HttpRequestHeadersHook: _request_headers,
    mhttp.HttpRequestHook: _request,
    DialledHook: _dialled,
    mhttp.HttpResponseHeadersHook: _response_headers,
    SettleHook: _settle_before,
    mhttp.HttpResponseHook: _answered,
    mhttp.HttpErrorHook: _failed,
    mwebsocket.WebsocketStartHook: _nothing,
    mwebsocket.WebsocketMessageHook: _message,
    mwebsocket.WebsocketEndHook: _websocket_end,
}
