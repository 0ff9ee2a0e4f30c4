"""mitmproxy's HTTP/1, bent where it hangs, forgets or answers in its own name.

Its client side (1xx answers, trailers) and its error page are replaced at import, because it offers
no other way to supply them. What a head may say is judged in proxy/head.py. Checked on 12.2.3.
"""

import re
from typing import Any

import h11
from h11 import _readers
from h11._readers import ChunkedReader, Http10Reader
from mitmproxy import http
from mitmproxy.connection import ConnectionState
from mitmproxy.net.http import http1, status_codes
from mitmproxy.proxy import commands, events, layer
from mitmproxy.proxy.layers import http as mhttp
from mitmproxy.proxy.layers import tls as mtls
from mitmproxy.proxy.layers.http import _http1, _http2
from OpenSSL import SSL

from proxy.engines.mitm_events import BrokenBody, not_processed
from proxy.engines.waits import PIPELINED_BYTES_MAX
from proxy.head import HEAD_BYTES_MAX

LINE_START_BYTES = 32  # in which a method ends
CHUNK_EXTENSION_BYTES_MAX = 4096  # nobody reads them
_METHOD_START = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,31}( |\Z)")
_LINE = re.compile(rb"[^ ]+ [^\s]+ HTTP/[^\s]+\r\n")
_END = re.compile(rb"\n\r?\n")  # of a head, as h11 takes it
_ODD = re.compile(rb"(?<!\r)\n|\r(?!\n)|[\x0b\x0c]")
"""Ends a line for one reader and not for another; or h11 takes it for a blank, and drops it."""
_FOLDED = re.compile(rb"\n[ \t]")
_CODED = re.compile(rb"\ntransfer-encoding:(?![ \t]*chunked[ \t]*\r)", re.IGNORECASE)
"""What mitmproxy takes beside it (`gzip, chunked`) is a body that nobody here has judged."""
VERSIONS = (b"HTTP/1.0", b"HTTP/1.1")

Commands = layer.CommandGenerator[None]


class _BrokenChunks(Exception):
    """A chunk of a request that is none."""


class _Chunks(ChunkedReader):
    """Those of a request: trailers that end in one way only, and that end."""

    def __call__(self, buffer: Any) -> Any:
        if self._reading_trailer:
            trailers = bytes(buffer)
            end = _END.search(b"\n" + trailers)
            if (end.end() if end else len(trailers)) > HEAD_BYTES_MAX:
                raise _BrokenChunks
            lines = b"\r\n" + trailers[: end.end() - 1] if end else b""
            if _ODD.search(lines) or _FOLDED.search(lines):
                raise _BrokenChunks
        elif len(buffer) > HEAD_BYTES_MAX and self._has_no_line(buffer):
            raise _BrokenChunks
        return super().__call__(buffer)

    def _has_no_line(self, buffer: Any) -> bool:
        is_size = not self._bytes_in_chunk and not self._bytes_to_discard
        return is_size and b"\n" not in bytes(buffer)


class _WithoutTrailers:
    """Drops chunked trailers, which RFC 9110 section 6.5.1 allows; mitmproxy would crash."""

    def __init__(self, reader: ChunkedReader, *, of_request: bool) -> None:
        self._reader = reader
        self._of_request = of_request

    def __call__(self, buffer: Any) -> Any:
        try:
            event = self._reader(buffer)
        except h11.ProtocolError as error:
            if not self._of_request:
                raise
            raise _BrokenChunks from error
        return h11.EndOfMessage() if isinstance(event, h11.EndOfMessage) else event

    def read_eof(self) -> Any:
        return self._reader.read_eof()


class _Http1Body:
    """Gives an HTTP/1 connection body readers that drop trailers."""

    @property
    def body_reader(self) -> Any:
        return self._body_reader

    @body_reader.setter
    def body_reader(self, reader: Any) -> None:
        chunked = isinstance(reader, ChunkedReader)
        of_request = isinstance(self, Http1Server)
        reader = _Chunks() if chunked and of_request else reader
        self._body_reader = _WithoutTrailers(reader, of_request=of_request) if chunked else reader


class Http1Server(_Http1Body, _http1.Http1Server):
    """The client's side: a bound on the head, and every request that is none is told so."""

    def read_headers(self, event: events.ConnectionEvent) -> Commands:
        _skip_empty_lines(self.buf)
        if _is_no_request(bytes(self.buf)[:LINE_START_BYTES]):
            yield from self._refuse(400)
            return
        received, refused = bytes(self.buf), False
        for command in super().read_headers(event):
            refused = refused or isinstance(command, commands.SendData)
            if not refused and _is_head(command) and _is_read_differently(received):
                yield from self._refuse(400)
                return
            if _is_of_another_version(command):
                yield from self._refuse(505)
                return
            yield command
        if self.request is None and len(self.buf) > HEAD_BYTES_MAX:
            yield from self._refuse(431)

    def read_body(self, event: events.Event) -> Commands:
        try:
            yield from super().read_body(event)
        except _BrokenChunks:
            self.state = self.done
            yield mhttp.ReceiveHttp(BrokenBody(self.stream_id, "its chunks are malformed"))

    def wait(self, event: events.Event) -> Commands:
        yield from super().wait(event)
        if len(self.buf) > PIPELINED_BYTES_MAX:
            yield commands.CloseConnection(self.conn)

    def _refuse(self, status: int) -> Commands:
        yield commands.SendData(self.conn, _error_page(status))
        yield commands.CloseConnection(self.conn)
        self.state = self.done


class Http1Client(_Http1Body, _http1.Http1Client):
    """The upstream's side: interim answers are skipped, a flooding head is an error."""

    def read_headers(self, event: events.ConnectionEvent) -> Commands:
        if isinstance(event, events.DataReceived) and self.request is not None:
            _skip_empty_lines(self.buf)
            while _is_interim(bytes(self.buf)[:13]):
                if self.buf.maybe_extract_lines() is None:
                    break
            if len(self.buf) > HEAD_BYTES_MAX and b"\r\n\r\n" not in bytes(self.buf):
                yield commands.CloseConnection(self.conn)
                yield mhttp.ReceiveHttp(
                    mhttp.ResponseProtocolError(
                        self.stream_id or 0,
                        "the answer's head is too large",
                        mhttp.ErrorCode.GENERIC_SERVER_ERROR,
                    )
                )
                return
            if not self.buf:
                return
        yield from super().read_headers(event)

    def send(self, event: mhttp.HttpEvent) -> Commands:
        if isinstance(event, mhttp.RequestHeaders) and not self.conn.connected:
            yield not_processed(event.stream_id)
            self.state = self.done
            return
        yield from super().send(event)

    def read_body(self, event: events.Event) -> Commands:
        """A body without a length is whole when the connection ended in order (RFC 9112, 9.8)."""
        is_last = isinstance(event, events.ConnectionClosed)
        until_closed = is_last and isinstance(self.body_reader, Http10Reader)
        if until_closed and not self._ended_in_order():
            broken, code = "the answer broke off", mhttp.ErrorCode.GENERIC_SERVER_ERROR
            yield commands.CloseConnection(self.conn)
            yield mhttp.ReceiveHttp(mhttp.ResponseProtocolError(self.stream_id or 0, broken, code))
            return
        yield from super().read_body(event)
        if until_closed:
            yield commands.CloseConnection(self.conn)

    def _ended_in_order(self) -> bool:
        """Not by a reset (mitm_pace), and in TLS not without its own goodbye."""
        secured = [one for one in self.context.layers if isinstance(one, mtls.ServerTLSLayer)]
        tls = next((one.tls for one in secured if one.conn is self.conn), None)
        if tls is not None:
            return bool(tls.get_shutdown() & SSL.RECEIVED_SHUTDOWN)
        return bool(self.conn.state & ConnectionState.CAN_WRITE)


def _is_no_request(start: bytes) -> bool:
    """TLS, SSH and others that never end a head: their first bytes are no method and space
    (RFC 9112 section 3), so nobody has to wait for the rest."""
    return start not in (b"", b"\r") and not _METHOD_START.match(start)


def _is_head(command: commands.Command) -> bool:
    event = command.event if isinstance(command, mhttp.ReceiveHttp) else None
    return isinstance(event, mhttp.RequestHeaders)


def _is_read_differently(received: bytes) -> bool:
    """Whether the head that these bytes begin with says something else to another reader."""
    end = _END.search(received)
    head = received[: end.end()] if end else received
    return bool(_ODD.search(head) or _CODED.search(head)) or not _LINE.match(head)


def _skip_empty_lines(buffer: Any) -> None:
    """Before a message's first line they mean nothing (RFC 9112 section 2.2)."""
    while bytes(buffer)[:2].startswith((b"\r\n", b"\n")):
        buffer.maybe_extract_lines()


def _is_of_another_version(command: commands.Command) -> bool:
    event = command.event if isinstance(command, mhttp.ReceiveHttp) else None
    if not isinstance(event, mhttp.RequestHeaders):
        return False
    return event.request.data.http_version not in VERSIONS


def _is_interim(start: bytes) -> bool:
    """`HTTP/1.1 1xx`, except 101 which switches protocols (RFC 9110 section 15.2)."""
    longer = start[12:13].isdigit()
    return start[:7] == b"HTTP/1." and start[8:10] == b" 1" and start[9:12] != b"101" and not longer


def _error_page(status_code: int, message: str = "") -> bytes:
    """For what is refused before it is a request. Says nothing of addresses or software."""
    headers = http.Headers(content_type="application/problem+json", connection="close")
    page = http.Response.make(status_code, _problem(status_code), headers)
    return bytes(http1.assemble_response(page))


def _problem(status_code: int, message: str = "") -> bytes:
    title = status_codes.RESPONSES.get(status_code, "refused")
    return b'{"title":"%s","status":%d}' % (title.encode(), status_code)


_readers.__dict__["chunk_header_re"] = re.compile(
    rb"(?P<chunk_size>[0-9A-Fa-f]{1,15})(;[^\x00-\x08\x0a-\x1f\x7f]{0,%d})?[ \t]*\r\n"
    % CHUNK_EXTENSION_BYTES_MAX
)
for _module, _name, _ours in (
    (mhttp, "Http1Client", Http1Client),
    (_http1, "make_error_response", _error_page),
    (_http2, "format_error", _problem),
):
    setattr(_module, _name, _ours)
