"""Back-pressure on upstreams: while a stream waits for what it may still spend, none of its bytes
are read, so that they stay in the kernel and then with the upstream.

HTTP/2 streams share a connection, so others may pause with it for as long as a draw takes; what is
waited for comes from the decider and never from the connection.
"""

import asyncio
from typing import Any


class PacedReader:
    """Stands between mitmproxy and an upstream's `StreamReader`, of which it asks only `read`."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._holds = 0
        self._free = asyncio.Event()
        self._free.set()

    async def read(self, size_bytes: int) -> bytes:
        await self._free.wait()
        return await self._reader.read(size_bytes)

    def hold(self) -> None:
        """Nothing more is read until each hold was released; a read under way still ends."""
        self._holds += 1
        self._free.clear()

    def release(self) -> None:
        self._holds -= 1
        if not self._holds:
            self._free.set()


def reader_of(side: Any) -> PacedReader | None:
    """The reader of one side of mitmproxy's, where it is an upstream's."""
    return side.reader if side and isinstance(side.reader, PacedReader) else None
