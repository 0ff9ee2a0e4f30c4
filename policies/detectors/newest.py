"""What was seen last, under the newest keys: a run's actions with their results, its destinations.

Ten thousand runs are remembered at once, so each key takes six bytes and no object of its own: of
256 keys two are alike by chance once in 8 billion runs. Keys and values of the record are short
hashes already, of which a part is enough; what has another length is hashed here.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache

KEY_BYTES = 6
HASH_BYTES = 8  # of the record's


@dataclass(slots=True)
class Newest:
    """At most `size_max` keys, the oldest are forgotten; each value takes `value_bytes`."""

    size_max: int
    value_bytes: int = 0
    _keys: bytes = b""  # copied by each `put`, which is cheaper than room for more in each run
    _values: bytes = b""

    def __len__(self) -> int:
        return len(self._keys) // KEY_BYTES

    def put(self, key: bytes | str, value: bytes = b"") -> bytes | None:
        """What stood under the key before, as `packed`; None where it was not known."""
        short = packed(key, KEY_BYTES)
        width, keys, values = self.value_bytes, self._keys, self._values
        if width and len(value) != width:
            value = packed(value, width)
        found = keys.find(short)
        while found % KEY_BYTES and found > 0:  # found across two keys is not found
            found = keys.find(short, found + 1)
        if found < 0:
            over = 1 if len(keys) >= self.size_max * KEY_BYTES else 0
            self._keys = keys[over * KEY_BYTES :] + short
            if width:
                self._values = values[over * width :] + value
            return None
        self._keys = keys[:found] + keys[found + KEY_BYTES :] + short
        if not width:
            return b""
        begin = found // KEY_BYTES * width
        end = begin + width
        self._values = values[:begin] + values[end:] + value
        return values[begin:end]


def packed(value: bytes | str, width: int) -> bytes:
    """A value in so many bytes: itself where it has them, a part of a hash, else its hash."""
    if isinstance(value, str):
        return _of_name(value, width)
    if len(value) == width:
        return value
    if len(value) == HASH_BYTES and width < HASH_BYTES:
        return value[-width:]
    return hashlib.blake2b(value, digest_size=width).digest()


def pair(one: bytes, other: bytes) -> bytes:
    """A key of two hashes, or of whatever stands in for them."""
    told = b"%d:%b%b" % (len(one), one, other)
    return hashlib.blake2b(told, digest_size=KEY_BYTES).digest()


@lru_cache(maxsize=1_024)
def _of_name(name: str, width: int) -> bytes:
    """Tools and hosts come again and again."""
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=width).digest()
