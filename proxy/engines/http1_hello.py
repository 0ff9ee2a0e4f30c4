"""What a client says in its TLS hello that it speaks (RFC 8446, section 4.1.2; RFC 7301)."""

# It is looked at again with every piece that comes, so that none may be long or in many records.
HELLO_BYTES_MAX = 16 * 1024
HELLO_RECORDS_MAX = 16

_HTTP1 = b"\x08http/1.1"
_HTTP2 = b"\x02h2"
_RECORD_HEAD_BYTES = 5
_HANDSHAKE = 0x16
_CLIENT_HELLO = 0x01
_ALPN = 16


def offers_http2_alone(data: bytes) -> bool | None:
    """Whether it offers HTTP/2 and not HTTP/1.1; None while a part of the hello is still to come.

    What is no hello offers nothing, and neither does one that is too long or in too many records.
    """
    if _HTTP1 in data or len(data) > HELLO_BYTES_MAX:
        return False  # the usual one, at a glance
    hello = _hello(data)
    if hello is None:
        return None
    if _HTTP2 not in hello:
        return False
    try:
        offered = _offered(hello)
    except IndexError:
        return False
    return b"h2" in offered and b"http/1.1" not in offered


def _hello(data: bytes) -> bytes | None:
    """The handshake message out of the records that carry it; empty if it is none."""
    message, at = b"", 0
    for _ in range(HELLO_RECORDS_MAX):
        if len(data) < at + _RECORD_HEAD_BYTES:
            return None
        if data[at] != _HANDSHAKE:
            return b""
        end = at + _RECORD_HEAD_BYTES + int.from_bytes(data[at + 3 : at + 5])
        message += data[at + _RECORD_HEAD_BYTES : end]
        if message and message[0] != _CLIENT_HELLO:
            return b""
        if len(message) >= 4 and len(message) >= 4 + int.from_bytes(message[1:4]):
            return message[: 4 + int.from_bytes(message[1:4])]
        if len(data) < end or end == at + _RECORD_HEAD_BYTES:
            return None if len(data) < end else b""
        at = end
    return b""


def _offered(hello: bytes) -> list[bytes]:
    """The protocols that it names. Raises IndexError where the hello is malformed."""
    at = 4 + 2 + 32  # the message's head, the version, the random number
    at += 1 + hello[at]  # the session
    at += 2 + int.from_bytes(hello[at : at + 2])  # the ciphers
    at += 1 + hello[at]  # the compressions
    at += 2  # the length of all extensions
    while at + 4 <= len(hello):
        kind, size_bytes = (
            int.from_bytes(hello[at : at + 2]),
            int.from_bytes(hello[at + 2 : at + 4]),
        )
        at += 4
        if kind == _ALPN:
            return _names(hello[at + 2 : at + size_bytes])
        at += size_bytes
    return []


def _names(listed: bytes) -> list[bytes]:
    names, at = [], 0
    while at < len(listed):
        names.append(listed[at + 1 : at + 1 + listed[at]])
        at += 1 + listed[at]
    return names
