"""A new file that is there whole or not at all, for what is taken out of the ledger.

It is written beside its place under another name, brought to the disk, and then takes the name.
Only its owner may read it.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ledger.errors import LedgerError


@contextmanager
def new_file(path: Path, *, force: bool) -> Iterator[Path]:
    """An empty file to write to, which is `path` after the block. `force` replaces one that is
    there; a directory never. Nothing stays of a block that fails. Raises LedgerError.
    """
    if path.is_dir():
        raise LedgerError(f"{path} is a directory; name a file in it")
    if not force and os.path.lexists(path):
        raise _exists(path)
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.unfinished")
    try:
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise _failed(path, error) from error
    try:
        yield unfinished
        _sync(unfinished)
        _name(unfinished, path, force=force)
        _sync(path.parent)
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _name(unfinished: Path, path: Path, *, force: bool) -> None:
    if force:
        unfinished.replace(path)
        return
    try:
        os.link(unfinished, path)  # fails when somebody else has made it meanwhile
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        unfinished.replace(path)  # a file system without links


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _exists(path: Path) -> LedgerError:
    return LedgerError(f"{path} exists; choose another name, or replace it: --force")


def _failed(path: Path, error: OSError) -> LedgerError:
    return LedgerError(f"{path} cannot be written: {error.strerror or error}")
