"""Certificates of the HTTP/1.1 engine: leaves for its clients, minted by our own authority, and the
trust that upstreams are held to.

All leaves of a process share one key, which never touches the disk. OpenSSL reads a chain from a
file only, so each goes through one in memory where the kernel has such, else through a private one.
"""

import contextlib
import os
import re
import ssl
import tempfile
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from proxy.authority import KEY_FILE, Authority
from proxy.clock import Clock, SystemClock
from proxy.engines.http1_tls import Named

CONTEXTS_MAX = 500  # names that are ready to be served; each takes some 20 KB and 1 ms to make
LEAF_AGE_SECONDS = 86_400.0  # then it is minted anew

_VALID = timedelta(days=199)  # what clients accept: 200 from March 2026 on (CA/B ballot SC-081)
_BACKDATED = timedelta(days=2)  # less than the authority: clocks of agents may be behind
_COMMON_NAME_MAX = 64  # X.520, ub-common-name
_NAME = re.compile(r"[A-Za-z0-9._-]{1,253}")
_ALPN = ["http/1.1"]

_Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


class Certificates:
    """Contexts to serve clients with, one for each destination. Raises ValueError or OSError for an
    authority that cannot be read."""

    def __init__(self, authority: Authority, clock: Clock | None = None) -> None:
        pem = (authority.confdir / KEY_FILE.name).read_bytes()
        self._authority_key = cast(_Key, serialization.load_pem_private_key(pem, None))
        (self._authority,) = x509.load_pem_x509_certificates(pem)
        self._clock = clock or SystemClock()
        self._folder = authority.confdir
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._key_pem = self._key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        self._ready: OrderedDict[tuple[str, ...], tuple[float, ssl.SSLContext]] = OrderedDict()

    def context(self, host: str) -> ssl.SSLContext:
        """To serve what a CONNECT named. A client whose TLS names another host is shown a
        certificate for both, so that it can read why it is refused; what it named is then the
        connection's `sni` (http1_tls.Tls)."""
        return self._context((host.lower(),))

    def _context(self, names: tuple[str, ...]) -> ssl.SSLContext:
        now_seconds = self._clock.monotonic_seconds()
        minted_seconds, context = self._ready.get(names, (0.0, None))
        if context is None or now_seconds - minted_seconds > LEAF_AGE_SECONDS:
            context = self._made(names)
            self._ready[names] = (now_seconds, context)
            if len(self._ready) > CONTEXTS_MAX:
                self._ready.popitem(last=False)
        self._ready.move_to_end(names)
        return context

    def _made(self, names: tuple[str, ...]) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.sslobject_class = Named
        context.set_alpn_protocols(_ALPN)
        with _file_of(self._leaf(names) + self._key_pem, self._folder) as file:
            context.load_cert_chain(file)

        def named(served: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: object) -> None:
            if not isinstance(served, Named):
                return
            served.sni = name
            if name and name.lower() not in names and _NAME.fullmatch(name):
                with contextlib.suppress(OSError, ValueError):  # it is shown the one that there is
                    served.context = self._context((names[0], name.lower()))

        context.sni_callback = named
        return context

    def _leaf(self, names: tuple[str, ...]) -> bytes:
        """A certificate that strict clients accept (RFC 5280, sections 4.2.1 and 6.1), as PEM."""
        now = datetime.fromtimestamp(self._clock.now_us() / 1e6, UTC)
        issuer = self._authority
        public = self._key.public_key()
        is_short = len(names[0]) <= _COMMON_NAME_MAX
        common = [x509.NameAttribute(NameOID.COMMON_NAME, names[0])] if is_short else []
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        ours = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        leaf = (
            x509.CertificateBuilder(issuer_name=issuer.subject, subject_name=x509.Name(common))
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATED)
            .not_valid_after(min(now - _BACKDATED + _VALID, issuer.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_serves(), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
            .add_extension(
                x509.SubjectAlternativeName([_general(name) for name in names]),
                critical=not is_short,
            )
            .add_extension(ours, critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .sign(self._authority_key, hashes.SHA256())
        )
        return leaf.public_bytes(serialization.Encoding.PEM)


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _serves() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


@contextlib.contextmanager
def _file_of(pem: bytes, folder: Path) -> Iterator[str]:
    """A path at which nobody but this process reads it, for as long as the block lasts."""
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        handle = os.memfd_create("leaf", os.MFD_CLOEXEC)
        try:
            os.write(handle, pem)
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
        return
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(pem)
        file.flush()
        yield file.name


def upstream_context(authority: Authority) -> ssl.SSLContext:
    """How upstreams are verified: by the system's authorities and `upstream_ca`, by the names and
    addresses that their certificates list. They are spoken to in HTTP/1.1."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(authority.upstream_file)
    context.hostname_checks_common_name = False
    context.set_alpn_protocols(_ALPN)
    return context
