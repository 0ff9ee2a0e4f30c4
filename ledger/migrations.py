"""The schema as an ordered list of steps, applied by sqlite-utils. A step is never edited.

Times are UTC microseconds (`_us`), money is integer micro-dollars (`_microusd`).
"""

from collections.abc import Callable

from sqlite_utils.db import Database
from sqlite_utils.migrations import Migrations

from ledger import alias_schema, incident_care, incident_schema, indexes, trust, views
from ledger.errors import LedgerError
from ledger.pieces import Progress, Step, Telling, untold
from ledger.sqlite import sqlite3

# One row per thing that happened; rows are added, never changed. A call is one row when it is
# decided and one when it has ended; the columns that only the second knows are empty in the first.
_EVENT = """
CREATE TABLE event (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    type TEXT NOT NULL,
    at_us INTEGER NOT NULL,
    call_id TEXT,
    run TEXT,
    tenant TEXT,
    parent TEXT,
    root TEXT,
    agent TEXT,
    release TEXT,
    tool TEXT,
    operation TEXT,
    method TEXT,
    host TEXT,
    path TEXT,
    effect TEXT,
    decision TEXT,
    reason TEXT,
    rule TEXT,
    state TEXT,
    status INTEGER,
    key TEXT,
    replay_of TEXT,
    request_digest BLOB,
    response_digest BLOB,
    response_bytes INTEGER,
    latency_us INTEGER,
    input_tokens INTEGER,
    output_tokens INTEGER,
    cost_microusd INTEGER,
    policy INTEGER REFERENCES policy (id),
    actor TEXT,
    detail TEXT
) STRICT
"""

# One row per call, in the words of `pullcord ledger query`.
_CALLS = """
CREATE VIEW calls AS
SELECT
    d.call_id AS id,
    strftime('%Y-%m-%dT%H:%M:%S', d.at_us / 1000000, 'unixepoch')
        || printf('.%03dZ', d.at_us / 1000 % 1000) AS at,
    d.tenant AS tenant,
    d.run AS run,
    d.parent AS parent,
    d.root AS root,
    d.agent AS agent,
    d.release AS release,
    d.tool AS tool,
    d.method AS method,
    d.host AS host,
    d.path AS path,
    d.effect AS effect,
    d.decision AS decision,
    d.reason AS reason,
    d.rule AS rule,
    coalesce(o.state, d.state) AS state,
    coalesce(o.status, d.status) AS status,
    d.key AS key,
    d.replay_of AS replay_of,
    nullif(lower(hex(d.request_digest)), '') AS request_digest,
    CASE WHEN o.response_digest IS NULL THEN NULL ELSE lower(hex(o.response_digest)) END
        AS response_digest,
    o.latency_us / 1000.0 AS latency_ms,
    o.input_tokens AS input_tokens,
    o.output_tokens AS output_tokens,
    o.cost_microusd / 1000000.0 AS cost_usd,
    p.digest AS policy,
    d.seq AS seq,
    d.at_us AS at_us
FROM event d
LEFT JOIN event o ON o.call_id = d.call_id AND o.type = 'call.outcome'
LEFT JOIN policy p ON p.id = d.policy
WHERE d.type IN ('call.intent', 'call.refused', 'call.replayed', 'call.held')
"""

_TABLES = (
    # Every policy text that was in force.
    """
    CREATE TABLE policy (
        id INTEGER PRIMARY KEY,
        digest TEXT NOT NULL UNIQUE,
        source TEXT NOT NULL,
        at_us INTEGER NOT NULL,
        text TEXT NOT NULL
    ) STRICT
    """,
    _EVENT,
    "CREATE INDEX event_call ON event (call_id) WHERE call_id IS NOT NULL",
    "CREATE INDEX event_run ON event (run, seq) WHERE run IS NOT NULL",
    _CALLS,
    # The calls that were let through and have not ended; what a crash leaves here is `unknown`.
    """
    CREATE TABLE open_call (
        call_id TEXT PRIMARY KEY,
        claim INTEGER
    ) STRICT, WITHOUT ROWID
    """,
    # The one right to perform a write. `expires_us` is empty unless done: nothing else expires.
    # `body_key` is empty when it is the key itself, or when the same body may be sent again.
    """
    CREATE TABLE claim (
        id INTEGER PRIMARY KEY,
        key BLOB NOT NULL UNIQUE,
        body_key BLOB,
        fingerprint BLOB NOT NULL,
        call_id TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('pending', 'done', 'unknown')),
        answered INTEGER NOT NULL DEFAULT 0,
        created_us INTEGER NOT NULL,
        used_us INTEGER NOT NULL,
        keep_us INTEGER NOT NULL,
        same_body_us INTEGER NOT NULL,
        expires_us INTEGER CHECK ((expires_us IS NOT NULL) = (state = 'done'))
    ) STRICT
    """,
    "CREATE INDEX claim_body ON claim (body_key) WHERE body_key IS NOT NULL",
    "CREATE INDEX claim_expires ON claim (expires_us) WHERE expires_us IS NOT NULL",
    # The replay vault: the exact answer of a claimed write, encrypted (ledger/vault.py).
    "CREATE TABLE answer (claim INTEGER PRIMARY KEY, sealed BLOB NOT NULL) STRICT",
    # Ceilings' sliding windows, packed (policies/ceilings.py). Empty `expires_us`: for life.
    """
    CREATE TABLE window (
        ceiling TEXT NOT NULL,
        subject TEXT NOT NULL,
        packed BLOB NOT NULL,
        expires_us INTEGER,
        PRIMARY KEY (ceiling, subject)
    ) STRICT, WITHOUT ROWID
    """,
    # Cords that are pulled now; who pulled and released them when is in `event`.
    """
    CREATE TABLE pull (
        level TEXT NOT NULL,
        scope TEXT NOT NULL,
        subject TEXT NOT NULL,
        reason TEXT NOT NULL,
        actor TEXT NOT NULL,
        at_us INTEGER NOT NULL,
        PRIMARY KEY (level, scope, subject)
    ) STRICT, WITHOUT ROWID
    """,
    # Runs that tokens were minted for. `ancestors` is a JSON list, parent first.
    """
    CREATE TABLE run (
        name TEXT PRIMARY KEY,
        tenant TEXT NOT NULL,
        ancestors TEXT NOT NULL,
        agent TEXT NOT NULL,
        release TEXT NOT NULL,
        created_us INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    # Tokens by hash; the token itself is nowhere. `tools` is a JSON list of globs, or empty.
    """
    CREATE TABLE token (
        hash BLOB PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        run TEXT NOT NULL REFERENCES run (name),
        minted_by TEXT,
        tools TEXT,
        actor TEXT NOT NULL,
        created_us INTEGER NOT NULL,
        expires_us INTEGER,
        revoked_us INTEGER
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE INDEX token_run ON token (run)",
    # One row that is written when a commit of the past has to be made durable.
    "CREATE TABLE durable (id INTEGER PRIMARY KEY CHECK (id = 1), count INTEGER NOT NULL) STRICT",
    "INSERT INTO durable VALUES (1, 0)",
)


_CONTAINMENT = (
    # When a cord ends by itself, and the releases (a JSON list) that it lets pass.
    "ALTER TABLE pull ADD COLUMN until_us INTEGER",
    "ALTER TABLE pull ADD COLUMN but_releases TEXT NOT NULL DEFAULT '[]'",
    # The process that holds the call; empty for the one that owns the store.
    "ALTER TABLE open_call ADD COLUMN worker TEXT NOT NULL DEFAULT ''",
    # The release that the token was minted for; NULL: the run's own.
    "ALTER TABLE token ADD COLUMN release TEXT",
    # Engine processes that are alive, or were when they were last seen.
    """
    CREATE TABLE worker (
        id TEXT PRIMARY KEY,
        pid INTEGER NOT NULL,
        started TEXT NOT NULL,
        seen_us INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    # Who may act through the control API, by the hash of a token. One of a name lives at a time.
    """
    CREATE TABLE operator (
        hash BLOB PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        name TEXT NOT NULL,
        role TEXT NOT NULL,
        actor TEXT NOT NULL,
        created_us INTEGER NOT NULL,
        revoked_us INTEGER
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE UNIQUE INDEX operator_name ON operator (name) WHERE revoked_us IS NULL",
    # Alerts that came in already, so that a repeat pulls nothing anew. `at_us`: when last.
    """
    CREATE TABLE alert (
        fingerprint TEXT NOT NULL,
        starts_at TEXT NOT NULL,
        at_us INTEGER NOT NULL,
        PRIMARY KEY (fingerprint, starts_at)
    ) STRICT, WITHOUT ROWID
    """,
    # What people and the program itself did, among all the calls. Calls do not pay for it.
    "CREATE INDEX event_act ON event (type, rule) WHERE actor IS NOT NULL",
)


_BOUNDS = (
    # What is counted is named by what it is, no longer by the limit on it; all counts begin anew.
    "DROP TABLE window",
    """
    CREATE TABLE window (
        window TEXT NOT NULL,
        subject TEXT NOT NULL,
        packed BLOB NOT NULL,
        expires_us INTEGER,
        PRIMARY KEY (window, subject)
    ) STRICT, WITHOUT ROWID
    """,
    # The destinations that a ceiling on destinations has counted.
    """
    CREATE TABLE seen (
        window TEXT NOT NULL,
        subject TEXT NOT NULL,
        host TEXT NOT NULL,
        PRIMARY KEY (window, subject, host)
    ) STRICT, WITHOUT ROWID
    """,
    # What an open call reserved and occupies (ledger/windows.py), a JSON list.
    "ALTER TABLE open_call ADD COLUMN leases TEXT NOT NULL DEFAULT '[]'",
    # What a run and its descendants may spend in all; NULL: no budget of its own.
    "ALTER TABLE run ADD COLUMN budget_microusd INTEGER",
    "ALTER TABLE token ADD COLUMN read_only INTEGER NOT NULL DEFAULT 0",
    # Calls that wait for a person, and what that person said. `arguments` are what the person is
    # shown, sealed (ledger/vault.py). `until_us` is when a waiting ticket, or an approval that
    # nobody used, ends by itself; the ticket is the id of the call that opened it, `used_by` of
    # the call that it let through.
    """
    CREATE TABLE hold (
        ticket TEXT PRIMARY KEY,
        run TEXT NOT NULL,
        tenant TEXT NOT NULL,
        agent TEXT NOT NULL,
        tool TEXT NOT NULL,
        fingerprint BLOB NOT NULL,
        rule TEXT NOT NULL,
        summary TEXT NOT NULL,
        arguments BLOB NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('waiting', 'approved', 'rejected', 'expired', 'used')),
        at_us INTEGER NOT NULL,
        until_us INTEGER NOT NULL,
        decided_us INTEGER,
        actor TEXT NOT NULL DEFAULT '',
        reason TEXT NOT NULL DEFAULT '',
        used_by TEXT NOT NULL DEFAULT ''
    ) STRICT
    """,
    # Only one ticket for one request of one run is open at a time.
    """
    CREATE UNIQUE INDEX hold_open ON hold (run, tool, fingerprint)
        WHERE state IN ('waiting', 'approved')
    """,
    "CREATE INDEX hold_until ON hold (state, until_us)",
    "CREATE INDEX hold_used ON hold (used_by) WHERE state = 'used'",
)


def _record(db: Database) -> None:
    for statement in _TABLES:
        db.execute(statement)


def _containment(db: Database) -> None:
    for statement in _CONTAINMENT:
        db.execute(statement)


def _final_reason(db: Database) -> None:
    """A call that was let through and then stopped has the reason that its caller was told."""
    db.execute("DROP VIEW calls")
    db.execute(_with_final_reason())


def _with_final_reason() -> str:
    reason = "    d.reason AS reason,\n"
    return _CALLS.replace(reason, "    coalesce(o.reason, d.reason) AS reason,\n")


def _bounds(db: Database) -> None:
    """A call that was held and then decided is told as it was decided."""
    for statement in _BOUNDS:
        db.execute(statement)
    db.execute("DROP VIEW calls")
    db.execute(_with_final_reason().rstrip() + _UNLESS_DECIDED)


_UNLESS_DECIDED = """
AND (d.type <> 'call.held' OR NOT EXISTS (
    SELECT 1 FROM event later
    WHERE later.call_id = d.call_id
    AND later.type IN ('call.intent', 'call.refused', 'call.replayed')
))
"""


def _at_once(make: Callable[[Database], None]) -> Step:
    def made(db: Database, _progress: Progress = untold, /) -> None:
        make(db)

    return made


STEPS: tuple[tuple[str, Step], ...] = (
    ("0001_record", _at_once(_record)),
    ("0002_containment", _at_once(_containment)),
    ("0003_final_reason", _at_once(_final_reason)),
    ("0004_bounds", _at_once(_bounds)),
    ("0005_resolved", _at_once(views.make)),
    ("0006_trust", trust.make),
    ("0007_search", indexes.make),
    ("0008_incidents", _at_once(incident_schema.make)),
    ("0009_incident_care", _at_once(incident_care.make)),
    ("0010_claim_aliases", _at_once(alias_schema.make)),
)
_IN_PIECES = frozenset({"0006_trust", "0007_search"})  # they go through the record: pieces.py
_STEPS_BETWEEN_SIGNS = 1_000_000  # of SQLite: some tenths of a second


def migrate(db: Database, progress: Progress = untold) -> None:
    """Bring the schema up to date. `progress` is told at least every few seconds; what it raises
    ends the work, which goes on there the next time. LedgerError when a newer pullcord made it.
    """
    migrations = Migrations("pullcord")
    telling = Telling(progress, len(STEPS))
    for name, step in STEPS:
        migrations(name=name, transactional=name not in _IN_PIECES)(telling.of(step))
    known = {name for name, _ in STEPS}
    newer = [step.name for step in migrations.applied(db) if step.name not in known]
    if newer:
        raise LedgerError(
            f"the ledger was made by a newer pullcord (step {newer[-1]}); run that version"
        )
    if not migrations.pending(db):
        return
    # A single statement may take minutes, too: a sign of life comes out of it.
    db.conn.set_progress_handler(telling.again, _STEPS_BETWEEN_SIGNS)
    try:
        migrations.apply(db)
    except sqlite3.Error as error:
        raise telling.raised or error from None
    finally:
        db.conn.set_progress_handler(None, 0)
