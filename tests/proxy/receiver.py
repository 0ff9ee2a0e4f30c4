"""A local receiver of alerts: keeps what it is sent, and answers what the test says."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Got:
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Receiver:
    """`answers` are used up in order: a status, `reset`, `hang`, or a whole response as a
    triple; then it answers 200. `most` is how many requests it had at once."""

    port: int = 0
    got: list[Got] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)
    always: Any = 200
    slow_seconds: float = 0.0
    now: int = 0
    most: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bodies(self) -> list[Any]:
        return [one.json for one in self.got]

    async def take(self, request: web.Request) -> web.StreamResponse:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            headers = {name.lower(): value for name, value in request.headers.items()}
            self.got.append(Got(request.path, headers, await request.read()))
            answer = self.answers.pop(0) if self.answers else self.always
            if self.slow_seconds:
                await asyncio.sleep(self.slow_seconds)
            if answer == "hang":
                await self.over.wait()
                answer = 200
            if answer == "reset":
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            if isinstance(answer, tuple):
                status, said, given = answer
                return web.Response(status=status, text=said, headers=given)
            return web.Response(status=answer, text="ok")
        finally:
            self.now -= 1


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receiver.take)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.port = runner.addresses[0][1]
    try:
        yield receiver
    finally:
        receiver.over.set()
        await runner.cleanup()


@contextmanager
def receiving_aside() -> Iterator[Receiver]:
    """On a loop and a thread of its own."""
    found: list[Receiver] = []
    ready, over = threading.Event(), threading.Event()

    async def receive() -> None:
        async with receiving() as made:
            found.append(made)
            ready.set()
            await asyncio.to_thread(over.wait)

    thread = threading.Thread(target=asyncio.run, args=(receive(),))
    thread.start()
    try:
        assert ready.wait(20)
        yield found[0]
    finally:
        over.set()
        thread.join()
