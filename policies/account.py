"""Whose credentials a write carries, so that the same body for another account is another write.

Only what stays the same while one account is used counts: a repeat must never look new because an
SDK signs each request or fetched a fresh token meanwhile. What may change counts for nothing.
"""

import base64
import binascii
import hashlib
import re

import orjson

from policies.call import Request

# Enough to tell two accounts apart. The fingerprint is recorded, and no guess at a secret can be
# checked against so few bits.
DIGEST_BYTES = 2

_KEY_HEADERS = frozenset({"x-api-key", "api-key", "x-goog-api-key"})
_LOOKED_AT = _KEY_HEADERS | {"authorization"}
_WHOLE = frozenset({"basic", "bearer", "token", "apikey", "key", "bot"})

# AWS4-HMAC-SHA256 and its kin name the key; `AKIA` ids stay, those of sessions (`ASIA`) do not.
_SIGNED = re.compile(r"[A-Z0-9]+-HMAC-SHA256 .*?Credential=(?!ASIA)([^/,\s]+)/")
# Access tokens that are fetched anew every hour or every call.
_FLEETING = re.compile(r"ya29\.|gh[su]_|v\^1\.1#|ASIA")
_JWT = re.compile(r"[\w-]+\.([\w-]+)\.[\w-]*")
_JWT_NAMES = ("iss", "sub", "azp", "client_id", "appid", "tid", "org_id")


def account(request: Request) -> bytes:
    """A short digest of the lasting credentials of a request; empty when it carries none."""
    parts = [
        f"{name}\0{lasting}"
        for name, value in request.headers
        if name in _LOOKED_AT and (lasting := _lasting(name, value.strip()))
    ]
    if not parts:
        return b""
    text = "\n".join(sorted(parts)).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).digest()[:DIGEST_BYTES]


def _lasting(name: str, value: str) -> str:
    """What of a credential stays the same from call to call; empty when nothing surely does."""
    if name in _KEY_HEADERS:
        return _lasting_token(value)
    scheme, _, rest = value.partition(" ")
    if not rest:
        return _lasting_token(value)  # a bare key
    if scheme.lower() in _WHOLE:
        return f"{scheme.lower()} {_lasting_token(rest.strip())}"
    signed = _SIGNED.match(value)
    return signed[1] if signed else ""


def _lasting_token(token: str) -> str:
    if _FLEETING.match(token):
        return ""
    found = _JWT.fullmatch(token)
    if found is None:
        return token
    try:
        claims = orjson.loads(base64.urlsafe_b64decode(found[1] + "=" * (-len(found[1]) % 4)))
    except (binascii.Error, ValueError):
        return token
    if not isinstance(claims, dict):
        return token
    return " ".join(f"{name}={claims[name]}" for name in _JWT_NAMES if name in claims)
