"""Proxy credentials -> who is calling. Tokens are opaque, random, and stored only hashed.

Verified on every request: nothing here remembers a connection (design, section 6).
"""

import base64
import binascii
import hashlib
import re
import secrets
from dataclasses import dataclass, field
from typing import Literal

from ledger.store import Bearer, Claimant
from policies.call import Identity

Mode = Literal["token", "open"]

NAME = re.compile(r"[A-Za-z0-9._~-]{1,256}")
"""Run, tenant and token text: what every client can carry in a proxy URL (notes/clients.md)."""

HEADER_BYTES_MAX = 4096
TOKEN_BYTES = 24


@dataclass(frozen=True, slots=True)
class Credentials:
    """The two halves of the proxy URL's userinfo, as sent."""

    run: str
    secret: str = field(repr=False)


def read(header: str | None) -> Credentials | None:
    """`Proxy-Authorization` (RFC 7617 Basic) -> credentials; None when absent or not readable."""
    if header is None or len(header) > HEADER_BYTES_MAX:
        return None
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        run, colon, secret = (
            base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
        )
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return None
    if not colon or not NAME.fullmatch(run) or not NAME.fullmatch(secret):
        return None
    return Credentials(run, secret)


def claimant(credentials: Credentials | None, mode: Mode) -> Claimant:
    """What the store resolves. In `open` mode the second half is the tenant, advisory only."""
    if credentials is None:
        return None
    if mode == "open":
        return Identity(run=credentials.run, tenant=credentials.secret)
    return Bearer(credentials.run, token_hash(credentials.secret))


def new_token() -> str:
    """Hex digits alone, so that the ledger's redaction knows it wherever it turns up."""
    return secrets.token_hex(TOKEN_BYTES)


def token_hash(secret: str) -> bytes:
    """SHA-256 is enough: the token is 192 random bits, not a password."""
    return hashlib.sha256(secret.encode()).digest()
