"""The event stream of AWS, written: what the meter's reader reads."""

import json
from base64 import b64encode
from binascii import crc32


def frame(payload: bytes, event: str = "chunk") -> bytes:
    """One message with the headers that Bedrock sends."""
    headers = b"".join(
        bytes((len(name),)) + name + b"\x07" + len(value).to_bytes(2, "big") + value
        for name, value in (
            (b":event-type", event.encode()),
            (b":content-type", b"application/json"),
            (b":message-type", b"event"),
        )
    )
    lengths = (16 + len(headers) + len(payload), len(headers))
    prelude = b"".join(length.to_bytes(4, "big") for length in lengths)
    prelude += crc32(prelude).to_bytes(4, "big")
    message = prelude + headers + payload
    return message + crc32(message).to_bytes(4, "big")


def chunk(event: str) -> bytes:
    """An event of InvokeModelWithResponseStream."""
    text = b64encode(event.encode()).decode()
    return frame(json.dumps({"bytes": text, "p": "abcdefghij"}).encode())
