"""The store's acts on the record as a whole: it is sealed, and old rows are taken out."""

from collections.abc import Iterator

from ledger import deliveries, pruning, seal_checks, seals
from ledger.batch import Batch
from ledger.chain import Head
from ledger.deliveries import Delivery
from ledger.events import PROGRAM
from ledger.holding import Holding
from ledger.pruning import Keys, Pruned
from ledger.redact import check_storable
from ledger.seals import PublicKeys, Seal, Signer
from ledger.states import EventType


class Keeping(Holding):
    """Every act is a transaction of its own, or part of the one around it."""

    @property
    def head(self) -> Head:
        """Where the record ends, as committed. Safe in any thread."""
        return self._memory.head

    def last_seal(self) -> Seal | None:
        """For the thread of the writer, between transactions."""
        return seals.last(self._conn)

    def copies_after(self, seq: int) -> Iterator[tuple[int, bytes]]:
        """The seals over rows behind that number, in order, each as a line for another place. For
        the thread of the writer, between transactions."""
        whose, newest = seals.identity(self._conn), seals.last(self._conn)
        if whose is not None and newest is not None:
            for seal in seals.all_seals(self._conn, newest.seq, seq):
                yield seal.seq, seal.line(whose)

    def compare_seal(self, line: bytes, keys: PublicKeys, at_us: int) -> str:
        """Whether the ledger has the seal of which this is a copy: empty, or why not; then the
        record tells it for good, before anything else is sealed."""
        whose = seals.identity(self._conn) or b""
        wrong = seal_checks.unlike(self._conn, keys, whose, line)
        if wrong:
            with self._joined() as batch:
                batch.journal.noted(EventType.BEHIND_SEAL, at_us=at_us, actor=PROGRAM, detail=wrong)
                batch.must_last = True
        return wrong

    def seal(
        self, signer: Signer, trace: Head, at_us: int, known: Seal | None = None
    ) -> tuple[bytes, Seal] | None:
        """Seal all that is recorded until now: the ledger's identity and the seal; None when there
        is nothing new. `known` is the last seal, where the caller has made it. A trace that ends
        before what was sealed of it is told in the record. Raises LedgerError for a record that is
        shorter than what was sealed, and where `known` is gone."""
        with self._joined() as batch:
            batch.journal.write(self._conn)
            newest = seals.last(self._conn)
            if newest is not None and (known is None or known.signature == newest.signature):
                self._tell_trace(batch, newest, trace, at_us)
            made = seals.made(self._conn, batch.journal.head, trace, signer, at_us, known)
            if made is not None:
                seals.write(self._conn, made[1])
                batch.must_last = True
            return made

    def _tell_trace(self, batch: Batch, newest: Seal, trace: Head, at_us: int) -> None:
        if newest.seq < batch.journal.head.seq and trace.seq < newest.trace_seq:
            detail = f"the trace ends with message {trace.seq}; {newest.trace_seq} were sealed"
            kind = EventType.TRACE_BEHIND
            batch.journal.noted(kind, at_us=at_us, actor=PROGRAM, detail=detail)
            batch.journal.write(self._conn)

    def prune(
        self, after_seq: int, before_us: int, keys: Keys, trace: Head, *, actor: str, at_us: int
    ) -> Pruned:
        """Take out some rows behind this number that are older than `before_us` and count no more;
        again from `next_seq` on, until that is None. Raises LedgerError for rows that are not as
        they were recorded."""
        check_storable(actor)
        with self._joined() as batch:
            return pruning.step(batch, after_seq, before_us, keys, trace, actor, at_us)

    def delivered(self, delivery: Delivery) -> None:
        """How the delivery of an alert ended."""
        with self._joined() as batch:
            deliveries.record(batch.conn, delivery)

    def note_pruned(self, pruned: Pruned, before: str, *, actor: str, at_us: int) -> None:
        """Who has pruned, and how much; `before` is the time that it went up to."""
        check_storable(actor)
        detail = f"{pruned.rows} rows, {pruned.calls} calls, older than {before}"
        with self._joined() as batch:
            batch.journal.noted(EventType.PRUNED, at_us=at_us, actor=actor, detail=detail)
            batch.must_last = True
