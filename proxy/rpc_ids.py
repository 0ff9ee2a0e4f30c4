"""A stored JSON-RPC answer under the id of who asks again. Pure.

By JSON-RPC 2.0, section 5, a response has the id of its request: a client finds by it what it waits
for. Only the bytes of that id are replaced; all else of the answer stays as it came. What is not
plainly one response, or a stream of events with one (WHATWG HTML, section 9.2), stays as it is.
"""

import json
import re
from itertools import islice

from policies.content import UTF_8, read_content

Headers = tuple[tuple[str, str], ...]
Span = tuple[int, int]

# They say what the bytes were: RFC 9530, RFC 3230, RFC 1864.
_OF_BYTES = frozenset(("content-digest", "repr-digest", "digest", "content-md5"))

_ANSWERS = ("result", "error")
EVENTS_MAX = 10_000  # of a stream: looked at one by one, while other calls wait
_MEMBERS_MAX = 20  # of a response, which has three; more would be walked one by one
_DECODER = json.JSONDecoder()
_BLANK = re.compile(r"[ \t\r\n]*")
_LINE_END = rb"(?>\r\n|\n|\r)"
_EVENT_END = re.compile(_LINE_END + _LINE_END)
_DATA = re.compile(rb"(?:\A(?:\xef\xbb\xbf)?|(?<=[\r\n]))data:([^\r\n]*)")


def under_id(headers: Headers, body: bytes, rpc_id: str | int) -> tuple[Headers, bytes]:
    """The head and the body of a stored answer, for a request with this id."""
    told = {name: _of(headers, name) for name in ("content-type", "content-encoding")}
    content = read_content(told["content-type"], told["content-encoding"], "")
    if content.hidden(UTF_8):
        return headers, body
    written = json.dumps(rpc_id).encode()
    if content.media_type == "text/event-stream":
        found = _in_events(body, written)
    else:
        span = _id_span(body)
        found = body if span is None else body[: span[0]] + written + body[span[1] :]
    if found == body:
        return headers, body
    return tuple(pair for pair in headers if pair[0].lower() not in _OF_BYTES), found


def _of(headers: Headers, name: str) -> str:
    return ",".join(value for known, value in headers if known.lower() == name)


def _in_events(body: bytes, written: bytes) -> bytes:
    """The stream with that id in each event that carries a response."""
    parts: list[bytes] = []
    begin = copied = 0
    ends = [mark.end() for mark in islice(_EVENT_END.finditer(body), EVENTS_MAX)]
    if len(ends) == EVENTS_MAX:
        return body
    for end in (*ends, len(body)):
        span = _span_in(body[begin:end])
        if span is not None:
            parts += (body[copied : begin + span[0]], written)
            copied = begin + span[1]
        begin = end
    return b"".join((*parts, body[copied:]))


def _span_in(event: bytes) -> Span | None:
    """Where in an event the id stands. Its data may come in several lines, a value does not."""
    lines = [line.span(1) for line in _DATA.finditer(event)]
    span = _id_span(b"\n".join(event[begin:end] for begin, end in lines)) if lines else None
    if span is None:
        return None
    left = span[0]
    for begin, end in lines:
        if left <= end - begin:
            return begin + left, begin + left + span[1] - span[0]
        left -= end - begin + 1
    return None


def _id_span(body: bytes) -> Span | None:
    """Where the id of a response stands; None where the bytes are not plainly one response."""
    # One character for each byte, so that places in the text are places in the body.
    text = body.decode("latin-1")
    try:
        spans = _members(text)
    except (ValueError, IndexError, RecursionError):
        return None
    if "jsonrpc" not in spans or "method" in spans or spans.keys().isdisjoint(_ANSWERS):
        return None
    return spans.get("id")


def _members(text: str) -> dict[str, Span]:
    """Where the values of an object's members stand. Raises ValueError, IndexError and
    RecursionError for what is no object, or too much of one."""
    spans: dict[str, Span] = {}
    at, sign = _after_blank(text, 0), "{"
    while sign != "}":
        if text[at] != sign or len(spans) == _MEMBERS_MAX:
            raise ValueError
        name, at = _DECODER.raw_decode(text, _after_blank(text, at + 1))
        at = _after_blank(text, at)
        if not isinstance(name, str) or name in spans or text[at] != ":":
            raise ValueError
        begin = _after_blank(text, at + 1)
        _, end = _DECODER.raw_decode(text, begin)
        spans[name] = begin, end
        at = _after_blank(text, end)
        sign = "}" if text[at] == "}" else ","
    if _after_blank(text, at + 1) != len(text):
        raise ValueError
    return spans


def _after_blank(text: str, at: int) -> int:
    blank = _BLANK.match(text, at)
    return blank.end() if blank else at
