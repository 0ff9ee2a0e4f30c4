"""What is said on the wire: the requests, the only right answers, and the numbers in them.

Every byte is made before anything is measured, so that the generator and the upstream cost
little beside the proxy between them.
"""

import base64
import json
from itertools import count

READ_PATH = "/items/17"
WRITE_PATH = "/orders"
COUNT_PATH = "/count"
HEAD_END = b"\r\n\r\n"

_DIGITS = 12
_FIELDS = "User-Agent: bench\r\nAccept: application/json\r\n"


def _one_kibibyte() -> bytes:
    item = {"id": 17, "name": "rope", "stock": 41, "tags": ["steel", "red"], "note": ""}
    item["note"] = "n" * (1024 - len(json.dumps(item)))
    return json.dumps(item).encode()


READ_ANSWER = _one_kibibyte()
_ORDER_START = b'{"currency":"eur","amount":1250,"order":"'
_ORDER_END = b'","memo":"' + b"m" * 160 + b'"}'
_ORDER_BYTES = len(_ORDER_START) + _DIGITS + len(_ORDER_END)


def order_number(body: bytes) -> bytes:
    """The number by which an order differs from all others."""
    return body[len(_ORDER_START) : len(_ORDER_START) + _DIGITS]


def write_answer(number: bytes) -> bytes:
    return b'{"state":"done","order":"%s"}' % number


def answer(body: bytes) -> bytes:
    """A whole HTTP answer around a body."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


class Requests:
    """The requests of one connection and the body that answers each. Orders never repeat."""

    def __init__(
        self, authority: str, *, absolute: bool, credentials: str | None, writes: count | None
    ) -> None:
        target = f"http://{authority}" if absolute else ""
        fields = f"Host: {authority}\r\n{_FIELDS}"
        if credentials is not None and absolute:
            fields += _authorization(credentials)
        self._writes = writes
        self._read = f"GET {target}{READ_PATH} HTTP/1.1\r\n{fields}\r\n".encode()
        posted = f"Content-Type: application/json\r\nContent-Length: {_ORDER_BYTES}\r\n"
        self._write = (
            f"POST {target}{WRITE_PATH} HTTP/1.1\r\n{fields}{posted}\r\n".encode() + _ORDER_START
        )

    def next(self) -> tuple[bytes, bytes]:
        """The bytes to send, and the body that must come back."""
        if self._writes is None:
            return self._read, READ_ANSWER
        number = b"%012d" % next(self._writes)
        return self._write + number + _ORDER_END, write_answer(number)


def connect(authority: str, credentials: str | None) -> bytes:
    """The request that opens a tunnel."""
    fields = f"Host: {authority}\r\n" + (_authorization(credentials) if credentials else "")
    return f"CONNECT {authority} HTTP/1.1\r\n{fields}\r\n".encode()


def _authorization(credentials: str) -> str:
    return f"Proxy-Authorization: Basic {base64.b64encode(credentials.encode()).decode()}\r\n"
