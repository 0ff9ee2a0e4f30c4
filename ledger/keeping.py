"""The store's acts on the record as a whole: it is sealed, and old rows are taken out."""

from ledger import pruning, seals
from ledger.chain import Head
from ledger.holding import Holding
from ledger.pruning import Keys, Pruned
from ledger.redact import check_storable
from ledger.seals import Seal, Signer
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

    def seal(self, signer: Signer, trace: Head, at_us: int) -> tuple[bytes, Seal] | None:
        """Seal all that is recorded until now: the ledger's identity and the seal; None when there
        is nothing new. Raises LedgerError for a record that is shorter than what was sealed."""
        with self._joined() as batch:
            batch.journal.write(self._conn)
            made = seals.made(self._conn, batch.journal.head, trace, signer, at_us)
            if made is not None:
                seals.write(self._conn, made[1])
                batch.must_last = True
            return made

    def prune(
        self, after_seq: int, before_us: int, keys: Keys, trace: Head, *, actor: str, at_us: int
    ) -> Pruned:
        """Take out some rows behind this number that are older than `before_us` and count no more;
        again from `next_seq` on, until that is None. Raises LedgerError for rows that are not as
        they were recorded."""
        check_storable(actor)
        with self._joined() as batch:
            return pruning.step(batch, after_seq, before_us, keys, trace, actor, at_us)

    def note_pruned(self, pruned: Pruned, before: str, *, actor: str, at_us: int) -> None:
        """Who has pruned, and how much; `before` is the time that it went up to."""
        check_storable(actor)
        detail = f"{pruned.rows} rows, {pruned.calls} calls, older than {before}"
        with self._joined() as batch:
            batch.journal.noted(EventType.PRUNED, at_us=at_us, actor=actor, detail=detail)
            batch.must_last = True
