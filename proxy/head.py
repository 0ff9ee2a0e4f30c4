"""The head of a message: what must agree, what is stripped, what is added. Engine-neutral, pure.

An engine hands over what it read as a `Head`; `read` gives a `Request` or the fault that refuses
it. A mismatch between the names of a destination is how a policy is dodged, so every name that a
request carries must be the same (RFC 9110 section 7.2, RFC 9112 section 3.2, design section 3).
"""

import re
from dataclasses import dataclass

from policies.call import Identity, Request
from policies.verdict import Reason

Headers = tuple[tuple[bytes, bytes], ...]

HEAD_BYTES_MAX = 64 * 1024  # twice what the largest known SDK sends; bounds memory per connection
HEADERS_MAX = 200
TARGET_BYTES_MAX = 16 * 1024

_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_NAMES = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:)*")
_SPLITTING = re.compile(rb"[\x00\r\n]")  # what ends a field for one reader and not for another
_TARGET = re.compile(r"/[!\"$-~]*")  # printable ASCII without a space or a fragment
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::([0-9]{1,5}))?")

HOP_BY_HOP = frozenset(
    b"keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer upgrade "
    b"http2-settings".split()
)
"""Dropped both ways (RFC 9110 section 7.6.1); `Upgrade` survives for a WebSocket handshake."""

_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding"))
_CODINGS = b"accept-encoding"
_COMPRESSED = b"sec-websocket-extensions"
"""Never negotiated: a message is judged, and its size bounded, as it stands on the wire."""

_OURS_UPSTREAM = (b"pullcord-", b"idempotent-replayed", b"alt-svc")


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a head cannot be judged. `detail` names the rule broken, never a header's value."""

    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Head:
    """What an engine read. `host` and `port` are where the engine would connect.

    `authority` is the absolute-form or `:authority` text, `tunnel` the CONNECT destination, `sni`
    the name of the TLS handshake inside it; each is None where the message carries none. A
    CONNECT of HTTP/1.0 has no Host (RFC 9112 section 3.2): Python before 3.12 sends that.
    """

    method: str
    scheme: str
    host: str
    port: int
    target: str
    headers: Headers
    http2: bool = False
    authority: str | None = None
    tunnel: tuple[str, int] | None = None
    sni: str | None = None
    http10: bool = False


def plain_host(host: str) -> str:
    """Lower case, no brackets, no trailing dot: the form in which hosts are compared."""
    return host.strip("[]").rstrip(".").lower()


def _same(authority: str, head: Head) -> bool:
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        return False
    default_port = 443 if head.scheme == "https" else 80
    if head.method == "CONNECT":
        default_port = head.port
    port = int(parts[2]) if parts[2] else default_port
    return (plain_host(parts[1]), port) == (plain_host(head.host), head.port)


def _malformed(head: Head) -> Fault | None:
    fields = head.headers
    size_bytes = sum(len(name) + len(value) + 4 for name, value in fields)
    if size_bytes > HEAD_BYTES_MAX or len(fields) > HEADERS_MAX:
        return Fault(Reason.HEAD_TOO_LARGE, "too many or too long header fields")
    if len(head.target) > TARGET_BYTES_MAX:
        return Fault(Reason.HEAD_TOO_LARGE, "the request target is too long")
    if not _TOKEN.fullmatch(head.method.encode("latin-1", "replace")) or len(head.method) > 32:
        return Fault(Reason.MALFORMED_REQUEST, "the method is not a token")
    if not _TARGET.fullmatch(head.target):
        return Fault(Reason.MALFORMED_REQUEST, "the request target is not a plain path and query")
    for name, value in fields:
        if not _TOKEN.fullmatch(name) or _CONTROL.search(value):
            return Fault(Reason.MALFORMED_REQUEST, "control bytes or a folded line in a header")
    return None


def _mismatched(head: Head) -> Fault | None:
    hosts = [value.decode("latin-1") for name, value in head.headers if name.lower() == b"host"]
    named = head.http2 or (head.http10 and head.method == "CONNECT")
    if len(hosts) > 1 or (not hosts and not named):
        return Fault(Reason.MALFORMED_REQUEST, "exactly one Host header is needed")
    if not _AUTHORITY.fullmatch(f"[{head.host}]" if ":" in head.host else head.host):
        return Fault(Reason.MALFORMED_REQUEST, "the host is not a plain name or address")
    if any(not _same(name, head) for name in (*hosts, *filter(None, [head.authority]))):
        return Fault(Reason.AUTHORITY_MISMATCH, "Host and request target name two destinations")
    if head.tunnel and (plain_host(head.tunnel[0]), head.tunnel[1]) != (
        plain_host(head.host),
        head.port,
    ):
        return Fault(Reason.AUTHORITY_MISMATCH, "the tunnel leads elsewhere than the request")
    if head.sni is not None and plain_host(head.sni) != plain_host(head.host):
        return Fault(Reason.AUTHORITY_MISMATCH, "the TLS name differs from the request's host")
    return None


def _named_by_connection(headers: Headers) -> set[bytes]:
    return {
        item.strip().lower()
        for name, value in headers
        if name.lower() == b"connection"
        for item in value.split(b",")
    }


def _frames_some(headers: Headers) -> bool:
    """Whether a message says that it has content."""
    return any(
        (lower := name.lower()) == b"transfer-encoding"
        or (lower == b"content-length" and value.strip().strip(b"0") != b"")
        for name, value in headers
    )


def read(head: Head, body: bytes = b"", *, streamed: bool = False) -> Request | Fault:
    """The request to judge, or why it cannot be. `body` is the whole content, without framing;
    `streamed`, that it is still to come."""
    fault = _malformed(head) or _mismatched(head)
    if fault is None and _named_by_connection(head.headers) & _FRAMING:
        fault = Fault(Reason.MALFORMED_REQUEST, "Connection names a header that frames the message")
    if (
        fault is None
        and is_websocket(head.headers)
        and (body or streamed or _frames_some(head.headers))
    ):  # a server that looks for none there would read it as a frame, which nobody has judged
        fault = Fault(Reason.MALFORMED_REQUEST, "its client sent a body with a WebSocket handshake")
    if fault is not None:
        return fault
    return Request(
        method=head.method,
        scheme=head.scheme,
        host=plain_host(head.host),
        port=head.port,
        target=head.target,
        headers=tuple(
            (name.decode("latin-1").lower(), value.decode("latin-1").strip())
            for name, value in head.headers
        ),
        body=body,
        streamed=streamed,
    )


def is_websocket(headers: Headers) -> bool:
    return any(
        name.lower() == b"upgrade" and value.strip().lower() == b"websocket"
        for name, value in headers
    )


def _forwardable(headers: Headers, *, websocket: bool) -> list[tuple[bytes, bytes]]:
    """End-to-end fields, and of the connection's own only `close` or the WebSocket upgrade."""
    named = _named_by_connection(headers)
    kept = [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in HOP_BY_HOP
        and lower not in (b"connection", _COMPRESSED)
        and (lower not in named or lower in _FRAMING)
    ]
    if websocket:
        kept += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    elif b"close" in named:
        kept.append((b"Connection", b"close"))
    return kept


def upstream_headers(
    headers: Headers,
    identity: Identity,
    tag_headers: tuple[str, str],
    *,
    tagged: bool,
    http2: bool,
    uncoded: bool = False,
) -> Headers:
    """What goes upstream: hop-by-hop, credentials and spoofed tags out; our own tags in.

    `uncoded` asks for an answer that can be read as it flows by (RFC 9110, section 12.5.3).
    """
    tags = tuple(name.lower().encode() for name in tag_headers)

    def ours(name: bytes) -> bool:
        plain = name.lower().replace(b"_", b"-")
        return plain in tags or plain.startswith(b"x-pullcord-")

    kept = [
        item for item in _forwardable(headers, websocket=is_websocket(headers)) if not ours(item[0])
    ]
    if http2:
        kept = [(name.lower(), value) for name, value in kept if name.lower() != b"connection"]
        if any(name.lower() == b"te" and value == b"trailers" for name, value in headers):
            kept.append((b"te", b"trailers"))  # gRPC needs it (RFC 9113, section 8.2.2)
    if uncoded:
        kept = [item for item in kept if item[0].lower() != _CODINGS]
        kept.append((_CODINGS if http2 else b"Accept-Encoding", b"identity"))
    if tagged:
        names = [name.lower() if http2 else name for name in tag_headers]
        kept += [
            (names[0].encode(), identity.run.encode()),
            (names[1].encode(), identity.tenant.encode()),
        ]
    return tuple(kept)


def agent_headers(headers: Headers, decision: str, *, websocket: bool = False) -> Headers:
    """What reaches the agent: an upstream cannot speak in pullcord's name."""
    kept = [
        item
        for item in _forwardable(headers, websocket=websocket)
        if not item[0].lower().replace(b"_", b"-").startswith(_OURS_UPSTREAM)
    ]
    return (*kept, (b"Pullcord-Decision", decision.encode()))


def agent_trailers(fields: Headers) -> Headers:
    """What reaches the agent after an answer's body, which is no place for our name either."""
    return tuple(
        item
        for item in fields
        if not item[0].lower().replace(b"_", b"-").startswith(_OURS_UPSTREAM)
        and item[0].lower() not in HOP_BY_HOP
    )


def broken_answer(status: int, fields: Headers) -> str:
    """Why an upstream's answer must not be relayed; empty when it may be.

    A control byte in it could begin a field of its own in the eyes of the agent's client, so an
    upstream could speak in pullcord's name.
    """
    if not 100 <= status <= 599:
        return "the answer's status is none"
    names = b"".join(name + b":" for name, _ in fields)
    values = b" ".join(value for _, value in fields)
    if not _NAMES.fullmatch(names) or _SPLITTING.search(values):
        return "control bytes or a folded line in the answer's head"
    return ""
