"""Leaves that clients accept, also strict ones, and what upstreams are held to."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from proxy import authority
from proxy.authority import Authority
from proxy.clock import SystemClock
from proxy.engines import http1_certificates
from proxy.engines.http1_certificates import Certificates
from proxy.engines.http1_tls import Tls

NOW = datetime.now(UTC)


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return authority.prepare(tmp_path / "data", None, {}, NOW)


class Clock(SystemClock):
    """One that can be moved."""

    later_seconds = 0.0

    def now_us(self) -> int:
        return super().now_us() + int(self.later_seconds * 1e6)

    def monotonic_seconds(self) -> float:
        return super().monotonic_seconds() + self.later_seconds


def strict(ours: Authority) -> ssl.SSLContext:
    """A client as Python 3.13 makes it, and stricter still about the chain."""
    context = ssl.create_default_context(cafile=str(ours.ca_file))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.verify_flags &= ~ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def met(client: Tls, server: Tls, to_server: list[bytes], to_client: list[bytes]) -> None:
    """Carry what both say until neither says more."""
    client.start()
    while to_server or to_client:
        if to_server:
            server.feed(to_server.pop(0))
        if to_client:
            client.feed(to_client.pop(0))


def handshake(
    serving: ssl.SSLContext,
    trusting: ssl.SSLContext,
    name: str | None,
) -> tuple[Tls, Tls]:
    to_server: list[bytes] = []
    to_client: list[bytes] = []
    server = Tls(serving, to_client.append, server_side=True)
    client = Tls(trusting, to_server.append, server_side=False, server_name=name)
    met(client, server, to_server, to_client)
    return client, server


def shown(client: Tls) -> x509.Certificate:
    der = client._object.getpeercert(True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


@pytest.mark.parametrize(
    "host", ["api.test", "API.test", "a.b.c.test", "under_score.test", "127.0.0.1", "::1", "a" * 63]
)
def test_a_strict_client_accepts_the_leaf(ours: Authority, host: str) -> None:
    serving = Certificates(ours).context(host)
    client, server = handshake(serving, strict(ours), host)
    assert client.is_ready
    assert server.is_ready
    assert client.alpn is None


def test_a_host_whose_name_is_longer_than_a_common_name(ours: Authority) -> None:
    host = ".".join(["a" * 40] * 5)
    client, _ = handshake(Certificates(ours).context(host), strict(ours), host)
    assert shown(client).subject == x509.Name([])


def test_a_client_that_expects_another_host_refuses_it(ours: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        handshake(Certificates(ours).context("127.0.0.1"), strict(ours), "127.0.0.2")


def test_what_a_leaf_says(ours: Authority) -> None:
    client, _ = handshake(Certificates(ours).context("api.test"), strict(ours), "api.test")
    leaf = shown(client)
    key = leaf.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert isinstance(key.curve, ec.SECP256R1)
    assert leaf.not_valid_before_utc < NOW - timedelta(days=1)
    assert timedelta(days=150) < leaf.not_valid_after_utc - NOW < timedelta(days=200)
    extensions = leaf.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["api.test"]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert extensions.get_extension_for_class(x509.KeyUsage).value.digital_signature
    root = x509.load_pem_x509_certificate(ours.ca_file.read_bytes())
    assert leaf.issuer == root.subject
    assert leaf.not_valid_before_utc >= root.not_valid_before_utc
    assert key != root.public_key()


@pytest.mark.parametrize(
    "named, told", [("api.test", "api.test"), ("other.test", "other.test"), (None, None)]
)
def test_the_name_that_a_client_asked_for_is_known(
    ours: Authority, named: str | None, told: str | None
) -> None:
    """Each is shown a certificate that it can accept, so that it can read why it is refused."""
    trusting = strict(ours)
    trusting.check_hostname = named is not None
    client, server = handshake(Certificates(ours).context("api.test"), trusting, named)
    assert server.sni == told
    names = shown(client).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert "api.test" in names.get_values_for_type(x509.DNSName)
    assert client.sni is None


@pytest.mark.parametrize("named", ["*.test", "api.test*", "-.test"])
def test_a_name_that_is_no_host_gets_no_certificate_of_its_own(ours: Authority, named: str) -> None:
    trusting = strict(ours)
    trusting.check_hostname = False
    client, server = handshake(Certificates(ours).context("api.test"), trusting, named)
    assert server.sni == named
    names = shown(client).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert not any("*" in name for name in names.get_values_for_type(x509.DNSName))


@pytest.mark.parametrize(
    "offered, chosen", [(["h2", "http/1.1"], "http/1.1"), (["h2"], None), ([], None)]
)
def test_http1_is_chosen_wherever_it_is_offered(
    ours: Authority, offered: list[str], chosen: str | None
) -> None:
    trusting = strict(ours)
    if offered:
        trusting.set_alpn_protocols(offered)
    client, server = handshake(Certificates(ours).context("api.test"), trusting, "api.test")
    assert (client.alpn, server.alpn) == (chosen, chosen)


def test_a_context_is_made_once(ours: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1_certificates, "CONTEXTS_MAX", 2)
    made = Certificates(ours)
    first, second = made.context("a.test"), made.context("b.test")
    assert made.context("A.test") is first
    made.context("c.test")  # b was unused for longest
    assert made.context("a.test") is first
    assert made.context("b.test") is not second
    assert len(made._ready) == 2


def test_a_leaf_is_made_anew_before_it_expires(ours: Authority) -> None:
    clock = Clock()
    made = Certificates(ours, clock)
    first = made.context("a.test")
    clock.later_seconds = http1_certificates.LEAF_AGE_SECONDS + 1
    assert made.context("a.test") is not first


def test_no_leaf_outlives_its_authority(tmp_path: Path) -> None:
    made_at = NOW - authority.LIFETIME + timedelta(days=10)
    old = authority.prepare(tmp_path / "data", None, {}, made_at)
    client, _ = handshake(Certificates(old).context("a.test"), strict(old), "a.test")
    assert shown(client).not_valid_after_utc < NOW + timedelta(days=11)


@pytest.mark.parametrize("memory", [True, False])
def test_no_key_of_a_leaf_stays_on_the_disk(
    ours: Authority, memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not memory:
        monkeypatch.delattr("os.memfd_create")
    before = sorted(ours.confdir.iterdir())
    client, _ = handshake(Certificates(ours).context("a.test"), strict(ours), "a.test")
    assert client.is_ready
    assert sorted(ours.confdir.iterdir()) == before


def test_what_is_said_inside_arrives_and_ends_with_a_goodbye(ours: Authority) -> None:
    to_server: list[bytes] = []
    to_client: list[bytes] = []
    server = Tls(Certificates(ours).context("a.test"), to_client.append, server_side=True)
    client = Tls(strict(ours), to_server.append, server_side=False, server_name="a.test")
    met(client, server, to_server, to_client)
    client.send(b"x" * 100_000)
    client.send(b"end")
    sent = b"".join(to_server)
    heard = b"".join(server.feed(sent[at : at + 1000]) for at in range(0, len(sent), 1000))
    assert heard == b"x" * 100_000 + b"end"
    assert not server.ended
    to_server.clear()
    client.goodbye()
    assert server.feed(b"".join(to_server)) == b""
    assert server.ended


def test_what_is_no_tls_is_an_error(ours: Authority) -> None:
    said: list[bytes] = []
    server = Tls(Certificates(ours).context("a.test"), said.append, server_side=True)
    with pytest.raises(ssl.SSLError):
        server.feed(b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
    server.goodbye()


def test_upstreams_are_held_to_names_that_their_certificates_list(ours: Authority) -> None:
    context = http1_certificates.upstream_context(ours)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert not context.hostname_checks_common_name
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLCertVerificationError, match=r"self-signed|issuer"):
        handshake(Certificates(ours).context("a.test"), context, "a.test")
