"""What people do about incidents, in the schema, as step 0009 makes it. Never edited: a later step
brings its own.
"""

from sqlite_utils.db import Database

from ledger import incident_schema
from ledger.pieces import has

# Who opened it, empty where the detectors did; who takes care of it; who has seen it, so that no
# alert tells of it again. `first_call` is the first that convinced a detector, `since_us` from when
# on calls belong to it, `runs` whose (a JSON list of roots; ["release:L"], ["*"] for any's).
# `proof` is the digest of the regression test that was shown to fail without its mend, `waived` why
# there is none.
_COLUMNS = (
    "opened_by TEXT NOT NULL DEFAULT ''",
    "owner TEXT NOT NULL DEFAULT ''",
    "acked_us INTEGER",
    "acked_by TEXT NOT NULL DEFAULT ''",
    "since_us INTEGER",
    "first_call TEXT NOT NULL DEFAULT ''",
    "runs TEXT NOT NULL DEFAULT '[]'",
    "proof TEXT NOT NULL DEFAULT ''",
    "waived TEXT NOT NULL DEFAULT ''",
)
# The rows of a tree of runs beside those of its root. Only runs that others started pay for it.
_TREE = """
CREATE INDEX IF NOT EXISTS event_tree ON event (root, seq) WHERE root IS NOT NULL AND root <> run
"""


def _view() -> str:
    more = """    findings,
    nullif(opened_by, '') AS opened_by,
    nullif(owner, '') AS owner,
    {acked} AS acked_at,
    nullif(acked_by, '') AS acked_by,
    nullif(first_call, '') AS first_call,
    nullif(proof, '') AS proof,
    nullif(waived, '') AS waived,
"""
    acked = incident_schema.moment("acked_us")
    return incident_schema.INCIDENTS_VIEW.replace("    findings,\n", more.format(acked=acked))


def make(db: Database) -> None:
    if not has(db.conn, "event_tree"):
        for column in _COLUMNS:
            db.execute(f"ALTER TABLE incident ADD COLUMN {column}")
        db.execute(_TREE)
    db.execute("DROP VIEW IF EXISTS incidents")
    db.execute(_view())
