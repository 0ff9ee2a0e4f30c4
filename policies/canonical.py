"""The fingerprint of a write: two requests with one fingerprint ask for the same thing.

JSON is put in our own canonical form: sorted keys, UTF-8, no spaces, numbers as they were
written (1, 1.0 and 1e0 differ, and no digit of a long one is lost). What is not plainly one JSON
value, one form or one multipart body is taken as raw bytes. Linear in the body's size.
"""

import hashlib
import json
import re
import struct
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

import orjson

from policies.account import account
from policies.call import Request
from policies.content import FORM
from policies.paths import normal_escapes

# Beyond these a body is taken as raw bytes: sorting it would keep other calls waiting for a tenth
# of a second and more, and a client that repeats so much repeats it byte for byte.
SORTED_BYTES_MAX = 1 << 20
PARTS_MAX = 10_000
VALUES_MAX = 50_000  # of JSON, or escapes of a form

# Headers that say what is asked, or of whom, beside method, URL and body. A repeat that differs
# in one of these is another request: DynamoDB's PutItem and DeleteItem share all the rest.
SELECTORS = frozenset({
    "content-encoding", "content-range", "destination", "dropbox-api-arg", "if-match",
    "if-none-match", "soapaction", "stripe-account", "x-amz-copy-source",
    "x-amz-target", "x-goog-copy-source", "x-ms-copy-source",
})  # fmt: skip


# A text, closed or not: so that no body makes the search for its end begin twice.
_TEXT = re.compile(rb'"[^"\\]*+(?:\\.?[^"\\]*+)*+(?:"|\Z)', re.DOTALL)


class NotPlainJsonError(ValueError):
    """The bytes are not JSON, or two readers could understand them differently."""


def _object_of(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise NotPlainJsonError("a key stands twice")
    return members


def _no_constant(name: str) -> object:
    raise NotPlainJsonError(f"{name} is not JSON")


# Numbers stay the text they were: a Fragment is written back as it was read.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_object_of,
    parse_int=orjson.Fragment,
    parse_float=orjson.Fragment,
    parse_constant=_no_constant,
)


def is_too_long(body: bytes) -> bool:
    """Whether reading it as JSON would keep other calls waiting."""
    if len(body) > SORTED_BYTES_MAX:
        return True
    if _values_at_most(body) <= VALUES_MAX:
        return False
    # Commas in texts count for nothing, unless there are so many texts that this takes long, too.
    many_texts = body.count(b'"') > 4 * VALUES_MAX
    return many_texts or _values_at_most(_TEXT.sub(b"", body)) > VALUES_MAX


def _values_at_most(body: bytes) -> int:
    return 1 + body.count(b",") + body.count(b"{") + body.count(b"[")


def read_json(body: bytes) -> object:
    """One JSON value; numbers come as `orjson.Fragment`.

    Raises NotPlainJsonError, for duplicate keys, byte order marks, other encodings than UTF-8,
    NaN, excessive length and depth too.
    """
    if is_too_long(body):
        raise NotPlainJsonError("too long")
    try:
        return _DECODER.decode(body.decode("utf-8"))
    except RecursionError:
        raise NotPlainJsonError("nested too deeply") from None
    except NotPlainJsonError:
        raise
    except ValueError as fault:
        raise NotPlainJsonError(str(fault)) from None


def write_json(value: object) -> bytes:
    """The canonical form. Raises NotPlainJsonError on lone surrogates and excessive depth."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except (TypeError, RecursionError) as fault:
        raise NotPlainJsonError(str(fault)) from None


def _framed(parts: Sequence[bytes]) -> bytes:
    """Parts joined so that no two lists of parts give the same bytes."""
    count = len(parts)
    return b"".join((*parts, struct.pack(f"<{count + 1}Q", *map(len, parts), count)))


def _form(body: bytes) -> bytes:
    """The fields sorted by name; the order of one name's values is kept."""
    pairs = []
    for pair in body.replace(b"+", b" ").split(b"&"):
        if pair:
            name, _, value = pair.partition(b"=")
            pairs.append((unquote_to_bytes(name), unquote_to_bytes(value)))
    pairs.sort(key=lambda pair: pair[0])
    return _framed([part for pair in pairs for part in pair])


def _boundary(parameters: str) -> bytes:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "boundary":
            return value.strip().strip('"').encode("utf-8", "surrogatepass")
    return b""


def _body(media_type: str, parameters: str, body: bytes) -> tuple[bytes, bytes]:
    """What kind of body this is and its canonical bytes."""
    if len(body) > SORTED_BYTES_MAX:
        return b"raw", body
    if media_type == "application/json" or media_type.endswith("+json"):
        try:
            return b"json", write_json(read_json(body))
        except NotPlainJsonError:
            return b"raw", body
    if media_type == FORM and body.count(b"&") < PARTS_MAX and body.count(b"%") <= VALUES_MAX:
        return b"form", _form(body)
    if media_type.startswith("multipart/") and (boundary := _boundary(parameters)):
        # Clients draw a new boundary each time; what stands between the marks is what counts.
        mark = b"--" + boundary
        if body.count(mark) < PARTS_MAX:
            return b"parts", _framed(body.split(mark))
    return b"raw", body


def _query(request: Request) -> str:
    """The query with its pairs sorted by name; the order of one name's values is kept."""
    _, _, query = request.target.partition("?")
    if not query:
        return ""
    pairs = normal_escapes(query).split("&")
    return "&".join(sorted(pairs, key=lambda pair: pair.partition("=")[0]))


def fingerprint(request: Request, path: str, payload: bytes | None = None) -> bytes:
    """SHA-256 of method, URL, content type, selecting headers, account and canonical body.

    `path` is the normal path. `payload` stands for the body where a protocol says which of it
    counts.
    """
    media_type, _, parameters = (request.header("content-type") or "").partition(";")
    media_type = media_type.strip().lower()
    if payload is None:
        kind, payload = _body(media_type, parameters, request.body)
    else:
        kind = b"message"
    selectors = sorted(pair for pair in request.headers if pair[0] in SELECTORS)
    texts = [
        request.method, request.scheme, request.host, str(request.port), path, _query(request),
        media_type, *(part for pair in selectors for part in pair),
    ]  # fmt: skip
    framed = _framed([*(text.encode("utf-8", "surrogatepass") for text in texts), account(request)])
    return hashlib.sha256(_framed((framed, kind, payload))).digest()
