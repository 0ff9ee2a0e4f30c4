"""The views that people read, as step 0005 makes them. Never edited: a later step brings its own.

`calls` has one row per call, `runs` one per run, `effects` one per write that the world has seen,
may have seen, or is about to see. docs/ledger.md describes them.
"""

from sqlite_utils.db import Database

# A call that was held and then decided is told as it was decided. What a person said of a call of
# unknown outcome (`call.resolved`) is its state from then on.
CALLS = """
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
    coalesce(o.reason, d.reason) AS reason,
    d.rule AS rule,
    coalesce(r.state, o.state, d.state) AS state,
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
LEFT JOIN event r ON r.call_id = d.call_id AND r.type = 'call.resolved'
LEFT JOIN policy p ON p.id = d.policy
WHERE d.type IN ('call.intent', 'call.refused', 'call.replayed', 'call.held')
AND (d.type <> 'call.held' OR NOT EXISTS (
    SELECT 1 FROM event later
    WHERE later.call_id = d.call_id
    AND later.type IN ('call.intent', 'call.refused', 'call.replayed')
))
"""

EFFECTS = """
CREATE VIEW effects AS
SELECT
    c.id, c.at, c.tenant, c.run, c.root, c.agent, c.release, c.tool, c.method, c.host, c.path,
    c.state, c.status, c.reason, c.key, c.request_digest, c.response_digest, c.cost_usd,
    r.actor AS resolved_by,
    r.detail AS resolved_because,
    c.seq, c.at_us
FROM calls c
LEFT JOIN event r ON r.call_id = c.id AND r.type = 'call.resolved'
WHERE c.effect = 'write' AND c.decision = 'allow' AND c.state IN ('done', 'unknown', 'pending')
"""

# `writes` are those that were let through; what was refused is only in `refused`.
RUNS = """
CREATE VIEW runs AS
SELECT
    run,
    tenant,
    max(parent) AS parent,
    max(root) AS root,
    max(agent) AS agent,
    max(release) AS release,
    min(at) AS first_at,
    max(at) AS last_at,
    count(*) AS calls,
    count(*) FILTER (WHERE decision = 'allow' AND effect = 'read') AS reads,
    count(*) FILTER (WHERE decision = 'allow' AND effect = 'write') AS writes,
    count(*) FILTER (WHERE decision = 'allow' AND effect = 'model') AS models,
    count(*) FILTER (WHERE state = 'pending') AS pending,
    count(*) FILTER (WHERE state = 'unknown') AS unknown,
    count(*) FILTER (WHERE state = 'not_sent') AS not_sent,
    count(*) FILTER (WHERE state = 'refused') AS refused,
    count(*) FILTER (WHERE state = 'replayed') AS replayed,
    count(*) FILTER (WHERE state = 'held') AS held,
    coalesce(sum(input_tokens), 0) AS input_tokens,
    coalesce(sum(output_tokens), 0) AS output_tokens,
    total(cost_usd) AS cost_usd
FROM calls
WHERE run IS NOT NULL
GROUP BY run, tenant
"""


def make(db: Database) -> None:
    db.execute("DROP VIEW calls")
    for view in (CALLS, EFFECTS, RUNS):
        db.execute(view)
