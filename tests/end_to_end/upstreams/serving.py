"""What every upstream process does: take a port, say so, serve with the tests' certificate.

Started as `python -m tests.end_to_end.upstreams.NAME FOLDER`, where FOLDER holds the certificate,
the journal and the gates. The first line of output is the ports as JSON.
"""

import asyncio
import json
import socket
import ssl
import sys
from pathlib import Path

from tests.end_to_end.upstreams.journal import Journal

GATE_SECONDS = 15.0  # longer than any test needs to open one; then the upstream gives up

FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
CHAIN, KEY = FOLDER / "server.pem", FOLDER / "server.key"
JOURNAL = Journal(FOLDER / "seen.jsonl")


def listener() -> socket.socket:
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", 0))
    bound.listen(256)
    return bound


def announce(**listeners: socket.socket) -> None:
    ports = {name: bound.getsockname()[1] for name, bound in listeners.items()}
    print(json.dumps(ports), flush=True)


def tls(*protocols: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CHAIN, KEY)
    context.set_alpn_protocols(list(protocols))
    return context


async def gate(name: str) -> None:
    """Wait until the file of this name is there: whoever waits for us makes it.

    Raises TimeoutError, and then the test that forgot fails instead of hanging.
    """
    async with asyncio.timeout(GATE_SECONDS):
        while not (FOLDER / "gates" / name).exists():
            await asyncio.sleep(0.01)


async def hold(name: str) -> None:
    """Wait while the file of this name is there."""
    async with asyncio.timeout(GATE_SECONDS):
        while (FOLDER / "gates" / name).exists():
            await asyncio.sleep(0.01)
