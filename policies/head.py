"""The head of a request, as far as it changes what the request means.

A head that servers could understand in two ways is not read at all: a doubled content type, a path
with dot segments, a POST that asks to be taken for a DELETE.
"""

import re
from typing import NamedTuple
from urllib.parse import unquote_to_bytes

from policies import paths
from policies.call import Request
from policies.canonical import FORM

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})
"""Methods that only look (RFC 9110, section 9.2.1, and QUERY). They are case-sensitive."""

_OVERRIDES = frozenset({"x-http-method-override", "x-method-override", "x-http-method"})
_LOOKED_AT = _OVERRIDES | {"content-type", "upgrade"}
# The field `_method` with any of its characters escaped, and its value.
_METHOD_FIELD = re.compile(
    rb"(?:\A|[&;])%s=([^&;]*)" % b"".join(b"(?:%c|%%%02x)" % (c, c) for c in b"_method"),
    re.IGNORECASE,
)


class Head(NamedTuple):
    """`path` is the normal one; `media_type` is lower case and without parameters; `upgrades` is
    set when the request opens a WebSocket."""

    path: str
    media_type: str = ""
    upgrades: bool = False

    @property
    def is_grpc(self) -> bool:
        return self.media_type.startswith("application/grpc")


def read_head(request: Request) -> Head | None:
    """None when the head is malformed or ambiguous."""
    path = paths.normal(request.path)
    if path is None:
        return None
    seen: dict[str, str] = {}
    for name, value in request.headers:
        if "_" in name:  # gateways of the CGI family take it for a dash
            name = name.replace("_", "-")
        if name in _LOOKED_AT:
            if name in seen and name != "upgrade":
                return None
            seen[name] = f"{seen[name]},{value}" if name in seen else value
    media_type = seen.get("content-type", "").partition(";")[0].strip().lower()
    asked = [seen[name] for name in _OVERRIDES if name in seen] if seen else []
    if request.method.upper() == "POST":
        asked += _method_parameters(request, media_type)
    if any(_is_another_unsafe_method(value, request.method) for value in asked):
        return None
    return Head(path, media_type, _opens_a_websocket(request.method, seen.get("upgrade")))


def _opens_a_websocket(method: str, upgrade: str | None) -> bool:
    """By GET over HTTP/1 (RFC 6455), by CONNECT over HTTP/2 (RFC 8441)."""
    if upgrade is None or method != "GET":
        return method == "CONNECT"
    return "websocket" in (offer.strip() for offer in upgrade.lower().split(","))


def _method_parameters(request: Request, media_type: str) -> list[str]:
    """The `_method` parameters and form fields of a POST, which frameworks take for the method."""
    query = request.target.partition("?")[2]
    texts = [query.encode("utf-8", "surrogatepass")] if query else []
    if media_type == FORM:
        texts.append(request.body)
    found = (value for text in texts for value in _METHOD_FIELD.findall(text))
    return [unquote_to_bytes(value).decode("latin-1") for value in found]


def _is_another_unsafe_method(value: str, method: str) -> bool:
    asked = value.strip().upper()
    return asked not in SAFE and asked != method.upper()
