"""Ways in which a POST asks to be taken for another method, beside the headers.

Rack, Symfony, Laravel, Spring and Express read a field `_method` of the query, of a form, of its
parts or of a JSON object. PHP reads `.method`, `[method` and ` _method` as `_method` too. What is
found here is only told; `head.py` says which of it is a fault. Linear in the body's size.
"""

import re
from collections.abc import Iterator
from urllib.parse import unquote_to_bytes

FIELDS_MAX = 20_000  # frameworks read some thousands at most
FOUND_MAX = 100  # of fields named so; one is usual
PART_HEAD_BYTES_MAX = 4_096  # a part's own headers are one or two hundred
PART_HEADS_BYTES_MAX = 256 * 1024

_NAME_BYTES = 256  # a name that begins with nearly as many blanks is no name
_VALUE_BYTES = 64
_ESCAPED_BYTES = 1 << 20
_BLANKS = b"+ \t\r\n\v\f"
_NAME = re.compile(rb"[._\[]method(?=[\[\s\0]|\Z)")
# Of a part's head in lower case, its blanks made one.
_PART_NAME = re.compile(
    rb"(?<![a-z])name[*0-9]{0,4} ?= ?[\"']?(?:[a-z0-9-]{0,40}'[^']{0,40}')? ?"
    rb"[._\[ ]method(?![\w.-])"
)
_VALUE = re.compile(rb"\s*:\s*\"([^\"]*)")


def _escapable(name: bytes) -> bytes:
    return b"".join(b"(?:%c|\\\\u00%02x)" % (c, c) for c in name)


_MEMBER = re.compile(b'"' + _escapable(b"_method") + b'"', re.IGNORECASE)


class TooManyFieldsError(ValueError):
    """There are more fields, or longer names of them, than are looked through."""


def in_pairs(text: bytes) -> Iterator[bytes]:
    """The values of `_method` in a query or a form. Raises TooManyFieldsError."""
    if text.count(b"&") + text.count(b";") > FIELDS_MAX:
        raise TooManyFieldsError
    found = 0
    for pair in text.replace(b";", b"&").split(b"&"):
        name, _, value = pair.partition(b"=")
        begin = unquote_to_bytes(name[:_NAME_BYTES]).lstrip(_BLANKS).lower()
        if b"method" in begin and _NAME.match(begin):
            found += 1
            yield unquote_to_bytes(value[:_VALUE_BYTES])
        if found > FOUND_MAX or (len(begin) < 16 and len(name) > _NAME_BYTES):
            raise TooManyFieldsError


def in_parts(body: bytes, boundary: bytes) -> Iterator[bytes]:
    """The values of the parts that are named `_method`. Raises TooManyFieldsError."""
    mark = b"--" + boundary
    if body.count(mark) > FIELDS_MAX:
        raise TooManyFieldsError
    read_bytes = 0
    for part in body.split(mark)[1:]:
        if part.startswith(b"--"):
            return  # the last mark; what follows belongs to no part
        begin = part[: PART_HEAD_BYTES_MAX + 4].replace(b"\r\n", b"\n")
        head, is_whole, value = begin.partition(b"\n\n")
        read_bytes += len(head)
        if read_bytes > PART_HEADS_BYTES_MAX or (not is_whole and len(part) > len(begin)):
            raise TooManyFieldsError
        plain = b" ".join(unquote_to_bytes(head.replace(b"\\", b"")).lower().split())
        if _PART_NAME.search(plain):
            yield value[:_VALUE_BYTES]


def in_json(body: bytes) -> Iterator[bytes]:
    """The values of members named `_method`, however deep: nothing is parsed here.

    A name with escapes is looked for in the first MiB only. Raises TooManyFieldsError.
    """
    begin = body.find(b'"_method"')
    if begin < 0 and body.find(b"\\u00", 0, _ESCAPED_BYTES) >= 0:
        found = _MEMBER.search(body, 0, _ESCAPED_BYTES)
        begin = found.start() if found else -1
    for _ in range(FOUND_MAX + 1):
        found = _MEMBER.search(body, begin) if begin >= 0 else None
        if found is None:
            return
        begin = found.end()
        if value := _VALUE.match(body, begin, begin + _VALUE_BYTES):
            yield value[1]
    raise TooManyFieldsError
