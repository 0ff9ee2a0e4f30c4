"""A few members of a JSON text, picked out while it streams by, in memory that does not grow.

An answer may be a hundred megabytes of embeddings with the usage at its end, so nothing is kept
but the wanted values. It does not validate: what is not JSON yields nothing, or bytes that no
JSON reader will take. What the values mean is for others to say.
"""

import re
from collections.abc import Callable

import orjson

Path = tuple[str, ...]

PICKED_BYTES_MAX = 16 * 1024  # of one wanted value; usage is 300 bytes, a long one 1,500
KEY_BYTES_MAX = 64  # longer ones are nobody's

# Members whose strings are the model's words, whichever the provider.
TEXT_KEYS = frozenset({
    "arguments", "completion", "content", "delta", "input", "partial_json", "reasoning",
    "reasoning_content", "refusal", "text", "thinking", "transcript",
})  # fmt: skip

# What follows in a string, to its end or to an escape that the next part completes.
_IN_STRING = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*+', re.DOTALL)
_STRUCTURE = re.compile(rb'["{}\[\],:]')
# Where nothing is wanted commas mean nothing, which makes long lists of numbers cheap.
_SKIPPED = re.compile(rb'["{}\[\]:]')
# Where the words do not count either, whole strings are nothing.
_MUTE = re.compile(rb'[^"{}\[\]]*+(?:"[^"\\]*+(?:\\.[^"\\]*+)*+"[^"{}\[\]]*+)*+', re.DOTALL)
_QUOTE, _BACKSLASH, _COLON, _COMMA = b'"\\:,'
_OPENING = frozenset(b"{[")
_OBJECT = ord("{")


class Picker:
    """Calls `on_value(path, raw)` for each wanted value, in the order of the text, and `on_end()`
    when an object at the root, or in an array at the root, is complete.

    `raw` is the value's JSON; empty if it was longer than PICKED_BYTES_MAX. `text_bytes` is how
    long the strings under TEXT_KEYS were so far, as written; `on_end` may set it back. It is not
    counted with a `marks_max`: after so many marks of structure nothing more is read (`is_lost`).
    `on_name(path of the object, raw, name)` hears every name in the objects that are followed: the
    first KEY_BYTES_MAX + 1 bytes as written, and what they say; None if that cannot be read.
    """

    __slots__ = (
        "_after_colon", "_counts", "_escaped", "_in_array", "_in_object", "_in_string", "_key",
        "_level", "_marks_left", "_on_end", "_on_name", "_on_value", "_parents", "_path",
        "_picked", "_picked_path", "_picking", "_skipped", "_string", "_wanted", "is_lost",
        "text_bytes",
    )  # fmt: skip

    def __init__(
        self,
        wanted: frozenset[Path],
        on_value: Callable[[Path, bytes], None],
        on_end: Callable[[], None],
        marks_max: int | None = None,
        on_name: Callable[[Path, bytes, str | None], None] | None = None,
    ) -> None:
        self._wanted = wanted
        self._parents = frozenset(path[:end] for path in wanted for end in range(1, len(path)))
        self._on_value = on_value
        self._on_end = on_end
        self._on_name = on_name
        self.text_bytes = 0
        self._marks_left = marks_max
        self.is_lost = False
        self.reset()

    def reset(self) -> None:
        """Forget where we are: a new text begins."""
        self._in_array = self._in_object = False
        self._in_string = self._escaped = self._counts = False
        self._string = bytearray()
        self._path: Path = ()  # of the objects that are followed
        self._key: str | None = None
        self._after_colon = False
        self._skipped = 0  # how deep inside what is not followed
        self._picking = False
        self._picked = bytearray()
        self._picked_path: Path = ()
        self._level = 0  # how deep inside the picked value

    def feed(self, data: bytes) -> None:
        """Any part of the text, as it comes."""
        position, end = 0, len(data)
        while position < end and not self.is_lost:
            if self._in_string:
                position = self._read_string(data, position)
                continue
            stop = self._next_mark(data, position)
            if self._picking:
                self._pick(data[position:stop])
            if stop < end:
                self._take(data[stop])
            position = stop + 1

    def _next_mark(self, data: bytes, position: int) -> int:
        """Where the next mark of the structure stands; the end of the data if there is none."""
        if self._marks_left is not None:
            self.is_lost = self._marks_left == 0
            self._marks_left -= 1
            if self._skipped and not self._picking:
                found = _MUTE.match(data, position)
                return found.end() if found else len(data)
        marks = _SKIPPED if self._skipped and not self._picking else _STRUCTURE
        found = marks.search(data, position)
        return found.start() if found else len(data)

    def _read_string(self, data: bytes, position: int) -> int:
        """Read on in a string; where what follows begins."""
        if self._escaped:
            self._escaped = False
            self._add(data[position : position + 1])
            return position + 1
        found = _IN_STRING.match(data, position)
        stop = found.end() if found else len(data)
        self._add(data[position:stop])
        if stop == len(data):
            return stop
        if data[stop] == _BACKSLASH:
            self._escaped = True
            self._add(b"\\")
            return stop + 1
        self._in_string = self._counts = False
        self._after_colon = False
        if self._picking:
            self._pick(b'"')
            if not self._level:
                self._picked_one()
        return stop + 1

    def _add(self, part: bytes) -> None:
        if self._picking:
            self._pick(part)
        self._string += part[: KEY_BYTES_MAX + 1 - len(self._string)]
        if self._counts:
            self.text_bytes += len(part)

    def _take(self, mark: int) -> None:
        """One mark of the structure, outside of strings."""
        if mark == _QUOTE:
            self._in_string = True
            self._counts = self._marks_left is None and self._after_colon and self._key in TEXT_KEYS
            self._string.clear()
            if self._picking:
                self._pick(b'"')
        elif mark == _COLON:
            self._colon()
        elif mark == _COMMA:
            if self._picking and not self._level:
                self._picked_one()
            elif self._picking:
                self._pick(b",")
            self._after_colon = False
        elif mark in _OPENING:
            self._open(mark)
        else:
            self._close(mark)

    def _colon(self) -> None:
        self._key = self._name()
        self._after_colon = True
        if self._on_name and not self._picking and not self._skipped and self._in_object:
            self._on_name(self._path, bytes(self._string), self._key)
        if self._picking:
            self._pick(b":")
        elif not self._skipped and self._in_object and self._key is not None:
            path = (*self._path, self._key)
            if path in self._wanted:
                self._picking, self._picked_path, self._level = True, path, 0
                self._picked.clear()

    def _name(self) -> str | None:
        if len(self._string) > KEY_BYTES_MAX:
            return None
        try:
            name = orjson.loads(b'"%b"' % bytes(self._string))
        except ValueError:
            return None
        return name if isinstance(name, str) else None

    def _open(self, mark: int) -> None:
        is_member, self._after_colon = self._after_colon, False
        if self._picking:
            self._pick(bytes((mark,)))
            self._level += 1
        elif self._skipped:
            self._skipped += 1
        elif not self._in_object:
            if mark == _OBJECT:
                self._in_object = True
            elif self._in_array:
                self._skipped = 1
            else:
                self._in_array = True
        elif (
            mark == _OBJECT and is_member and self._key
            and (*self._path, self._key) in self._parents
        ):  # fmt: skip
            self._path = (*self._path, self._key)
        else:
            self._skipped = 1

    def _close(self, mark: int) -> None:
        self._after_colon = False
        if self._picking and self._level:
            self._pick(bytes((mark,)))
            self._level -= 1
            if not self._level:
                self._picked_one()
            return
        if self._picking:
            self._picked_one()
        if self._skipped:
            self._skipped -= 1
        elif self._path:
            self._path = self._path[:-1]
        elif self._in_object:
            self._in_object = False
            self._on_end()
        else:
            self._in_array = False

    def _pick(self, part: bytes) -> None:
        self._picked += part[: PICKED_BYTES_MAX + 1 - len(self._picked)]

    def _picked_one(self) -> None:
        self._picking = False
        raw = bytes(self._picked) if len(self._picked) <= PICKED_BYTES_MAX else b""
        self._on_value(self._picked_path, raw)
