"""The authority is made once, whole, and accepted by strict clients; every fault names its cure."""

import asyncio
import fcntl
import ipaddress
import os
import shlex
import ssl
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import certifi
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import NameOID
from mitmproxy import certs

from proxy import authority
from proxy.authority import Authority, AuthorityError, prepare

# The engine dates leaves by the real clock, so what it must agree with is made by it too.
NOW = datetime.now(UTC)
KEY = "private/mitmproxy-ca.pem"
FILES = {
    "": 0o711,
    "ca": 0o755,
    "ca/ca.pem": 0o644,
    "ca/bundle.pem": 0o644,
    "private": 0o700,
    "private/authority.lock": 0o600,
    KEY: 0o600,
    "private/mitmproxy-dhparam.pem": 0o600,
    "private/upstream.pem": 0o600,
}


def ready(data: Path, *, upstream_ca=None, environ=None, now=NOW) -> Authority:
    return prepare(data, upstream_ca, environ or {}, now)


def modes(data: Path) -> dict[str, int]:
    return {
        str(path.relative_to(data)).removeprefix("."): stat.S_IMODE(path.stat().st_mode)
        for path in (data, *data.rglob("*"))
    }


def names_in(pem_file: Path) -> list[str]:
    loaded = x509.load_pem_x509_certificates(pem_file.read_bytes())
    return [certificate.subject.rfc4514_string() for certificate in loaded]


def a_root(name: str, key=None, *, ca=True, sign=True, issuer=None) -> tuple[bytes, bytes]:
    """Key and certificate of an authority that is not ours, as PEM."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    by = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer or name)])
    usage = x509.KeyUsage(False, False, False, False, False, sign, sign, False, False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    certificate = (
        x509.CertificateBuilder(issuer_name=by, subject_name=subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, algorithm)
    )
    return private_pem(key), certificate.public_bytes(serialization.Encoding.PEM)


def private_pem(key, passphrase: bytes = b"") -> bytes:
    closed = serialization.BestAvailableEncryption(passphrase) if passphrase else None
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, pkcs8, closed or serialization.NoEncryption())


@pytest.fixture
def system_store(tmp_path, monkeypatch) -> Path:
    """A system whose store holds one root."""
    store = tmp_path / "system.pem"
    store.write_bytes(a_root("the system's root")[1])
    monkeypatch.setattr(authority, "SYSTEM_STORES", (tmp_path / "absent.pem", store))
    return store


# ---------------------------------------------------------------------------- made


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_a_first_start_makes_every_file_with_its_mode_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        ready(tmp_path / "new" / "data")
    finally:
        os.umask(before)
    assert modes(tmp_path / "new" / "data") == FILES


def test_the_authority_is_what_strict_clients_want_of_a_root(tmp_path):
    made = ready(tmp_path)
    root = x509.load_pem_x509_certificate(made.ca_file.read_bytes())
    key: Any = root.public_key()
    assert key.curve.name == "secp256r1"
    constraints, usage, identifier = root.extensions
    assert (constraints.value, constraints.critical) == (x509.BasicConstraints(True, 0), True)
    signs = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    assert (usage.value, usage.critical) == (signs, True)
    assert root.subject.rfc4514_string() == f"CN=pullcord CA {identifier.value.digest.hex()[:8]}"
    assert timedelta(days=3649) < root.not_valid_after_utc - NOW <= timedelta(days=3650)
    root.verify_directly_issued_by(root)
    assert made.fingerprint.replace(":", "").lower() == root.fingerprint(hashes.SHA256()).hex()
    assert b"PRIVATE" not in made.ca_file.read_bytes() + made.bundle_file.read_bytes()


def test_a_second_start_writes_nothing(tmp_path):
    first = ready(tmp_path)
    before = {path: path.stat().st_ino for path in tmp_path.rglob("*")}
    assert ready(tmp_path, now=NOW + timedelta(days=3000)) == first
    assert before == {path: path.stat().st_ino for path in tmp_path.rglob("*")}


def test_a_later_start_mends_all_but_the_authority(tmp_path, system_store):
    first = ready(tmp_path / "data")
    before = first.bundle_file.read_bytes()
    first.ca_file.unlink()
    first.bundle_file.write_text("half a bund")
    first.bundle_file.with_name(".bundle.pem.new").write_text("left by a killed start")
    first.confdir.chmod(0o755)
    first.upstream_file.chmod(0o644)
    assert ready(tmp_path / "data") == first
    assert modes(tmp_path / "data") == FILES
    assert first.bundle_file.read_bytes() == before


def test_starts_that_race_agree_on_one_authority(tmp_path):
    together = threading.Barrier(8)

    def start(_: int) -> str:
        together.wait()
        return ready(tmp_path / "data").fingerprint

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(start, range(8)))) == 1


def test_a_start_that_fails_half_way_leaves_no_authority(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(AuthorityError, match="No space left on device; mend that, or choose"):
        ready(tmp_path)
    assert not (tmp_path / KEY).exists()
    monkeypatch.undo()
    assert ready(tmp_path).fingerprint


# ---------------------------------------------------------------------------- used


async def shake_hands(tmp_path: Path, made: Authority, host: str, trust: Path) -> None:
    """Over a real socket: a server with the engine's leaf, a client that checks all it can."""
    store = certs.CertStore.from_store(made.confdir, "mitmproxy", 2048)
    is_address = host[0].isdigit()
    name = x509.IPAddress(ipaddress.ip_address(host)) if is_address else x509.DNSName(host)
    entry = store.get_cert(host, [name])
    file = tmp_path / "leaf.pem"
    file.write_bytes(private_pem(entry.privatekey) + entry.cert.to_pem())
    of_server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    of_server.load_cert_chain(file)
    of_client = ssl.create_default_context(cafile=trust)
    of_client.verify_flags |= ssl.VERIFY_X509_STRICT  # 3.13's default; 3.12 has to be asked

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=of_server) as server:
        address = server.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(
            *address, ssl=of_client, server_hostname=host
        )
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


def test_the_engine_takes_the_authority_and_makes_nothing_of_its_own(tmp_path):
    made = ready(tmp_path / "data")
    store = certs.CertStore.from_store(made.confdir, "mitmproxy", 2048)
    assert isinstance(store.default_privatekey, ec.EllipticCurvePrivateKey)
    assert store.default_ca.fingerprint().hex(":").upper() == made.fingerprint
    assert store.default_chain_file is None
    assert store.dhparams, "the parameters were read, not NULL"
    assert modes(tmp_path / "data") == FILES
    root = store.default_ca.to_cryptography()
    leaf = store.get_cert("a.example", [x509.DNSName("a.example")]).cert.to_cryptography()
    of_leaf = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    of_root = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert of_leaf.key_identifier == of_root.digest
    assert root.not_valid_before_utc < leaf.not_valid_before_utc
    assert leaf.not_valid_after_utc < root.not_valid_after_utc


@pytest.mark.parametrize("trust", ["ca.pem", "bundle.pem"])
@pytest.mark.parametrize("host", ["api.stripe.com", "127.0.0.1", "a" * 60 + ".long.example"])
async def test_a_strict_client_trusts_a_leaf_by_either_file(tmp_path, host, trust):
    made = ready(tmp_path / "data")
    await shake_hands(tmp_path, made, host, made.ca_file.with_name(trust))


async def test_a_client_that_trusts_another_authority_does_not(tmp_path):
    ours, theirs = ready(tmp_path / "ours"), ready(tmp_path / "theirs")
    with pytest.raises(ssl.SSLCertVerificationError):
        await shake_hands(tmp_path, ours, "api.stripe.com", theirs.ca_file)


# ---------------------------------------------------------------------------- refused


def a_stranger(key=None, **how) -> bytes:
    return b"".join(a_root("brought along", key, **how))


def an_edwards_one() -> bytes:
    return a_stranger(ed25519.Ed25519PrivateKey.generate())


def a_locked_one() -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    return private_pem(key, b"secret") + a_root("brought along", key)[1]


BROKEN = {
    "an empty file": (lambda: b"", "is not one private key"),
    "no key": (lambda: a_root("x")[1], "is not one private key"),
    "no certificate": (lambda: a_root("x")[0], "is not one private key"),
    "a passphrase": (a_locked_one, "without a passphrase"),
    "two certificates": (lambda: a_stranger() + a_root("x")[1], "and one certificate"),
    "a cut-off certificate": (lambda: a_stranger()[:-60], "is not one private key"),
    "another's key": (lambda: a_root("x")[0] + a_root("x")[1], "does not belong to its"),
    "not a CA": (lambda: a_stranger(ca=False), "not that of a self-signed authority"),
    "may not sign": (lambda: a_stranger(sign=False), "not that of a self-signed authority"),
    "an intermediate": (lambda: a_stranger(issuer="up"), "not that of a self-signed authority"),
    "an Ed25519 key": (an_edwards_one, "its private key is neither EC nor RSA"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_authority_is_told_and_left_alone(tmp_path, case):
    make, told = BROKEN[case]
    data = tmp_path / "it's data"
    ready(data)
    (data / KEY).write_bytes(make())
    before = (data / KEY).read_bytes()
    with pytest.raises(AuthorityError, match=told) as raised:
        ready(data)
    assert f"type: rm {shlex.quote(str(data / KEY))}, then start" in str(raised.value)
    assert (data / KEY).read_bytes() == before


def test_a_sound_authority_that_was_brought_along_is_used(tmp_path):
    ready(tmp_path)
    (tmp_path / KEY).write_bytes(a_stranger())
    assert names_in(ready(tmp_path).ca_file) == ["CN=brought along"]


@pytest.mark.parametrize(
    "days,told",
    [(3651, "it expired on 20"), (-30, r"not valid before .* clock says .*; is that right\?")],
)
def test_an_authority_out_of_its_time_is_told(tmp_path, days, told):
    ready(tmp_path)
    with pytest.raises(AuthorityError, match=told):
        ready(tmp_path, now=NOW + timedelta(days=days))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_key_that_others_may_open_is_told_with_the_command_that_closes_it(tmp_path, mode):
    ready(tmp_path)
    (tmp_path / KEY).chmod(mode)
    with pytest.raises(AuthorityError, match=f"type: chmod 600 {tmp_path / KEY} "):
        ready(tmp_path)


def test_a_key_that_is_not_mounted_yet_is_not_replaced_by_a_new_authority(tmp_path):
    ready(tmp_path)
    (tmp_path / KEY).unlink()
    (tmp_path / KEY).symlink_to(tmp_path / "secret.pem")
    with pytest.raises(AuthorityError, match=f"cannot use {tmp_path / KEY}: No such file"):
        ready(tmp_path)
    assert (tmp_path / KEY).is_symlink()


def test_a_data_directory_that_others_may_write_to_is_refused(tmp_path):
    tmp_path.chmod(0o1777)
    with pytest.raises(
        AuthorityError, match=f"chmod go-w {tmp_path}, or choose --data {tmp_path}/"
    ):
        ready(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_start_that_hangs_does_not_hang_the_next_one(tmp_path, monkeypatch):
    ready(tmp_path)
    monkeypatch.setattr(authority, "LOCK_PAUSE_SECONDS", 0)
    with (tmp_path / "private/authority.lock").open("r+") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(AuthorityError, match=r"holds .*authority.lock and does not get on"):
            ready(tmp_path)
    assert ready(tmp_path).fingerprint


# ---------------------------------------------------------------------------- trust


@pytest.mark.parametrize("place", range(3))
def test_agents_trust_the_first_inherited_bundle_in_place_of_the_system(
    tmp_path, system_store, place
):
    key, certificate = a_root("the company's root")
    # A comment, and a key that must not become public.
    (tmp_path / "company").write_bytes(b"# ours \xc3\xa9\n" + key + certificate)
    (tmp_path / "later").write_bytes(a_root("later")[1])
    files = ["gone"] * place + ["company"] + ["later"] * (2 - place)
    named = [str(tmp_path / file) for file in files]
    made = ready(tmp_path / "data", environ=dict(zip(authority.INHERITED, named, strict=True)))
    assert names_in(made.bundle_file) == [*names_in(made.ca_file), "CN=the company's root"]
    assert b"PRIVATE" not in made.bundle_file.read_bytes()
    assert names_in(made.upstream_file) == ["CN=the system's root"]


@pytest.mark.parametrize("ours", ["bundle.pem", "ca.pem"])
def test_a_start_inside_our_own_block_does_not_inherit_our_own_files(tmp_path, system_store, ours):
    first = ready(tmp_path / "data")
    by_another_way = tmp_path / "data" / ".." / "data" / "ca" / ours
    ready(tmp_path / "data", environ=dict.fromkeys(authority.INHERITED, str(by_another_way)))
    assert names_in(first.bundle_file) == [*names_in(first.ca_file), "CN=the system's root"]


def test_the_trust_files_follow_their_sources(tmp_path, system_store):
    ready(tmp_path / "data")
    system_store.write_bytes(a_root("a newer root")[1])
    made = ready(tmp_path / "data")
    assert names_in(made.bundle_file) == [*names_in(made.ca_file), "CN=a newer root"]
    assert names_in(made.upstream_file) == ["CN=a newer root"]


def test_without_a_system_store_certifi_is_the_store(tmp_path, monkeypatch):
    (tmp_path / "empty.pem").write_bytes(b"")
    monkeypatch.setattr(authority, "SYSTEM_STORES", (Path(), tmp_path / "empty.pem"))
    made = ready(tmp_path / "data")
    count = Path(certifi.where()).read_bytes().count(b"BEGIN CERTIFICATE")
    assert made.upstream_file.read_bytes().count(b"BEGIN CERTIFICATE") == count > 50


def test_upstreams_are_verified_by_the_system_and_upstream_ca_never_by_us(tmp_path, system_store):
    extra = tmp_path / "internal.pem"
    extra.write_bytes(a_root("an internal service")[1])
    made = ready(tmp_path / "data")
    inside = dict.fromkeys(authority.INHERITED, str(made.bundle_file))
    ready(tmp_path / "data", upstream_ca=extra, environ=inside)
    assert names_in(made.upstream_file) == ["CN=the system's root", "CN=an internal service"]
    assert names_in(made.bundle_file) == [*names_in(made.ca_file), "CN=the system's root"]


BAD_STORES = {
    "no certificate": b"# nothing\n",
    "a cut-off certificate": a_root("x")[1][:-40],
    "a damaged certificate": a_root("x")[1].replace(b"M", b"*", 1),
    "not ASCII": b"-----BEGIN CERTIFICATE-----\n\xff\n-----END CERTIFICATE-----\n",
}


@pytest.mark.parametrize("case", BAD_STORES)
@pytest.mark.parametrize(
    "by,remedy",
    [("upstream_ca", "correct the setting"), ("SSL_CERT_FILE", "correct or unset")],
)
def test_a_bad_trust_file_is_told_with_who_named_it(tmp_path, system_store, case, by, remedy):
    bad = tmp_path / "bad.pem"
    bad.write_bytes(BAD_STORES[case])
    sentence = rf"^{bad} is not a PEM file of sound certificates; {remedy} {by}, which names it$"
    named = {"upstream_ca": bad} if by == "upstream_ca" else {"environ": {by: str(bad)}}
    with pytest.raises(AuthorityError, match=sentence):
        ready(tmp_path / "data", **named)


def test_a_missing_upstream_ca_is_told(tmp_path, system_store):
    with pytest.raises(AuthorityError, match=r"cannot read .*gone.pem: No such file .*upstream_ca"):
        ready(tmp_path / "data", upstream_ca=tmp_path / "gone.pem")
