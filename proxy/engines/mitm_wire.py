"""mitmproxy's messages as ours, and ours as mitmproxy's. Pure."""

from collections.abc import Iterator

from mitmproxy import http

from policies.call import Request
from policies.verdict import Reason
from proxy import head
from proxy.engines import heard
from proxy.engines.heard import Tunnel
from proxy.identity import Credentials, read
from proxy.refuse import Refusal

_TRAILER = "trailer:"  # marks one among headers, whose names hold no colon


def fields(answer: http.Response) -> tuple[tuple[str, str], ...]:
    """Headers and trailers, as they are kept for a replay. `response` reads them again."""

    def plain(fields: http.Headers | None, mark: str = "") -> Iterator[tuple[str, str]]:
        for name, value in fields.fields if fields else ():
            yield mark + name.decode("latin-1"), value.decode("latin-1")

    return (*plain(answer.headers), *plain(answer.trailers, _TRAILER))


def _as_read(text: str) -> bytes:
    """The bytes that `fields` has read."""
    return text.encode("latin-1", "replace")


def response(reply: Refusal) -> http.Response:
    named = [(_as_read(name), _as_read(value)) for name, value in reply.headers]
    mark = _TRAILER.encode()
    headers = [field for field in named if not field[0].startswith(mark)]
    trailers = [(name.removeprefix(mark), value) for name, value in named if name.startswith(mark)]
    made = http.Response.make(reply.status, reply.body, http.Headers(headers))
    if reply.status in (204, 304):  # they have no body to tell the length of (RFC 9110, 8.6)
        made.headers.pop("content-length", None)
    if reply.file is not None:
        made.headers["content-length"] = str(reply.file.size_bytes)
    made.trailers = http.Headers(trailers) if trailers else None
    return made


def framed(request: http.Request) -> None:
    """The framing of a body that flows on, for an HTTP/1 upstream: one length, or in chunks."""
    if "content-length" in request.headers:
        request.headers["content-length"] = request.headers.get_all("content-length")[0]
    elif request.is_http2:
        request.headers["transfer-encoding"] = "chunked"


def closing(response: http.Response) -> http.Response:
    response.headers["connection"] = "close"
    return response


def credentials(
    request: http.Request,
) -> tuple[Credentials | None, head.Fault | None, bool]:
    """Take the proxy credentials out of the request, so that nothing can forward or store them.

    Returns them, the fault when there are two, and whether any were sent.
    """
    sent = request.headers.get_all("proxy-authorization")
    if sent:
        del request.headers["proxy-authorization"]
    if len(sent) > 1:
        return None, head.Fault(Reason.MALFORMED_REQUEST, "two Proxy-Authorization headers"), True
    if sent and "\n" in sent[0]:  # whatever was folded into it would be lost with it
        return None, head.Fault(Reason.MALFORMED_REQUEST, "a folded line in a header"), True
    return read(sent[0] if sent else None), None, bool(sent)


def seen(flow: http.HTTPFlow) -> Request:
    """What can be said of a request that cannot be judged."""
    request = flow.request
    kind = request.headers.get("content-type", "")
    return heard.seen(
        request.method, request.scheme, request.host, request.port, request.path, kind
    )


def head_of(flow: http.HTTPFlow, tunnel: Tunnel | None, sni: str | None) -> head.Head:
    """What the engine read, for the consistency checks. `sni` is None outside TLS."""
    request = flow.request
    return head.Head(
        method=request.data.method.decode("latin-1"),  # `request.method` is in capitals
        scheme=request.scheme,
        host=request.host,
        port=request.port,
        target=request.path,
        headers=request.headers.fields,
        http2=request.is_http2,
        authority=request.authority or None,
        tunnel=(tunnel.host, tunnel.port) if tunnel else None,
        sni=sni,
    )
