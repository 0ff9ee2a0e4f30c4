"""What was seen last, under the newest keys: a run's actions with their results, its destinations.

Ten thousand runs are remembered at once, so each key takes eight bytes and no object of its own.
Keys and values of the record are short hashes already; what has another length is hashed here.
"""

import hashlib
from dataclasses import dataclass, field
from functools import lru_cache

KEY_BYTES = 8


@dataclass(slots=True)
class Newest:
    """At most `size_max` keys, the oldest are forgotten; each value takes `value_bytes`."""

    size_max: int
    value_bytes: int = 0
    _keys: bytearray = field(default_factory=bytearray)
    _values: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self._keys) // KEY_BYTES

    def put(self, key: bytes | str, value: bytes = b"") -> bytes | None:
        """What stood under the key before, as `packed`; None where it was not known."""
        short = packed(key, KEY_BYTES) if len(key) != KEY_BYTES or isinstance(key, str) else key
        width, keys = self.value_bytes, self._keys
        if width and len(value) != width:
            value = packed(value, width)
        found = keys.find(short)
        while found % KEY_BYTES and found > 0:  # found across two keys is not found
            found = keys.find(short, found + 1)
        before = None
        if found >= 0:
            before = self._dropped(found // KEY_BYTES)
        elif len(keys) >= self.size_max * KEY_BYTES:
            self._dropped(0)
        keys += short
        if width:
            self._values += value
        return before

    def _dropped(self, at: int) -> bytes:
        width = self.value_bytes
        del self._keys[at * KEY_BYTES : (at + 1) * KEY_BYTES]
        if not width:
            return b""
        value = bytes(self._values[at * width : (at + 1) * width])
        del self._values[at * width : (at + 1) * width]
        return value


def packed(value: bytes | str, width: int) -> bytes:
    """A value in so many bytes: itself where it has them, else its hash."""
    if isinstance(value, str):
        return _of_name(value, width)
    return value if len(value) == width else hashlib.blake2b(value, digest_size=width).digest()


@lru_cache(maxsize=1_024)
def _of_name(name: str, width: int) -> bytes:
    """Tools and hosts come again and again."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=width).digest()
