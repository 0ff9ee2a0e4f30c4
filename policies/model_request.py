"""What a request to a model API asks for, as far as its cost depends on it: model, length, stream.

Read from path and body without building the body in memory. The body is the agent's, who may
write a member so that two readers see two things: twice, in another case, with escapes, as text in
place of a number. Such a request is `unclear`, and is refused: no honest client writes one. The
body is read as it stands: a coded one is refused before (policies.match).
"""

import re
from dataclasses import dataclass
from urllib.parse import unquote

import orjson

from policies import paths
from policies.meter.picker import KEY_BYTES_MAX, Path, Picker
from policies.meter.usage import TOKENS_MAX, count
from policies.model_names import NAME_CHARACTERS_MAX
from policies.model_shapes import ANSWERS, LENGTHS, STORED, lengths_of, names_stored

# Marks of structure in a request's body; a long conversation has 50,000. More would keep other
# calls waiting.
MARKS_MAX = 200_000
ANSWERS_MAX = 1_000  # that one request may ask for; providers allow 128 at most

_MODEL: Path = ("model",)
_STREAM: Path = ("stream",)
_ASKS_USAGE: Path = ("stream_options", "include_usage")
_BACKGROUND: Path = ("background",)
_WANTED = LENGTHS | ANSWERS | STORED | {_MODEL, _STREAM, _ASKS_USAGE, _BACKGROUND}
_KNOWN = _WANTED | {path[:1] for path in _WANTED}

_BEFORE = b" \t\r\n\0\xef\xbb\xbf\xfe\xff"  # blanks and marks of encodings
_TOO_LONG = "it has more brackets and commas than are read of what decides its cost"
_ODD_NAME = "what it costs cannot be read: a name in it has an escape, or is no text"
_ODD_CASE = "what it costs cannot be read: {} is another spelling of a name that decides it"
_TWICE = "what it costs cannot be read: {} stands twice, or in two spellings"
_NO_NUMBER = "what it costs cannot be read: {} must be a plain whole number"
_IN_BACKGROUND = (
    "the answer to a request in the background is fetched by another call, so that nobody could "
    "say what it cost; leave `background` out and stream the answer"
)

# Where the path names the model: Google, Bedrock, a deployment of Azure.
_IN_PATH = re.compile(
    r"/(?:models|tunedModels|endpoints)/([^/:]+):[A-Za-z]+$|/model/([^/]+)/[a-z-]+$"
    r"|/deployments/([^/]+)/"
)
_STREAMING_PATH = re.compile(r":stream[A-Za-z]+$|/(?:converse-stream|invoke-with-response-stream)$")


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """`model` is empty if none is named. `max_tokens` is what may be answered in all of `answers`
    together; None if the request sets no bound that its API goes by; `other_tokens` is the same in
    words that its API may not know, 0 if there are none. `asks_usage` says that an OpenAI stream
    was asked to tell its usage at its end, `stored` that more is read than was sent. `unclear` is
    why it must be refused; empty if it need not."""

    model: str
    max_tokens: int | None
    streams: bool
    asks_usage: bool
    answers: int = 1
    other_tokens: int = 0
    stored: bool = False
    unclear: str = ""


def read_model_request(path: str, body: bytes) -> ModelRequest | None:
    """`path` as it was sent or normal, without its query. None if the body is no JSON object:
    nobody can say what it asks for. Never raises."""
    if not body.lstrip(_BEFORE).startswith(b"{"):
        return None
    path = (paths.normal(path) or path).replace("%3A", ":")
    reader = _Reader(lengths_of(path))
    picker = Picker(_WANTED, reader.on_value, reader.on_end, MARKS_MAX, reader.on_name)
    picker.feed(body)
    if picker.is_lost:
        return ModelRequest("", None, False, False, unclear=_TOO_LONG)
    if not reader.is_object and not reader.unclear:
        return None
    bound = None if reader.max_tokens is None else reader.max_tokens * reader.answers
    return ModelRequest(
        # A deployment's name is the tenant's own word for a model; the body may say another one.
        model=_model_in(path) or reader.model,
        max_tokens=None if bound is None else min(bound, TOKENS_MAX),
        streams=reader.streams or _STREAMING_PATH.search(path) is not None,
        asks_usage=reader.asks_usage,
        answers=reader.answers,
        other_tokens=min(reader.other_tokens * reader.answers, TOKENS_MAX),
        stored=reader.stored or names_stored(body),
        unclear=reader.unclear,
    )


def _model_in(path: str) -> str:
    found = _IN_PATH.search(path)
    name = unquote(found[1] or found[2] or found[3]) if found else ""
    return name if len(name) <= NAME_CHARACTERS_MAX else ""


def _folded(path: Path) -> Path:
    """As the most lenient servers read names: in any case, with underscores or without."""
    return tuple(name.casefold().replace("_", "").replace("-", "") for name in path)


_FOLDED = frozenset(map(_folded, _KNOWN))


class _Reader:
    """Gathers what the picker finds. `lengths` are the names that the request's API goes by; of
    several the largest counts."""

    def __init__(self, lengths: frozenset[Path]) -> None:
        self.model = ""
        self.answers = 1
        self.streams = self.asks_usage = self.is_object = self.stored = False
        self.other_tokens = 0
        self.unclear = ""
        self._lengths = lengths
        self._names: set[Path] = set()
        self._bound: int | None = None
        self._is_unbounded = False

    @property
    def max_tokens(self) -> int | None:
        return None if self._is_unbounded else self._bound

    def on_end(self) -> None:
        self.is_object = True

    def on_name(self, parent: Path, raw: bytes, name: str | None) -> None:
        """A name in an object that holds wanted ones; `raw` is at least how it begins."""
        if b"\\" in raw or (name is None and len(raw) <= KEY_BYTES_MAX):
            self.unclear = self.unclear or _ODD_NAME
        if name is None:
            return
        path = (*parent, name)
        folded = _folded(path)
        if folded not in _FOLDED:
            return
        if folded in self._names:
            self.unclear = self.unclear or _TWICE.format(name)
        elif path not in _KNOWN:
            self.unclear = self.unclear or _ODD_CASE.format(name)
        self._names.add(folded)

    def on_value(self, path: Path, raw: bytes) -> None:
        try:
            value = orjson.loads(raw)
        except ValueError:
            value = ""
        if path in LENGTHS:
            self._length(path, value)
        elif path in ANSWERS:
            self._answers(path, value)
        elif path == _MODEL:
            is_name = isinstance(value, str) and len(value) <= NAME_CHARACTERS_MAX
            self.model = value if is_name else ""
        elif path == _STREAM:
            self.streams = bool(value)
        elif path == _ASKS_USAGE:
            self.asks_usage = value is True
        elif path == _BACKGROUND:
            if value not in (None, False):
                self.unclear = self.unclear or _IN_BACKGROUND
        elif path == ("prompt",):  # words in one API, a stored template in another
            self.stored = self.stored or raw.lstrip()[:1] in (b"", b"{")
        else:
            self.stored = self.stored or value is not None

    def _length(self, path: Path, value: object) -> None:
        """Null is as good as nothing; less than nothing is no bound to some servers."""
        number = count(value)
        if number is None:
            if value is not None and not _is_negative(value):
                self.unclear = self.unclear or _NO_NUMBER.format(path[-1])
            self._is_unbounded = self._is_unbounded or value is not None
        elif path in self._lengths:
            self._bound = max(self._bound or 0, number)
        else:
            self.other_tokens = max(self.other_tokens, number)

    def _answers(self, path: Path, value: object) -> None:
        number = count(value)
        if number is not None:
            self.answers = max(self.answers, min(number, ANSWERS_MAX))
        elif value is not None:
            self.unclear = self.unclear or _NO_NUMBER.format(path[-1])


def _is_negative(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value < 0
