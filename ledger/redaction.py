"""A message as it may be kept: decoded, put together, without secrets. Nothing is stored here.

Pure, and it never raises: what cannot be read, or not in a bounded number of steps, is kept as a
digest alone, and `why` says so. How texts are masked is in masking.py.
"""

import re
from dataclasses import dataclass, replace
from urllib.parse import quote, unquote, unquote_plus

from ledger import json_masking, reassembly
from ledger.decoding import decoded
from ledger.masking import Masking, Rules, TooMuchError
from ledger.redact import mask_known, redact_host, storable
from ledger.remembered import Known
from ledger.secret_names import plain
from ledger.shown import is_secret
from ledger.traced import Caught, Side
from policies.content import FORM, Content, read_content

FIELDS_MAX = 50_000  # of a form or a query
PARTS_MAX = 10_000  # of a multipart body
_ESCAPED_TIMES = 3  # that a text of a URL or a form is escaped
HEADERS_MAX, HEADER_CHARACTERS_MAX = 2_000, 200  # that are known to hold no secret

_EDGE = re.compile(r"[^\s\"'&;<>(){}\[\]]{1,4096}")
_BINARY = re.compile(
    r"(?:image|audio|video|font)/(?!svg)|application/(?:grpc|zip|gzip|pdf|wasm|x-tar|"
    r"protobuf|x-protobuf|vnd\.google\.protobuf|vnd\.amazon\.eventstream|vnd\.openxml)"
)
_CHARSET = re.compile(  # names that codecs know, and no other of theirs: utf-7 hides ASCII
    r"utf-?(?:8|16|16le|16be|32)|utf-16-[lb]e|us-ascii|ascii|latin-?1|iso-8859-\d{1,2}|"
    r"(?:windows-|cp)125\d|shift[_-]jis|euc-(?:jp|kr)|gb(?:k|2312|18030)|big5|koi8-[ru]"
)
_JSON_LINES = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl",
                         "application/json-lines", "application/jsonlines"})  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_OF_PATHS = frozenset({"apikey", "otp", "passcode", "passphrase", "passwd", "password", "pin",
                       "pwd", "secret", "token"})  # fmt: skip
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
    is_cut = caught.body_bytes > len(caught.body)
    try:
        return _twice(caught, rules, known)
    except TooMuchError:
        why = TOO_LONG
    except Exception:  # whatever it was: nothing of the message may be kept unmasked
        return Redacted("", (), "", is_cut, None, UNREADABLE)
    try:
        head = _once(replace(caught, level="digest"), Masking(rules, known))
    except TooMuchError:
        return Redacted("", (), "", is_cut, None, why)
    return replace(head, why=why)


def _twice(caught: Caught, rules: Rules, known: Known) -> Redacted:
    """Once more where what became known on the way may stand before."""
    masking = Masking(rules, known)
    shown = _once(caught, masking)
    return _once(caught, Masking(rules, known)) if masking.left_echoes() else shown


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
    shown += _path(path, masking)
    return shown + question + _form(query, masking) + hash_mark + _form(fragment, masking)


def _path(path: str, masking: Masking) -> str:
    """A segment behind one that is named as a secret is masked where it is no mere word."""
    segments = path.split("/")
    shown = [masking.prose(segment) for segment in segments]
    for at, before in enumerate(segments[:-1]):
        after = segments[at + 1]
        is_word = len(after) < 4 or not any(char.isdigit() for char in after)
        if plain(before) in _OF_PATHS and not is_word:
            shown[at + 1] = masking.hide(unquote(after))
    return "/".join(shown)


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
    told = content.parameters or {}
    charset = told.get("charset", "").lower() or "utf-8"
    is_multipart = content.media_type.startswith("multipart/")
    if _BINARY.match(content.media_type) or not _CHARSET.fullmatch(charset):
        return None
    if is_multipart and not told.get("boundary"):
        return None  # told twice or not at all: its parts cannot be told apart
    try:
        text = body.decode(charset)
    except LookupError:
        return None
    except UnicodeDecodeError as error:
        is_edge = is_cut and error.start >= len(body) - 4
        if not is_edge and not _is_declared_text(content):
            return None
        text = body.decode("utf-8", "replace")
    return None if not is_multipart and _CONTROL.search(text) else text


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
    clear = text.replace("+", " ")
    for _ in range(_ESCAPED_TIMES):
        clear = unquote(clear)
        masked = masking.text(masking.own(masking.by_value(clear)))
        if masked != clear:
            return quote(masked, safe=_SAFE)
        if "%" not in clear:
            break
    return text


def _multipart(text: str, content: Content, masking: Masking) -> str | None:
    """Part by part. A file that is no text shows only its length."""
    boundary = (content.parameters or {})["boundary"]
    parts = text.split(f"--{boundary}", PARTS_MAX)
    if len(parts) > PARTS_MAX:
        return None
    return "--part".join(_part(part, masking) for part in parts)


_DISPOSITION = re.compile(r"^content-disposition[ \t]*:(.*)$", re.IGNORECASE | re.MULTILINE)
_FOLD = re.compile(r"\r?\n[ \t]+")
_NAME = re.compile(
    r"(?<![\w\-*])name(\*?)(\d*+\*?)[ \t]*=[ \t]*(?:\"((?:[^\"\\]|\\.)*+)(\"?)|([^;\s]*+))",
    re.IGNORECASE,
)
_BARE_BREAK = re.compile(r"\r(?!\n)|(?<!\r)\n")


def _part(part: str, masking: Masking) -> str:
    head, gap, body = part.partition("\r\n\r\n")
    if not gap:
        head, gap, body = part.partition("\n\n")
    if not gap:
        is_text = "\x00" not in part
        return _masked(part, masking) if is_text else f"[{len(part)} characters that are no text]"
    end = body[len(body.rstrip("\r\n")) :]
    body = body[: len(body) - len(end)]
    if body and _is_secret_part(head, masking):
        body = masking.hide(body)
    elif "\ufffd" in body or _CONTROL.search(body):
        body = f"[{len(body)} characters that are no text]"
    else:
        body = _masked(body, masking)
    return _masked(head, masking) + gap + body + end


def _is_secret_part(head: str, masking: Masking) -> bool:
    """Whether a part is named so, or is named in a way that servers may read in several."""
    head = _FOLD.sub(" ", head)
    told = _DISPOSITION.findall(head)
    if not told:
        return len(_DISPOSITION.findall(_BARE_BREAK.sub("\n", head))) > 0
    names = _NAME.findall(told[0])
    if len(told) > 1 or len(names) > 1 or (_BARE_BREAK.search(head) and "\r\n" in head):
        return True
    for is_coded, place, quoted, end, bare in names:
        if place or (quoted and not end):
            return True  # in pieces, or never closed
        name = quoted or bare
        if is_coded:
            name = name.rpartition("'")[2]
        if masking.weight(unquote(name.replace("\\", ""))):
            return True
    return False
