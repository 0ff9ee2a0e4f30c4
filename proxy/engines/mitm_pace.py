"""Back-pressure: while a stream waits for what it may still spend none of its upstream's bytes are
read; while an upload waits, or the disk is behind with a long body, none of its client's. They stay
in the kernel and then with whoever sends them.

HTTP/2 streams share a connection, so others may pause with it for as long as a draw or a write to
the disk takes; what is waited for never comes from the connection.
"""

import asyncio
from typing import Any

from mitmproxy.connection import Connection, ConnectionState


class PacedReader:
    """Stands between mitmproxy and a `StreamReader`, of which it asks only `read`."""

    def __init__(self, reader: asyncio.StreamReader, connection: Connection | None = None) -> None:
        self._reader = reader
        self._connection = connection
        self._holds = 0
        self._free = asyncio.Event()
        self._free.set()

    async def read(self, size_bytes: int) -> bytes:
        await self._free.wait()
        try:
            return await self._reader.read(size_bytes)
        except OSError:
            if self._connection is not None:  # a reset ends both ways; mitmproxy sees a plain end
                self._connection.state = ConnectionState.CLOSED
            raise

    def pause(self) -> None:
        """Nothing more is read until each pause was ended; a read under way still ends."""
        self._holds += 1
        self._free.clear()

    def resume(self) -> None:
        self._holds -= 1
        if not self._holds:
            self._free.set()


def reader_of(side: Any) -> PacedReader | None:
    """The reader of one side of mitmproxy's, where it can be held."""
    return side.reader if side and isinstance(side.reader, PacedReader) else None
