"""What is kept of the seals beside the keys: the newest one, so that who can write ledger.db alone
cannot take it away; and up to which one each place has its copies.

The newest is written after it is in the ledger. So a ledger that does not have it was cut off, or
is an older one that was put back: that is told at the next start, and stays in the record.
"""

import hashlib
from contextlib import suppress
from pathlib import Path

import orjson
import structlog

from ledger.errors import LedgerError
from ledger.seals import PublicKeys, Seal
from ledger.store import Store
from ledger.whole_file import new_file

log = structlog.get_logger()

LAST_FILE = Path("private", "seal.last")
SENT_FILE = Path("private", "seal.sent")


def read_last(data: Path) -> bytes | None:
    """A copy of it; None where there is none yet. Raises LedgerError."""
    path = data / LAST_FILE
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise LedgerError(f"cannot read {path}: {error.strerror}") from error


def keep_last(data: Path, identity: bytes, seal: Seal) -> None:
    """On the disk when this returns. Raises LedgerError."""
    with new_file(data / LAST_FILE, force=True) as unfinished:
        unfinished.write_bytes(seal.line(identity) + b"\n")


def compared(data: Path, store: Store, keys: PublicKeys, at_us: int) -> str:
    """Whether the ledger has the newest seal: empty, or what is missing; then the record and the
    log tell it. Raises LedgerError."""
    line = read_last(data)
    wrong = "" if line is None else store.compare_seal(line, keys, at_us)
    if wrong:
        log.error("ledger.behind_seal", why=wrong, data=str(data))
    return wrong


class Sent:
    """Up to which row each place has copies of the seals: after a restart it gets the others. For
    one thread at a time."""

    def __init__(self, data: Path) -> None:
        self._path = data / SENT_FILE
        self._seqs: dict[str, int] = {}
        with suppress(OSError, ValueError, TypeError, AttributeError):  # then each gets the newest
            told = orjson.loads(self._path.read_bytes())
            self._seqs = {str(place): int(seq) for place, seq in told.items()}

    def seq(self, place: str) -> int | None:
        return self._seqs.get(_digest(place))

    def note(self, place: str, seq: int) -> None:
        """Where this cannot be written, a copy is sent twice."""
        self._seqs[_digest(place)] = seq
        with suppress(LedgerError), new_file(self._path, force=True) as unfinished:
            unfinished.write_bytes(orjson.dumps(self._seqs))


def _digest(place: str) -> str:
    """A URL may hold a secret."""
    return hashlib.sha256(place.encode()).hexdigest()[:32]
