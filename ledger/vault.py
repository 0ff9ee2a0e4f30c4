"""The replay vault: the exact answers of claimed writes, encrypted, for as long as a claim lives.

The key is a file outside the database, so that a copied ledger shows no body. Not the trace:
what people read of bodies is redacted and kept elsewhere.
"""

import json
import os
import zlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ledger.errors import LedgerError
from ledger.records import Answer
from ledger.sqlite import sqlite3

KEY_BYTES = 32
NONCE_BYTES = 12  # random: safe for 2^32 answers under one key (NIST SP 800-38D, section 8.3)
BODY_BYTES_MAX = 1024 * 1024
COMPRESS_FROM_BYTES = 1024
_PLAIN, _COMPRESSED = b"\x01", b"\x02"


class Vault:
    """Seals and opens answers by call id. Holds no connection."""

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise LedgerError(f"the vault key must have {KEY_BYTES} bytes, this one has {len(key)}")
        self._cipher = AESGCM(key)

    def put(self, conn: sqlite3.Connection, claim: int, call_id: str, answer: Answer) -> bool:
        """Keep the answer of a claim's call; False when it is too long to be kept."""
        if len(answer.body) > BODY_BYTES_MAX:
            return False
        conn.execute(
            "INSERT OR REPLACE INTO answer (claim, sealed) VALUES (?, ?)",
            (claim, self.seal(call_id, answer)),
        )
        return True

    def get(self, conn: sqlite3.Connection, claim: int, call_id: str) -> Answer | None:
        """The kept answer; None when there is none or this key cannot open it."""
        row = conn.execute("SELECT sealed FROM answer WHERE claim = ?", (claim,)).fetchone()
        return self.open(call_id, row[0]) if row else None

    def seal(self, call_id: str, answer: Answer) -> bytes:
        # The standard library's JSON: header values may hold bytes that are no UTF-8.
        head = json.dumps([answer.status, answer.headers]).encode()
        clear = len(head).to_bytes(4) + head + answer.body
        if len(clear) > COMPRESS_FROM_BYTES:
            clear = _COMPRESSED + zlib.compress(clear, level=1)
        else:
            clear = _PLAIN + clear
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, clear, call_id.encode())

    def open(self, call_id: str, sealed: bytes) -> Answer | None:
        nonce, secret = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            clear = self._cipher.decrypt(nonce, secret, call_id.encode())
        except (InvalidTag, ValueError):
            return None
        form, clear = clear[:1], clear[1:]
        if form == _COMPRESSED:
            clear = zlib.decompress(clear)
        end = 4 + int.from_bytes(clear[:4])
        status, headers = json.loads(clear[4:end])
        return Answer(status, tuple((name, value) for name, value in headers), clear[end:])


def drop(conn: sqlite3.Connection, claim: int) -> None:
    conn.execute("DELETE FROM answer WHERE claim = ?", (claim,))
