"""The indexes by which people search the record, and the views that can use them, as step 0007
makes them. Never edited: a later step brings its own.

Each holds only rows that a search is for: an outcome has no tenant, tool or release, so it is in
none of these; what went well, and what was let through, is in none of the last two.
"""

from sqlite_utils.db import Database

from ledger import views
from ledger.pieces import Progress, has, piece, untold

_INDEXES = {
    name: f"CREATE INDEX {name} ON event {columns}"
    for name, columns in {
        "event_tenant": "(tenant, seq) WHERE tenant IS NOT NULL",
        "event_tool": "(tool, seq) WHERE tool IS NOT NULL",
        "event_release": "(release, seq) WHERE release IS NOT NULL",
        # Refusals are counted by their rule, too: how many calls has this cord stopped?
        "event_stopped": "(decision, seq, rule) WHERE decision <> 'allow'",
        "event_troubled": "(state, call_id) WHERE type = 'call.outcome' AND state <> 'done'",
    }.items()
}


# Where SQLite knows how much the record holds, it would read all of it once to make a filter for a
# join; a `+` before the column that alone names the kind of row keeps it from that.
_KINDS = tuple(f"{row}.type = 'call.{kind}'" for row, kind in (("o", "outcome"), ("r", "resolved")))

# One row for each pull of a cord, and how it ended; a cord that was made tighter has two. Cords of
# the policy file are not among them.
_INCIDENTS = """
CREATE VIEW incidents AS
SELECT
    p.rule AS cord,
    strftime('%Y-%m-%dT%H:%M:%S', p.at_us / 1000000, 'unixepoch')
        || printf('.%03dZ', p.at_us / 1000 % 1000) AS pulled_at,
    p.actor AS pulled_by,
    p.detail AS reason,
    p.call_id AS over_call,
    strftime('%Y-%m-%dT%H:%M:%S', r.at_us / 1000000, 'unixepoch')
        || printf('.%03dZ', r.at_us / 1000 % 1000) AS released_at,
    r.actor AS released_by,
    r.detail AS released_because,
    p.tenant, p.run, p.release, p.tool, p.seq, p.at_us
FROM event p
LEFT JOIN event r ON r.seq = (
    SELECT min(seq) FROM event
    WHERE actor IS NOT NULL AND type = 'cord.released' AND rule = p.rule AND seq > p.seq
)
WHERE p.actor IS NOT NULL AND p.type = 'cord.pulled'
"""


def make(db: Database, progress: Progress = untold, /) -> None:
    """Each index for itself; a second making goes on where it was."""
    for number, (name, statement) in enumerate(_INDEXES.items()):
        progress(number, len(_INDEXES), "indexes")
        if not has(db.conn, name):
            with piece(db.conn):
                db.execute(statement)
    with piece(db.conn):
        _make_views(db)


def _make_views(db: Database) -> None:
    for view in ("incidents", "runs", "effects", "calls"):
        db.execute(f"DROP VIEW IF EXISTS {view}")
    for view in (views.CALLS, views.EFFECTS, views.RUNS):
        for kind in _KINDS:
            view = view.replace(kind, f"+{kind}")
        db.execute(view)
    db.execute(_INCIDENTS)
