"""A request's head as it stands on the wire: read strictly, framed in one way only, or refused.

What is no request at all, or framed in two ways, is a `Broken` with the status of a plain page:
nobody can say what follows it. What a head may say beyond that is judged in proxy/head.py.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv6Address

from policies.call import Request
from policies.verdict import Reason
from proxy import head
from proxy.engines import heard
from proxy.engines.heard import Tunnel
from proxy.identity import Credentials, read

LINE_START_BYTES = 32  # in which a method ends
_METHOD_START = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,31}( |\Z)")
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]{1,31}) ([^\s]+) HTTP/([0-9])\.([0-9])")
_AUTHORITY = re.compile(rb"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?")
_NAMES = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z:-]*")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")
_EMPTY_LINES = re.compile(rb"(?:\r?\n)*")
_BARE_FEED = re.compile(rb"(?<!\r)\n")
_PORTS = {"http": 80, "https": 443}
_PORT_MAX = 65_535
_HOST_CHARACTERS_MAX = 255  # RFC 1035, section 2.3.4, as that of a label
_LABEL_CHARACTERS_MAX = 63
_BLANK = b" \t"

_NAMED = frozenset((
    b"host", b"content-length", b"transfer-encoding", b"proxy-authorization", b"connection",
    b"content-type", b"expect",
))  # fmt: skip


class Broken(Exception):
    """No request; `status` is that of the page which says so."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


@dataclass(slots=True)
class Incoming:
    """A head that could be read. `length` is that of the body, None for chunks.

    `host` and `port` are where it would go; `fields` are without the proxy's credentials, which
    nothing can forward or store. `is_close`: its client wants no other answer on its connection.
    """

    method: str
    scheme: str
    host: str
    port: int
    target: str
    fields: head.Headers
    authority: str | None
    tunnel: Tunnel | None
    sni: str | None
    http10: bool
    length: int | None = 0
    credentials: Credentials | None = None
    sent_credentials: bool = False
    fault: head.Fault | None = None
    content_type: str = ""
    expects: bool = False
    is_close: bool = False
    told: str = ""
    _host_field: bytes | None = field(default=None, repr=False)

    @property
    def head(self) -> head.Head:
        return head.Head(
            self.method,
            self.scheme,
            self.host,
            self.port,
            self.target,
            self.fields,
            authority=self.authority,
            tunnel=(self.tunnel.host, self.tunnel.port) if self.tunnel else None,
            sni=self.sni,
        )

    def seen(self) -> Request:
        """What can be said of it where it cannot be judged."""
        return heard.seen(
            self.method, self.scheme, self.host, self.port, self.target, self.content_type
        )


def begun(data: bytes) -> bytes:
    """What came, without the empty lines that some clients send ahead (RFC 9112 section 2.2)."""
    empty = _EMPTY_LINES.match(data)
    return data[empty.end() :] if empty else data


def is_no_request(start: bytes) -> bool:
    """TLS, SSH and others that never end a head: their first bytes are no method and space
    (RFC 9112 section 3), so nobody has to wait for the rest."""
    return bool(start) and not _METHOD_START.match(start[:LINE_START_BYTES])


def has_bare_feed(data: bytes, looked_bytes: int = 0) -> bool:
    """Whether a line ends in what only some take for an end (RFC 9112 section 2.2). In the first
    `looked_bytes` none does."""
    return _BARE_FEED.search(data, looked_bytes) is not None


def is_hopeless(start: bytes, looked_bytes: int) -> bool:
    """Whether what came of a head makes it none, whatever follows."""
    return is_no_request(start) or has_bare_feed(start, looked_bytes)


def incoming(raw: bytes, tunnel: Tunnel | None, *, scheme: str, sni: str | None) -> Incoming:
    """The request whose head this is, without the empty line at its end. `scheme` is that of the
    connection, which inside a tunnel is the request's. Raises Broken."""
    line, *lines = raw.split(b"\r\n")
    asked = _LINE.fullmatch(line)
    if asked is None:
        raise Broken(400)
    if asked[3] != b"1" or asked[4] not in b"01":
        raise Broken(505)
    method = asked[1].decode("ascii")
    scheme, host, port, target, authority = _destination(method, asked[2], tunnel, scheme)
    made = Incoming(
        method, scheme, host, port, target, (), authority, tunnel, sni, asked[4] == b"0"
    )
    _headers(made, lines)
    if not made.host:
        made.host, named = _place(made._host_field or b"")
        made.port = named or _PORTS[scheme]
    return made


def _destination(
    method: str, target: bytes, tunnel: Tunnel | None, scheme: str
) -> tuple[str, str, int, str, str | None]:
    """Scheme, host, port, target and authority. The host is empty where a header names it."""
    host, port = (tunnel.host, tunnel.port) if tunnel is not None else ("", 0)
    if target[:1] == b"/" or target == b"*":
        return scheme, host, port, target.decode("latin-1"), None
    if method == "CONNECT":
        host, port = _place(target)
        if tunnel is not None or not port:
            raise Broken(400)
        return "", host, port, "", None
    told, colon, rest = target.partition(b"://")
    lower = told.lower().decode("latin-1")
    authority, slash, path = rest.partition(b"/")
    named, number = _place(authority)
    if lower not in _PORTS or not colon:
        raise Broken(400)
    text = (slash + path).decode("latin-1") or "/"
    if tunnel is not None:
        return scheme, host, port, text, authority.decode("ascii")
    return lower, named, number or _PORTS[lower], text, None


@lru_cache(maxsize=1_024)
def _place(authority: bytes) -> tuple[str, int]:
    """Host and port; 0 where none is named. Raises Broken."""
    parts = _AUTHORITY.fullmatch(authority)
    if parts is None:
        raise Broken(400)
    port = int(parts[3] or 0)
    if port > _PORT_MAX or (parts[3] and not port):
        raise Broken(400)
    if parts[1] is not None:
        try:
            IPv6Address(parts[1].decode("ascii"))
        except ValueError:
            raise Broken(400) from None
        return parts[1].decode("ascii"), port
    host = parts[2].decode("ascii")
    labels = host.removesuffix(".").split(".")
    if len(host) > _HOST_CHARACTERS_MAX or not all(
        0 < len(label) <= _LABEL_CHARACTERS_MAX for label in labels
    ):
        raise Broken(400)
    return host, port


def _headers(made: Incoming, lines: list[bytes]) -> None:
    fields: list[tuple[bytes, bytes]] = []
    named: dict[bytes, list[bytes]] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if line[:1] in (b" ", b"\t"):
            if not fields:
                raise Broken(400)
            name, begun = fields.pop()  # it is refused, in words
            fields.append((name, begun + b"\r\n " + line.strip(_BLANK)))
            continue
        if not colon or not name:
            raise Broken(400)
        value = value.strip(_BLANK)
        lower = name.lower()
        if lower in _NAMED:
            named.setdefault(lower, []).append(value)
            if lower == b"proxy-authorization":
                continue
            if lower == b"expect" and value.lower() == b"100-continue":
                made.expects = not made.http10
                continue
        fields.append((name, value))
    if not _NAMES.fullmatch(b":".join([name for name, _ in fields])):
        raise Broken(400)
    made.fields = tuple(fields)
    _framed(made, named.get(b"content-length"), named.get(b"transfer-encoding"))
    _called(made, named.get(b"proxy-authorization"))
    kinds, hosts = named.get(b"content-type"), named.get(b"host")
    made.content_type = b", ".join(kinds).decode("latin-1") if kinds else ""
    made._host_field = hosts[0] if hosts else None
    asked = named.get(b"connection", ())
    made.is_close = made.http10 or any(
        word.strip(_BLANK).lower() == b"close" for value in asked for word in value.split(b",")
    )


def _framed(made: Incoming, lengths: list[bytes] | None, codings: list[bytes] | None) -> None:
    """How its body ends: in one way, that every reader knows (RFC 9112, section 6.3)."""
    if codings is not None:
        if lengths or len(codings) > 1 or codings[0].lower() != b"chunked" or made.http10:
            raise Broken(400)
        made.length = None
    elif lengths is not None:
        if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
            raise Broken(400)
        made.length = int(lengths[0])
        made.told = lengths[0].decode("ascii")


def _called(made: Incoming, sent: list[bytes] | None) -> None:
    """Who says that he is calling: in a tunnel its CONNECT has said so, unless the request does."""
    if sent is None:
        if made.tunnel is not None:
            made.credentials = made.tunnel.credentials
        return
    made.sent_credentials = True
    if len(sent) > 1:
        made.fault = head.Fault(Reason.MALFORMED_REQUEST, "two Proxy-Authorization headers")
    else:
        made.credentials = read(sent[0].decode("latin-1"))
