"""What the trace gets of one call that was let through: its answer, and what it sends on meanwhile.

Chunks are held as they are, without a copy, and joined once.
"""

from typing import Any, Protocol

from ledger.traced import Side

CHUNK_BYTES = 64  # what Python takes for a chunk beside its bytes

Fields = tuple[tuple[bytes, bytes], ...] | tuple[tuple[str, str], ...]
Of = tuple[Any, ...]
"""Whose message it is: call, time, run, tenant, tool, release, level, redaction."""


class Taking(Protocol):
    """Where what is caught goes (tracing.py)."""

    @property
    def body_bytes_max(self) -> int: ...

    def caught(
        self,
        of: Of,
        side: Side,
        start: str,
        fields: Fields,
        body: bytes,
        body_bytes: int,
        at_us: int | None = None,
    ) -> None: ...

    def hold(self, size_bytes: int) -> bool: ...
    def release(self, size_bytes: int) -> None: ...
    def lost(self, run: str, at_us: int, why: str) -> None: ...


class _Body:
    """The beginning of a body, without a gap: what there is no room for ends it."""

    __slots__ = ("_chunks", "_left_bytes", "size_bytes")

    def __init__(self, bytes_max: int) -> None:
        self._chunks: list[bytes] = []
        self._left_bytes = bytes_max
        self.size_bytes = 0

    def add(self, chunk: bytes, taking: Taking) -> bool:
        """False when memory has no room for what should have been kept."""
        self.size_bytes += len(chunk)
        if self._left_bytes <= 0 or not chunk:
            return True
        if len(chunk) > self._left_bytes:
            chunk = chunk[: self._left_bytes]
        if not taking.hold(len(chunk) + CHUNK_BYTES):
            self._left_bytes = 0
            return False
        self._chunks.append(chunk)
        self._left_bytes -= len(chunk)
        return True

    def taken(self, taking: Taking) -> bytes:
        """It is held here no more."""
        chunks, self._chunks, self._left_bytes = self._chunks, [], 0
        taking.release(sum(map(len, chunks)) + len(chunks) * CHUNK_BYTES)
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class Catch:
    """What is caught of one admitted call: the head of its answer, what `add` is given, its end.

    `upload` is start and headers of a request whose body flows on as it comes (`sent`): it is
    caught when the call is over.
    """

    __slots__ = ("_answer", "_fields", "_is_over", "_of", "_status", "_taking", "_upload")

    def __init__(self, taking: Taking, of: Of, upload: tuple[str, Fields] | None = None) -> None:
        self._taking = taking
        self._of = of
        self._status: int | None = None
        self._fields: Fields = ()
        self._answer = _Body(taking.body_bytes_max)
        self._upload = (*upload, _Body(taking.body_bytes_max)) if upload is not None else None
        self._is_over = False

    def headed(self, status: int, fields: Fields) -> None:
        """The head of the answer came. After 101 each chunk is a message of a WebSocket."""
        self._status, self._fields = status, fields
        if status == 101:
            self._taking.caught(self._of, Side.RESPONSE, "101", fields, b"", 0)

    def add(self, chunk: bytes) -> None:
        """More of the answer."""
        if self._status == 101:
            self._taking.caught(self._of, Side.DOWN, "", (), chunk, len(chunk))
        elif not self._is_over:
            self._keep(self._answer, chunk)

    def sent(self, chunk: bytes) -> None:
        """More of an upload."""
        if self._upload is not None and not self._is_over:
            self._keep(self._upload[2], chunk)

    def _keep(self, body: _Body, chunk: bytes) -> None:
        if not body.add(chunk, self._taking):
            self._taking.lost(self._of[2], self._of[1], "no room in memory")

    def said(self, content: bytes) -> None:
        """A message of the client's on a WebSocket."""
        self._taking.caught(self._of, Side.UP, "", (), content, len(content))

    def settled(self, status: int | None, fields: Fields, *, is_first: bool, is_over: bool) -> None:
        """How it turned out: `fields` are its whole head with what came behind the body, where all
        of it came. Once it is over nothing more comes; of what was never answered there is nothing.
        """
        if is_first and status is not None and fields:
            self._status, self._fields = status, fields
        if not is_over or self._is_over:
            return
        self._is_over = True
        if self._upload is not None:
            start, headers, upload = self._upload
            body = upload.taken(self._taking)
            at_us: int = self._of[1]
            self._taking.caught(
                self._of, Side.REQUEST, start, headers, body, upload.size_bytes, at_us
            )
        body = self._answer.taken(self._taking)
        if self._status is not None and self._status != 101:
            start, size_bytes = str(self._status), self._answer.size_bytes
            self._taking.caught(self._of, Side.RESPONSE, start, self._fields, body, size_bytes)
