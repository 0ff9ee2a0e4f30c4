"""The exact request that a person approves: its headers that go upstream, and the digest of it all.

Nothing here is lenient. The fingerprint of policies/canonical.py says which writes ask for the same
thing; an approval is for one request as it was sent.
"""

import re

from ledger.claims import digest
from policies.call import Identity, Request
from proxy import head

Pairs = tuple[tuple[str, str], ...]

# What differs between two tries of one request though nobody asks for anything else: marks of the
# tracer and of the client's own retries. Whatever is not surely of that kind is bound.
UNBOUND = frozenset({
    "amz-sdk-invocation-id", "amz-sdk-request", "traceparent", "tracestate",
    "x-stainless-retry-count",
})  # fmt: skip

# A signature that AWS clients make anew for each try. Key, scope and signed headers are bound.
_SIGNED = re.compile(
    r"(AWS4-HMAC-SHA256 Credential=[^,\s]+, ?SignedHeaders=[^,\s]+, ?Signature=)[0-9a-f]{64}"
)
_SIGNED_AT = re.compile(r"[0-9]{8}T[0-9]{6}Z")

_NOBODY = Identity("", "")


def headers(request: Request, tag_headers: tuple[str, str]) -> Pairs:
    """Those that go upstream, as the agent sent them, without those of the connection itself."""
    fields = tuple(
        (name.encode("latin-1"), value.encode("latin-1")) for name, value in request.headers
    )
    kept = head.upstream_headers(fields, _NOBODY, tag_headers, tagged=False, http2=True)
    return tuple((name.decode("latin-1"), value.decode("latin-1")) for name, value in kept)


def bound_to(request: Request, tag_headers: tuple[str, str], key_header: str | None) -> bytes:
    """SHA-256 of method, URL as sent, body, and every header that goes upstream, credentials too,
    but those of `UNBOUND` and `key_header`, which names the try and not what is asked.

    A guess at a short secret could be tried against it: it is never stored as it is. The order of
    headers counts within one name only (RFC 9110, section 5.3).
    """
    pairs = headers(request, tag_headers)
    is_signed = any(name == "authorization" and _SIGNED.fullmatch(value) for name, value in pairs)
    texts = [request.method, request.scheme, request.host, str(request.port), request.target]
    for name, value in sorted(pairs, key=lambda pair: pair[0]):
        if name in UNBOUND or name == key_header:
            continue
        if is_signed and name == "x-amz-date" and _SIGNED_AT.fullmatch(value):
            continue
        if is_signed and name == "authorization":
            value = _SIGNED.sub(r"\1", value)
        texts += name, value
    return digest(request.body, *(text.encode("utf-8", "surrogatepass") for text in texts))
