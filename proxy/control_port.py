"""The control port itself: a TCP listener of this machine that holds few connections.

Who may ask for what there is decided in control_access.py.
"""

import asyncio
import logging
import socket

from aiohttp import web

from proxy.control_socket import BACKLOG_MAX, ControlError
from proxy.settings import host_and_port

HEAD_SECONDS = 5.0  # a connection that asks nothing for so long is closed
CONNECTIONS_MAX = 32  # the control socket stays open beside them
SHUTDOWN_SECONDS = 1.0  # at the socket, too: most requests wait for nothing but the ledger

# The library would log what it cannot read, and that may be a header with a token.
_UNHEARD = logging.Logger(__name__, logging.CRITICAL + 1)


def bound_to(address: str) -> socket.socket:
    """A listening socket at HOST:PORT. Raises ControlError."""
    host, port = host_and_port(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG_MAX)
    except OSError as error:
        listener.close()
        raise ControlError(
            f"cannot listen for control on {address}: {error.strerror}; end what uses the port, "
            "or choose another with --control, or none"
        ) from error
    return listener


async def served(app: web.Application, listener: socket.socket) -> web.AppRunner:
    """Answer on the listening socket until the runner's `cleanup`."""
    runner = web.AppRunner(
        app,
        access_log=None,
        logger=_UNHEARD,
        auto_decompress=False,
        keepalive_timeout=HEAD_SECONDS,
        lingering_time=SHUTDOWN_SECONDS,
        shutdown_timeout=SHUTDOWN_SECONDS,
    )
    await runner.setup()
    await _PortSite(runner, listener).start()
    return runner


class _PortSite(web.BaseSite):
    """Takes so many connections and hangs up on more."""

    def __init__(self, runner: web.AppRunner, listener: socket.socket) -> None:
        super().__init__(runner)
        self._listener = listener

    @property
    def name(self) -> str:
        return "control port"

    async def start(self) -> None:
        await super().start()
        server = self._runner.server
        if server is None:
            raise RuntimeError("the runner is set up first")

        def connection() -> asyncio.Protocol:
            return server() if len(server.connections) < CONNECTIONS_MAX else _HungUp()

        self._server = await asyncio.get_running_loop().create_server(
            connection, sock=self._listener
        )


class _HungUp(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
