"""Where agents reach the proxy: the bound socket, its address, and the first words about it."""

import errno
import shlex
import shutil
import socket
import sys

from proxy.settings import Settings

BACKLOG_MAX = 1024  # connections that wait to be accepted; a burst of a fleet's start fits


class StartError(Exception):
    """What keeps the proxy from starting, in one sentence that says what to type next."""


def bind(listen: str) -> socket.socket:
    """A listening socket. The protocol number is needed for asyncio to set TCP_NODELAY."""
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, int(port)))
        listener.listen(BACKLOG_MAX)
    except OSError as error:
        listener.close()
        used = error.errno == errno.EADDRINUSE
        mend = "end what uses the port, or choose another" if used else "choose an address of here"
        raise StartError(
            f"cannot listen on {listen}: {error.strerror}; {mend}: "
            "pullcord up --listen 127.0.0.1:8641"
        ) from error
    return listener


def address_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def greeting(listening: str, settings: Settings, policy: str) -> str:
    """The first two lines: where agents reach it, and what to type next."""
    command = "pullcord" if shutil.which("pullcord") else shlex.quote(sys.argv[0])
    return (
        f"pullcord listens on http://{listening}  policy {policy}  "
        f"ledger {settings.data / 'ledger.db'}\n"
        f'next:   eval "$({command} env --run NAME)"   or   {command} run -- COMMAND\n'
    )
