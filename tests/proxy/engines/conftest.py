"""The engine over real sockets: the whole proxy in this process, and upstreams that misbehave.

`serving` starts a proxy under a policy; every host name leads to the upstream that the test made.
"""

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ledger import queries
from ledger.connection import open_reader
from proxy.deciding import Service
from proxy.fleet import InProcess
from proxy.gate import Gate
from proxy.serve import running
from proxy.settings import Settings
from tests import engine
from tests.proxy.engines import crashes

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

WAIT_SECONDS = 20.0  # a test that hangs fails instead

POLICY = """
version: 1
tools:
  api.read: {match: {host: "*.test", method: [GET, HEAD]}, allow_addresses: [127.0.0.0/8]}
  api.write: {match: {host: "*.test", method: [POST, PUT]}, allow_addresses: [127.0.0.0/8]}
  api.socket: {match: {host: ws.test}, allow_addresses: [127.0.0.0/8]}
"""


@dataclass
class Upstream:
    """A scripted server: counts connections and keeps every byte it was sent."""

    script: Script
    port: int = 0
    connections: int = 0
    received: bytearray = field(default_factory=bytearray)

    async def head(self, reader: asyncio.StreamReader) -> bytes:
        head = await reader.readuntil(b"\r\n\r\n")
        self.received += head
        return head


@dataclass
class Proxy:
    """What a test needs of the running proxy."""

    service: Service
    port: int
    data: Path
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def credentials(self, run: str = "r1", tenant: str = "acme") -> bytes:
        encoded = base64.b64encode(f"{run}:{tenant}".encode())
        return b"Proxy-Authorization: Basic " + encoded + b"\r\n"

    @property
    def gate(self) -> Gate:
        (engine,) = self.service.fleet.engines
        assert isinstance(engine, InProcess)
        return engine.gate

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        return reader, writer

    async def exchange(self, request: bytes, wait_seconds: float = 10.0) -> bytes:
        """Send raw bytes, read until the proxy closes or says a whole answer."""
        reader, writer = await self.connect()
        try:
            writer.write(request)
            async with asyncio.timeout(wait_seconds):
                return await whole_answer(reader)
        finally:
            writer.close()

    async def tunnel(
        self, host: str, *, sni: str | None = None, alpn: Sequence[str] = (), run: str = "r1"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """CONNECT and TLS, trusting the proxy's authority only."""
        reader, writer = await self.connect()
        authority = f"{host}:443".encode()
        writer.write(
            b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n" % (authority, authority)
            + self.credentials(run)
            + b"\r\n"
        )
        answer = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in answer.split(b"\r\n")[0], answer
        context = ssl.create_default_context(cafile=str(self.data / "ca" / "ca.pem"))
        context.check_hostname = sni in (None, host)
        if alpn:
            context.set_alpn_protocols(list(alpn))
        await writer.start_tls(context, server_hostname=sni or host)
        return reader, writer

    def calls(self) -> list[dict[str, Any]]:
        """The ledger's calls, oldest first; those that were answered before are there."""
        self.service.decider.flush()
        with closing(open_reader(self.data)) as reader:
            return list(queries.calls(reader, limit=1000))[::-1]


async def whole_answer(reader: asyncio.StreamReader) -> bytes:
    """Head and body by Content-Length, or everything until the end."""
    head = await reader.readuntil(b"\r\n\r\n")
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return head + await reader.readexactly(int(value))
    return head + await reader.read()


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """The loop that the program runs this engine on."""
    return {engine.ENGINE: engine.LOOPS[engine.ENGINE]}


@pytest.fixture(autouse=True)
def nothing_crashes() -> Iterator[list[str]]:
    """A layer that raises hangs up on the client, which looks much like an answer that closes.

    A test that makes one raise takes what is in the list.
    """
    with crashes.watched() as seen:
        yield seen
    assert not seen


@pytest.fixture
async def upstream() -> AsyncIterator[Callable[[Script], Awaitable[Upstream]]]:
    """Starts a plain HTTP upstream that runs the script once per connection."""
    async with AsyncExitStack() as stack:

        async def start(script: Script) -> Upstream:
            made = Upstream(script)

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                made.connections += 1
                try:
                    await script(reader, writer)
                except (OSError, asyncio.IncompleteReadError):
                    pass
                finally:
                    writer.close()

            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            stack.push_async_callback(_closed, server)
            made.port = server.sockets[0].getsockname()[1]
            return made

        yield start


async def _closed(server: asyncio.Server) -> None:
    server.close()


@asynccontextmanager
async def proxy_in(
    folder: Path,
    upstream_port: int,
    policy: str = POLICY,
    *,
    within_seconds: float = WAIT_SECONDS,
    **settings: Any,
) -> AsyncIterator[Proxy]:
    """A proxy whose files are in that folder, and whose every name leads to that port."""

    async def resolve(host: str, port: int) -> list[Any]:
        address = ("127.0.0.1", upstream_port)
        return [(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]

    config = folder / "config"
    config.mkdir(exist_ok=True)
    (config / "policy.yaml").write_text(policy)
    options: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "identity": "open",
        "drain_seconds": 1.0,
        **engine.SETTING,
    }
    made = Settings(config=config, data=folder / "data", **options | settings)
    async with running(made, resolve=resolve) as service, asyncio.timeout(within_seconds):
        port = int(str(service.listening).rpartition(":")[2])
        proxy = Proxy(service, port, folder / "data")
        try:
            yield proxy
        finally:
            for writer in proxy.writers:
                writer.close()


@pytest.fixture
def serving(tmp_path: Path) -> Callable[..., Any]:
    """`async with serving(port) as proxy`: a proxy whose every name leads to that port."""
    return partial(proxy_in, tmp_path)


@dataclass
class TlsUpstream(Upstream):
    """`ca` vouches for its certificate, which is for api.test."""

    ca: Path = Path()


def tls_context(ca: Path) -> ssl.SSLContext:
    """A server's, with a certificate for api.test whose CA is written to `ca`."""
    key, chain = ca.with_suffix(".key"), ca.with_suffix(".crt")
    ca.write_bytes(_certificates(key, chain))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain, key)
    return context


@pytest.fixture
async def tls_upstream(tmp_path: Path) -> AsyncIterator[TlsUpstream]:
    """An HTTPS server that answers every request with `ok`."""
    made = TlsUpstream(answer_all, ca=tmp_path / "upstream.pem")
    context = tls_context(made.ca)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        made.connections += 1
        try:
            while True:
                await made.head(reader)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except (OSError, asyncio.IncompleteReadError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()


async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    raise NotImplementedError


def _certificates(key_file: Path, chain_file: Path) -> bytes:
    """Writes a server key and certificate for api.test; returns its CA as PEM."""
    now = datetime.now(UTC)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test upstream CA")])
    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())

    def build(subject: x509.Name, public: Any) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
        )

    unused = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    usage = dict.fromkeys(
        ("digital_signature", *unused, "crl_sign", "encipher_only", "decipher_only"), False
    )
    ca = (
        build(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(True, 0), True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, **usage), True)
        .add_extension(ca_id, False)
        .sign(ca_key, hashes.SHA256())
    )
    leaf = (
        build(x509.Name([]), key.public_key())
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("api.test")]), True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id), False)
        .sign(ca_key, hashes.SHA256())
    )
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    chain_file.write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    return ca.public_bytes(serialization.Encoding.PEM)
