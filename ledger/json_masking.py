"""Secrets out of JSON as it is written: nothing but what is masked changes, not even a space.

It reads marks of structure and texts one by one, keeps its own stack and never fails: half a
document, several in a row, and what is nearly JSON are masked as far as they go. Pure.
"""

import json
import re
from typing import Protocol

from ledger.secret_names import Weight

# A text, closed or not; where a colon follows it is a name, with what stands bare behind it.
_TOKEN = re.compile(
    r'"([^"\\]*+(?:\\.?[^"\\]*+)*+)("|\Z)(?:(\s*+:\s*+)([^\s"{}\[\],:]++)?+)?+|[{}\[\]]', re.DOTALL
)
_BARE = re.compile(r"[^\s,:]++")
_NUMBERS = re.compile(r"[\s,:\d.eE+\-]*+")
_BARE_NAME = re.compile(r"([A-Za-z_][\w.\-]{0,100})'?\s{0,8}[:=]\s{0,8}\Z")
_NO_SECRETS = frozenset({"true", "false", "null"})

# {"name": "API_KEY", "value": "..."}: the name of a value stands beside it.
_NAMING = frozenset({"name", "key", "header", "field", "variable", "Name", "Key"})
_NAMED = frozenset({"value", "Value", "val", "stringValue", "string_value", "default", "values",
                    "Values", "content"})  # fmt: skip
_TALKING = frozenset({"role", "tool_call_id", "tool_use_id"})  # beside a text that is no value
# {"auth": {"value": "..."}}: names that say nothing of their own.
_BLANK = frozenset({"code", "data", "hash", "id", "key", "raw", "text", "v", "val", "value",
                    "values"})  # fmt: skip
_COMMENTED = re.compile(r"\s*+/[/*]")


class Masker(Protocol):
    """Masking, as this module sees it."""

    def step(self, steps: int = 1) -> None: ...
    def hide(self, secret: str) -> str: ...
    def own(self, text: str) -> str: ...
    def prose(self, text: str) -> str: ...
    def text(self, text: str, depth: int = 0) -> str: ...
    def weight(self, name: str) -> Weight: ...
    def by_value(self, text: str) -> str: ...


class _Frame:
    """An object or a list that is open. `values` are those that may yet turn out to be named."""

    __slots__ = ("has_secret_name", "is_all", "is_strong", "is_talking", "is_weak", "values")

    def __init__(self, *, is_strong: bool, is_weak: bool, is_list: bool) -> None:
        self.is_strong = is_strong
        self.is_weak = is_weak
        self.is_all = is_strong or (is_weak and is_list)  # every text and number in it is secret
        self.has_secret_name = False
        self.is_talking = False
        self.values: list[tuple[int, str, str]] = []


class _Reading:
    """One document being read: what was written so far, and what the next value stands under."""

    __slots__ = ("_depth", "_frames", "_last", "_masker", "_name", "_out", "_text", "_weight")

    def __init__(self, text: str, masker: Masker, depth: int) -> None:
        self._text = text
        self._masker = masker
        self._depth = depth
        self._out: list[str] = []
        self._frames = [_Frame(is_strong=False, is_weak=False, is_list=False)]
        self._name = ""
        self._last = ""
        self._weight = Weight.PLAIN

    def read(self) -> str:
        position, text, out = 0, self._text, self._out
        for found in _TOKEN.finditer(text):
            self._masker.step()
            start = found.start()
            if start > position:
                self._gap(text[position:start])
            position = found.end()
            mark = text[start]
            if mark == '"':
                if found[3] is None:
                    self._value(found[1], found[2])
                else:
                    self._named(found[1], found[3], found[4])
            else:
                out.append(mark)
                self._structure(mark)
        if position < len(text):
            self._gap(text[position:])
        return "".join(out)

    def _structure(self, mark: str) -> None:
        if mark in "{[":
            frame, name = self._frames[-1], self._name
            strong = frame.is_strong or self._weight is Weight.STRONG or _is_named(frame, name)
            weak = self._weight is Weight.WEAK or _is_blank(frame, name)
            self._frames.append(_Frame(is_strong=strong, is_weak=weak, is_list=mark == "["))
        elif len(self._frames) > 1:
            self._frames.pop()
        self._name, self._weight = "", Weight.PLAIN

    def _gap(self, gap: str) -> None:
        """What stands between texts: signs and numbers, in JSON."""
        if self._last and gap.rstrip()[-1:] == ":" and _COMMENTED.match(gap):
            self._name, self._weight = self._last, self._masker.weight(self._last)
        if self._frames[-1].is_all:
            gap = _BARE.sub(lambda found: self._bare(found[0]), gap)
        elif len(gap) > 5 and not _NUMBERS.fullmatch(gap):
            name = _BARE_NAME.search(gap[-128:])
            if name:
                self._name, self._weight = name[1], self._masker.weight(name[1])
            gap = self._masker.prose(gap)
        self._out.append(gap)

    def _bare(self, scalar: str) -> str:
        return scalar if scalar in _NO_SECRETS else f'"{self._masker.hide(scalar)}"'

    def _named(self, raw: str, colon: str, scalar: str | None) -> None:
        name = _decoded(raw)
        weight = self._masker.weight(name)
        shown = raw
        if name in _TALKING:
            self._frames[-1].is_talking = True
        if len(name) >= 13 or name is not raw:
            hidden = self._masker.prose(name)
            shown = raw if hidden == name else _encoded(hidden)
        self._out += ('"', shown, '"', colon)
        if scalar is None:
            self._name, self._weight = name, weight
            return
        self._name, self._weight = "", Weight.PLAIN
        if self._is_secret(name, weight):
            scalar = self._bare(scalar)
        self._out.append(scalar)

    def _value(self, raw: str, end: str) -> None:
        frame, name, weight = self._frames[-1], self._name, self._weight
        self._name, self._weight = "", Weight.PLAIN
        self._last = value = _decoded(raw)
        if name in _NAMED and not frame.has_secret_name:
            frame.values.append((len(self._out) + 1, value, name))
        elif name in _NAMING and self._masker.weight(value):
            self._has_secret_name(frame)
        if self._is_secret(name, weight):
            shown = _encoded(self._masker.hide(value))
        elif value is raw and (
            len(raw) < 6 or (len(raw) < 13 and "=" not in raw and ":" not in raw)
        ):
            shown = raw
        else:
            if value is not raw:
                value = self._masker.own(self._masker.by_value(value))
            hidden = self._masker.text(value, self._depth)
            shown = raw if hidden == _decoded(raw) else _encoded(hidden)
        self._out += ('"', shown, end)

    def _is_secret(self, name: str, weight: Weight) -> bool:
        frame = self._frames[-1]
        return bool(weight) or frame.is_all or _is_blank(frame, name) or _is_named(frame, name)

    def _has_secret_name(self, frame: _Frame) -> None:
        frame.has_secret_name = True
        for at, value, name in frame.values:
            if frame.is_talking and name == "content":
                continue
            self._out[at] = _encoded(self._masker.hide(value))
        frame.values.clear()


def _is_blank(frame: _Frame, name: str) -> bool:
    return frame.is_weak and (not name or name in _BLANK)


def _is_named(frame: _Frame, name: str) -> bool:
    """Whether the name of this value stood beside it, and told that it is a secret."""
    is_value = frame.has_secret_name and name in _NAMED
    return is_value and not (frame.is_talking and name == "content")


def masked(text: str, masker: Masker, depth: int) -> str:
    """The document without secrets. `depth` is how many texts of JSON it stands in."""
    return _Reading(text, masker, depth).read()


def _decoded(raw: str) -> str:
    """What a text says; the same object where it has no escapes, or none that JSON knows."""
    if "\\" not in raw:
        return raw
    try:
        return str(json.loads(f'"{raw}"', strict=False))
    except ValueError:
        return raw


def _encoded(value: str) -> str:
    return json.dumps(value, ensure_ascii=not _is_text(value))[1:-1]


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
