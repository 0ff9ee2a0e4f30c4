"""The tool behind the proxies: a server of its own process, plain and TLS, that counts its calls.

`python upstream.py CERTIFICATE` prints its two ports as one line of JSON and serves until its
standard input ends. One loop over epoll: asyncio's TLS would cost as much as a proxy's.
"""

import contextlib
import gc
import json
import select
import socket
import ssl
import sys
from pathlib import Path

from tests.bench.messages import (
    COUNT_PATH,
    HEAD_END,
    LARGE_ANSWER,
    LARGE_PATH,
    WRITE_PATH,
    answer,
    item_number,
    length_told,
    order_number,
    read_answer,
    write_answer,
)

_LARGE_READ = answer(LARGE_ANSWER)
_LARGE = b"GET " + LARGE_PATH.encode()
_COUNT = b"GET " + COUNT_PATH.encode()
_WRITE = b"POST " + WRITE_PATH.encode()
SENT_AT_ONCE_BYTES = 16_384  # one record of TLS: it goes whole, or not at all and is sent again


class Peer:
    """One connection and what it has sent so far."""

    def __init__(self, sock: socket.socket, *, ready: bool) -> None:
        self.sock = sock
        self.ready = ready  # its TLS handshake is over, or there is none
        self.heard = b""
        self.untaken = memoryview(b"")  # the rest of its answer
        self.awaited = select.EPOLLIN


class Upstream:
    def __init__(self, certificate: Path) -> None:
        self.calls = 0
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(certificate)
        self._poll = select.epoll()
        self._peers: dict[int, Peer] = {}
        self._plain_listener = self._listen()
        self._tls_listener = self._listen()

    @property
    def ports(self) -> dict[str, int]:
        return {
            "plain": self._plain_listener.getsockname()[1],
            "tls": self._tls_listener.getsockname()[1],
        }

    def serve(self, until: int) -> None:
        """Serve until the file `until` has something to read."""
        self._poll.register(until, select.EPOLLIN)
        listeners = {each.fileno(): each for each in (self._plain_listener, self._tls_listener)}
        while True:
            for handle, _ in self._poll.poll():
                peer = self._peers.get(handle)
                if peer is not None and peer.untaken:
                    self._serve_peer(peer)
                elif peer is not None:
                    self._heard(peer)
                elif handle in listeners:
                    self._accept(listeners[handle])
                elif handle == until:
                    return  # else of one that went in this round

    def _listen(self) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._poll.register(listener.fileno(), select.EPOLLIN)
        return listener

    def _accept(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setblocking(False)
        tls = listener is self._tls_listener
        if tls:
            sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        self._peers[sock.fileno()] = Peer(sock, ready=not tls)
        self._poll.register(sock.fileno(), select.EPOLLIN)

    def _heard(self, peer: Peer) -> None:
        try:
            if not peer.ready and isinstance(peer.sock, ssl.SSLSocket):
                peer.sock.do_handshake()
                peer.ready = True
            heard = peer.sock.recv(65_536)
        except ssl.SSLWantReadError:
            return
        except OSError:
            heard = b""
        if not heard:
            self._gone(peer)
            return
        peer.heard += heard
        self._serve_peer(peer)

    def _serve_peer(self, peer: Peer) -> None:
        """Answer what it asked, one after another, as far as it takes the answers."""
        awaited = select.EPOLLIN
        try:
            while peer.untaken or self._answer(peer):
                peer.untaken = peer.untaken[peer.sock.send(peer.untaken[:SENT_AT_ONCE_BYTES]) :]
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            awaited = select.EPOLLOUT
        except OSError:
            self._gone(peer)
            return
        if awaited != peer.awaited:
            self._poll.modify(peer.sock.fileno(), awaited)
            peer.awaited = awaited

    def _answer(self, peer: Peer) -> bool:
        """Take the next whole request, if there is one; its answer is then to be sent."""
        heard = peer.heard
        end = heard.find(HEAD_END) + len(HEAD_END)
        if end < len(HEAD_END):
            return False
        if heard.startswith(_COUNT):
            told = answer(b'{"calls":%d}' % self.calls)
        elif heard.startswith(_WRITE):
            whole = end + length_told(heard[:end])
            if len(heard) < whole:
                return False
            told = answer(write_answer(order_number(heard[end:whole])))
            end = whole
            self.calls += 1
        else:
            is_large = heard.startswith(_LARGE)
            told = _LARGE_READ if is_large else answer(read_answer(item_number(heard)))
            self.calls += 1
        peer.heard = heard[end:]
        peer.untaken = memoryview(told)
        return True

    def _gone(self, peer: Peer) -> None:
        del self._peers[peer.sock.fileno()]
        with contextlib.suppress(OSError):
            peer.sock.close()


def main() -> None:
    upstream = Upstream(Path(sys.argv[1]))
    print(json.dumps(upstream.ports), flush=True)
    gc.disable()
    upstream.serve(sys.stdin.fileno())


if __name__ == "__main__":
    main()
