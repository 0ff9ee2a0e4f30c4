"""The head of a request, as far as it changes what the request means.

A head that servers could understand in two ways is not read at all: a doubled content type, a path
with dot segments, a header that names another path, a POST that asks to be taken for a DELETE.
"""

from collections.abc import Iterator
from typing import NamedTuple

from policies import overrides, paths
from policies.call import Request
from policies.content import ASCII_BASED, FORM, Content, read_content
from policies.verdict import Reason

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})
"""Methods that only look (RFC 9110, section 9.2.1, and QUERY). They are case-sensitive."""

_OVERRIDES = frozenset({"x-http-method-override", "x-method-override", "x-http-method"})
# Servers (IIS, Symfony, Zend) take their value for the path, whatever the request line says.
_REWRITES = frozenset({"x-original-url", "x-rewrite-url"})
_OF_CONTENT = ("content-type", "content-encoding", "transfer-encoding")
_LISTS = frozenset({"connection", "content-encoding", "transfer-encoding", "upgrade"})
_LOOKED_AT = _OVERRIDES | _REWRITES | _LISTS | {"content-type"}
# What is judged must also arrive: a header that Connection names is dropped on the way.
_MUST_ARRIVE = frozenset({"content-type", "content-encoding", "mcp-method", "mcp-name"})


class Head(NamedTuple):
    """`path` is the normal one; `upgrades` is set when the request opens a WebSocket; `dropped`
    are the headers that `Connection` names, which go no further."""

    path: str
    content: Content
    upgrades: bool = False
    dropped: frozenset[str] = frozenset()

    @property
    def is_grpc(self) -> bool:
        return self.content.media_type.startswith("application/grpc")


class Unclear(NamedTuple):
    """Why a request can be read in two ways, or not at all."""

    detail: str
    reason: Reason = Reason.MALFORMED_REQUEST


def read_head(request: Request) -> Head | Unclear:
    path = paths.normal(request.path)
    if path is None:
        return Unclear("servers disagree on what its path names")
    seen: dict[str, str] = {}
    for name, value in request.headers:
        if "_" in name:  # gateways of the CGI family take it for a dash
            name = name.replace("_", "-")
        if name in _LOOKED_AT:
            if name in seen and name not in _LISTS:
                return Unclear(f"the header {name} stands twice")
            seen[name] = f"{seen[name]},{value}" if name in seen else value
    if not _REWRITES.isdisjoint(seen):
        return Unclear("a header names another path than the request line")
    dropped = frozenset(item.strip().lower() for item in seen.get("connection", "").split(","))
    if not _MUST_ARRIVE.isdisjoint(dropped):
        return Unclear("Connection names a header that decides what the request means")
    upgrades = _opens_a_websocket(request.method, seen.get("upgrade", ""))
    if upgrades is None:
        return Unclear("a WebSocket is opened by GET alone")
    content = read_content(*(seen.get(name, "") for name in _OF_CONTENT)) if seen else Content()
    asked = [seen[name] for name in _OVERRIDES if name in seen]
    return _with_method(request, Head(path, content, upgrades, dropped), asked)


def _opens_a_websocket(method: str, upgrade: str) -> bool | None:
    """By GET over HTTP/1 (RFC 6455), by CONNECT over HTTP/2 (RFC 8441); None: by another."""
    if "websocket" not in (offer.strip() for offer in upgrade.lower().split(",")):
        return method == "CONNECT"
    return True if method in ("GET", "CONNECT") else None


def _with_method(request: Request, head: Head, asked: list[str]) -> Head | Unclear:
    """The head, unless the request asks to be taken for another unsafe method."""
    try:
        if request.method.upper() == "POST":
            if head.content.is_form and (why := head.content.hidden(ASCII_BASED)):
                return Unclear(why)
            asked += [value.decode("latin-1") for value in _method_fields(request, head.content)]
    except overrides.TooManyFieldsError:
        return Unclear(
            "it has more fields, or longer names of them, than are read", Reason.BODY_TOO_LARGE
        )
    if any(_is_another_unsafe_method(value, request.method) for value in asked):
        return Unclear("it asks to be taken for another method")
    return head


def _method_fields(request: Request, content: Content) -> Iterator[bytes]:
    """The `_method` fields of a POST, which frameworks take for the method."""
    query = request.target.partition("?")[2]
    if query:
        yield from overrides.in_pairs(query.encode("utf-8", "surrogatepass"))
    if content.media_type == FORM:
        yield from overrides.in_pairs(request.body)
    elif content.is_form:
        boundary = (content.parameters or {}).get("boundary", "")
        if boundary:
            yield from overrides.in_parts(request.body, boundary.encode("utf-8", "surrogatepass"))
    elif content.is_json:
        yield from overrides.in_json(request.body)


def _is_another_unsafe_method(value: str, method: str) -> bool:
    asked = value.strip().upper()
    return asked not in SAFE and asked != method.upper()
