"""A mail server of a few words, on real sockets: keeps what is handed in."""

import base64
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from email.policy import default
from pathlib import Path
from typing import Any

from tests.end_to_end import certificates


@dataclass
class Mailbox:
    """`refuses` answers a command with a code; `auth` is who may hand in, empty for everybody."""

    ca: Path
    port: int = 0
    auth: str = ""
    refuses: dict[str, int] = field(default_factory=dict)
    mails: list[Message] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)
    encrypted: list[bool] = field(default_factory=list)


@contextmanager
def receiving_mail(folder: Path, name: str = "localhost") -> Iterator[Mailbox]:
    files = certificates.make(folder, (name,))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.chain, files.key)
    box = Mailbox(files.ca)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            session = _Session(self, box, context)
            try:
                session.run()
            finally:
                session.file.close()
                session.line.close()

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        box.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield box
        finally:
            server.shutdown()
            thread.join()


class _Session:
    def __init__(self, handler: Any, box: Mailbox, context: ssl.SSLContext) -> None:
        self.line, self.box, self.context = handler.connection, box, context
        self.file = self.line.makefile("rb")
        self.is_encrypted = False

    def say(self, code: int, *texts: str) -> None:
        lines = [f"{code}-{text}" for text in texts[:-1]] + [f"{code} {texts[-1]}"]
        self.line.sendall("".join(f"{line}\r\n" for line in lines).encode())

    def run(self) -> None:
        self.say(220, "mail.test")
        while words := self._words():
            verb = words[0].upper()
            if verb in self.box.refuses:
                self.say(self.box.refuses[verb], "not this")
            elif verb == "QUIT":
                self.say(221, "bye")
                return
            else:
                getattr(self, f"do_{verb.lower()}")(words)

    def _words(self) -> list[str]:
        """Empty where the other side has hung up."""
        try:
            return self.file.readline().decode().split()
        except OSError:
            return []

    def do_ehlo(self, words: list[str]) -> None:
        more = ["AUTH PLAIN"] if self.box.auth else []
        self.say(250, "mail.test", *more, *([] if self.is_encrypted else ["STARTTLS"]), "8BITMIME")

    def do_starttls(self, words: list[str]) -> None:
        self.say(220, "go on")
        self.file.close()
        self.line = self.context.wrap_socket(self.line, server_side=True)
        self.file = self.line.makefile("rb")
        self.is_encrypted = True

    def do_auth(self, words: list[str]) -> None:
        told = base64.b64decode(words[2]).decode().replace("\x00", ":").strip(":")
        self.say(*((235, "welcome") if told == self.box.auth else (535, "no")))

    def do_mail(self, words: list[str]) -> None:
        self.say(250, "ok")

    def do_rcpt(self, words: list[str]) -> None:
        self.box.recipients.append(words[1])
        self.say(250, "ok")

    def do_rset(self, words: list[str]) -> None:
        self.say(250, "ok")

    def do_data(self, words: list[str]) -> None:
        self.say(354, "go on")
        body = b""
        while (line := self.file.readline()) != b".\r\n":
            body += line[1:] if line.startswith(b".") else line
        self.box.mails.append(message_from_bytes(body, policy=default))
        self.box.encrypted.append(self.is_encrypted)
        self.say(250, "taken")
