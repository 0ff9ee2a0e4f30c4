"""Streams cut into their messages: server-sent events, and the event stream of AWS.

Incremental, in bounded memory: a message's bytes are handed on as they come and never gathered.
Bytes are as the provider wrote them: content codings (gzip, br) are undone before, or not metered.
"""

import re
from binascii import crc32
from collections.abc import Callable

FRAME_BYTES_MAX = 24 * 1024 * 1024  # of AWS's event stream, as AWS bounds it; a lie says more

_PRELUDE_BYTES = 12  # length of the frame, length of its headers, CRC of these two
_CRC_BYTES = 4
_LINE_END = re.compile(rb"[\r\n]")
_DATA = b"data:"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class ServerSentEvents:
    """Calls `on_data(part)` for parts of an event's data, its lines joined by line feeds, and
    `on_end()` at the blank line that ends it. HTML Living Standard, section 9.2.6."""

    __slots__ = ("_after_return", "_begun", "_field", "_kind", "_on_data", "_on_end", "_space")

    def __init__(self, on_data: Callable[[bytes], None], on_end: Callable[[], None]) -> None:
        self._on_data = on_data
        self._on_end = on_end
        self._kind = ""  # of the line: not known yet, "data" or "other"
        self._field = b""  # what it began with, while it may still become "data:"
        self._space = False  # one space may follow the colon
        self._after_return = False
        self._begun = False

    def feed(self, data: bytes) -> None:
        position, end = 0, len(data)
        while position < end:
            if self._after_return:
                self._after_return = False
                if data[position : position + 1] == b"\n":
                    position += 1
                    continue
            found = _LINE_END.search(data, position)
            stop = found.start() if found else end
            if stop > position:
                self._line(data[position:stop])
            if found:
                self._after_return = found[0] == b"\r"
                self._line_end()
            position = stop + 1

    def _line(self, part: bytes) -> None:
        if self._kind == "data":
            self._hand_on(part)
        if self._kind:
            return
        field = self._field + part
        if not self._begun and not field.startswith(_BYTE_ORDER_MARK):
            if _BYTE_ORDER_MARK.startswith(field):
                self._field = field
                return
        elif not self._begun:
            field = field.removeprefix(_BYTE_ORDER_MARK)
        self._begun = True
        if field.startswith(_DATA):
            self._kind, self._field, self._space = "data", b"", True
            self._hand_on(field[len(_DATA) :])
        elif _DATA.startswith(field):
            self._field = field
        else:
            self._kind, self._field = "other", b""

    def _hand_on(self, part: bytes) -> None:
        if self._space and part:
            self._space = False
            part = part.removeprefix(b" ")
        if part:
            self._on_data(part)

    def _line_end(self) -> None:
        if self._kind == "data":
            self._on_data(b"\n")
        elif not self._kind and not self._field:
            self._on_end()
        self._begun = True
        self._kind, self._field, self._space = "", b"", False


class EventStreamFrames:
    """Calls `on_data(part)` for parts of a frame's payload and `on_end(is_sound)` at its end, with
    whether its CRC is right. Headers are skipped: the payload says what it is.

    A prelude whose CRC is wrong, or which is longer than FRAME_BYTES_MAX, ends the reading: from
    there on nobody knows where a frame begins. Source: the AWS SDKs' reference guide, "Amazon
    event stream specification" (application/vnd.amazon.eventstream).
    """

    __slots__ = ("_crc", "_headers", "_is_lost", "_on_data", "_on_end", "_payload", "_start",
                 "_tail")  # fmt: skip

    def __init__(self, on_data: Callable[[bytes], None], on_end: Callable[[bool], None]) -> None:
        self._on_data = on_data
        self._on_end = on_end
        self._is_lost = False
        self._start = b""  # the prelude, as far as it has come
        self._tail = b""  # the frame's CRC, as far as it has come
        self._headers = self._payload = 0  # bytes to come
        self._crc = 0

    def feed(self, data: bytes) -> None:
        position = 0
        while position < len(data) and not self._is_lost:
            if len(self._start) < _PRELUDE_BYTES:
                part = data[position : position + _PRELUDE_BYTES - len(self._start)]
                self._start += part
                if len(self._start) == _PRELUDE_BYTES:
                    self._begin()
            elif self._headers:
                part = data[position : position + self._headers]
                self._headers -= len(part)
                self._crc = crc32(part, self._crc)
            elif self._payload:
                part = data[position : position + self._payload]
                self._payload -= len(part)
                self._crc = crc32(part, self._crc)
                self._on_data(part)
            else:
                part = data[position : position + _CRC_BYTES - len(self._tail)]
                self._tail += part
                if len(self._tail) == _CRC_BYTES:
                    self._end()
            position += len(part)

    def _begin(self) -> None:
        length, headers, crc = (
            int.from_bytes(self._start[begin : begin + 4], "big") for begin in (0, 4, 8)
        )
        payload = length - _PRELUDE_BYTES - headers - _CRC_BYTES
        self._is_lost = crc != crc32(self._start[:8]) or payload < 0 or length > FRAME_BYTES_MAX
        self._headers, self._payload = headers, payload
        self._crc = crc32(self._start)

    def _end(self) -> None:
        self._on_end(int.from_bytes(self._tail, "big") == self._crc)
        self._start = self._tail = b""
