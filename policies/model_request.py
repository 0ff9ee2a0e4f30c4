"""What a request to a model API asks for, as far as its cost depends on it: model, length, stream.

Read from path and body without building the body in memory. The body is the agent's, who may
write a member twice so that two readers see two things: of lengths the largest counts, and of two
models neither does. The body is read as it stands: a coded one is refused before (policies.match).
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote

import orjson

from policies.meter.picker import Path, Picker
from policies.meter.usage import TOKENS_MAX, count
from policies.model_names import NAME_CHARACTERS_MAX

# Marks of structure in a request's body; a long conversation has 50,000. More would keep other
# calls waiting.
MARKS_MAX = 200_000
ANSWERS_MAX = 1_000  # that one request may ask for; providers allow 128 at most

_MODEL: Path = ("model",)
_LENGTHS = frozenset({
    ("max_tokens",), ("max_completion_tokens",), ("max_output_tokens",), ("max_tokens_to_sample",),
    ("generationConfig", "maxOutputTokens"), ("generation_config", "max_output_tokens"),
    ("generationConfig", "max_output_tokens"), ("generation_config", "maxOutputTokens"),
    ("inferenceConfig", "maxTokens"),
})  # fmt: skip
_ANSWERS = frozenset({
    ("n",), ("best_of",), ("generationConfig", "candidateCount"),
    ("generation_config", "candidate_count"),
    ("generationConfig", "candidate_count"), ("generation_config", "candidateCount"),
})  # fmt: skip
_STREAM: Path = ("stream",)
_ASKS_USAGE: Path = ("stream_options", "include_usage")
_WANTED = _LENGTHS | _ANSWERS | {_MODEL, _STREAM, _ASKS_USAGE}

# Where the path names the model: Google, Bedrock, a deployment of Azure.
_IN_PATH = re.compile(
    r"/(?:models|tunedModels|endpoints)/([^/:]+):[A-Za-z]+$|/model/([^/]+)/[a-z-]+$"
    r"|/deployments/([^/]+)/"
)
_STREAMING_PATH = re.compile(r":stream[A-Za-z]+$|/(?:converse-stream|invoke-with-response-stream)$")


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """`model` is empty if none is named, or two are. `max_tokens` is what may be answered in all
    of `answers` together; None if the request sets no bound, or none that can be believed.
    `asks_usage` says that an OpenAI stream was asked to tell its usage at its end."""

    model: str
    max_tokens: int | None
    streams: bool
    asks_usage: bool
    answers: int = 1


def read_model_request(path: str, body: bytes) -> ModelRequest | None:
    """`path` as it was sent or normal, without its query. None if the body is no JSON object, or
    has more than MARKS_MAX marks: nobody can say what it asks for. Never raises."""
    reader = _Reader()
    picker = Picker(_WANTED, reader.on_value, reader.on_end, MARKS_MAX)
    picker.feed(body)
    if picker.is_lost or not reader.is_object:
        return None
    named = [*_model_in(path), *reader.models]
    # A deployment's name is the tenant's own word for a model; the body may say another one.
    model = named[0] if len(set(named)) == 1 or _model_in(path) else ""
    bound = None if reader.max_tokens is None else reader.max_tokens * reader.answers
    return ModelRequest(
        model=model,
        max_tokens=None if bound is None else min(bound, TOKENS_MAX),
        streams=reader.streams or _STREAMING_PATH.search(path) is not None,
        asks_usage=reader.asks_usage,
        answers=reader.answers,
    )


def _model_in(path: str) -> list[str]:
    found = _IN_PATH.search(path)
    name = unquote(found[1] or found[2] or found[3]) if found else ""
    return [name] if name and len(name) <= NAME_CHARACTERS_MAX else []


class _Reader:
    """Gathers what the picker finds; of what stands twice, the dearer."""

    def __init__(self) -> None:
        self.models: set[str] = set()
        self.answers = 1
        self.streams = self.asks_usage = self.is_object = False
        self._lengths: set[int] = set()
        self._is_unbounded = False

    @property
    def max_tokens(self) -> int | None:
        return None if self._is_unbounded else max(self._lengths, default=None)

    def on_end(self) -> None:
        self.is_object = True

    def on_value(self, path: Path, raw: bytes) -> None:
        try:
            value = orjson.loads(raw)
        except ValueError:
            value = ""
        if path in _LENGTHS:
            self._length(value)
        elif path in _ANSWERS:
            self.answers = max(self.answers, min(count(value) or 1, ANSWERS_MAX))
        elif path == _MODEL:
            # Two are as many as matter; an unreadable one is another.
            name = value if isinstance(value, str) and len(value) <= NAME_CHARACTERS_MAX else ""
            if len(self.models) < 2:
                self.models.add(name)
        elif path == _STREAM:
            self.streams = self.streams or bool(value)
        else:
            self.asks_usage = value is True

    def _length(self, value: object) -> None:
        """Null is as good as nothing; what is no number may be one to somebody else."""
        number = count(value)
        if number is None:
            self._is_unbounded = self._is_unbounded or value is not None
        else:
            self._lengths = {max(self._lengths | {number})}
