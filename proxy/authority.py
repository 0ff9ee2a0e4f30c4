"""The certificate authority of one data directory, and the trust files that go with it.

Here: the CA is made once and checked on every later start; what agents trust (`ca/ca.pem`,
`ca/bundle.pem`) and what pullcord trusts upstream (`private/upstream.pem`) are written.
Not here: certificates of single hosts (the engine mints them), anything that listens, and the
environment block that points agents at these files (environment.py).
"""

import fcntl
import os
import re
import shlex
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import certifi
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.x509.oid import NameOID

CA_FILE = Path("ca", "ca.pem")
BUNDLE_FILE = Path("ca", "bundle.pem")
UPSTREAM_FILE = Path("private", "upstream.pem")
# The engine takes `private/` as mitmproxy's confdir. It looks for these two names there, and
# where one is missing makes its own: an RSA authority, and parameters written in place.
KEY_FILE = Path("private", "mitmproxy-ca.pem")
DHPARAM_FILE = Path("private", "mitmproxy-dhparam.pem")
LOCK_FILE = Path("private", "authority.lock")

INHERITED = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")

# An administrator adds a company's own root to the system's file, so it comes before the one
# that this Python was compiled with, which comes before certifi's.
SYSTEM_STORES = (
    Path("/etc/ssl/certs/ca-certificates.crt"),  # Debian, Ubuntu, Arch, Alpine, NixOS
    Path("/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem"),  # Fedora, RHEL
    Path("/etc/pki/tls/certs/ca-bundle.crt"),  # older RHEL, Amazon Linux
    Path("/etc/ssl/ca-bundle.pem"),  # openSUSE
    Path("/etc/ssl/cert.pem"),  # macOS, the BSDs
    Path(ssl.get_default_verify_paths().openssl_cafile),
)

LIFETIME = timedelta(days=3650)
# The engine starts a leaf two days back, by local time taken as UTC. Three days hold it within
# the authority's own time in every zone.
BACKDATED = timedelta(days=3)

# A start holds the lock for milliseconds. One that has not let go after five seconds is stuck.
LOCK_ATTEMPTS = 50
LOCK_PAUSE_SECONDS = 0.1

# RFC 7919, appendix A.1: the group ffdhe2048.
FFDHE2048 = b"""\
-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)


class AuthorityError(Exception):
    """The authority or a trust file cannot be used; one sentence: which file, what to type."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Where the engine and the agents find what they need. `fingerprint` is SHA-256 of the CA's
    certificate, written as `openssl x509 -fingerprint -sha256` prints it."""

    confdir: Path
    ca_file: Path
    bundle_file: Path
    upstream_file: Path
    fingerprint: str


def prepare(
    data: Path, upstream_ca: Path | None, environ: Mapping[str, str], now: datetime
) -> Authority:
    """Make or load the authority of `data` and write its trust files. Call before listening.

    `upstream_ca` is the setting of that name: a PEM file trusted upstream beside the system's.
    `environ` names the bundle that agents inherit; `now` has a time zone. A good authority is
    never replaced; the trust files follow their sources on every start. Raises AuthorityError.
    """
    try:
        _make_directories(data)
        with _locked(data / LOCK_FILE):
            _replace(data / DHPARAM_FILE, FFDHE2048, 0o600)
            certificate = _load_or_make(data / KEY_FILE, now)
            ours = certificate.public_bytes(serialization.Encoding.PEM)
            _replace(data / CA_FILE, ours, 0o644)
            _replace(data / BUNDLE_FILE, _agents_trust(ours, data, environ), 0o644)
            _replace(data / UPSTREAM_FILE, _upstream_trust(upstream_ca), 0o600)
    except OSError as error:
        raise AuthorityError(
            f"cannot use {error.filename or data}: {error.strerror or error}; mend that, "
            "or choose another directory with --data"
        ) from error
    return Authority(
        confdir=data / KEY_FILE.parent,
        ca_file=data / CA_FILE,
        bundle_file=data / BUNDLE_FILE,
        upstream_file=data / UPSTREAM_FILE,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
    )


# ---------------------------------------------------------------------------- the authority


def _load_or_make(path: Path, now: datetime) -> x509.Certificate:
    """The caller holds the lock: between the look and the making nobody else makes one."""
    # A link to nowhere counts as there: a secret that is not mounted yet is not ours to replace.
    if not path.exists(follow_symlinks=False):
        _make(path, now)
    return _load(path, now)


def _make(path: Path, now: datetime) -> None:
    """Write a new key and its self-signed certificate (RFC 5280, section 4.2.1) as one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    # Two authorities of one name would confuse clients that find an issuer by its name.
    name = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, f"pullcord CA {identifier.digest.hex()[:8]}")]
    )
    certificate = (
        x509.CertificateBuilder(issuer_name=name, subject_name=name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_signs_certificates(), critical=True)
        .add_extension(identifier, critical=False)
        .sign(key, hashes.SHA256())
    )
    key_pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    _replace(path, key_pem + certificate.public_bytes(serialization.Encoding.PEM), 0o600)


def _signs_certificates() -> x509.KeyUsage:
    return x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _load(path: Path, now: datetime) -> x509.Certificate:
    quoted = shlex.quote(str(path))
    anew = f"to have a new one made, type: rm {quoted}, then start pullcord and the agents again"
    if path.stat().st_mode & 0o077:
        raise AuthorityError(
            f"other users may open the private key in {path}; type: chmod 600 {quoted} "
            f"(if someone may have read it: {anew})"
        )
    pem = path.read_bytes()
    try:
        key = serialization.load_pem_private_key(pem, password=None)
        (certificate,) = x509.load_pem_x509_certificates(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise AuthorityError(
            f"{path} is not one private key without a passphrase and one certificate; {anew}"
        ) from error
    if fault := _fault(key, certificate, now):
        raise AuthorityError(f"the certificate authority in {path} cannot be used: {fault}; {anew}")
    return certificate


def _fault(key: PrivateKeyTypes, certificate: x509.Certificate, now: datetime) -> str:
    """Why clients or the engine would not accept it; empty when they would."""
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        return "its private key is neither EC nor RSA"
    if key.public_key() != certificate.public_key():
        return "its private key does not belong to its certificate"
    if not _is_root(certificate):
        return "its certificate is not that of a self-signed authority"
    if now < certificate.not_valid_before_utc:
        return (
            f"it is not valid before {certificate.not_valid_before_utc:%Y-%m-%d} "
            f"(this machine's clock says {now:%Y-%m-%d}; is that right?)"
        )
    if now >= certificate.not_valid_after_utc:
        return f"it expired on {certificate.not_valid_after_utc:%Y-%m-%d}"
    return ""


def _is_root(certificate: x509.Certificate) -> bool:
    """Whether strict clients accept it as the root of the leaves that the engine mints."""
    try:
        extensions = certificate.extensions
        extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        is_ca = extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        may_sign = extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    except (x509.ExtensionNotFound, ValueError):
        return False
    return is_ca and may_sign and certificate.issuer == certificate.subject


# ---------------------------------------------------------------------------- trust


def _agents_trust(ours: bytes, data: Path, environ: Mapping[str, str]) -> bytes:
    """Our CA and what the agents trusted before: the inherited bundle, else the system's."""
    for variable in INHERITED:
        path = Path(environ.get(variable, ""))
        # Started from a shell that already has our environment block: look past our own files.
        if path.is_file() and not path.parent.samefile(data / CA_FILE.parent):
            remedy = f"correct or unset {variable}, which names it"
            return ours + _certificates(path, remedy)
    return ours + _system_trust()


def _upstream_trust(upstream_ca: Path | None) -> bytes:
    """What upstreams are verified against. The environment has no say here: it may name our own
    bundle, and an upstream that our own CA vouches for would be ourselves."""
    system = _system_trust()
    if upstream_ca is None:
        return system
    return system + _certificates(upstream_ca, "correct the setting upstream_ca, which names it")


def _system_trust() -> bytes:
    for path in SYSTEM_STORES:
        # Debian leaves an empty file behind when the package is half installed.
        if path.is_file() and path.stat().st_size > 0:
            return _certificates(path, "install your system's package ca-certificates again")
    return _certificates(Path(certifi.where()), "type: pip install --force-reinstall certifi")


def _certificates(path: Path, remedy: str) -> bytes:
    """The certificates of a PEM file and nothing else of it: what we write may be public, and
    people keep keys in the same file."""
    try:
        pem = b"".join(block + b"\n" for block in _CERTIFICATE.findall(path.read_bytes()))
    except OSError as error:
        raise AuthorityError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem.decode("ascii"))
    except (ValueError, ssl.SSLError) as error:
        raise AuthorityError(f"{path} is not a PEM file of sound certificates; {remedy}") from error
    return pem


# ---------------------------------------------------------------------------- files


def _make_directories(data: Path) -> None:
    """`data` is traversable, so that agents of other users reach `ca/` and nothing else. One
    that exists keeps its mode: it may be somebody's home, but not a place where others write."""
    try:
        data.mkdir(mode=0o711, parents=True)
        data.chmod(0o711)
    except FileExistsError:
        if data.stat().st_mode & 0o022:
            quoted = shlex.quote(str(data))
            raise AuthorityError(
                f"other users may write to {data} and so replace the certificate authority; "
                f"type: chmod go-w {quoted}, or choose --data {shlex.quote(f'{data}/pullcord')}"
            ) from None
    for file, mode in ((CA_FILE, 0o755), (KEY_FILE, 0o700)):
        directory = data / file.parent
        directory.mkdir(mode=mode, exist_ok=True)
        directory.chmod(mode)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock file; the kernel lets go of it when a process dies, however it dies."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        for _ in range(LOCK_ATTEMPTS):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(LOCK_PAUSE_SECONDS)
        else:
            raise AuthorityError(
                f"another start of pullcord holds {path} and does not get on; end that process "
                f"(fuser {shlex.quote(str(path))} names it), then start again"
            )
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, content: bytes, mode: int) -> None:
    """Put `content` at `path` whole or not at all, also across a loss of power. The caller
    holds the lock, so a left-over of a killed start is nobody else's."""
    if path.exists() and path.read_bytes() == content:
        path.chmod(mode)
        return
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.unlink(missing_ok=True)
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    unfinished.replace(path)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
