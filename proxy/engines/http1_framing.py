"""Where a request's body ends: after so many bytes, or with its last chunk (RFC 9112, section 7.1).

Fed with what came; gives back the content, and what follows the body once that has ended.
"""

import re
from typing import Protocol

from proxy.head import HEAD_BYTES_MAX

CHUNK_LINE_BYTES_MAX = 4096  # its size, and extensions that nobody reads

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*")
_END = b"\r\n"


class BrokenChunks(Exception):
    """Nobody can say where the body ends."""


class Framing(Protocol):
    has_ended: bool

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """The content in it, and what follows the end."""


class Sized:
    """A body of so many bytes."""

    __slots__ = ("_left_bytes", "has_ended")

    def __init__(self, length_bytes: int) -> None:
        self._left_bytes = length_bytes
        self.has_ended = not length_bytes

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        if len(data) < self._left_bytes:
            self._left_bytes -= len(data)
            return data, b""
        self.has_ended = True
        end, self._left_bytes = self._left_bytes, 0
        if len(data) == end:
            return data, b""
        return data[:end], data[end:]


class Chunked:
    """A body in chunks. Trailers are dropped, which RFC 9110 section 6.5.1 allows."""

    __slots__ = ("_left_bytes", "_trailer_bytes", "_waiting", "has_ended")

    def __init__(self) -> None:
        self._waiting = b""
        self._left_bytes = -1  # of a chunk and its end; -1 where a size comes next
        self._trailer_bytes = -1  # counted from the last chunk on
        self.has_ended = False

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Raises BrokenChunks."""
        data, self._waiting = self._waiting + data, b""
        content: list[bytes] = []
        place = 0
        while not self.has_ended and place < len(data):
            if self._trailer_bytes >= 0:
                following = self._trailer(data, place)
            elif self._left_bytes < 0:
                following = self._size(data, place)
            else:
                following = self._part(data, place, content)
            if following is None:
                self._waiting = data[place:]
                return b"".join(content), b""
            place = following
        return b"".join(content), data[place:]

    def _line(self, data: bytes, place: int, bytes_max: int) -> int | None:
        """Where the line ends that begins here; None while it has not."""
        end = data.find(_END, place)
        if end < 0 and (len(data) - place > bytes_max or b"\n" in data[place:]):
            raise BrokenChunks
        if end - place > bytes_max:
            raise BrokenChunks
        return None if end < 0 else end

    def _size(self, data: bytes, place: int) -> int | None:
        end = self._line(data, place, CHUNK_LINE_BYTES_MAX)
        if end is None:
            if not _begins_size(data[place : place + 1]):
                raise BrokenChunks
            return None
        line = _SIZE.fullmatch(data, place, end)
        if line is None:
            raise BrokenChunks
        size_bytes = int(line[1], 16)
        if size_bytes:
            self._left_bytes = size_bytes + len(_END)
        else:
            self._trailer_bytes = 0
        return end + len(_END)

    def _part(self, data: bytes, place: int, content: list[bytes]) -> int | None:
        """Of a chunk, and then the end of its line."""
        if self._left_bytes > len(_END):
            end = min(len(data), place + self._left_bytes - len(_END))
            content.append(data[place:end])
            self._left_bytes -= end - place
            return end
        if len(data) - place < len(_END):
            if data[place:] != _END[: len(data) - place]:
                raise BrokenChunks
            return None
        if data[place : place + len(_END)] != _END:
            raise BrokenChunks
        self._left_bytes = -1
        return place + len(_END)

    def _trailer(self, data: bytes, place: int) -> int | None:
        end = self._line(data, place, HEAD_BYTES_MAX - self._trailer_bytes)
        if end is None:
            return None
        if end > place and not _FIELD.fullmatch(data, place, end):
            raise BrokenChunks
        self._trailer_bytes += end - place
        self.has_ended = end == place
        return end + len(_END)


def _begins_size(start: bytes) -> bool:
    return start in b"0123456789abcdefABCDEF\r"
