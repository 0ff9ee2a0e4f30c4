"""What each mitmproxy hook does: translate, ask the gate, translate back.

The table HOOKS is closed: a hook that is not in it raises, and so refuses.
"""

import contextvars
from collections.abc import Awaitable, Callable
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from mitmproxy import http
from mitmproxy.net import tls as net_tls
from mitmproxy.proxy import commands, layer, server_hooks
from mitmproxy.proxy.layers import http as mhttp
from mitmproxy.proxy.layers import modes
from mitmproxy.proxy.layers import tls as mtls
from mitmproxy.proxy.layers import websocket as mwebsocket

from policies.addresses import refused_block
from policies.call import Request
from policies.verdict import Reason
from proxy import head
from proxy.dial import AddressRefused
from proxy.engines import heard
from proxy.engines import mitm_answers as answers
from proxy.engines import mitm_stored as stored
from proxy.engines import mitm_uploads as uploads
from proxy.engines import mitm_wire as wire
from proxy.engines.faults import CLIENT_LEFT, OWN_FAILURE
from proxy.engines.mitm_events import (
    CallerHook,
    DialledHook,
    DrawHook,
    PartHook,
    SettleHook,
    StoredHook,
    UnendedHook,
)
from proxy.engines.mitm_exchange import Arriving, Exchange, arriving_of
from proxy.engines.mitm_layers import HttpLayer
from proxy.live import Live
from proxy.refuse import Refusal

if TYPE_CHECKING:
    from proxy.engines.mitm import MitmEngine
    from proxy.engines.mitm_client import Handler

_SERVER_NAME = 0  # the TLS extension that names the server (RFC 6066, section 3)

Hook = Callable[["Handler", Any], Awaitable[None] | None]

DIALLING: contextvars.ContextVar["Handler"] = contextvars.ContextVar("dialling")
"""The connection on whose behalf the current task dials."""


# The connection: CONNECT, what follows it, TLS


async def _connect(handler: "Handler", flow: http.HTTPFlow) -> None:
    request = flow.request
    credentials, fault, _ = wire.credentials(request)
    tunnel = heard.Tunnel(request.host, request.port, credentials)
    fields, http10 = request.headers.fields, request.http_version == "HTTP/1.0"
    named = heard.connecting(request.host, request.port, fields, http10=http10)
    seen = fault or head.read(named)
    if isinstance(seen, head.Fault):
        reply = await handler.engine.gate.ask(seen, credentials, handler.engine, wire.seen(flow))
        flow.response = wire.closing(wire.response(heard.as_refusal(reply)))
        return
    refused = await handler.engine.gate.greet(credentials, seen)
    if refused is not None:
        flow.response = wire.response(refused)
        return
    handler.tunnel = tunnel
    handler.is_stranger = False


def _next_layer(handler: "Handler", following: layer.NextLayer) -> None:
    """TLS or HTTP, nothing else: what is neither fails to parse and is answered with 400."""
    start = following.data_client()
    if start[:1] == b"\x16" and len(start) < 3:
        return  # too little to tell a TLS record
    context = following.context
    outermost = type(context.layers[-1]) is modes.HttpProxy
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
    named = any(kind == _SERVER_NAME for kind, _ in data.client_hello.extensions)
    handler.sni = data.client_hello.sni or ("" if named else None)  # "": one that is no host
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


def _server_gone(handler: "Handler", data: Any) -> None:
    handler.vetted.pop(data.server, None)
    handler.idle.pop(data.server, None)


async def _gone(handler: "Handler", client: Any) -> None:
    """The client left. Its writes are finished first; what is left over ends as it stands."""
    engine = handler.engine
    for awaited in [item for item in engine.arriving.values() if item.handler is handler]:
        engine.forget(awaited.flow)
    mine = list(handler.calls)
    for item in mine:
        if item.live.is_write and not item.flow.websocket:
            await item.over()
    for item in mine:
        item.flow.metadata["left"] = True
        await answers.settle(item, item.flow, complete=False, error=item.cut_by or CLIENT_LEFT)


# The request


def _request_headers(handler: "Handler", flow: http.HTTPFlow) -> Awaitable[None] | None:
    """Inside a tunnel the CONNECT's credentials speak, unless the request brings its own."""
    credentials, fault, sent = wire.credentials(flow.request)
    greeted = not sent and handler.tunnel is not None
    if greeted and handler.tunnel is not None:
        credentials = handler.tunnel.credentials
    flow.metadata["credentials"] = credentials
    flow.metadata["fault"] = fault
    awaited = flow.metadata["arriving"] = arriving_of(flow, handler, caller_known=greeted)
    request = uploads.of_head(handler, flow)
    if request is not None:
        return _upload(handler, flow, request)
    handler.engine.arriving[flow.id] = awaited
    return _caller(handler, flow) if awaited.announces_too_much() else None


async def _caller(handler: "Handler", flow: http.HTTPFlow) -> None:
    """A long body begins. Only a known caller's is taken; meanwhile no more of it is read."""
    gate, awaited = handler.engine.gate, flow.metadata["arriving"]
    credentials, seen = flow.metadata["credentials"], wire.seen(flow)
    with handler.not_reading():
        if await gate.greet(credentials, seen) is None:
            awaited.caller_known, handler.is_stranger = True, False
            return
        handler.engine.forget(flow)
        fault = head.Fault(Reason.MALFORMED_REQUEST, "its caller is not known")
        reply = await gate.ask(fault, credentials, handler.engine, seen)  # for the record
        flow.response = wire.closing(wire.response(heard.as_refusal(reply)))
        flow.metadata["not_wanted"] = True
        if not flow.request.is_http2:
            handler.leave()


async def _upload(handler: "Handler", flow: http.HTTPFlow, request: Request) -> None:
    """A request that is judged by its head; its body waits for that, and then flows on."""
    flow.metadata["upload"] = uploads.Upload(flow, handler)
    engine, gone = handler.engine, partial(handler.is_gone, flow)
    answer = await engine.gate.ask(
        request, flow.metadata["credentials"], engine, wire.seen(flow), gone
    )
    if not isinstance(answer, Refusal) or answer.status != 407:
        handler.is_stranger = False
    if isinstance(answer, Refusal):
        _answer(flow, answer)
        flow.metadata["not_wanted"] = True
        return
    _forward(handler, flow, answer)
    flow.request.stream = True


def _answer(flow: http.HTTPFlow, answer: Refusal) -> http.Response:
    """What the layers send in place of an upstream's answer."""
    response = flow.response = wire.response(answer)
    if answer.file is not None:
        flow.metadata["stored"] = answer.file
    if not flow.request.is_http2:
        response.trailers = None
    return response


async def _unended(handler: "Handler", flow: http.HTTPFlow) -> None:
    """A request's body cannot end. It is judged as one that can only be refused."""
    awaited: Arriving = flow.metadata["arriving"]
    flow.metadata["fault"] = flow.metadata["fault"] or awaited.fault()
    await _request(handler, flow)


async def _request(handler: "Handler", flow: http.HTTPFlow) -> None:
    engine = handler.engine
    engine.arriving.pop(flow.id, None)
    if "upload" in flow.metadata:
        flow.metadata["upload"].end()
        return
    if flow.response is not None:
        return
    awaited: Arriving = flow.metadata["arriving"]
    if flow.metadata["fault"] is None:
        try:
            flow.request.data.content = await awaited.whole()
        except BaseException:  # this engine stops
            awaited.release()
            raise
    request: Request | head.Fault = flow.metadata["fault"] or head.read(
        wire.head_of(flow, handler.tunnel, handler.sni), flow.request.raw_content or b""
    )
    is_too_large = flow.metadata.get("body_too_large", False)
    request = awaited.too_much(engine.body_bytes_max, is_too_large=is_too_large) or request
    gate, credentials = engine.gate, flow.metadata["credentials"]
    gone = partial(handler.is_gone, flow)
    answer = await gate.ask(request, credentials, engine, wire.seen(flow), gone)
    if not isinstance(answer, Refusal) or answer.status != 407:
        handler.is_stranger = False
    if isinstance(answer, Refusal):
        awaited.release()
        response = _answer(flow, answer)
        if isinstance(request, head.Fault) or answer.status in heard.CLOSING:
            wire.closing(response)
        return
    _forward(handler, flow, answer)


def _forward(handler: "Handler", flow: http.HTTPFlow, live: Live) -> None:
    engine, request = handler.engine, flow.request
    exchange = Exchange(live, flow, handler, 0.0)
    exchange.touch(engine.timeouts.first_byte_seconds)
    engine.exchanges[live.call_id] = exchange
    handler.calls.add(exchange)
    flow.metadata["exchange"] = exchange
    flow.metadata["tee"] = exchange.tee
    upload: uploads.Upload | None = flow.metadata.get("upload")
    flow.metadata["finish_alone"] = live.is_write
    flow.metadata["own_connection"] = live.is_write or upload is not None
    handler.allowed[request.host, request.port] = live.tool.allow_addresses
    if upload is not None:
        upload.begin(exchange)
        wire.framed(request)
    else:
        _framed(engine, flow, live)
    if not request.is_http2:
        request.authority = ""  # an upstream is asked for the path alone, inside a tunnel too
    request.headers = http.Headers(
        head.upstream_headers(
            request.headers.fields,
            live.identity,
            engine.gate.tag_headers,
            tagged=live.tool.tags,
            http2=request.is_http2,
            uncoded=live.is_read_here,
        )
    )
    request.trailers = None


def _framed(engine: "MitmEngine", flow: http.HTTPFlow, live: Live) -> None:
    """The body that goes upstream, and its length."""
    request, body = flow.request, engine.gate.outgoing(live)
    if body is not None:
        request.raw_content = body
        flow.metadata["usage_asked"] = True
    content = request.raw_content or b""
    if "content-length" in request.headers or (request.is_http2 and content):
        # HTTP/2 needs none, but without one an HTTP/1 upstream would read the body as a request.
        request.headers["content-length"] = str(len(content))


async def _dialled(handler: "Handler", flow: http.HTTPFlow) -> None:
    exchange: Exchange = flow.metadata["exchange"]
    handler.idle.pop(flow.server_conn, None)
    live = exchange.live
    error = exchange.cut_by or _elsewhere(handler, flow, live)
    refused = None if error else handler.engine.gate.sent(live)
    if not error and refused is None:
        return
    reply = await answers.settle(exchange, flow, complete=False, error=error or live.stopped_by)
    told = refused or reply
    flow.response = wire.response(told) if told else http.Response.make(502)


def _elsewhere(handler: "Handler", flow: http.HTTPFlow, live: Live) -> str:
    """Why this connection is not for this tool: it ended, or another one's call has dialled it."""
    connection, allow = flow.server_conn, live.tool.allow_addresses
    if not connection.connected:  # nobody would tell of that again
        return "the upstream closed the connection before the request"
    if handler.vetted.get(connection) == allow:
        return ""
    host = flow.request.host
    peer = (connection.peername or ("",))[0]
    block = refused_block(ip_address(peer.partition("%")[0]), allow)
    if block is None:
        handler.vetted[connection] = allow
        return ""
    refused = AddressRefused(host, peer, block)
    handler.not_dialled[host, flow.request.port] = refused
    return str(refused)


# Failures of our own


def refuse_after_failure(handler: "Handler", hook: commands.StartHook, data: Any) -> None:
    """A hook raised. Nothing may pass that it did not judge, and nobody may hang."""
    if isinstance(data, http.HTTPFlow):
        handler.engine.forget(data)
        if isinstance(hook, mwebsocket.WebsocketMessageHook) and data.websocket:
            data.websocket.messages[-1].drop()
        else:
            data.response = wire.closing(wire.response(handler.engine.gate.failure()))
        if isinstance(hook, CallerHook):
            data.metadata["not_wanted"] = True
            handler.leave()
        exchange: Exchange | None = data.metadata.pop("exchange", None)
        if exchange is not None:
            why, fault = OWN_FAILURE, Reason.POLICY_FAILURE
            ending = answers.settle(exchange, data, complete=False, error=why, fault=fault)
            handler.engine.spawn(ending)
        if isinstance(hook, _ANSWERABLE):
            return
    handler.hang_up()


_ANSWERABLE = (
    mhttp.HttpConnectHook,
    mhttp.HttpRequestHeadersHook,
    mhttp.HttpRequestHook,
    CallerHook,
    UnendedHook,
    DialledHook,
)
"""Hooks after which the layers send the answer that they find in the flow."""


def _nothing(handler: "Handler", data: Any) -> None:
    return None


HOOKS: dict[type[commands.StartHook], Hook] = {
    server_hooks.ClientConnectedHook: _nothing,
    server_hooks.ClientDisconnectedHook: _gone,
    server_hooks.ServerConnectHook: _server_connect,
    server_hooks.ServerConnectedHook: _nothing,
    server_hooks.ServerConnectErrorHook: _nothing,
    server_hooks.ServerDisconnectedHook: _server_gone,
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
    CallerHook: _caller,
    UnendedHook: _unended,
    DialledHook: _dialled,
    PartHook: uploads.part,
    StoredHook: stored.read,
    mhttp.HttpResponseHeadersHook: answers.response_headers,
    DrawHook: answers.draw,
    SettleHook: answers.settle_before,
    mhttp.HttpResponseHook: answers.answered,
    mhttp.HttpErrorHook: answers.failed,
    mwebsocket.WebsocketStartHook: _nothing,
    mwebsocket.WebsocketMessageHook: answers.message,
    mwebsocket.WebsocketEndHook: answers.websocket_end,
}
