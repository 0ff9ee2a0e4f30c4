"""A long stored answer on its way to an agent, part by part: never all of it in memory."""

import asyncio
import contextlib
from typing import TYPE_CHECKING

from mitmproxy import http
from mitmproxy.proxy import layer
from mitmproxy.proxy.layers import http as mhttp

from ledger.answer_files import AnswerReader
from proxy.engines.mitm_events import StoredHook

if TYPE_CHECKING:
    from proxy.engines.mitm_client import Handler

PARTS = 4  # of 64 KiB: what is read of a file before its client is waited for


async def read(handler: "Handler", flow: http.HTTPFlow) -> None:
    """The next part, once the client has taken what was sent before. Raises TimeoutError for one
    that takes nothing any more."""
    reader: AnswerReader = flow.metadata["stored"]
    side = handler.transports.get(handler.client)
    if side is not None and isinstance(side.writer, asyncio.StreamWriter):
        with contextlib.suppress(OSError):
            async with asyncio.timeout(handler.engine.timeouts.idle_seconds):
                await side.writer.drain()
    flow.metadata["part"] = b"".join(reader.read() for _ in range(PARTS))


def body(stream: mhttp.HttpStream) -> layer.CommandGenerator[bool]:
    """Send it, after the head; whether all of it went."""
    flow = stream.flow
    reader: AnswerReader = flow.metadata["stored"]
    try:
        while True:
            yield StoredHook(flow)
            if (yield from stream.check_killed(False)):
                return False
            part: bytes | None = flow.metadata.pop("part", None)
            if not part:
                return part is not None
            data = mhttp.ResponseData(stream.stream_id, part)
            yield mhttp.SendHttp(data, stream.context.client)
    finally:
        reader.close()
