"""What makes the record one that can be trusted, as step 0006 makes it. Never edited: a later step
brings its own.
"""

from sqlite_utils.db import Database

from ledger import chain
from ledger.pieces import Progress, has, piece, untold

_TRUST = (
    # What `decide` saw of a call beside the columns, as JSON (ledger/seen.py); and the chain.
    "ALTER TABLE event ADD COLUMN seen TEXT",
    "ALTER TABLE event ADD COLUMN hash BLOB",
    # Signed heads of the chain (ledger/seals.py). `trace_seq` and `trace_hash`: of the trace.
    """
    CREATE TABLE seal (
        seq INTEGER PRIMARY KEY,
        hash BLOB NOT NULL,
        trace_seq INTEGER NOT NULL,
        trace_hash BLOB NOT NULL,
        at_us INTEGER NOT NULL,
        previous BLOB NOT NULL,
        key_id TEXT NOT NULL,
        signature BLOB NOT NULL
    ) STRICT
    """,
    # What `ledger prune` took out, signed: the rows from `first_seq` to `last_seq`, between the
    # hash of the row before them and the hash of the last of them.
    """
    CREATE TABLE gap (
        first_seq INTEGER PRIMARY KEY,
        last_seq INTEGER NOT NULL,
        before BLOB NOT NULL,
        after BLOB NOT NULL,
        rows INTEGER NOT NULL,
        at_us INTEGER NOT NULL,
        actor TEXT NOT NULL,
        key_id TEXT NOT NULL,
        signature BLOB NOT NULL
    ) STRICT
    """,
    # An answer that is too long for a row: the name of its sealed file, and `sealed` is empty.
    "ALTER TABLE answer ADD COLUMN file TEXT",
)


def make(db: Database, progress: Progress = untold, /) -> None:
    """The tables at once, then the chain in pieces; a second making goes on where it was."""
    if not has(db.conn, "seal"):
        with piece(db.conn):
            for statement in _TRUST:
                db.execute(statement)
    chain.hash_all(db.conn, progress)
