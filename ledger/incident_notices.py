"""What the tenants that an incident touched were told of it. Reads for proxy/tenant_notices.py."""

from ledger.filters import parse
from ledger.incident_acts import PUBLIC
from ledger.incident_scope import terms
from ledger.open_incidents import Incident
from ledger.queries import Row, rows, within
from ledger.sqlite import sqlite3
from ledger.states import EventType

_AT = (
    "strftime('%Y-%m-%dT%H:%M:%S', at_us / 1000000, 'unixepoch') "
    "|| printf('.%03dZ', at_us / 1000 % 1000) AS at"
)
_SENT = f"""
SELECT {_AT}, tenant, rule, actor, substr(detail, 1, instr(detail, ' ') - 1) AS digest
FROM event WHERE incident = ? AND type = '{EventType.INCIDENT_NOTIFIED}' ORDER BY seq
"""  # noqa: S608 - names of ours
_UNDONE = """
SELECT count(*) AS undone FROM event e JOIN calls c ON c.id = e.call_id
WHERE e.incident = ? AND e.type = 'call.intent' AND e.tenant = ? AND e.rule LIKE 'undo:%'
AND c.state = 'done'
"""
_PUBLIC = f"""
SELECT {_AT}, detail FROM event
WHERE incident = ? AND type = '{EventType.INCIDENT_NOTED}' AND rule = '{PUBLIC}' ORDER BY seq
"""  # noqa: S608


def tenants(reader: sqlite3.Connection, incident: Incident) -> list[str]:
    """Those whose writes were let through, and may have been made. Raises LedgerUnavailable."""
    where, values = within(reader, parse(terms(incident), 0))
    statement = (
        f"SELECT DISTINCT tenant FROM calls WHERE {where} AND tenant IS NOT NULL "  # noqa: S608
        "AND effect = 'write' AND state IN ('done', 'unknown', 'pending') ORDER BY tenant"
    )
    return [str(row["tenant"]) for row in rows(reader, statement, values)]


def sent(reader: sqlite3.Connection, incident_id: str) -> list[Row]:
    """Each message that arrived, in order: when, to which tenant, by which contact (`rule`), and
    which (`digest`)."""
    return list(rows(reader, _SENT, (incident_id,)))


def undone(reader: sqlite3.Connection, incident_id: str, tenant: str) -> int:
    """How many of a tenant's writes an operator has undone for this incident."""
    (found,) = rows(reader, _UNDONE, (incident_id, tenant))
    return int(found["undone"])


def public_notes(reader: sqlite3.Connection, incident_id: str) -> list[Row]:
    """What operators wrote for those who are affected, in order."""
    return list(rows(reader, _PUBLIC, (incident_id,)))
