"""Holds an MCP event stream from its JSON-RPC answer on, until the outcome is durable.

A `tools/call` is mostly answered as server-sent events: progress first, the result as the last
one. Progress flows at once; the event that tells the agent what became of its write must not
reach it before the record knows (design, section 3.7). Event format: WHATWG HTML, section 9.2.
"""

import re

import orjson

HELD_BYTES_MAX = 16 * 1024 * 1024  # as long as a request may be; a longer result flows on

_MARK_BYTES = 4  # the longest end of an event, which may come in two parts
_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")


class HeldResult:
    """Fed with the chunks of one stream; gives back what may flow on now."""

    def __init__(self) -> None:
        self._waiting = bytearray()  # an event that is not complete, or everything from the result
        self._found = False
        self._searched = 0  # where the next search begins: no byte is looked at twice

    def feed(self, chunk: bytes) -> bytes:
        self._waiting += chunk
        if len(self._waiting) > HELD_BYTES_MAX:
            return self.rest()
        if self._found:
            return b""
        end = 0
        for mark in _EVENT_END.finditer(self._waiting, self._searched):
            if _is_result(bytes(self._waiting[end : mark.start()])):
                self._found = True
                break
            end = mark.end()
        free = bytes(self._waiting[:end])
        del self._waiting[:end]
        self._searched = max(0, len(self._waiting) - _MARK_BYTES + 1)
        return free

    def rest(self) -> bytes:
        """What was held, to be given once the outcome is durable."""
        rest = bytes(self._waiting)
        self._waiting.clear()
        return rest


class OneBehind:
    """Fed with the chunks of one answer; holds the last one back until all of it is kept."""

    def __init__(self) -> None:
        self._last = b""

    def feed(self, chunk: bytes) -> bytes:
        free, self._last = self._last, chunk
        return free

    def rest(self) -> bytes:
        return self.feed(b"")


def _is_result(event: bytes) -> bool:
    """Whether the event carries a JSON-RPC response; what cannot be read might be one."""
    lines = [line for line in event.splitlines() if line.startswith(b"data:")]
    if not lines:
        return False
    try:
        message = orjson.loads(b"\n".join(line[5:] for line in lines))
    except orjson.JSONDecodeError:
        return True
    entries = message if isinstance(message, list) else [message]
    return any(isinstance(entry, dict) and "method" not in entry for entry in entries)
