"""The rehearsal's upstream: payments that keep books, a model API, and who is told of incidents,
over TLS on loopback, in a thread of its own.

It trusts whoever calls: each refund and each cancellation that arrives is made, whatever its key
says. So its books are the proof of what the proxy let through. Nothing here knows the proxy.
"""

import asyncio
import contextlib
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from proxy.demo import certificates

HOST = "localhost"
LOOPBACK = "127.0.0.1"
STOP_SECONDS = 1.0  # no answer of this server takes longer, but one that is held
HOLD_SECONDS = 30.0
REFUND_CENTS = 4_900


@dataclass(slots=True)
class Books:
    """`refunds` holds the charge of each refund by its id, `cancelled` how often each was
    cancelled. While `gate` is not set, the cancellation behind `hold_after` others waits for it,
    and `held` tells that it came. Any thread may read."""

    port: int = 0
    ca_file: Path = Path()
    refunds: dict[str, str] = field(default_factory=dict)
    cancelled: Counter[str] = field(default_factory=Counter)
    told: list[Any] = field(default_factory=list)
    hold_after: int | None = None
    held: threading.Event = field(default_factory=threading.Event)
    gate: threading.Event = field(default_factory=threading.Event)

    @property
    def owed_cents(self) -> int:
        """What was paid out and not taken back; less where something was taken back twice."""
        return REFUND_CENTS * (len(self.refunds) - self.cancelled.total())

    @property
    def cancelled_twice(self) -> list[str]:
        return [refund for refund, times in self.cancelled.items() if times > 1]

    async def refund(self, request: web.Request) -> web.Response:
        form = await request.post()
        made = f"re_{len(self.refunds) + 1:04}"
        self.refunds[made] = str(form["charge"])
        return web.json_response(self._shown(made))

    async def cancel(self, request: web.Request) -> web.Response:
        refund = request.match_info["refund"]
        if refund not in self.refunds:
            return web.json_response({"error": "no such refund"}, status=404)
        self.cancelled[refund] += 1
        if self.hold_after is not None and self.cancelled.total() > self.hold_after:
            self.held.set()
            await asyncio.to_thread(self.gate.wait, HOLD_SECONDS)
        return web.json_response(self._shown(refund))

    async def read(self, request: web.Request) -> web.Response:
        refund = request.match_info["refund"]
        if refund not in self.refunds:
            return web.json_response({"error": "no such refund"}, status=404)
        return web.json_response(self._shown(refund))

    async def complete(self, request: web.Request) -> web.Response:
        """A model that thinks about thinking."""
        message = {"role": "assistant", "content": "Let me think about it once more."}
        usage = {"prompt_tokens": 25_000, "completion_tokens": 1_000, "total_tokens": 26_000}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        answer = {"id": "chatcmpl-demo", "object": "chat.completion", "choices": [choice]}
        return web.json_response({**answer, "model": "gpt-4.1", "usage": usage})

    async def notice(self, request: web.Request) -> web.Response:
        self.told.append(await request.json())
        return web.json_response({})

    def _shown(self, refund: str) -> dict[str, Any]:
        status = "canceled" if self.cancelled[refund] else "succeeded"
        charge = self.refunds[refund]
        return {"id": refund, "charge": charge, "amount": REFUND_CENTS, "status": status}


@contextlib.contextmanager
def serving(directory: Path, now_us: int) -> Iterator[Books]:
    """Serve on a free port of loopback. The throw-away authority is written into `directory`."""
    books = Books()
    books.ca_file, chain_file = certificates.write(directory, (HOST,), now_us)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(chain_file)
    ready, stopping = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/refunds", books.refund)
        app.router.add_post("/v1/refunds/{refund}/cancel", books.cancel)
        app.router.add_get("/v1/refunds/{refund}", books.read)
        app.router.add_post("/v1/chat/completions", books.complete)
        app.router.add_post("/notices", books.notice)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, LOOPBACK, 0, ssl_context=tls).start()
            books.port = runner.addresses[0][1]
            ready.set()
            await stopping.wait()
        finally:
            books.gate.set()
            await runner.cleanup()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            ready.set()
            loop.close()

    thread = threading.Thread(target=run, name="payments")
    thread.start()
    ready.wait()
    try:
        yield books
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
