"""`pullcord`, with one thing changed: the tests' names lead to the tests' upstreams.

The program resolves names by the system's resolver and dials the port that was asked for, both on
purpose without a setting. Here `TEST_ROUTES` holds, as JSON, the loopback port that stands in for
each `host:port`; every other name does not resolve. What is dialed is vetted as ever. Where
`TEST_SHARE_SECONDS` is set, a duplicate of a write in flight waits so long for its answer.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from unittest.mock import patch

from policies.addresses import IPNetwork
from proxy import child
from proxy.dial import AddrInfo, Dialer

ROUTES: dict[str, int] = json.loads(os.environ["TEST_ROUTES"])


async def _loopback(host: str, port: int) -> Sequence[AddrInfo]:
    return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", port))]


class RoutedDialer(Dialer):
    """Dials the port that stands in, at an address that is vetted like any other."""

    async def dial(self, host: str, port: int, allow: Sequence[IPNetwork] = ()) -> socket.socket:
        stand_in = ROUTES.get(f"{host}:{port}")
        if stand_in is None:
            raise socket.gaierror(socket.EAI_NONAME, f"{host} does not resolve")
        routed = Dialer(self.own_ports, self.connect_timeout_seconds, _loopback)
        return await routed.dial(host, stand_in, allow)


AS_CHILD = "--as-child"


def launched() -> None:
    """As the program does, the decider starts without the engine's library."""
    if sys.argv[1:3] == [AS_CHILD, "decider"]:
        sys.exit(child.main(sys.argv[2:]))

    from proxy import asking, serve, supervisor
    from proxy.cli.main import main

    asking.SHARE_SECONDS = float(os.environ.get("TEST_SHARE_SECONDS", asking.SHARE_SECONDS))
    again = (sys.executable, __file__, AS_CHILD)
    with patch.object(serve, "Dialer", RoutedDialer), patch.object(supervisor, "CHILD", again):
        if sys.argv[1] == AS_CHILD:
            sys.exit(child.main(sys.argv[2:]))
        main()


if __name__ == "__main__":
    launched()
