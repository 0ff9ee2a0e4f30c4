"""Secrets out of text that is recorded in the clear: methods, hosts, paths, operation names. Pure.

Equal secrets get equal marks, `[redacted:xxxxxxxx]`, by a keyed hash, so that rows can still be
compared and the mark can't be tried against a list of guesses.
"""

import base64
import hashlib
import hmac
import re
from binascii import Error as NotBase64Error
from urllib.parse import quote, unquote

from ledger.errors import LedgerError

TEXT_CHARS_MAX = 2048  # a longer path tells a person nothing more
MARK = "[redacted:"
"""How what stands in a secret's place begins."""

# Credentials that services put into paths, or that people paste there. The generic rule below
# catches most other long ones. Each begins with a letter, so that a search can skip to these.
KNOWN: dict[str, str] = {
    "telegram_bot": r"bot\d{6,}:[A-Za-z0-9_-]{30,}",
    "stripe": r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{8,}",
    "stripe_webhook": r"whsec_[A-Za-z0-9]{8,}",
    "github": r"gh[pousr]_[A-Za-z0-9]{16,}",
    "github_fine_grained": r"github_pat_[A-Za-z0-9_]{16,}",
    "gitlab": r"glpat-[A-Za-z0-9_-]{16,}",
    "slack": r"xox[abeoprs]-[A-Za-z0-9-]{8,}",
    "slack_app": r"xapp-[A-Za-z0-9-]{8,}",
    "slack_webhook": r"T(?<=/T)[A-Z0-9]{6,}/B[A-Z0-9]{6,}/[A-Za-z0-9]{16,}",
    "openai_anthropic": r"s(?<![A-Za-z0-9]s)k-[A-Za-z0-9_-]{16,}",
    "google": r"AIza[A-Za-z0-9_-]{30,}",
    "google_oauth": r"ya29\.[A-Za-z0-9._-]{16,}",
    "aws_key_id": r"(?:AKIA|ASIA)[A-Z0-9]{16}",
    "sendgrid": r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    "hugging_face": r"hf_[A-Za-z0-9]{16,}",
    "npm": r"npm_[A-Za-z0-9]{30,}",
    "json_web_token": r"eyJ[A-Za-z0-9_-]{8,400}+\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?",
}

_KNOWN = re.compile("|".join(KNOWN.values()))
_LONG = re.compile(r"[A-Za-z0-9_\-+=.~]{32,}")
_CODED = re.compile(r"[A-Za-z0-9+/]{18,}={0,2}")
_RUN = re.compile(r"[A-Za-z0-9+=]{16,}")
_ALIKE = re.compile(r"[A-Z]+|[a-z]+|[0-9]+")
_SHORTEST = re.compile(r"[A-Za-z0-9_\-+=.~:%/]{14,}")


def redact_key(vault_key: bytes) -> bytes:
    """The key of the marks: one for ledger and trace, so that equal secrets are equal in both."""
    return hmac.digest(vault_key, b"pullcord redaction marks", hashlib.sha256)


def redact(text: str, key: bytes) -> str:
    """The text cut at TEXT_CHARS_MAX, with what looks like a secret replaced.

    A secret with `%` escapes is found too; its segment is then shown unescaped.
    """
    text = text[:TEXT_CHARS_MAX]  # first, so that no text can make the patterns slow
    text = storable(text)
    if not _SHORTEST.search(text):
        return text
    if "%" in text:
        text = "/".join(_unescaped(segment, key) for segment in text.split("/"))
    return mask(text, key)


def looks_secret(text: str, *, known_only: bool = False) -> bool:
    """Whether `redact` would change a text that is kept as it is: it holds what looks like a
    secret. With `known_only` not what just looks drawn: a UUID without dashes does, and so does
    the hash of a commit."""
    text = text[:TEXT_CHARS_MAX]
    return (mask_known if known_only else redact)(text, b"") != text


def redact_host(host: str, key: bytes) -> str:
    """As `redact`, but label by label, so that the rest of a name can still be read."""
    return ".".join(redact(label, key) for label in host.split("."))


def storable(text: str) -> str:
    """The text as UTF-8 can hold it: bytes that were no UTF-8 come in as lone surrogates."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode("utf-8")


def check_storable(*texts: str) -> None:
    """For words that must be kept as they are. Raises LedgerError."""
    if any(storable(text) != text for text in texts):
        raise LedgerError("a name or a reason holds characters that are no Unicode text")


def mask_known(text: str, key: bytes) -> str:
    """The text, however long, without secrets of known kinds."""
    return _KNOWN.sub(lambda found: mark(found[0], key), text)


def mask(text: str, key: bytes) -> str:
    """The text, however long, without what looks like a secret."""
    text = mask_known(text, key)
    return _LONG.sub(lambda found: mark(found[0], key) if is_random(found[0]) else found[0], text)


def mask_base64(text: str, key: bytes) -> str:
    """The text without keys that have slashes in them, which `mask` takes for a path, and without
    base64 of known kinds of secrets."""
    return _CODED.sub(lambda found: mark(found[0], key) if _is_key(found[0]) else found[0], text)


def _is_key(text: str) -> bool:
    if len(text) >= 32 and changes_often(text):
        return True
    try:
        clear = base64.b64decode(text + "==")
    except NotBase64Error:
        return False
    return clear.isascii() and _KNOWN.search(clear.decode()) is not None


def _unescaped(segment: str, key: bytes) -> str:
    plain = unquote(segment)
    masked = mask(plain, key)
    return segment if masked == plain else quote(masked, safe="[]:@!$&'()*+,;=")


def is_random(text: str) -> bool:
    """Whether a long segment looks made by a machine: a long stretch of letters and digits mixed,
    or capitals, small letters and digits that change all the time.

    Words joined by dashes, UUIDs and dotted names have only short stretches, and few changes.
    """
    return changes_often(text) or any(
        any(char.isdigit() for char in run) and any(char.isalpha() for char in run)
        for run in _RUN.findall(text)
    )


def changes_often(text: str) -> bool:
    """Whether capitals, small letters and digits follow each other as if drawn."""
    alike = _ALIKE.findall(text)
    if len(alike) < 0.4 * len(text):  # 0.62 where each is drawn from all, 0.35 in CamelCase
        return False
    firsts = [part[0] for part in alike]
    return (
        any(char.isdigit() for char in firsts)
        and any(char.isupper() for char in firsts)
        and any(char.islower() for char in firsts)
    )


def mark(secret: str, key: bytes) -> str:
    """What stands in a secret's place."""
    found = hmac.digest(key, secret.encode("utf-8", "surrogatepass"), hashlib.sha256)
    return f"{MARK}{found[:4].hex()}]"
