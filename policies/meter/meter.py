"""The meter of one model call: the answer's bytes go in as they come, usage comes out.

It goes by the answer's shape alone, not by who sent it: gateways answer in the shapes of others.
Where in an answer each provider says its usage, plain or streamed, stands in the tables below.
Nothing here raises, whatever the bytes; memory is bounded by policies.meter.picker. Content codings
(gzip, br, zstd) are out of scope: such an answer yields no usage, so ask for none
(`accept-encoding: identity`) or undo them.
"""

from base64 import b64decode
from dataclasses import replace
from typing import Protocol

import orjson

from policies.meter.framing import EventStreamFrames, ServerSentEvents
from policies.meter.picker import Path, Picker
from policies.meter.usage import TOKENS_MAX, Usage, read_usage
from policies.model_names import NAME_CHARACTERS_MAX

TOKEN_BYTES = 3  # a token that was not told is taken for this many bytes, which errs upwards

EVENT_STREAM = "application/vnd.amazon.eventstream"
SERVER_SENT_EVENTS = "text/event-stream"

# Where usage and the model's name are said: at the top, in OpenAI's events "response.*", in
# Anthropic's "message_start"; Google's own words; a tier beside the usage of OpenAI.
_USAGE = frozenset({
    ("usage",), ("usageMetadata",), ("response", "usage"), ("message", "usage"),
    ("amazon-bedrock-invocationMetrics",),
})  # fmt: skip
_METRICS = ("amazon-bedrock-invocationMetrics",)
_MODEL = frozenset({("model",), ("modelVersion",), ("response", "model"), ("message", "model")})
_TIER = frozenset({("service_tier",), ("response", "service_tier")})
_TYPE: Path = ("type",)
_WANTED = _USAGE | _MODEL | _TIER | {_TYPE}
# Events after which nothing more is billed: of OpenAI's responses, of Anthropic.
_LAST = (b'"response.completed"', b'"response.incomplete"', b'"response.failed"',
         b'"message_delta"', b'"message_stop"')  # fmt: skip
_DONE = b"[DONE]"  # ends the streams of OpenAI's chat, and of all who imitate it
_DONE_TAIL_BYTES = 16  # it, and the ends of lines around it
_BYTES: Path = ("bytes",)  # of a frame of InvokeModelWithResponseStream: an event in base64

# All that `read_usage` looks at. A stream that invents a member each time fills no memory.
_TOLD = frozenset({
    "cacheDetails", "cacheReadInputTokenCount", "cacheReadInputTokens", "cacheWriteInputTokenCount",
    "cacheWriteInputTokens", "cache_creation", "cache_creation_input_tokens",
    "cache_read_input_tokens", "cached_tokens", "cachedContentTokenCount", "candidatesTokenCount",
    "candidatesTokensDetails", "completion_tokens", "completion_tokens_details", "inputTokenCount",
    "inputTokens", "input_token_details", "input_tokens", "input_tokens_details",
    "outputTokenCount", "outputTokens", "output_token_details", "output_tokens",
    "output_tokens_details", "promptTokenCount", "promptTokensDetails", "prompt_cache_hit_tokens",
    "prompt_tokens", "prompt_tokens_details", "server_tool_use", "service_tier", "speed",
    "thoughtsTokenCount", "toolUsePromptTokenCount", "totalTokenCount", "total_tokens",
})  # fmt: skip


class _Reader(Protocol):
    def feed(self, data: bytes) -> None: ...


class Meter:
    """`content_type` is the answer's header; `request_model` what was asked for, and is told where
    the answer names no model.

    Usage events of a stream are totals so far with every provider: of each number the last word
    counts, and a number that the last event leaves out keeps its last word.
    """

    __slots__ = ("_bytes", "_event", "_is_closed", "_is_ended", "_metrics", "_model", "_outer",
                 "_picker", "_reader", "_request_model", "_tail", "_text_bytes", "_told",
                 "_told_bytes")  # fmt: skip

    def __init__(self, content_type: str, request_model: str) -> None:
        self._request_model = request_model[:NAME_CHARACTERS_MAX]
        self._model = ""
        self._told: dict[str, object] = {}
        self._metrics: dict[str, object] = {}
        self._event: dict[Path, bytes] = {}
        self._text_bytes = 0
        self._is_ended = False  # whether usage was told that is not only its beginning
        self._is_closed = False
        self._tail = b""
        self._told_bytes = 0  # the words that the last usage covers
        self._picker = Picker(_WANTED, self._on_value, self._on_end)
        self._bytes = b""
        self._outer: Picker | None = None  # of the frames of AWS, around the events
        self._reader = self._reader_of(content_type.partition(";")[0].strip().lower())

    def feed(self, chunk: bytes) -> None:
        """The next bytes of the answer's body, of any length. Never raises."""
        self._reader.feed(chunk)
        self._tail = (self._tail + chunk[-_DONE_TAIL_BYTES:])[-_DONE_TAIL_BYTES:]

    def usage(self) -> Usage | None:
        """What was told so far; None if nothing was, or nothing believable."""
        model = self._model or self._request_model
        return read_usage(self._told, model) or read_usage(self._metrics, model)

    @property
    def is_final(self) -> bool:
        """Whether usage was told that covers all output so far. Not so if only its beginning was
        (Anthropic's message_start), if the model spoke since, or if none was told."""
        return self._is_ended and self.output_bytes == self._told_bytes and self.usage() is not None

    @property
    def is_closed(self) -> bool:
        """Whether the stream said that it is over, however it ended then."""
        # A model's words hold no end of a line as it stands: this one is the stream's own.
        is_done = self._tail.endswith((b"\n", b"\r")) and self._tail.rstrip().endswith(_DONE)
        return self._is_closed or is_done

    @property
    def output_bytes(self) -> int:
        """The model's words so far, in bytes as they stand in JSON. Thoughts that a provider keeps
        to itself are not among them."""
        seen = self._text_bytes + (self._outer.text_bytes if self._outer else 0)
        return seen + (0 if self._repeats() else self._picker.text_bytes)

    @property
    def output_tokens_estimate(self) -> int:
        """The output so far by what was seen alone; of words it errs upwards."""
        return _tokens(self.output_bytes)

    def so_far(self, input_tokens: int) -> Usage:
        """For a running or a cut stream: what was told, and what was seen since.

        `input_tokens` is the estimate made before the call; it counts until the input is told.
        """
        told = self.usage()
        if told is None:
            taken = max(0, min(input_tokens, TOKENS_MAX))
            told = Usage(self._model or self._request_model, taken, 0, 0, 0, 0)
        given = told.output_tokens + _tokens(max(0, self.output_bytes - self._told_bytes))
        return replace(told, output_tokens=min(given, TOKENS_MAX))

    # ------------------------------------------------------------------ how the bytes are read

    def _reader_of(self, media_type: str) -> _Reader:
        if media_type == SERVER_SENT_EVENTS:
            return ServerSentEvents(self._picker.feed, self._next_text)
        if media_type == EVENT_STREAM:
            self._outer = Picker(_WANTED | {_BYTES}, self._on_value, self._on_end)
            return EventStreamFrames(self._outer.feed, self._on_frame)
        return self._picker

    def _next_text(self) -> None:
        self._close_event()
        self._picker.reset()

    def _on_frame(self, is_sound: bool) -> None:
        """A frame's payload is an event, or holds one in base64. Applied once its CRC is right."""
        outer = self._outer
        if outer is None:
            return
        self._text_bytes += outer.text_bytes
        outer.text_bytes = 0
        outer.reset()
        inner, self._bytes = self._bytes, b""
        if not is_sound:
            self._event.clear()
            return
        self._close_event()
        if inner:
            self._picker.feed(inner)
            self._next_text()

    # ------------------------------------------------------------------ what is read

    def _on_value(self, path: Path, raw: bytes) -> None:
        if path == _BYTES:
            self._bytes = _from_base64(raw)
        elif raw:
            self._event[path] = raw

    def _on_end(self) -> None:
        if self._outer is None:
            self._close_event()

    def _close_event(self) -> None:
        repeats = self._repeats()
        if not repeats:
            self._text_bytes += self._picker.text_bytes
        self._picker.text_bytes = 0
        event, self._event = self._event, {}
        kind = event.get(_TYPE, b"").strip()
        is_start = kind == b'"message_start"'
        self._is_closed = self._is_closed or kind in _LAST
        for path, raw in event.items():
            if path in _USAGE:
                self._tell(path, _loaded(raw), is_start)
            elif path in _MODEL:
                name = _loaded(raw)
                if isinstance(name, str) and name and len(name) <= NAME_CHARACTERS_MAX:
                    self._model = name
            elif path in _TIER:
                self._tell_tier(_loaded(raw))

    def _tell(self, path: Path, usage: object, is_start: bool) -> None:
        if not isinstance(usage, dict):
            return  # OpenAI says null until the end
        told = {name: value for name, value in usage.items() if name in _TOLD and value is not None}
        if path == _METRICS:
            self._metrics = told
        else:
            self._told |= told
        if told:
            self._is_ended = not is_start
            self._told_bytes = self._text_bytes

    def _tell_tier(self, tier: object) -> None:
        if isinstance(tier, str):
            self._told["service_tier"] = tier

    def _repeats(self) -> bool:
        """Whether this event says again what was said before, as OpenAI's response.*.done do."""
        kind = self._event.get(_TYPE, b"").strip()
        return kind.startswith(b'"response.') and not kind.endswith(b'.delta"')


def _tokens(text_bytes: int) -> int:
    return min(-(-text_bytes // TOKEN_BYTES), TOKENS_MAX)


def _loaded(raw: bytes) -> object:
    try:
        value: object = orjson.loads(raw)
    except ValueError:
        return None
    return value


def _from_base64(raw: bytes) -> bytes:
    text = _loaded(raw)
    try:
        return b64decode(text, validate=True) if isinstance(text, str) else b""
    except ValueError:
        return b""
