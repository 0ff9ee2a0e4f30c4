"""The replay vault: the exact answers of claimed writes, encrypted, for as long as a claim lives.

The key is a file outside the database, so that a copied ledger shows no body. Of a long answer the
body is in a sealed file of its own (answer_files.py). Not the trace: what people read of bodies is
redacted and kept elsewhere.
"""

import hashlib
import hmac
import json
import os
import zlib
from dataclasses import replace

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ledger.answer_files import AnswerFiles
from ledger.errors import LedgerError
from ledger.records import Answer, AnswerFile
from ledger.sqlite import sqlite3

KEY_BYTES = 32
NONCE_BYTES = 12  # random: safe for 2^32 answers under one key (NIST SP 800-38D, section 8.3)
BODY_BYTES_MAX = 1024 * 1024
COMPRESS_FROM_BYTES = 1024
_PLAIN, _COMPRESSED = b"\x01", b"\x02"


class Vault:
    """Seals and opens answers by call id, and what a held call asks for. Holds no connection."""

    _files: AnswerFiles | None = None

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY_BYTES:
            raise LedgerError(f"the vault key must have {KEY_BYTES} bytes, this one has {len(key)}")
        self._cipher = AESGCM(key)
        self._digest_key = hmac.digest(key, b"pullcord digests of requests", hashlib.sha256)

    def use(self, files: AnswerFiles, conn: sqlite3.Connection, now_us: int) -> None:
        """Keep long answers there; what a crash left of others goes."""
        self._files = files
        files.sweep(conn, now_us)

    def put(self, conn: sqlite3.Connection, claim: int, call_id: str, answer: Answer) -> bool:
        """Keep the answer of a claim's call; False when it is too long to be kept, or its file is
        gone."""
        if len(answer.body) > BODY_BYTES_MAX:
            return False
        name = None
        if answer.file is not None:
            name = self._files.adopt(answer.file, claim) if self._files else None
            if name is None:
                return False
            answer = replace(answer, file=replace(answer.file, name=name))
        conn.execute(
            "INSERT OR REPLACE INTO answer (claim, sealed, file) VALUES (?, ?, ?)",
            (claim, self.seal(call_id, answer), name),
        )
        return True

    def get(self, conn: sqlite3.Connection, claim: int, call_id: str) -> Answer | None:
        """The kept answer; None when there is none, this key cannot open it, or its file is not
        there whole."""
        row = conn.execute("SELECT sealed FROM answer WHERE claim = ?", (claim,)).fetchone()
        answer = self.open(call_id, row[0]) if row else None
        if answer is None or answer.file is None:
            return answer
        return answer if self._files and self._files.has(answer.file) else None

    def sweep(self, conn: sqlite3.Connection, now_us: int) -> None:
        """Remove the files of answers that are kept no more."""
        if self._files is not None:
            self._files.sweep(conn, now_us)

    def seal(self, call_id: str, answer: Answer) -> bytes:
        # The standard library's JSON: header values may hold bytes that are no UTF-8.
        told: list[object] = [answer.status, answer.headers]
        if answer.file is not None:
            told += [answer.file.name, answer.file.key.hex(), answer.file.size_bytes]
        head = json.dumps(told).encode()
        return self.lock(call_id, len(head).to_bytes(4) + head + answer.body)

    def open(self, call_id: str, sealed: bytes) -> Answer | None:
        clear = self.unlock(call_id, sealed)
        if clear is None:
            return None
        end = 4 + int.from_bytes(clear[:4])
        status, headers, *of_file = json.loads(clear[4:end])
        file = None
        if of_file:
            name, key, size_bytes = of_file
            file = AnswerFile(name, bytes.fromhex(key), size_bytes)
        return Answer(status, tuple((name, value) for name, value in headers), clear[end:], file)

    def keyed(self, digest: bytes) -> bytes:
        """A digest against which no guess can be tried without the key."""
        return hmac.digest(self._digest_key, digest, hashlib.sha256)

    def lock(self, name: str, clear: bytes) -> bytes:
        """These bytes sealed; only under the same name are they opened again."""
        if len(clear) > COMPRESS_FROM_BYTES:
            clear = _COMPRESSED + zlib.compress(clear, level=1)
        else:
            clear = _PLAIN + clear
        nonce = os.urandom(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, clear, name.encode())

    def unlock(self, name: str, sealed: bytes) -> bytes | None:
        """None when they are another name's, or were sealed with another key."""
        nonce, secret = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            clear = self._cipher.decrypt(nonce, secret, name.encode())
        except (InvalidTag, ValueError):
            return None
        form, clear = clear[:1], clear[1:]
        return zlib.decompress(clear) if form == _COMPRESSED else clear


def drop(conn: sqlite3.Connection, claim: int) -> None:
    """With its row goes the key of its file; the file itself goes with the next sweep."""
    conn.execute("DELETE FROM answer WHERE claim = ?", (claim,))
