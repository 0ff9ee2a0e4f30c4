"""A message as it may be kept: decoded, put together, without secrets. Nothing is stored here.

Pure, and it never raises: what cannot be read, or not in a bounded number of steps, is kept as a
digest alone, and `why` says so. How texts are masked is in masking.py.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote, unquote_plus

from ledger import json_masking, reassembly
from ledger.decoding import decoded
from ledger.masking import Known, Masking, Rules, TooMuchError
from ledger.redact import mask_known, redact_host, storable
from ledger.secret_names import plain
from ledger.shown import is_secret
from ledger.traced import Caught, Side
from policies.content import FORM, Content, read_content

FIELDS_MAX = 50_000  # of a form or a query
PARTS_MAX = 10_000  # of a multipart body
HEADERS_MAX, HEADER_CHARACTERS_MAX = 2_000, 200  # that are known to hold no secret

_EDGE = re.compile(r"[^\s\"'&;<>(){}\[\]]{1,4096}")
_BINARY = re.compile(
    r"(?:image|audio|video|font)/(?!svg)|application/(?:grpc|zip|gzip|pdf|wasm|x-tar|"
    r"protobuf|x-protobuf|vnd\.google\.protobuf|vnd\.amazon\.eventstream|vnd\.openxml)"
)
_CHARSETS = {"utf-16": "utf-16", "utf-16le": "utf-16-le", "utf-16be": "utf-16-be",
             "iso-8859-1": "latin-1", "latin1": "latin-1", "windows-1252": "cp1252"}  # fmt: skip
_JSON_LINES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl",
                         "application/json-lines", "application/jsonlines"})  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_SAFE = "[]:@!$'()*,;"
_MEDIA_CHARACTERS = 100

DIGEST, BINARY, CODED, TOO_LONG, UNREADABLE = "digest", "binary", "coded", "too_long", "unreadable"
"""Why a body was kept as a digest alone: the policy says so; it is no text; it is in a coding that
is not known, or broken; masking it would take too long; it could not be read."""


@dataclass(frozen=True, slots=True)
class Redacted:
    """`text` is None where only a digest of the body may be kept; `why` says which of the above."""

    start: str
    headers: tuple[tuple[str, str], ...]
    media_type: str
    is_cut: bool
    text: str | None
    why: str = ""


def redacted(caught: Caught, rules: Rules, known: Known) -> Redacted:
    """The message without secrets. What was masked by its name is added to `known`, and what is
    known is masked wherever it stands."""
    try:
        masking = Masking(rules, known)
        shown = _once(caught, masking)
        if masking.left_echoes():
            shown = _once(caught, Masking(rules, known))
    except Exception:  # whatever it was: nothing of the message may be kept unmasked
        return Redacted("", (), "", caught.body_bytes > len(caught.body), None, UNREADABLE)
    return shown


def _once(caught: Caught, masking: Masking) -> Redacted:
    headers = {name.lower(): value for name, value in caught.headers}
    content = read_content(headers.get("content-type", ""), "", "")
    for text in (caught.start, *(value for _, value in caught.headers)):
        masking.saw(text)
    start = _start(caught, masking)
    shown = tuple(_header(name, value, masking) for name, value in caught.headers)
    media_type = masking.prose(storable(content.media_type[:_MEDIA_CHARACTERS]))
    is_cut = caught.body_bytes > len(caught.body)
    if caught.level == "digest":
        return Redacted(start, shown, media_type, is_cut, None, DIGEST)
    read = decoded(caught.body, headers.get("content-encoding", ""))
    if read is None:
        return Redacted(start, shown, media_type, is_cut, None, CODED)
    is_cut = is_cut or read.is_cut
    clear = _text(read.body, content, is_cut)
    if clear is None:
        return Redacted(start, shown, media_type, is_cut, None, BINARY)
    masked = _bounded(_without_edge(clear) if is_cut else clear, content, is_cut, masking)
    if masked is None:
        return Redacted(start, shown, media_type, is_cut, None, TOO_LONG)
    return Redacted(start, shown, media_type, is_cut, storable(masked))


def _bounded(text: str, content: Content, is_cut: bool, masking: Masking) -> str | None:
    try:
        return _body(text, content, is_cut, masking)
    except (TooMuchError, RecursionError):
        return None


def _start(caught: Caught, masking: Masking) -> str:
    if caught.side is not Side.REQUEST:
        return masking.prose(storable(caught.start))
    method, _, url = storable(caught.start).partition(" ")
    return f"{masking.prose(method)} {_url(url, masking)}"


def _url(url: str, masking: Masking) -> str:
    url = masking.own(masking.by_value(url))
    url, hash_mark, fragment = url.partition("#")
    url, question, query = url.partition("?")
    scheme, slashes, rest = url.partition("://")
    authority, slash, path = rest.partition("/") if slashes else ("", "", url)
    user, at, host = authority.rpartition("@")
    if at:
        name, colon, password = user.partition(":")
        user = f"{name}:{masking.hide(password)}" if colon else masking.hide(name)
    shown = scheme + slashes + user + at if slashes else ""
    shown += redact_host(host, masking.rules.key)
    path = mask_known(slash + path, masking.rules.key)  # some reach over several segments
    shown += "/".join(masking.prose(segment) for segment in path.split("/"))
    return shown + question + _form(query, masking) + hash_mark + _form(fragment, masking)


def _header(name: str, value: str, masking: Masking) -> tuple[str, str]:
    name, value = storable(name), storable(value)
    rules = masking.rules
    if (name, value) in rules.harmless:
        return name, masking.by_value(value)
    if value and (name.lower() in rules.headers or is_secret(name) or rules.weight(name)):
        if name.lower() in {"cookie", "set-cookie"}:
            _know_cookies(value, masking)
        return masking.prose(name), masking.hide(value)
    clear = masking.by_value(value)
    shown = masking.prose(name), masking.text(masking.own(clear))
    if shown == (name, value) and len(value) <= HEADER_CHARACTERS_MAX:
        if len(rules.harmless) >= HEADERS_MAX:
            rules.harmless.clear()
        rules.harmless.add(shown)
    return shown


def _know_cookies(value: str, masking: Masking) -> None:
    for pair in value.split(";")[:64]:
        _name, _, cookie = pair.strip().partition("=")
        if len(cookie) >= 16:
            masking.hide(cookie)


def _text(body: bytes, content: Content, is_cut: bool) -> str | None:
    """None where it is no text."""
    if _BINARY.match(content.media_type):
        return None
    charset = (content.parameters or {}).get("charset", "").lower()
    try:
        text = body.decode(_CHARSETS.get(charset, "utf-8"))
    except UnicodeDecodeError as error:
        is_edge = is_cut and error.start >= len(body) - 4
        if not is_edge and not _is_declared_text(content):
            return None
        text = body.decode("utf-8", "replace")
    return None if _CONTROL.search(text) and not content.is_form else text


def _is_declared_text(content: Content) -> bool:
    return content.is_json or content.is_form or content.media_type.startswith("text/")


def _without_edge(text: str) -> str:
    """Without what may be half a secret at the end of a text that was cut."""
    edge = _EDGE.match(text[: -_EDGE_CHARACTERS - 1 : -1])
    return text[: len(text) - len(edge[0])] if edge else text


_EDGE_CHARACTERS = 4_096


def _body(text: str, content: Content, is_cut: bool, masking: Masking) -> str | None:
    """None where it has more parts than are read."""
    media_type = content.media_type
    masking.saw(text)
    if media_type == FORM:
        return _form(masking.own(masking.by_value(text)), masking)
    if media_type.startswith("multipart/"):
        return _multipart(text, content, masking)
    together: str | None = None
    if media_type == "text/event-stream":
        together = reassembly.event_stream(text, is_cut, lambda s: _masked(s, masking))
        if together is None:
            return None
    elif media_type in _JSON_LINES:
        together = reassembly.lines(text, is_cut, lambda s: _masked(s, masking))
    elif text.startswith("[") and '"candidates"' in text:
        together = reassembly.array(text, lambda s: _masked(s, masking))
    if together is not None:
        masking.saw(together)
        text = together
    return _masked(text, masking, content.is_json)


def _masked(text: str, masking: Masking, is_json: bool = False) -> str:
    text = masking.own(masking.by_value(text))
    return json_masking.masked(text, masking, 0) if is_json else masking.text(text)


def _form(text: str, masking: Masking) -> str:
    if text.count("&") >= FIELDS_MAX:
        raise TooMuchError
    return "&".join(_field(pair, masking) for pair in text.split("&")) if text else text


def _field(pair: str, masking: Masking) -> str:
    masking.step()
    name, equals, value = pair.partition("=")
    if not equals:
        return _escaped(pair, masking)
    clear = unquote_plus(name)
    shown = _escaped(name, masking) if len(name) >= 13 else name
    if not value:
        return shown + equals
    if masking.weight(clear) or plain(clear) == "key":
        return f"{shown}={quote(masking.hide(unquote_plus(value)), safe=_SAFE)}"
    return f"{shown}={_escaped(value, masking)}"


def _escaped(text: str, masking: Masking) -> str:
    """A text with `%` escapes, which stay where nothing is masked."""
    if len(text) < 6:
        return text
    clear = unquote(text.replace("+", " "))
    masked = masking.text(masking.own(masking.by_value(clear)))
    return text if masked == clear else quote(masked, safe=_SAFE)


def _multipart(text: str, content: Content, masking: Masking) -> str | None:
    """Part by part. A file that is no text shows only its length."""
    boundary = (content.parameters or {}).get("boundary", "")
    if not boundary:
        return _masked(text, masking)
    parts = text.split(f"--{boundary}", PARTS_MAX)
    if len(parts) > PARTS_MAX:
        return None
    return "--part".join(_part(part, masking) for part in parts)


_NAME = re.compile(r'name="?([^";\r\n]{1,200})', re.IGNORECASE)


def _part(part: str, masking: Masking) -> str:
    head, gap, body = part.partition("\r\n\r\n")
    if not gap:
        head, gap, body = part.partition("\n\n")
    if not gap:
        return _masked(part, masking)
    end = body[len(body.rstrip("\r\n")) :]
    body = body[: len(body) - len(end)]
    name = _NAME.search(head)
    if name and masking.weight(unquote(name[1])) and body:
        body = masking.hide(body)
    elif "\ufffd" in body or _CONTROL.search(body):
        body = f"[{len(body)} characters that are no text]"
    else:
        body = _masked(body, masking)
    return _masked(head, masking) + gap + body + end
