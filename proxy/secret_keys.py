"""The keys that pullcord makes for itself, each in a file that only its user may open."""

import os
import shlex
from pathlib import Path

from ledger.errors import LedgerError

VAULT_KEY_FILE = Path("private", "vault.key")
SECRET_KEY_BYTES = 32


def vault_key(data: Path) -> bytes:
    """The key that seals stored answers: DATA/private/vault.key, made on first use.

    Raises LedgerError when it cannot be read or made, or others may read it.
    """
    return secret_key(data / VAULT_KEY_FILE, "answers kept for replay are lost")


def secret_key(path: Path, lost: str) -> bytes:
    """The random bytes in this file, made on first use; `lost` is what becomes of the rest without
    them. Raises LedgerError."""
    try:
        if not path.exists(follow_symlinks=False):
            _make_key(path)
        if path.stat().st_mode & 0o077:
            raise LedgerError(
                f"other users may open {path}; type: chmod 600 {shlex.quote(str(path))}"
            )
        key = path.read_bytes()
    except OSError as error:
        raise LedgerError(f"cannot use {error.filename or path}: {error.strerror}") from error
    if len(key) != SECRET_KEY_BYTES:
        raise LedgerError(
            f"{path} does not hold {SECRET_KEY_BYTES} bytes; put the right file back, or remove "
            f"it: then a new one is made, and {lost}"
        )
    return key


def _make_key(path: Path) -> None:
    """Whole or not at all: the key is written beside its place and linked there, once."""
    path.parent.parent.mkdir(mode=0o711, parents=True, exist_ok=True)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(os.urandom(SECRET_KEY_BYTES))
        file.flush()
        os.fsync(descriptor)
    try:
        path.hardlink_to(unfinished)
    except FileExistsError:
        pass  # another process was first; its key counts
    finally:
        unfinished.unlink()
