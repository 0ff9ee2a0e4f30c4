"""What is said on the wire: the requests, the only right answers, and the numbers in them.

Nearly every byte is made before anything is measured, so that the generator and the upstream cost
little beside the proxy between them.
"""

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

READ_PATH = "/items"
LARGE_PATH = "/items/1048576"
WRITE_PATH = "/orders"
REFUSED_PATH = "/unlisted"  # no tool of the policy
COUNT_PATH = "/count"
HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"


class Kind(StrEnum):
    """What is called."""

    READ = "read"
    LARGE = "read of 1 MB"
    WRITE = "durable write"
    REPLAY = "replayed write"
    REFUSED = "refused call"


class Way(StrEnum):
    """How a client reaches the upstream: TLS over one connection, or over a new one each call."""

    PLAIN = "plain"
    TLS = "TLS"
    NEW_TLS = "new TLS"


_DIGITS = 12
_NO_NUMBER = b"0" * _DIGITS
_FIELDS = "User-Agent: bench\r\nAccept: application/json\r\n"


def _item(size_bytes: int) -> bytes:
    item = {
        "id": _NO_NUMBER.decode(),
        "name": "rope",
        "stock": 41,
        "tags": ["steel", "red"],
        "note": "",
    }
    item["note"] = "n" * (size_bytes - len(json.dumps(item)))
    return json.dumps(item).encode()


_ITEM_START, _ITEM_END = _item(1_024).split(_NO_NUMBER)
LARGE_ANSWER = _item(1_048_576)
_ORDER_START = b'{"currency":"eur","amount":1250,"order":"'
_ORDER_END = b'","memo":"' + b"m" * 160 + b'"}'
_ORDER_BYTES = len(_ORDER_START) + _DIGITS + len(_ORDER_END)


def order_number(body: bytes) -> bytes:
    """The number by which an order differs from all others."""
    return body[len(_ORDER_START) : len(_ORDER_START) + _DIGITS]


def item_number(request: bytes) -> bytes:
    """The number of the item that a request is about; a shorter one is of the item without any."""
    start = len("GET ") + len(READ_PATH) + 1
    number = request[start : start + _DIGITS]
    return number if number.isdigit() else _NO_NUMBER


def read_answer(number: bytes) -> bytes:
    """A KiB, as different as the items."""
    return _ITEM_START + number + _ITEM_END


READ_ANSWER = read_answer(_NO_NUMBER)


def write_answer(number: bytes) -> bytes:
    return b'{"state":"done","order":"%s"}' % number


def answer(body: bytes) -> bytes:
    """A whole HTTP answer around a body."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(body) + body


def length_told(head: bytes) -> int:
    """The content-length of a head."""
    lower = head.lower()
    start = lower.index(_LENGTH) + len(_LENGTH)
    return int(lower[start : lower.index(b"\r\n", start)])


@dataclass(frozen=True, slots=True)
class Expected:
    """The only right answer. A refusal's body differs from call to call: `body` is then empty."""

    start: bytes
    body: bytes = b""

    def is_whole(self, heard: bytearray) -> bool:
        if self.body:
            return heard.endswith(self.body) and heard.startswith(self.start)
        end = heard.find(HEAD_END) + len(HEAD_END)
        if end < len(HEAD_END) or not heard.startswith(self.start):
            return False
        return len(heard) == end + length_told(bytes(heard[:end]))

    def is_wrong(self, heard: bytearray) -> bool:
        """Whether no more bytes could make it the right one."""
        if not heard.startswith(self.start[: len(heard)]):
            return HEAD_END in heard
        end = heard.find(HEAD_END)
        return end >= 0 and bool(self.body) and len(heard) > end + len(HEAD_END) + len(self.body)


_OK, _FORBIDDEN = b"HTTP/1.1 200", b"HTTP/1.1 403"
_SAME = {
    Kind.LARGE: (LARGE_PATH, Expected(_OK, LARGE_ANSWER)),
    Kind.REFUSED: (REFUSED_PATH, Expected(_FORBIDDEN)),
}


class Requests:
    """The requests of one client and what answers each. Reads and orders never repeat: the same
    again and again is what a detector looks for. An order that is to be replayed does."""

    def __init__(
        self,
        authority: str,
        *,
        absolute: bool,
        credentials: str | None,
        kind: Kind,
        numbers: Iterator[int],
    ) -> None:
        self._target = f"http://{authority}" if absolute else ""
        self._fields = f"Host: {authority}\r\n{_FIELDS}"
        if credentials is not None and absolute:
            self._fields += _authorization(credentials)
        self._numbers = numbers
        posted = f"Content-Type: application/json\r\nContent-Length: {_ORDER_BYTES}\r\n"
        self._write = self._head("POST", WRITE_PATH, posted) + _ORDER_START
        self._read, self._read_end = self._head("GET", f"{READ_PATH}/\0").split(b"\0")
        self._next = {Kind.READ: self._item, Kind.WRITE: self._order}.get(kind)
        if kind in _SAME:
            path, expected = _SAME[kind]
            self._same = self._head("GET", path), expected
        elif kind is Kind.REPLAY:
            self._same = self._order()

    def next(self) -> tuple[bytes, Expected]:
        """The bytes to send, and what must come back."""
        return self._next() if self._next is not None else self._same

    def _item(self) -> tuple[bytes, Expected]:
        number = b"%012d" % next(self._numbers)
        return self._read + number + self._read_end, Expected(_OK, read_answer(number))

    def _order(self) -> tuple[bytes, Expected]:
        number = b"%012d" % next(self._numbers)
        return self._write + number + _ORDER_END, Expected(_OK, write_answer(number))

    def _head(self, method: str, path: str, more: str = "") -> bytes:
        head = f"{method} {self._target}{path} HTTP/1.1\r\n{self._fields}{more}\r\n"
        return head.encode()


def connect(authority: str, credentials: str | None) -> bytes:
    """The request that opens a tunnel."""
    fields = f"Host: {authority}\r\n" + (_authorization(credentials) if credentials else "")
    return f"CONNECT {authority} HTTP/1.1\r\n{fields}\r\n".encode()


def _authorization(credentials: str) -> str:
    return f"Proxy-Authorization: Basic {base64.b64encode(credentials.encode()).decode()}\r\n"
