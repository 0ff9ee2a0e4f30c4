"""Incidents in the schema, as step 0008 makes them. Never edited: a later step brings its own."""

from sqlite_utils.db import Database

from ledger.pieces import has

_INCIDENTS = (
    # What a detector or a person holds to be wrong: one open row for each thing that goes wrong.
    # `kind` and `name` say what it is about: the root of a tree of runs, a tool of a tenant, a
    # release; `tenant` and `global` are what was too much to have one each. `rule` is the cord that
    # was last pulled for it, `raised_us` when it was last worth telling again, `evidence` the
    # newest calls that convinced a detector (a JSON list), `findings` how many findings it holds.
    """
    CREATE TABLE incident (
        id TEXT PRIMARY KEY,
        kind TEXT NOT NULL,
        name TEXT NOT NULL,
        tenant TEXT NOT NULL,
        state TEXT NOT NULL CHECK (state IN ('open', 'closed')),
        severity TEXT NOT NULL CHECK (severity IN ('alert', 'trip')),
        detector TEXT NOT NULL,
        why TEXT NOT NULL,
        rule TEXT NOT NULL,
        run TEXT NOT NULL,
        root TEXT NOT NULL,
        tool TEXT NOT NULL,
        release TEXT NOT NULL,
        agent TEXT NOT NULL,
        findings INTEGER NOT NULL,
        evidence TEXT NOT NULL,
        opened_us INTEGER NOT NULL,
        updated_us INTEGER NOT NULL,
        raised_us INTEGER,
        closed_us INTEGER CHECK ((closed_us IS NOT NULL) = (state = 'closed')),
        closed_by TEXT NOT NULL DEFAULT '',
        closed_because TEXT NOT NULL DEFAULT ''
    ) STRICT, WITHOUT ROWID
    """,
    "CREATE UNIQUE INDEX incident_open ON incident (kind, tenant, name) WHERE state = 'open'",
    # What is due, what a finding belongs to and what is quiet are found however many are open.
    "CREATE INDEX incident_since ON incident (coalesce(raised_us, opened_us)) WHERE state = 'open'",
    "CREATE INDEX incident_tree ON incident (tenant, root) WHERE state = 'open'",
    "CREATE INDEX incident_cord ON incident (rule) WHERE state = 'open' AND rule <> ''",
    "CREATE INDEX incident_quiet ON incident (severity, updated_us) WHERE state = 'open'",
    "CREATE INDEX incident_closed ON incident (closed_us) WHERE closed_us IS NOT NULL",
    # What the channels of alerts were told of an incident, and what they never will be; `since_us`
    # is when that came to be.
    """
    CREATE TABLE delivery (
        incident TEXT NOT NULL,
        channel TEXT NOT NULL,
        event TEXT NOT NULL CHECK (event IN ('alert', 'trip', 'closed')),
        state TEXT NOT NULL CHECK (state IN ('sent', 'failed')),
        at_us INTEGER NOT NULL,
        tries INTEGER NOT NULL,
        error TEXT NOT NULL DEFAULT '',
        since_us INTEGER NOT NULL,
        PRIMARY KEY (incident, channel, event, since_us)
    ) STRICT, WITHOUT ROWID
    """,
    # The incident that a row of the record belongs to. Calls do not pay for it.
    "ALTER TABLE event ADD COLUMN incident TEXT",
    "CREATE INDEX event_incident ON event (incident, seq) WHERE incident IS NOT NULL",
)


def moment(column: str) -> str:
    return (
        f"strftime('%Y-%m-%dT%H:%M:%S', {column} / 1000000, 'unixepoch')\n"
        f"        || printf('.%03dZ', {column} / 1000 % 1000)"
    )


# One row for each pull of a cord, and how it ended; a cord that was made tighter has two. Cords of
# the policy file are not among them.
_CORDS_VIEW = f"""
CREATE VIEW cords AS
SELECT
    p.rule AS cord,
    {moment("p.at_us")} AS pulled_at,
    p.actor AS pulled_by,
    p.detail AS reason,
    p.call_id AS over_call,
    p.incident AS incident,
    {moment("r.at_us")} AS released_at,
    r.actor AS released_by,
    r.detail AS released_because,
    p.tenant, p.run, p.release, p.tool, p.seq, p.at_us
FROM event p
LEFT JOIN event r ON r.seq = (
    SELECT min(seq) FROM event
    WHERE actor IS NOT NULL AND type = 'cord.released' AND rule = p.rule AND seq > p.seq
)
WHERE p.actor IS NOT NULL AND p.type = 'cord.pulled'
"""  # noqa: S608 - no value in it

# What is empty in the table is NULL here.
INCIDENTS_VIEW = f"""
CREATE VIEW incidents AS
SELECT
    id, state, severity, kind, name,
    {moment("opened_us")} AS opened_at,
    {moment("updated_us")} AS updated_at,
    {moment("closed_us")} AS closed_at,
    nullif(closed_by, '') AS closed_by,
    nullif(closed_because, '') AS closed_because,
    detector, why,
    nullif(rule, '') AS cord,
    nullif(tenant, '') AS tenant,
    nullif(run, '') AS run,
    nullif(root, '') AS root,
    nullif(tool, '') AS tool,
    nullif(release, '') AS release,
    nullif(agent, '') AS agent,
    findings,
    evidence AS calls
FROM incident
"""  # noqa: S608 - no value in it


def make(db: Database) -> None:
    """What was the view `incidents` until now is `cords`."""
    if not has(db.conn, "incident"):
        for statement in _INCIDENTS:
            db.execute(statement)
    for name, view in (("cords", _CORDS_VIEW), ("incidents", INCIDENTS_VIEW)):
        db.execute(f"DROP VIEW IF EXISTS {name}")
        db.execute(view)
