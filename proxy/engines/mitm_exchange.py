"""An admitted call on its way through mitmproxy: its deadline, its end, what may flow of it."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mitmproxy import http

from proxy.gate import Live
from proxy.held import HeldResult

if TYPE_CHECKING:
    from proxy.engines.mitm import Handler

CUT_SECONDS = 2.0  # what a cut may take before we go on without it


@dataclass(eq=False, slots=True)
class Exchange:
    """An admitted call on its way through mitmproxy. `deadline_seconds` is the loop's time."""

    live: Live
    flow: http.HTTPFlow
    handler: "Handler"
    deadline_seconds: float
    cut_by: str = ""
    status: int | None = None
    held: HeldResult | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    def touch(self, wait_seconds: float) -> None:
        self.deadline_seconds = asyncio.get_running_loop().time() + wait_seconds

    async def over(self) -> None:
        """Wait until it ended or, whatever became of it, its deadline is well past."""
        while not self.ended.is_set():
            left = self.deadline_seconds + CUT_SECONDS - asyncio.get_running_loop().time()
            if left <= 0:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.ended.wait(), left)

    def tee(self, chunk: bytes) -> bytes | list[bytes]:
        """Each chunk of a streamed answer, and at its end an empty one; gives what may flow.

        Nothing must be a list: an empty chunk would end a chunked body.
        """
        flows = chunk
        if chunk:
            self.handler.engine.gate.body(self.live, chunk)
            self.touch(self.handler.engine.timeouts.idle_seconds)
        if self.held is not None:
            flows = self.held.feed(chunk) if chunk else self.held.rest()
        return flows or []
