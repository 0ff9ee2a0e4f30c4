"""Seals: signed heads of the chain, which show that its end was cut off, or that it was written
anew; and gaps, what `ledger prune` took out, signed in the same way.

Each seal covers the one before it. The ledger's identity is made with its first seal: what stands
in the place of a seal before that. Who may seal, and where the key is, is not known here.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields, replace
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from ledger.chain import Head
from ledger.errors import LedgerError
from ledger.sqlite import sqlite3

SECRET_BYTES = 32
IDENTITY_BYTES = 32

_END = b"-----END PUBLIC KEY-----"


class Signer:
    """An Ed25519 key (RFC 8032) from its 32 secret bytes."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != SECRET_BYTES:
            raise LedgerError(f"a seal key has {SECRET_BYTES} bytes, this one has {len(secret)}")
        self._key = Ed25519PrivateKey.from_private_bytes(secret)
        public = self._key.public_key()
        self.key_id = key_id(public)
        self.pem = public.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def sign(self, text: bytes) -> bytes:
        return self._key.sign(text)


class PublicKeys:
    """Those by which seals are checked, from PEM texts one behind the other."""

    def __init__(self, pem: bytes = b"") -> None:
        """Raises LedgerError for what is no such file."""
        self._keys: dict[str, Ed25519PublicKey] = {}
        for part in pem.split(_END)[:-1]:
            try:
                key = serialization.load_pem_public_key(part.strip() + b"\n" + _END + b"\n")
            except ValueError as error:
                raise LedgerError(f"this is no public key: {error}") from error
            if not isinstance(key, Ed25519PublicKey):
                raise LedgerError("seals are signed with Ed25519; this is another kind of key")
            self._keys[key_id(key)] = key
        if pem.strip() and not self._keys:
            raise LedgerError("it holds no public key in PEM")

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._keys)

    def wrong(self, signed: "Seal | Gap", identity: bytes) -> str:
        """Why a signature is not to be trusted; empty when it is good."""
        key = self._keys.get(signed.key_id)
        if key is None:
            return f"is signed with the key {signed.key_id}, which is not known here"
        try:
            key.verify(signed.signature, signed.text(identity))
        except InvalidSignature:
            return "has a bad signature"
        return ""


def key_id(key: Ed25519PublicKey) -> str:
    """The first half of the SHA-256 of the raw public key, in hex."""
    raw = key.public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    return hashlib.sha256(raw).hexdigest()[:32]


# ---------------------------------------------------------------------------------- seals


@dataclass(frozen=True, slots=True)
class Seal:
    """The columns of a row, in their order. `previous` is the signature of the seal before it."""

    seq: int
    hash: bytes
    trace_seq: int
    trace_hash: bytes
    at_us: int
    previous: bytes
    key_id: str
    signature: bytes = b""

    def text(self, identity: bytes) -> bytes:
        """What is signed."""
        return _canonical("pullcord seal 1", identity, self)

    def line(self, identity: bytes) -> bytes:
        """A copy of it, for another place: one JSON object, without a line break."""
        told = {"kind": "pullcord seal 1", "ledger": identity.hex(), **_plain(self)}
        return orjson.dumps(told)


def from_line(line: bytes) -> tuple[bytes, Seal]:
    """The ledger's identity and the seal. Raises LedgerError for what is no seal."""
    try:
        told: Mapping[str, Any] = orjson.loads(line)
        values = {name: told[name] for name in (each.name for each in fields(Seal))}
        for each in fields(Seal):
            if each.type is bytes:
                values[each.name] = bytes.fromhex(values[each.name])
            elif type(values[each.name]) is not each.type:
                raise TypeError(each.name)
        return bytes.fromhex(told["ledger"]), Seal(**values)
    except (orjson.JSONDecodeError, ValueError, KeyError, TypeError):
        raise LedgerError("it is no copy of a seal") from None


_SEAL = ", ".join(each.name for each in fields(Seal))


def seals(conn: sqlite3.Connection, after_seq: int, to_seq: int, limit: int) -> list[Seal]:
    """In order, those over a row behind the one number, up to the other."""
    found = conn.execute(
        f"SELECT {_SEAL} FROM seal WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?",  # noqa: S608
        (after_seq, to_seq, limit),
    )
    return [Seal(*row) for row in found]


def all_seals(
    conn: sqlite3.Connection, to_seq: int, after_seq: int = 0, at_once: int = 1000
) -> Iterator[Seal]:
    """All seals over rows behind the one number, up to the other, in order, a few at a time."""
    while found := seals(conn, after_seq, to_seq, at_once):
        yield from found
        after_seq = found[-1].seq


def last(conn: sqlite3.Connection) -> Seal | None:
    row = conn.execute(f"SELECT {_SEAL} FROM seal ORDER BY seq DESC LIMIT 1").fetchone()  # noqa: S608
    return None if row is None else Seal(*row)


def identity(conn: sqlite3.Connection) -> bytes | None:
    """Which ledger this is; None before its first seal."""
    row = conn.execute("SELECT previous FROM seal ORDER BY seq LIMIT 1").fetchone()
    return None if row is None else bytes(row[0])


def made(
    conn: sqlite3.Connection,
    head: Head,
    trace: Head,
    signer: Signer,
    at_us: int,
    known: Seal | None = None,
) -> tuple[bytes, Seal] | None:
    """A seal over where the record ends, not yet written, and the identity of the ledger; None
    where that is sealed. Raises LedgerError for a record that is shorter than what was sealed, or
    where `known`, the last seal as its maker knows it, is gone."""
    newest, whose = last(conn), identity(conn)
    if known is not None and (newest is None or newest.signature != known.signature):
        raise LedgerError(
            f"the last seal, over row {known.seq}, is not in the ledger any more; look at it: "
            "pullcord ledger verify"
        )
    if newest is not None and newest.seq > head.seq:
        raise LedgerError(
            f"the record ends with row {head.seq}, and row {newest.seq} was sealed; look at it: "
            "pullcord ledger verify"
        )
    if not head.seq or (newest is not None and newest.seq == head.seq):
        return None
    whose = whose or os.urandom(IDENTITY_BYTES)
    previous = whose if newest is None else newest.signature
    seal = Seal(head.seq, head.hash, trace.seq, trace.hash, at_us, previous, signer.key_id)
    return whose, replace(seal, signature=signer.sign(seal.text(whose)))


def write(conn: sqlite3.Connection, seal: Seal) -> None:
    marks = ", ".join("?" * len(fields(Seal)))
    conn.execute(f"INSERT INTO seal ({_SEAL}) VALUES ({marks})", astuple(seal))  # noqa: S608


# ---------------------------------------------------------------------------------- gaps


@dataclass(frozen=True, slots=True)
class Gap:
    """The columns of a row, in their order: the rows from `first_seq` to `last_seq` were pruned.

    `before` is the hash of what stands before them, `after` that of the last of them. `actor` and
    `at_us` are of whoever has pruned last, where several prunings have met.
    """

    first_seq: int
    last_seq: int
    before: bytes
    after: bytes
    rows: int
    at_us: int
    actor: str
    key_id: str
    signature: bytes = b""

    def text(self, identity: bytes) -> bytes:
        """What is signed."""
        return _canonical("pullcord gap 1", identity, self)


_GAP = ", ".join(each.name for each in fields(Gap))


def gap_at(conn: sqlite3.Connection, seq: int) -> Gap | None:
    """The first gap that ends at this row or later."""
    for which in ("first_seq <= ? ORDER BY first_seq DESC", "first_seq > ? ORDER BY first_seq"):
        row = conn.execute(
            f"SELECT {_GAP} FROM gap WHERE {which} LIMIT 1",  # noqa: S608
            (seq,),
        ).fetchone()
        if row is not None and Gap(*row).last_seq >= seq:
            return Gap(*row)
    return None


def gap_ending(conn: sqlite3.Connection, last_seq: int) -> Gap | None:
    """The gap that ends with this row."""
    row = conn.execute(
        f"SELECT {_GAP} FROM gap WHERE first_seq <= ? ORDER BY first_seq DESC LIMIT 1",  # noqa: S608
        (last_seq,),
    ).fetchone()
    gap = None if row is None else Gap(*row)
    return gap if gap is not None and gap.last_seq == last_seq else None


def gap_beginning(conn: sqlite3.Connection, first_seq: int) -> Gap | None:
    row = conn.execute(
        f"SELECT {_GAP} FROM gap WHERE first_seq = ?",  # noqa: S608
        (first_seq,),
    ).fetchone()
    return None if row is None else Gap(*row)


def standing_in(conn: sqlite3.Connection, gap: Gap) -> int | None:
    """A row that is still there although it was pruned."""
    (seq,) = conn.execute(
        "SELECT min(seq) FROM event WHERE seq BETWEEN ? AND ?", (gap.first_seq, gap.last_seq)
    ).fetchone()
    return None if seq is None else int(seq)


def put_gap(conn: sqlite3.Connection, gap: Gap) -> None:
    """In the place of all that it covers."""
    conn.execute(
        "DELETE FROM gap WHERE first_seq >= ? AND last_seq <= ?", (gap.first_seq, gap.last_seq)
    )
    marks = ", ".join("?" * len(fields(Gap)))
    conn.execute(f"INSERT INTO gap ({_GAP}) VALUES ({marks})", astuple(gap))  # noqa: S608


# ---------------------------------------------------------------------------------- the text


def _canonical(kind: str, identity: bytes, signed: Seal | Gap) -> bytes:
    """All but the signature as one JSON object: sorted names, no spaces, bytes in hex."""
    told = {"kind": kind, "ledger": identity.hex(), **_plain(signed)}
    del told["signature"]
    return orjson.dumps(told, option=orjson.OPT_SORT_KEYS)


def _plain(signed: Seal | Gap) -> dict[str, str | int]:
    values = ((each.name, getattr(signed, each.name)) for each in fields(signed))
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in values}
