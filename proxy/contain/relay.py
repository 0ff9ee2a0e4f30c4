"""What a contained agent's one way out is made of: bytes between its socket and the proxy.

The listening socket was made inside the agent's network namespace and handed out; what connects to
it is carried to the proxy's address and to no other. Nothing here reads what it carries.
"""

import asyncio
import contextlib
import socket
import threading
from types import TracebackType
from typing import Self

CONNECTIONS_MAX = 400  # two sockets each, of the 1,024 files that a process may usually open
CONNECT_SECONDS = 10.0
CHUNK_BYTES = 64 * 1024
PAUSE_SECONDS = 0.1  # before the next try to accept a connection
STOP_SECONDS = 5.0


class Relay:
    """Runs in a thread of its own from `with` on to the end of the block."""

    def __init__(self, listener: socket.socket, host: str, port: int) -> None:
        self._listener = listener
        self._place = host, port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
        self._serving: asyncio.Task[None] | None = None

    def __enter__(self) -> Self:
        self._listener.setblocking(False)
        self._serving = self._loop.create_task(self._serve())
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._serving is not None:
            self._loop.call_soon_threadsafe(self._serving.cancel)
        self._thread.join(STOP_SECONDS)

    def _run(self) -> None:
        with contextlib.suppress(asyncio.CancelledError), self._listener:
            if self._serving is not None:
                self._loop.run_until_complete(self._serving)
        self._loop.close()

    async def _serve(self) -> None:
        free = asyncio.Semaphore(CONNECTIONS_MAX)
        async with asyncio.TaskGroup() as carrying:
            while True:
                # Who finds all places taken waits in the kernel's queue.
                await free.acquire()
                connection = await self._accepted()
                task = carrying.create_task(self._carry(connection))
                task.add_done_callback(lambda _: free.release())

    async def _accepted(self) -> socket.socket:
        while True:
            try:
                return (await self._loop.sock_accept(self._listener))[0]
            except OSError:  # it left again, or too many files are open
                await asyncio.sleep(PAUSE_SECONDS)

    async def _carry(self, connection: socket.socket) -> None:
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                proxy_reader, proxy_writer = await asyncio.open_connection(*self._place)
        except OSError:  # a timeout is one, too
            connection.close()  # the agent sees a proxy that hangs up
            return
        agent_reader, agent_writer = await asyncio.open_connection(sock=connection)
        try:
            await asyncio.gather(
                _pump(agent_reader, proxy_writer), _pump(proxy_reader, agent_writer)
            )
        except OSError:
            pass  # one side is gone; so is the other, below
        finally:
            proxy_writer.transport.abort()
            agent_writer.transport.abort()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One direction to its end; the other may go on."""
    while chunk := await reader.read(CHUNK_BYTES):
        writer.write(chunk)
        await writer.drain()
    writer.write_eof()
