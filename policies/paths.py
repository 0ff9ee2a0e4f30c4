"""Request paths: one spelling for each, and the templates of the policy that they are held against.

A server may read `/v1/%63harges`, `//v1/charges/` and `/v1/charges` as one resource, so a rule
must too (RFC 3986, section 6.2.2). The spelling made here is for judging only; what goes upstream
is what was sent. Spellings that servers are known to disagree on are refused, never guessed.
"""

import re
from urllib.parse import quote

# The path of nearly every call: nothing in it has a second spelling but a slash at its end.
_PLAIN = re.compile(r"(?:/(?!\.{1,2}(?:/|\Z))[A-Za-z0-9_~!$&'()*+,=:@.-]+)*/?")

# Raw controls, blanks and backslashes, a fragment; broken escapes; the same things escaped; the
# lead bytes C0 and C1, which only ever begin an overlong spelling of an ASCII character.
_REFUSED = re.compile(
    r"[\x00-\x20\x7f\\#]|%(?![0-9A-Fa-f]{2})|%(?:[01][0-9A-Fa-f]|7[Ff]|5[Cc]|[Cc][01])"
)
_ESCAPE = re.compile(r"%[0-9A-Fa-f]{2}")
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_KEPT = "/%!$&'()*+,;=:@"
_PARAMETERS = re.compile(r";[^/]*")
_TWICE = re.compile(r"%25(?=[0-9A-Fa-f]{2})")
_PLACE = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")


def _normal_escape(found: re.Match[str]) -> str:
    character = chr(int(found[0][1:], 16))
    return character if character in _UNRESERVED else found[0].upper()


def normal_escapes(text: str) -> str:
    """Escapes of unreserved characters undone, the others in upper case."""
    return _ESCAPE.sub(_normal_escape, text) if "%" in text else text


def normal(path: str) -> str | None:
    """The one spelling of a path, pure ASCII; None when servers would disagree on what it names.

    Escapes of unreserved characters are undone, other escapes are in upper case, repeated slashes
    are one and a slash at the end is dropped. `%2F` stays as it is. Dot segments are refused.
    """
    if path and _PLAIN.fullmatch(path):
        return path.rstrip("/") or "/"
    if not path.startswith("/") or _REFUSED.search(path):
        return None
    escaped = quote(path, safe=_KEPT, errors="surrogatepass")
    segments = [segment for segment in normal_escapes(escaped).split("/") if segment]
    if "." in segments or ".." in segments:
        return None
    return "/" + "/".join(segments)


def has_second_reading(path: str) -> bool:
    return ";" in path or "%2F" in path or ("%25" in path and bool(_TWICE.search(path)))


def second_reading(path: str) -> str | None:
    """What many servers make of a normal path: `;parameters` are dropped and `%2F` is a slash,
    also where it was escaped twice (`%252F`). None for dot segments and backslashes."""
    once_more = normal_escapes(_TWICE.sub("%", path))
    return normal(_PARAMETERS.sub("", once_more).replace("%2F", "/"))


def template(text: str) -> re.Pattern[str]:
    """Compile a path of the policy: `{name}` is one segment or a part of one, `/**` at the end
    is any rest, also none. Letters match in either case, since many servers route so.

    Raises ValueError with a sentence for the author of the policy.
    """
    if not text.startswith("/"):
        raise ValueError(f"must start with '/', not {text[:1]!r}")
    stem, rest = (text[:-3], r"(?:/.*)?") if text.endswith("/**") else (text, "")
    if "*" in stem:
        raise ValueError("must not hold '*': {name} is one segment, /** at the end any rest")
    if "?" in stem:
        raise ValueError("must not hold a query; leave out '?' and what follows")
    segments = [_segment(segment) for segment in stem.split("/") if segment]
    pattern = "".join(f"/{segment}" for segment in segments) + rest
    return re.compile(pattern or "/", re.IGNORECASE | re.ASCII)


def _segment(segment: str) -> str:
    literals = _PLACE.split(segment)
    if len(literals) > 2:
        raise ValueError(f"must hold at most one {{name}} in a segment, not {segment!r}")
    if any(mark in literal for literal in literals for mark in "{}"):
        raise ValueError(f"must have letters, digits and '_' in its braces, not {segment!r}")
    spelled = [normal(f"/{literal}") for literal in literals]
    if None in spelled:
        raise ValueError(f"must not hold {segment!r}: requests spelled so are refused")
    return "[^/]+".join(re.escape(literal[1:]) for literal in spelled if literal is not None)
