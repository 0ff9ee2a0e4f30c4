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
from proxy.clock import Clock
from proxy.operations import secret_key, timestamp
from proxy.seal_copies import COPY_SECONDS, Copies, shown

log = structlog.get_logger()

SEAL_SECONDS = 60.0  # rows are sealed when the oldest of them has waited so long,
SEAL_ROWS_MAX = 10_000  # or when there are so many
LOOK_SECONDS = 1.0
RETRY_SECONDS = 10.0  # a copy that could not be sent is tried this often

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
            unfinished = path.with_name(f".{path.name}.{os.getpid()}")
            unfinished.write_bytes(known)
            unfinished.chmod(0o644)
            unfinished.replace(path)
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
    """Where the trace ends; what was known of it while it cannot be read: no seal waits for it."""
    try:
        return trace.head(data)
    except LedgerError as error:
        log.warning("seal.without_trace", error=str(error))
        return known


class Sealing:
    """Made with the store, before anything else uses it. `failure` is why there is no seal."""

    def __init__(self, data: Path, places: Sequence[str], clock: Clock, store: Store) -> None:
        """Raises LedgerError when the key cannot be used."""
        self.keys = seal_keys(data)
        self.failure = ""
        self._data = data
        self._clock = clock
        self._store = store
        self._last = store.last_seal()
        self._rested_seconds = clock.monotonic_seconds()  # since then nothing waits to be sealed
        self._copies = [Copies(place) for place in places]
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._tried_seconds = self._rested_seconds
        # A power cut may lose the newest messages of the trace, which is not the record: what is
        # sealed of it was there one seal before.
        self._trace = trace_head(data)

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
        covered, self._trace = self._trace, await self._traced()
        now_us = self._clock.now_us()
        try:
            self._sealed(await act(lambda store: store.seal(self.keys.signer, covered, now_us)))
        except LedgerError as failure:
            self._failed(str(failure))
        except Exception as failure:  # a bug of ours must not end the sealing for good
            log.exception("seal.failed")
            self._failed(type(failure).__name__)

    async def close(self) -> None:
        """When nobody else uses the store any more: the last seal, and its copies for a while."""
        covered = await self._traced()
        try:
            self._sealed(self._store.seal(self.keys.signer, covered, self._clock.now_us()))
        except LedgerError as failure:
            self._failed(str(failure))
        if self._sending:
            await asyncio.wait(self._sending.values(), timeout=COPY_SECONDS)
        left = [copies for copies in self._copies if copies.waiting]
        for copies in left:
            log.error("seal.not_copied", to=shown(copies.target), waiting=copies.waiting)

    @property
    def warnings(self) -> list[str]:
        """What somebody should know, though every call passes."""
        found = [f"the record is not sealed: {self.failure}"] if self.failure else []
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
            "copies": [
                {
                    "to": shown(copies.target),
                    "waiting": copies.waiting,
                    "error": copies.error or None,
                }
                for copies in self._copies
            ],
        }

    def _sealed(self, made: Made) -> None:
        self.failure = ""
        if made is None:
            return
        identity, self._last = made
        line = self._last.line(identity)
        for copies in self._copies:
            copies.add(line)
        self._send()

    def _failed(self, failure: str) -> None:
        if failure != self.failure:
            log.error("seal.failed", error=failure)
        self.failure = failure

    async def _traced(self) -> Head:
        return await asyncio.to_thread(trace_head, self._data, self._trace)

    def _send(self) -> None:
        self._tried_seconds = self._clock.monotonic_seconds()
        for copies in self._copies:
            if copies.waiting and copies.target not in self._sending:
                sending = asyncio.get_running_loop().create_task(self._send_to(copies))
                self._sending[copies.target] = sending

    async def _send_to(self, copies: Copies) -> None:
        before = copies.error
        try:
            await asyncio.to_thread(copies.send)
        finally:
            del self._sending[copies.target]
        if copies.error and copies.error != before:
            log.error("seal.not_copied", to=shown(copies.target), error=copies.error)
