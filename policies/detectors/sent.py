"""What a request asks for, in a form in which two requests that ask for the same are the same.

JSON has its members sorted, a query and a form their fields; what a protocol mints anew for each
message is left out. What cannot be read counts as the bytes that it is. This is for the detectors
only: nothing is let through, refused or deduplicated by it (canonical.py is for that).
"""

from typing import NamedTuple
from urllib.parse import unquote_to_bytes

import orjson

from policies.call import Dialect, Request
from policies.canonical import SELECTORS
from policies.content import FORM, read_content
from policies.detectors import volatile

FIELDS_MAX = 1_000  # of a query or a form; of more the bytes count as they are

# A condition asks for nothing else: where it holds or not, the answer tells.
_SELECTORS = (SELECTORS | {"range"}) - {"if-match", "if-none-match"}
_OF_GRAPHQL = ("query", "variables", "operationName")
_SESSIONS = (b"session", b"sessionid")  # of MCP's older transport, in the URL

Fields = tuple[tuple[bytes, bytes], ...]


class Sent(NamedTuple):
    """`text` is what is compared; `message` what JSON says, `fields` what a form does. `is_long`:
    it was not looked into."""

    text: bytes = b""
    message: object = None
    fields: Fields = ()
    is_long: bool = False


def query(text: str, dialect: Dialect, at_us: int) -> Sent:
    """Of a URL, without the question mark. `at_us` is when it was sent."""
    return _form(text.encode("utf-8", "surrogatepass"), dialect, at_us) if text else Sent()


def selectors(request: Request) -> bytes:
    """The headers that say what is asked, or of whom: AWS names its operation in one."""
    told = [pair for pair in request.headers if pair[0] in _SELECTORS]
    return repr(sorted(told)).encode() if told else b""


def body(request: Request, dialect: Dialect, at_us: int) -> Sent:
    body = request.body
    if not body or len(body) > volatile.HASHED_BYTES_MAX:
        return Sent(body, is_long=body != b"")
    if body.lstrip()[:1] in (b"{", b"["):
        try:
            message = _told(orjson.loads(body), dialect)
            return Sent(orjson.dumps(message, option=orjson.OPT_SORT_KEYS), message)
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            return Sent(body)
    content = read_content(request.header("content-type") or "", "", "")
    if content.media_type == FORM:
        return _form(body, dialect, at_us)
    boundary = content.parameters.get("boundary") if content.parameters else None
    if boundary and content.media_type.startswith("multipart/"):
        return Sent(body.replace(b"--" + boundary.encode("utf-8", "surrogatepass"), b"--"))
    return Sent(body)


def _told(message: object, dialect: Dialect) -> object:
    """Without what the protocol's clients mint anew."""
    if dialect not in (Dialect.MCP, Dialect.GRAPHQL):
        return message
    if isinstance(message, list):
        return [_asked(entry, dialect) for entry in message]
    return _asked(message, dialect)


def _asked(message: object, dialect: Dialect) -> object:
    """One message. A query of GraphQL that is only named is all that stands there."""
    if not isinstance(message, dict):
        return message
    if dialect is Dialect.GRAPHQL:
        if not message.get("query"):
            return message
        return {name: message[name] for name in _OF_GRAPHQL if name in message}
    params = message.get("params")
    if not isinstance(params, dict):
        return {"method": message.get("method")}
    if message.get("method") == "tools/call":
        return {"name": params.get("name"), "arguments": params.get("arguments")}
    counted = {name: value for name, value in params.items() if name != "_meta"}
    return {"method": message.get("method"), "params": counted}


def _form(text: bytes, dialect: Dialect, at_us: int) -> Sent:
    if text.count(b"&") >= FIELDS_MAX:
        return Sent(text)
    fields = []
    for pair in text.split(b"&"):
        name, _, value = pair.partition(b"=")
        if b"%" in pair or b"+" in pair:
            name, value = _plain(name), _plain(value)
        if name and not volatile.is_field(name, value, at_us):
            fields.append((name, value))
    if dialect is Dialect.MCP:
        fields = [one for one in fields if one[0].lower().replace(b"_", b"") not in _SESSIONS]
    elif dialect is Dialect.GRAPHQL and any(name == b"query" for name, _ in fields):
        fields = [one for one in fields if one[0] != b"extensions"]
    fields.sort(key=_name)  # the order of one name's values is kept
    return Sent(b"&".join([b"%s=%s" % field for field in fields]), None, tuple(fields))


def _plain(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


def _name(field: tuple[bytes, bytes]) -> bytes:
    return field[0]
