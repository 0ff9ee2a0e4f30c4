"""What a person is shown of a call that waits: all of it, with the credentials of its headers and
its URL masked. Pure.

Equal secrets get equal marks, as in redact.py. Of the path and of what names the object of a call
only known kinds of secrets are masked: a person must see what is asked. The body is shown whole.
"""

import re
from dataclasses import replace
from urllib.parse import quote, unquote

from ledger.records import Arguments
from ledger.redact import mark, mask, mask_known
from policies.canonical import SELECTORS

# The words of a name: apiKey, API_KEY, x-api-key, auth[token].
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_SECRET = re.compile(
    r".*(?:token|secret|password|passwd|passphrase|apikey|accesskey|signature|credential|"
    r"credentials|authorization|cookie|jwt|assertion)|auth|bearer|hmac|otp|pass|pwd|session|sid|"
    r"sig|key"
)
_PLAIN_KEYS = frozenset(
    {"cache", "foreign", "idempotency", "partition", "primary", "public", "sort"}
)
_SCHEME = re.compile(
    r"((?:AWS4-[A-Z0-9-]+|ApiKey|Basic|Bearer|Bot|Digest|Key|Negotiate|OAuth|Token) +)\S.*",
    re.IGNORECASE | re.DOTALL,
)
NESTED_MAX = 2  # how deep URLs in URLs are looked into
_SAFE = "[]:@!$&'()*+,;="


def masked(shown: Arguments, key: bytes) -> Arguments:
    """The same without credentials. Nothing else is cut or changed."""
    pairs = tuple((name, _value(name, value, key)) for name, value in shown.headers)
    return replace(shown, url=_url(shown.url, key), headers=pairs)


def is_secret(name: str) -> bool:
    """Whether a header or a parameter of this name carries a credential."""
    words = [word.lower() for word in _WORD.findall(name)]
    if not words:
        return False
    if any(_SECRET.fullmatch(word) for word in words if word != "key"):
        return True
    return words[-1] == "key" and not _PLAIN_KEYS.intersection(words)


def _value(name: str, value: str, key: bytes) -> str:
    if is_secret(name) and value:
        scheme = _SCHEME.fullmatch(value)
        kept = scheme[1] if scheme else ""
        return kept + mark(value[len(kept) :], key)
    return mask_known(value, key) if name in SELECTORS else mask(_query(value, key), key)


def _url(url: str, key: bytes) -> str:
    start, question, query = url.partition("?")
    scheme, slashes, rest = start.partition("://")
    rest = "/".join(_unescaped(segment, key) for segment in mask_known(rest, key).split("/"))
    return scheme + slashes + rest + question + _query(query, key)


def _query(text: str, key: bytes, depth: int = 0) -> str:
    """`name=value` pairs between `&`, where some take `;` for one, too."""
    return "&".join(_pair(pair, key, depth) for pair in text.split("&"))


def _pair(pair: str, key: bytes, depth: int) -> str:
    done: list[str] = []
    parts = pair.split(";")
    for at, part in enumerate(parts):
        name, equals, value = part.partition("=")
        if equals and value and is_secret(unquote(name.replace("+", " "))):
            rest = ";".join(
                (value, *parts[at + 1 :])
            )  # where `;` is one, of the value all the same
            return ";".join((*done, name + equals + mark(rest, key)))
        done.append(
            name + equals + _unescaped(value, key, depth) if equals else _unescaped(part, key)
        )
    return ";".join(done)


def _unescaped(text: str, key: bytes, depth: int = NESTED_MAX) -> str:
    """Secrets are found behind `%` escapes, too; the text is then shown without these."""
    known = _nested(text, key, depth)
    if "%" not in known:
        return known
    plain = unquote(known)
    found = _nested(plain, key, depth)
    return known if found == plain else quote(found, safe=_SAFE)


def _nested(text: str, key: bytes, depth: int) -> str:
    """A value that is itself a URL has a query, too."""
    start, question, query = mask_known(text, key).partition("?")
    return start + question + (_query(query, key, depth + 1) if depth < NESTED_MAX else query)
