"""The answer to one request, as an upstream speaks it in HTTP/1: parsed strictly, by llhttp.
Interim answers are dropped. No socket here.

llhttp refuses control bytes, folded lines and ambiguous lengths. It allows what no HTTP server says
(RTSP, version 2.0, codings beside `chunked`); that is looked at here, as is what comes behind the
end.
"""

from typing import Protocol

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserUpgrade,
    HttpResponseParser,
)

from proxy import head

VERSIONS = ("1.0", "1.1")

ANOTHER_PROTOCOL = "the answer is of another protocol"
AMBIGUOUS = "the answer's length is ambiguous"
BROKEN_HEAD = "control bytes or a folded line in the answer's head"  # as proxy/head.py says it
BROKEN_CHUNKS = "the answer's chunks are malformed"
BROKE_OFF = "the answer broke off"
HEAD_TOO_LARGE = "the answer's head is too large"
NO_ANSWER = "the upstream closed the connection before its answer"
NONSENSE = "what the upstream said is no answer"

_START = b"HTTP/"
_LENGTH, _CODING, _CHALLENGE = b"content-length", b"transfer-encoding", b"www-authenticate"
_NOTED = frozenset((_LENGTH, _CODING, _CHALLENGE))
_OF_A_CONNECTION = (b"ntlm", b"negotiate")


class Broken(Exception):
    """It is none, or only a part of one, in words fit for the record."""


class _Excess(Exception):
    """More came behind its end."""


class Listener(Protocol):
    """Who waits for the answer; called in the loop's turn, and never raises."""

    def headed(self, status: int, fields: head.Headers, *, to_its_end: bool) -> None:
        """The final head. `to_its_end`: its body lasts until the connection ends."""

    def chunk(self, data: bytes) -> None:
        """Some of its content, without the transfer coding."""

    def ended(self, trailers: head.Headers) -> None:
        """All of it came."""

    def upgraded(self, fields: head.Headers, rest: bytes) -> None:
        """It agrees to a WebSocket; `rest` is what came behind its head."""

    def failed(self, why: str, *, unprocessed: bool = False) -> None:
        """No whole answer can come any more. `unprocessed`: the request has provably not left."""


class _Nobody:
    """Takes the place of a listener that has gone."""

    def headed(self, status: int, fields: head.Headers, *, to_its_end: bool) -> None:
        return

    def chunk(self, data: bytes) -> None:
        return

    def ended(self, trailers: head.Headers) -> None:
        return

    def upgraded(self, fields: head.Headers, rest: bytes) -> None:
        return

    def failed(self, why: str, *, unprocessed: bool = False) -> None:
        return


_NOBODY = _Nobody()


class Answer:
    """Feeds its listener. The methods `on_...` are llhttp's to call.

    `is_over` once all of it came, and `keeps` whether the connection may serve another request
    then: not if it is to be authenticated as a whole (RFC 4559, section 6). The end itself is told
    by whoever feeds it: what came behind must be known before.
    """

    def __init__(self, listener: Listener, method: str, *, websocket: bool) -> None:
        """`websocket`: the request asked for one, so that 101 may agree."""
        self.is_headed = False
        self.is_over = False
        self.keeps = False
        self.upgraded: bytes | None = None  # what came behind the head that agreed to a WebSocket
        self.fields: head.Headers = ()
        self.trailers: list[tuple[bytes, bytes]] = []
        self._listener = listener
        self._is_head = method == "HEAD"
        self._websocket = websocket
        self._parser = HttpResponseParser(self)
        self._read: list[tuple[bytes, bytes]] = []
        self._noted: list[tuple[bytes, bytes]] = []  # fields that are looked at here
        self._read_bytes = 0
        self._quiet_bytes = 0  # that came since the last thing that could be told
        self._started = False
        self._interim = False
        self._to_its_end = False
        self._why = ""

    def feed(self, data: bytes) -> None:
        """Raises Broken."""
        if not self._started:
            self._looks_like_http(data)
        self._quiet_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as switch:
            if self.is_headed:
                self.upgraded = data[switch.args[0] :]
                self.is_over = True
        except HttpParserError as error:
            if not self.is_over:
                raise self._broken(error) from None
            self.keeps = False
        if self._quiet_bytes > head.HEAD_BYTES_MAX and not self.is_over:
            raise Broken(BROKEN_CHUNKS if self.is_headed else HEAD_TOO_LARGE)

    def forget(self) -> None:
        """Nobody waits for it any more, also not for the rest of what is being fed."""
        self._listener = _NOBODY

    def finish(self, *, in_order: bool) -> None:
        """The connection ended. Raises Broken where the answer has not."""
        if self.is_over:
            return
        if not self.is_headed:
            raise Broken(NO_ANSWER)
        if not (self._to_its_end and in_order):
            raise Broken(BROKE_OFF)
        self.is_over = True

    def _looks_like_http(self, data: bytes) -> None:
        start = data.lstrip(b"\r\n")[: len(_START)]
        if start and not _START.startswith(start):
            raise Broken(NONSENSE)
        self._started = bool(start)

    def _broken(self, error: HttpParserError) -> Exception:
        """By what llhttp complains of; what it quotes is never repeated."""
        if isinstance(error, HttpParserCallbackError) and not self._why:
            cause = error.__context__
            return cause if isinstance(cause, Exception) else error
        told = str(error).lower()
        if self._why:
            return Broken(self._why)
        if "content-length" in told or "transfer-encoding" in told:
            return Broken(AMBIGUOUS)
        if self.is_headed:
            return Broken(BROKEN_CHUNKS)
        if "header" in told:
            return Broken(BROKEN_HEAD)
        if "version" in told or "upgrade" in told:
            return Broken(ANOTHER_PROTOCOL)
        return Broken(NONSENSE)

    # Called by llhttp

    def on_message_begin(self) -> None:
        if self.is_over:
            raise _Excess
        self._started = True

    def on_header(self, name: bytes, value: bytes) -> None:
        self._read_bytes += len(name) + len(value) + 4
        if self._read_bytes > head.HEAD_BYTES_MAX:
            self._fail(BROKEN_CHUNKS if self.is_headed else HEAD_TOO_LARGE)
        value = value.rstrip(b" \t")
        if self.is_headed:
            self.trailers.append((name, value))
            return
        self._read.append((name, value))
        lower = name.lower()
        if lower in _NOTED:
            self._noted.append((lower, value.lower()))

    def on_headers_complete(self) -> None:
        status, version = self._parser.get_status_code(), self._parser.get_http_version()
        self.fields, self._read, self._read_bytes = tuple(self._read), [], 0
        if version not in VERSIONS:
            self._fail(ANOTHER_PROTOCOL)
        self._interim = 100 <= status < 200 and status != 101
        if self._interim:
            self._noted.clear()
            return
        broken = self._fault(status, version)
        if broken:
            self._fail(broken)
        self.is_headed = True
        self._quiet_bytes = 0
        if status == 101:
            return
        self.keeps = self._parser.should_keep_alive() and not self._binds()
        bodiless = self._is_head or status in (204, 304)
        self._to_its_end = not bodiless and not self._is_framed()
        self._listener.headed(status, self.fields, to_its_end=self._to_its_end)
        self.is_over = self._is_head

    def on_body(self, data: bytes) -> None:
        if self.is_over:
            raise _Excess
        self._quiet_bytes = 0
        self._listener.chunk(data)

    def on_message_complete(self) -> None:
        self._quiet_bytes = 0
        if self._interim:
            self._interim = self._started = False
        elif self.is_headed and self.upgraded is None:
            self.is_over = True

    def _fault(self, status: int, version: str) -> str:
        """Why this head is no answer to this request; empty when it is one."""
        if status == 101 and not self._is_handshake():
            return ANOTHER_PROTOCOL
        codings = [value for name, value in self._noted if name == _CODING]
        chunked = codings == [b"chunked"] and version == "1.1" and status not in (101, 204)
        if codings and not chunked:
            return AMBIGUOUS
        is_one = 100 <= status <= 599
        return "" if is_one else head.broken_answer(status, ())  # llhttp looks at fields

    def _is_handshake(self) -> bool:
        agrees = self._parser.should_upgrade() and head.is_websocket(self.fields)
        return self._websocket and agrees

    def _is_framed(self) -> bool:
        return any(name != _CHALLENGE for name, _ in self._noted)

    def _binds(self) -> bool:
        return any(value.startswith(_OF_A_CONNECTION) for _, value in self._noted)

    def _fail(self, why: str) -> None:
        self._why = why
        raise Broken(why)
