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
    READ_ANSWER,
    WRITE_PATH,
    answer,
    order_number,
    write_answer,
)

_READ = answer(READ_ANSWER)
_COUNT = b"GET " + COUNT_PATH.encode()
_WRITE = b"POST " + WRITE_PATH.encode()
_LENGTH = b"content-length:"


class Peer:
    """One connection and what it has sent so far."""

    def __init__(self, sock: socket.socket, *, ready: bool) -> None:
        self.sock = sock
        self.ready = ready  # its TLS handshake is over, or there is none
        self.heard = b""


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
                if peer is not None:
                    self._heard(peer)
                elif handle in listeners:
                    self._accept(listeners[handle])
                else:
                    return

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
        while (told := self._answer(peer)) is not None:
            try:
                peer.sock.sendall(told)
            except OSError:
                self._gone(peer)
                return

    def _answer(self, peer: Peer) -> bytes | None:
        """The answer to the next whole request, or None while there is none."""
        heard = peer.heard
        end = heard.find(HEAD_END) + len(HEAD_END)
        if end < len(HEAD_END):
            return None
        if heard.startswith(_COUNT):
            peer.heard = heard[end:]
            return answer(b'{"calls":%d}' % self.calls)
        if not heard.startswith(_WRITE):
            peer.heard = heard[end:]
            self.calls += 1
            return _READ
        head = heard[:end].lower()
        start = head.index(_LENGTH) + len(_LENGTH)
        whole = end + int(head[start : head.index(b"\r\n", start)])
        if len(heard) < whole:
            return None
        peer.heard = heard[whole:]
        self.calls += 1
        return answer(write_answer(order_number(heard[end:whole])))

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
