"""A TCP port for a proxy of a test."""

import random
import socket


def free_port() -> int:
    """A port below those that the kernel hands out, so that nobody's connection takes it before it
    is bound, or between an end and the start after it."""
    for port in random.sample(range(18_000, 32_000), 200):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port between 18000 and 32000")
