"""What every act of the store stands on: the writer, the memory, and transactions over both.

Whatever fails inside a transaction is rolled back, in the database and in memory alike. What is
written in one is not known here.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from sqlite_utils.db import Database

from ledger.answer_files import AnswerFiles
from ledger.batch import Batch, Memory
from ledger.connection import Writer
from ledger.errors import LedgerError
from ledger.inspection import Inspection
from ledger.migrations import migrate
from ledger.pieces import Progress, untold
from ledger.records import Recovered
from ledger.recovery import Alive, load, newest_us, nobody, recover
from ledger.redact import redact_key
from ledger.sqlite import sqlite3
from ledger.tally import Tally
from ledger.vault import Vault
from policies.detectors.signals import Signals
from policies.verdict import Pulls

PROOF = "UPDATE durable SET count = count + 1"
"""Writes one page: it fails where nothing can be recorded."""


class Transactions:
    """Made by `open`. `newest_us` is when the newest row was written that it found, 0 for none."""

    _inspection: Inspection

    def __init__(self, writer: Writer, vault_key: bytes, clock: Callable[[], int]) -> None:
        self._writer = writer
        self._conn = writer.conn
        self._clock = clock
        self._vault = Vault(vault_key)
        self._redact_key = redact_key(vault_key)
        self._memory = Memory()
        self._batch: Batch | None = None
        self.recovered = Recovered()
        self.newest_us = 0

    @classmethod
    def open(
        cls,
        data: Path,
        vault_key: bytes,
        clock: Callable[[], int],
        busy_seconds: float = 5.0,
        alive: Alive = nobody,
        progress: Progress = untold,
    ) -> Self:
        """Take the lock, bring the schema up to date, settle what a crash left open.

        `clock` tells UTC microseconds. `busy_seconds` is how long another program's lock is
        waited for. What a worker that is `alive` holds stays open. `progress` is told while the
        schema is brought up to date. Raises LedgerBusy, LedgerUnavailable, LedgerError for a
        newer schema, and what `progress` raises.
        """
        writer = Writer(data, busy_seconds)
        try:
            store = cls(writer, vault_key, clock)
            try:
                migrate(Database(writer.conn), progress)
                store._memory = load(writer.conn)
                store.newest_us = newest_us(writer.conn)
            except sqlite3.Error as error:
                raise writer.failed(error) from error
            with store.transaction(durable=True):
                store.recovered = recover(store._open_batch(), store._memory, clock(), alive)
            writer.watch_files()
            store._inspection = Inspection(data)
            store._vault.use(AnswerFiles(data), writer.conn, clock())
        except BaseException:
            writer.close()
            raise
        return store

    def close(self) -> None:
        self._inspection.close()
        self._writer.close()

    @property
    def pulls(self) -> Pulls:
        """The stored cords, as committed. A new mapping after each change; safe in any thread."""
        return self._memory.pulls

    @property
    def open_calls(self) -> int:
        """How many calls were let through and have not ended. Safe in any thread."""
        return len(self._memory.open_calls)

    @property
    def tally(self) -> Tally:
        """What was decided and how it ended since this store was opened. Safe in any thread."""
        return self._memory.tally.copied()

    @property
    def signals(self) -> Signals:
        """How much is going on, of what was fed to the detectors. To be read only, in any
        thread."""
        return self._memory.watch.signals

    @contextmanager
    def transaction(self, durable: bool, *, patient: bool = True) -> Iterator[None]:
        """BEGIN IMMEDIATE to COMMIT. A durable commit is on the disk when this returns.

        One that is not patient fails at once, as locked, while another program holds a lock.

        One that is not is in the operating system's hands (a crash of ours loses nothing), unless
        it holds a claim, a cord or a token: then it is made durable all the same.
        """
        if self._batch is not None:
            raise LedgerError("a transaction is open already")
        try:
            self._writer.begin(durable=durable, patient=patient)
        except sqlite3.Error as error:
            raise self._writer.failed(error) from error
        batch = self._batch = Batch(self._conn, self._memory, self._redact_key)
        committed = False
        try:
            yield
            if batch.broken is not None:
                raise batch.broken
            batch.write()
            self._writer.commit()
            committed = True
        except sqlite3.Error as error:
            raise self._writer.failed(error) from error
        finally:
            if committed:
                batch.remember()
            else:
                batch.forget()
            self._batch = None
            self._writer.rollback()
        if batch.must_last and not durable:
            self.prove()

    @property
    def must_last(self) -> bool:
        """Whether the open transaction holds what a power cut may not lose, or cannot be committed:
        it should not stay open."""
        batch = self._batch
        return batch is not None and (batch.must_last or batch.broken is not None)

    def prove(self, *, patient: bool = True) -> None:
        """One durable commit, which takes all earlier ones to the disk with it."""
        with self.transaction(durable=True, patient=patient):
            self._conn.execute(PROOF)

    @contextmanager
    def _joined(self, *, patient: bool = True) -> Iterator[Batch]:
        """The open transaction, or a durable one around this act alone."""
        if self._batch is None:
            with self.transaction(durable=True, patient=patient):
                yield self._open_batch()
            return
        batch = self._open_batch()
        try:
            yield batch
        except LedgerError:
            raise  # nothing was written
        except Exception as error:
            batch.broken = error
            raise

    def _open_batch(self) -> Batch:
        """The open transaction. After a failure in it every further step fails too."""
        if self._batch is None:
            raise LedgerError("no transaction is open")
        if self._batch.broken is not None:
            raise self._batch.broken
        return self._batch

    def probe(self) -> None:
        """Whether a call could be recorded now. Waits for nothing. Raises LedgerUnavailable."""
        self._writer.check_room()
        self.prove(patient=False)
        self.inspect()

    def inspect(self) -> None:
        """A short look at the file itself, past all caches. Raises LedgerUnavailable when it is
        damaged, and from then on so does everything else."""
        try:
            self._inspection.look()
        except sqlite3.Error as error:
            raise self._writer.failed(error) from error

    def checkpoint(self) -> None:
        """Take the write-ahead log over into the database. Raises LedgerUnavailable."""
        try:
            self._writer.checkpoint()
        except sqlite3.Error as error:
            raise self._writer.failed(error) from error
