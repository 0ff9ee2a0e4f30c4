"""The fingerprint of a write: two requests with one fingerprint ask for the same thing.

JSON is put in our own canonical form: sorted keys, UTF-8, no spaces, numbers as they were
written (1, 1.0 and 1e0 differ, and no digit of a long one is lost). A form is sorted by names; of a
multipart body the boundary does not count, which clients draw anew, and all else does: its parts
are taken in their order and byte for byte. What is not plainly one JSON value, one form or one
multipart body is raw bytes, of which nothing is ignored. Linear in the body's size.
"""

import hashlib
import json
import re
import struct
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

import orjson

from policies import ignoring
from policies.account import account
from policies.call import Request
from policies.content import FORM, UTF_8, Content
from policies.ignoring import Ignored
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

# Headers that say what a body is without its being read: RFC 9530, RFC 3230, RFC 1864, AWS.
_OF_BODY = frozenset({
    "content-digest", "content-length", "content-md5", "digest", "repr-digest",
    "x-amz-content-sha256",
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


def is_json(media_type: str) -> bool:
    """Whether a body of this type is JSON; `application/x-amz-json-1.0` is of AWS."""
    return (
        media_type in ("application/json", "text/json")
        or media_type.endswith("+json")
        or media_type.startswith("application/x-amz-json-")
    )


def _form(body: bytes, names: re.Pattern[str] | None) -> bytes:
    """The fields sorted by name; the order of one name's values is kept."""
    pairs = []
    for pair in body.replace(b"+", b" ").split(b"&"):
        if pair:
            name, _, value = pair.partition(b"=")
            name = unquote_to_bytes(name)
            if names is None or not ignoring.is_field(names, name.decode("latin-1"), pair):
                pairs.append((name, unquote_to_bytes(value)))
    pairs.sort(key=lambda pair: pair[0])
    return _framed([part for pair in pairs for part in pair])


def _parts(body: bytes, boundary: bytes, names: re.Pattern[str] | None) -> bytes | None:
    """What stands between the boundaries; None where one may stand inside a part, too."""
    marks = body.count(b"--" + boundary)
    if marks >= PARTS_MAX:
        return None
    line_end = b"\r\n" if b"\r\n" in body else b"\n"
    between = rb"(?:\A|%s)--%s(?=--|[ \t]*%s)" % (line_end, re.escape(boundary), line_end)
    parts = re.split(between, body)
    if len(parts) != marks + 1:
        return None
    if names is not None:
        parts = [part for part in parts if not ignoring.is_part(names, part, line_end)]
    return _framed(parts)


def _body(content: Content, body: bytes, ignored: Ignored) -> tuple[bytes, bytes]:
    """What kind of body this is and its canonical bytes."""
    media_type = content.media_type
    if len(body) > SORTED_BYTES_MAX or content.hidden(UTF_8):
        return b"raw", body
    if is_json(media_type):
        try:
            return b"json", write_json(ignored.in_json(read_json(body)))
        except NotPlainJsonError:
            return b"raw", body
    if media_type == FORM and body.count(b"&") < PARTS_MAX and body.count(b"%") <= VALUES_MAX:
        return b"form", _form(body, ignored.in_form())
    boundary = (content.parameters or {}).get("boundary", "").encode("utf-8", "surrogatepass")
    if media_type.startswith("multipart/") and boundary:
        parts = _parts(body, boundary, ignored.in_form())
        if parts is not None:
            return b"parts", parts
    return b"raw", body


def _query(request: Request, ignored: Ignored) -> str:
    """The query with its pairs sorted by name; the order of one name's values is kept."""
    _, _, query = request.target.partition("?")
    if not query:
        return ""
    pairs = ignored.in_query(normal_escapes(query).split("&"))
    return "&".join(sorted(pairs, key=lambda pair: pair.partition("=")[0]))


def fingerprint(
    request: Request,
    path: str,
    content: Content,
    payload: bytes | None = None,
    ignored: Ignored = ignoring.NOTHING,
) -> bytes:
    """SHA-256 of method, URL, content type, selecting headers, account and canonical body.

    `path` is the normal path, `content` what the head says of the body. `payload` stands for the
    body where a protocol says which of it counts. `ignored` is left out of body and query.
    """
    media_type = content.media_type
    if payload is not None:
        kind = b"message"
    else:
        kind, payload = _body(content, request.body, ignored)
        if content.hidden(UTF_8):  # the same bytes are another text in another charset
            media_type = request.header("content-type") or ""
    selectors = sorted(pair for pair in request.headers if pair[0] in SELECTORS)
    texts = [
        request.method, request.scheme, request.host, str(request.port), path,
        _query(request, ignored), media_type, *(part for pair in selectors for part in pair),
    ]  # fmt: skip
    framed = _framed([*(text.encode("utf-8", "surrogatepass") for text in texts), account(request)])
    return hashlib.sha256(_framed((framed, kind, payload))).digest()


def fingerprint_of_head(request: Request, path: str, content: Content) -> bytes:
    """The fingerprint of a write whose body is not read: what its head says of the body stands for
    it. Two bodies of one length of which no digest is told have the same."""
    told = sorted(pair for pair in request.headers if pair[0] in _OF_BODY)
    texts = [text.encode("utf-8", "surrogatepass") for pair in told for text in pair]
    return fingerprint(request, path, content, _framed([b"streamed", *texts]))
