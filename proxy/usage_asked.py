"""Usage asked for in an OpenAI stream whose client did not ask: in the request, and out of the
answer again.

Such a stream tells its usage at its end only if `stream_options.include_usage` is true. Then one
more event comes, with no choices, before `[DONE]`; it is taken out, and all else goes on byte for
byte. Source: OpenAI's API reference, "Create chat completion", `stream_options`; event format:
WHATWG HTML, section 9.2.
"""

import re

import orjson

from policies.call import Request
from policies.meter.picker import Path, Picker
from policies.model_request import MARKS_MAX, ModelRequest
from policies.policy import Tool

EVENT_BYTES_MAX = 16 * 1024  # usage is told in less; of a longer event nothing is held

_STREAMS_USAGE = re.compile(r"/(?:chat/)?completions/?\Z")
_OPTIONS: Path = ("stream_options",)
_NAMED = re.compile(rb'"stream_options"[ \t\r\n]*:[ \t\r\n]*')
_ASKED = b'"include_usage":true'
_EVENT_END = re.compile(rb"(?>\r\n|\n|\r)(?>\r\n|\n|\r)")
_MARK_BYTES = 3  # of the longest end of an event, those that may come before its last
_BLANK = b" \t\r\n"
# Of the event that tells usage; one that says more is the agent's to read.
_MEMBERS = frozenset({
    "choices", "created", "id", "model", "object", "obfuscation", "service_tier",
    "system_fingerprint", "usage",
})  # fmt: skip
_SEALS = ("content-digest", "digest", "content-md5")  # of the body as the agent wrote it


def asking(tool: Tool, request: Request, asked: ModelRequest | None) -> bytes | None:
    """The request's body, asking for usage too; None if it is to go as it came: it asks already,
    it is no such stream, its digest was sent, or nobody can say what exactly it asks for."""
    if tool.model_api != "openai" or asked is None or not asked.streams or asked.asks_usage:
        return None
    if not _STREAMS_USAGE.search(request.path) or any(map(request.header, _SEALS)):
        return None
    found: list[bytes] = []
    picker = Picker(frozenset({_OPTIONS}), lambda _, raw: found.append(raw), _nothing, MARKS_MAX)
    picker.feed(request.body)
    if not found:
        return _appended(request.body)
    named = list(_NAMED.finditer(request.body))
    if len(found) > 1 or len(named) != 1:
        return None
    return _extended(request.body, named[0].end(), found[0].strip(_BLANK))


def _appended(body: bytes) -> bytes | None:
    """With `stream_options` as its last member."""
    text = body.rstrip(_BLANK)
    if not text.endswith(b"}"):
        return None
    members = text[:-1].rstrip(_BLANK)
    comma = b"" if members.endswith(b"{") else b","
    return b'%b%b"stream_options":{%b}}' % (members, comma, _ASKED)


def _extended(body: bytes, start: int, options: bytes) -> bytes | None:
    """With `include_usage` beside the members that `stream_options` has; other values of it ask
    for nothing, or are for the upstream to refuse."""
    try:
        given = orjson.loads(options)
    except ValueError:
        return None
    if given is None:
        given = {}
    if not isinstance(given, dict) or not body.startswith(options, start):
        return None
    asked = orjson.dumps({**given, "include_usage": True})
    return body[:start] + asked + body[start + len(options) :]


def _nothing() -> None:
    return None


class WithoutUsage:
    """Fed with the chunks of one event stream; gives back what may flow on now.

    An event is held until it has ended, since before nobody knows whether it is the one; one that
    grows beyond EVENT_BYTES_MAX is not, and flows.
    """

    def __init__(self) -> None:
        self._held = bytearray()  # an event that has not ended
        self._searched = 0  # where the next search begins: no byte is looked at twice
        self._is_long = False  # more of this event came than is held
        self._returned = False  # what was taken out ended in a return: a line feed may follow

    def feed(self, chunk: bytes) -> bytes:
        if self._returned and chunk:
            self._returned = False
            chunk = chunk.removeprefix(b"\n")
        self._held += chunk
        flows, begin = bytearray(), 0
        for mark in _EVENT_END.finditer(self._held, self._searched):
            is_last = mark.end() == len(self._held)
            flows += self._kept(self._held[begin : mark.end()], is_last=is_last)
            begin = mark.end()
        del self._held[:begin]
        if self._is_long or len(self._held) > EVENT_BYTES_MAX:
            self._is_long = True
            flows += self._held[:-_MARK_BYTES]
            del self._held[:-_MARK_BYTES]
        self._searched = max(0, len(self._held) - _MARK_BYTES)
        return bytes(flows)

    def rest(self) -> bytes:
        """At the end of the stream: what is left of it."""
        rest, self._held = self._held, bytearray()
        self._searched = 0
        return bytes(self._kept(rest, is_last=True))

    def _kept(self, event: bytearray, *, is_last: bool) -> bytearray:
        is_long, self._is_long = self._is_long, False
        if is_long or not _tells_usage_alone(bytes(event)):
            return event
        self._returned = is_last and event.endswith(b"\r")
        return event[: len(event) - len(event.lstrip(b"\r\n"))]  # these ended what came before


def _tells_usage_alone(event: bytes) -> bool:
    """Whether it is the event that was asked for: usage, no choice, and nothing that is new."""
    if b'"usage"' not in event:
        return False
    lines = [line[5:] for line in event.splitlines() if line.startswith(b"data:")]
    try:
        told = orjson.loads(b"\n".join(lines))
    except ValueError:
        return False
    if not isinstance(told, dict) or not told.keys() <= _MEMBERS:
        return False
    return told.get("choices") == [] and bool(told.get("usage"))
