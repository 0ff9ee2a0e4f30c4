"""Heads as bytes: requests to upstreams, answers and pages to clients. Pure.

Written anew from what was judged, so that nothing else leaves.
"""

from collections.abc import Iterable
from http import HTTPStatus

from proxy.head import Headers
from proxy.refuse import Refusal

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
CLOSE = (b"Connection", b"close")
CHUNKED = (b"Transfer-Encoding", b"chunked")
LAST_CHUNK = b"0\r\n\r\n"

_TRAILER = "trailer:"  # marks one among stored headers, whose names hold no colon; HTTP/1 has none
_BODILESS = (204, 304)  # they have no body to tell the length of (RFC 9110, section 8.6)
_LINES = {one.value: b"HTTP/1.1 %d %b\r\n" % (one, one.phrase.encode()) for one in HTTPStatus}


def request_head(method: str, target: str, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    line = f"{method} {target} HTTP/1.1\r\n".encode("latin-1")
    return line + _lines(fields)


def answer_head(status: int, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return (_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status) + _lines(fields)


def _lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields]) + b"\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def page(status: int) -> bytes:
    """For what is refused before it is a request. Says nothing of addresses or software."""
    title = HTTPStatus(status).phrase
    body = b'{"title":"%b","status":%d}' % (title.encode(), status)
    length = (b"content-length", b"%d" % len(body))
    kind = (b"content-type", b"application/problem+json")
    return answer_head(status, (kind, (b"connection", b"close"), length)) + body


def reply_head(reply: Refusal, *, is_close: bool) -> bytes:
    """The head of an answer of our own, which tells its length. Its body is sent by the caller."""
    fields = [
        (name.encode("latin-1", "replace"), value.encode("latin-1", "replace"))
        for name, value in reply.headers
        if not name.startswith(_TRAILER)
    ]
    if reply.status not in _BODILESS:
        size_bytes = reply.file.size_bytes if reply.file is not None else len(reply.body)
        fields.append((b"content-length", b"%d" % size_bytes))
    if is_close:
        fields.append(CLOSE)
    return answer_head(reply.status, fields)


def kept(fields: Headers) -> tuple[tuple[str, str], ...]:
    """Headers as they are kept for a replay. `reply_head` reads them again."""
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)


def upstream_fields(fields: Headers, length_bytes: int | None) -> Headers:
    """With the framing of the body that goes upstream: its length; None leaves what is there."""
    if length_bytes is None:
        return fields
    found, was_chunked = False, False
    framed: list[tuple[bytes, bytes]] = []
    for name, value in fields:
        lower = name.lower()
        if lower == b"transfer-encoding":
            was_chunked = True
            continue
        if lower == b"content-length":
            found, value = True, b"%d" % length_bytes
        framed.append((name, value))
    if (length_bytes or was_chunked) and not found:
        framed.append((b"Content-Length", b"%d" % length_bytes))
    return tuple(framed)
