"""TLS over bytes, for either side of the HTTP/1.1 engine: what came goes in, what is to be sent
comes out. No loop and no socket here.

asyncio's own TLS hides what must be known: whether the other side said goodbye before it closed
(RFC 8446, section 6.1), without which an answer that ends with its connection may be half of one.
"""

import ssl
from collections.abc import Callable

_RECORD_BYTES = 16 * 1024  # what one record holds (RFC 8446, section 5.1); a read gives one


class Named(ssl.SSLObject):
    """The serving side. `sni` is the name that the client asked for, None where it named none."""

    sni: str | None = None


class Tls:
    """One TLS connection. `write` is given what is to be sent; `ended` once the other side has said
    that nothing more comes."""

    def __init__(
        self,
        context: ssl.SSLContext,
        write: Callable[[bytes], object],
        *,
        server_side: bool,
        server_name: str | None = None,
    ) -> None:
        """Raises ValueError for a name that is none."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=server_name
        )
        self._write = write
        self.is_ready = False
        self.ended = False

    @property
    def sni(self) -> str | None:
        return self._object.sni if isinstance(self._object, Named) else None

    @property
    def alpn(self) -> str | None:
        return self._object.selected_alpn_protocol()

    def start(self) -> None:
        """The client's side speaks first. Raises ssl.SSLError, as `feed` does."""
        self._shake()

    def feed(self, data: bytes) -> bytes:
        """What came, as it was before it was encrypted; nothing while the handshake goes on."""
        self._incoming.write(data)
        if not self.is_ready:
            self._shake()
            if not self.is_ready:
                return b""
        return self._read()

    def send(self, data: bytes) -> None:
        """Not before it is ready."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._object.write(rest) :]
        self._flush()

    def goodbye(self) -> None:
        """Nothing more is sent. The other side's own goodbye is not waited for."""
        if not self.is_ready:
            return
        try:
            self._object.unwrap()
        except ssl.SSLError:
            pass  # it waits for theirs, or is broken
        self._flush()

    def _shake(self) -> None:
        try:
            self._object.do_handshake()
            self.is_ready = True
        except ssl.SSLWantReadError:
            pass
        finally:
            self._flush()  # an alert, too

    def _read(self) -> bytes:
        """Asked only while something is there: to be told of nothing costs an exception."""
        parts = []
        try:
            while self._incoming.pending or self._object.pending():
                part = self._object.read(_RECORD_BYTES)
                if not part:
                    self.ended = True
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass  # half a record, or one that is for TLS itself
        except ssl.SSLZeroReturnError:
            self.ended = True
        self._flush()
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._write(self._outgoing.read())
