"""When the record is sealed, with which key, and where copies of the seals go.

A seal is made now and then, by a timer, and at the end: no call waits for one (ledger/seals.py
tells what it is).
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import structlog

from ledger import trace
from ledger.chain import Head
from ledger.errors import LedgerError
from ledger.pruning import Keys
from ledger.seals import PublicKeys, Seal, Signer
from ledger.store import Store
from ledger.trace_schema import DATABASE as TRACE
from ledger.whole_file import new_file
from proxy.clock import Clock
from proxy.last_seal import Sent, compared, keep_last
from proxy.operations import timestamp
from proxy.seal_copies import Copies, shown
from proxy.secret_keys import secret_key

log = structlog.get_logger()

SEAL_SECONDS = 60.0  # rows are sealed when the oldest of them has waited so long,
SEAL_ROWS_MAX = 10_000  # or when there are so many
LOOK_SECONDS = 1.0
RETRY_SECONDS = 10.0  # a copy that could not be sent is tried this often
END_SECONDS = 3.0  # the end waits for copies; the next start sends what is left

KEY_FILE = Path("private", "seal.key")
PUBLIC_FILE = Path("private", "seal.pub")

Made = tuple[bytes, Seal] | None


class Act(Protocol):
    """`Decider.act`."""

    def __call__(self, act: Callable[[Store], Made], /) -> "asyncio.Future[Made]": ...


def seal_keys(data: Path) -> Keys:
    """The key in DATA/private/seal.key, made on first use, and those that seals are checked by in
    seal.pub beside it, the one in use among them. Raises LedgerError."""
    secret = secret_key(data / KEY_FILE, "seals are made with another one from then on")
    signer = Signer(secret)
    path = data / PUBLIC_FILE
    try:
        known = path.read_bytes() if path.exists() else b""
        if signer.pem not in known:
            known += signer.pem
            with new_file(path, force=True) as unfinished:
                unfinished.write_bytes(known)
                unfinished.chmod(0o644)
    except OSError as error:
        raise LedgerError(f"cannot use {error.filename or path}: {error.strerror}") from error
    return Keys(signer, PublicKeys(known))


def public_keys(path: Path) -> PublicKeys:
    """Raises LedgerError."""
    try:
        return PublicKeys(path.read_bytes())
    except OSError as error:
        raise LedgerError(f"cannot read {path}: {error.strerror}") from error
    except LedgerError as error:
        raise LedgerError(f"{path}: {error}") from error


def trace_head(data: Path, known: Head = Head()) -> Head:  # noqa: B008 - it does not change
    """Where the trace ends, brought to the disk first, so that a power cut leaves no seal over
    more; what was known of it while it cannot be read: no seal waits for it."""
    try:
        head = trace.head(data)
        _to_disk(data / f"{TRACE}-wal")  # what is not in this file any more is on the disk
    except (LedgerError, OSError) as error:
        log.warning("seal.without_trace", error=str(error))
        return known
    return head


def _to_disk(path: Path) -> None:
    for place in (path, path.parent):
        try:
            handle = os.open(place, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def covered(seal: Seal | None) -> Head:
    """Where the trace ended by a seal."""
    return Head() if seal is None else Head(seal.trace_seq, seal.trace_hash)


def seal_alone(data: Path, store: Store, keys: Keys, at_us: int) -> None:
    """Where no proxy runs. Raises LedgerError."""
    last = store.last_seal()
    made = store.seal(keys.signer, trace_head(data, covered(last)), at_us, last)
    if made is not None:
        keep_last(data, *made)


class Sealing:
    """Made with the store, before anything else uses it. `failure` is why there is no seal,
    `behind` what the ledger lacked of its newest seal at the start."""

    def __init__(self, data: Path, places: Sequence[str], clock: Clock, store: Store) -> None:
        """Raises LedgerError when the key cannot be used."""
        self.keys = seal_keys(data)
        self.failure = ""
        self._data = data
        self._clock = clock
        self._store = store
        self._last = store.last_seal()
        self._rested_seconds = clock.monotonic_seconds()  # since then nothing waits to be sealed
        self.behind = compared(data, store, self.keys.public, clock.now_us())
        self._sent = Sent(data)
        self._copies = [self._unsent(place) for place in places]
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._tried_seconds = self._rested_seconds
        self._trace = covered(self._last)
        self._one_at_a_time, self._noting = asyncio.Lock(), asyncio.Lock()

    @property
    def unsealed(self) -> int:
        """Rows behind the last seal."""
        return self._store.head.seq - (0 if self._last is None else self._last.seq)

    async def run(self, act: Act) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            now_seconds = self._clock.monotonic_seconds()
            if not self.unsealed:
                self._rested_seconds = now_seconds
            elif (
                now_seconds - self._rested_seconds >= SEAL_SECONDS or self.unsealed >= SEAL_ROWS_MAX
            ):
                await self.seal(act)
                self._rested_seconds = now_seconds
            if now_seconds - self._tried_seconds >= RETRY_SECONDS:
                self._send()

    async def seal(self, act: Act) -> None:
        """Seal what is recorded until now. It tells failures, and raises none."""
        async with self._one_at_a_time:
            await self._seal(act)

    async def _seal(self, act: Act) -> None:
        end, known = await self.traced(), self._last
        now_us = self._clock.now_us()
        try:
            made = await act(lambda store: store.seal(self.keys.signer, end, now_us, known))
            await self._sealed(made)
        except LedgerError as failure:
            self._failed(str(failure))
        except Exception as failure:  # a bug of ours must not end the sealing for good
            log.exception("seal.failed")
            self._failed(type(failure).__name__)

    async def close(self) -> None:
        """When nobody else uses the store any more: the last seal, and its copies for a while."""
        end = await self.traced()
        try:
            made = self._store.seal(self.keys.signer, end, self._clock.now_us(), self._last)
            await self._sealed(made)
        except LedgerError as failure:
            self._failed(str(failure))
        self._send()
        if self._sending:
            await asyncio.wait(self._sending.values(), timeout=END_SECONDS)
        for copies in self._copies:
            copies.stop()
        left = [copies for copies in self._copies if copies.waiting]
        for copies in left:
            log.error("seal.not_copied", to=shown(copies.target), waiting=copies.waiting)

    @property
    def warnings(self) -> list[str]:
        """What somebody should know, though every call passes."""
        found = [f"the record is not sealed: {self.failure}"] if self.failure else []
        if self.behind:
            found.append(f"at the start the ledger was behind its newest seal: {self.behind}")
        for copies in self._copies:
            if copies.error:
                found.append(f"seals are not copied to {shown(copies.target)}: {copies.error}")
        return found

    def as_json(self) -> dict[str, Any]:
        last = self._last
        return {
            "last": None if last is None else {"seq": last.seq, "at": timestamp(last.at_us)},
            "unsealed": self.unsealed,
            "key": self.keys.signer.key_id,
            "error": self.failure or None,
            "behind": self.behind or None,
            "copies": [
                {
                    "to": shown(copies.target),
                    "waiting": copies.waiting,
                    "error": copies.error or None,
                }
                for copies in self._copies
            ],
        }

    async def _sealed(self, made: Made) -> None:
        """Raises LedgerError where it cannot be kept beside the keys."""
        if made is not None:
            identity, self._last = made
            line = self._last.line(identity)
            for copies in self._copies:
                copies.add(line, self._last.seq)
            self._send()
            await asyncio.to_thread(keep_last, self._data, identity, self._last)
        self.failure = ""

    def _failed(self, failure: str) -> None:
        if failure != self.failure:
            log.error("seal.failed", error=failure)
        self.failure = failure

    async def traced(self) -> Head:
        """Where the trace ends."""
        self._trace = await asyncio.to_thread(trace_head, self._data, self._trace)
        return self._trace

    def _unsent(self, place: str) -> Copies:
        """What a place has not got yet; a new one gets the newest seal, which covers the others."""
        copies, seq = Copies(place), self._sent.seq(place)
        if seq is None:
            seq = 0 if self._last is None else self._last.seq - 1
        for over, line in self._store.copies_after(seq):
            copies.add(line, over)
        return copies

    def _send(self) -> None:
        self._tried_seconds = self._clock.monotonic_seconds()
        for copies in self._copies:
            if copies.waiting and copies.target not in self._sending:
                sending = asyncio.get_running_loop().create_task(self._send_to(copies))
                self._sending[copies.target] = sending

    async def _send_to(self, copies: Copies) -> None:
        before = copies.error
        try:
            await copies.sending()
        finally:
            del self._sending[copies.target]
        if copies.sent_seq not in (None, self._sent.seq(copies.target)):
            async with self._noting:
                await asyncio.to_thread(self._sent.note, copies.target, copies.sent_seq)
        if copies.error and copies.error != before:
            log.error("seal.not_copied", to=shown(copies.target), error=copies.error)
