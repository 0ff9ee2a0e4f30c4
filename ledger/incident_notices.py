"""What the tenants that an incident touched were told of it. Reads for proxy/tenant_notices.py."""

import json

from ledger.compensation import DECLINED, undone_calls
from ledger.filters import parse
from ledger.incident_acts import PUBLIC
from ledger.incident_schema import moment
from ledger.incident_scope import from_us, terms
from ledger.open_incidents import Incident
from ledger.queries import Row, rows, within
from ledger.sqlite import sqlite3
from ledger.states import EventType

_AT = f"{moment('at_us')} AS at"
_SENT = f"""
SELECT {_AT}, tenant, rule, actor, substr(detail, 1, instr(detail, ' ') - 1) AS digest
FROM event WHERE incident = ? AND type = '{EventType.INCIDENT_NOTIFIED}' ORDER BY seq
"""  # noqa: S608 - names of ours
# A write that the tool declined changed nothing. Micro-dollars are whole numbers in the record:
# what the view divided comes back as it was.
_TOUCHED = f"""
SELECT tenant, count(DISTINCT run) AS runs, count(*) AS calls,
    count(*) FILTER (WHERE effect = 'write' AND state = 'done' AND NOT declined) AS done,
    count(*) FILTER (WHERE effect = 'write' AND state IN ('unknown', 'pending')) AS unknown,
    count(*) FILTER (WHERE id IN (SELECT value FROM json_each(?))) AS undone,
    coalesce(sum(CAST(round(cost_usd * 1000000) AS INTEGER)), 0) AS cost_microusd
FROM (
    SELECT id, tenant, run, effect, state, cost_usd, coalesce({DECLINED}, 0) AS declined
    FROM calls WHERE %s AND tenant IS NOT NULL
)
GROUP BY tenant HAVING done + unknown > 0 ORDER BY tenant
"""  # noqa: S608 - words of ours
_PUBLIC = f"""
SELECT {_AT}, detail FROM event
WHERE incident = ? AND type = '{EventType.INCIDENT_NOTED}' AND rule = '{PUBLIC}' ORDER BY seq
"""  # noqa: S608


def touched(reader: sqlite3.Connection, incident: Incident) -> list[Row]:
    """The tenants whose writes were let through, and may have been made; each with the figures of
    its own calls of the incident, all of them in one read. Raises LedgerUnavailable."""
    undone = json.dumps(sorted(undone_calls(reader, from_us(incident))))
    where, values = within(reader, parse(terms(incident), 0))
    return list(rows(reader, _TOUCHED % where, (undone, *values)))


def sent(reader: sqlite3.Connection, incident_id: str) -> list[Row]:
    """Each message that arrived, in order: when, to which tenant, by which contact (`rule`), and
    which (`digest`)."""
    return list(rows(reader, _SENT, (incident_id,)))


def public_notes(reader: sqlite3.Connection, incident_id: str) -> list[Row]:
    """What operators wrote for those who are affected, in order."""
    return list(rows(reader, _PUBLIC, (incident_id,)))
