import hashlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from proxy.contain.relay import Relay

SECONDS = 20.0
BYTES = os.urandom(3_000_000)


@contextmanager
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


@contextmanager
def relayed(serve: Callable[[socket.socket], None]) -> Iterator[tuple[str, int]]:
    """Where to connect, so that `serve` has the other end."""

    def accept() -> None:
        connection, _ = proxy.accept()
        with connection:
            serve(connection)

    with listening() as proxy:
        thread = threading.Thread(target=accept)
        thread.start()
        listener = socket.create_server(("127.0.0.1", 0))
        place = listener.getsockname()
        with Relay(listener, *proxy.getsockname()):
            yield place
        thread.join(SECONDS)
        assert not thread.is_alive()


def all_of(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65_536), b""))


def test_each_direction_arrives_whole_and_ends_by_itself() -> None:
    def answer_after_the_end(connection: socket.socket) -> None:
        digest = hashlib.sha256(all_of(connection)).digest()
        connection.sendall(digest + BYTES)

    with (
        relayed(answer_after_the_end) as place,
        socket.create_connection(place, SECONDS) as agent,
    ):
        agent.sendall(BYTES)
        agent.shutdown(socket.SHUT_WR)
        assert all_of(agent) == hashlib.sha256(BYTES).digest() + BYTES


def test_a_proxy_that_hangs_up_hangs_up_on_the_agent() -> None:
    with (
        relayed(lambda connection: None) as place,
        socket.create_connection(place, SECONDS) as agent,
    ):
        assert agent.recv(1) == b""


def test_where_no_proxy_listens_the_agent_is_hung_up_on() -> None:
    with listening() as nobody:
        place = nobody.getsockname()
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()
    with Relay(listener, *place), socket.create_connection(address, SECONDS) as agent:
        assert agent.recv(1) == b""


def test_the_end_cuts_what_is_open() -> None:
    arrived = threading.Event()

    def wait_for_the_end(connection: socket.socket) -> None:
        connection.recv(1)
        arrived.set()
        assert connection.recv(1) == b""

    with relayed(wait_for_the_end) as place:
        agent = socket.create_connection(place, SECONDS)
        agent.sendall(b"x")
        assert arrived.wait(SECONDS)
    with agent:
        assert agent.recv(1) == b""
