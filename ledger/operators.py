"""Operators, by the hash of their tokens, and the alerts that came in. Called in transactions.

What a role may do is decided where it is asked for (the control API).
"""

from dataclasses import replace
from typing import Any

from ledger.errors import LedgerError
from ledger.records import Operator
from ledger.redact import check_storable
from ledger.sqlite import sqlite3

ALERT_KEPT_US = 90 * 86_400 * 1_000_000  # an alert that was not repeated for so long is over

_SELECT = "SELECT id, name, role, actor, created_us, revoked_us FROM operator "


def enroll(
    conn: sqlite3.Connection, name: str, role: str, token_hash: bytes, *, actor: str, at_us: int
) -> Operator:
    """Record an operator. Raises LedgerError before anything is written."""
    for what, text in (("a name", name), ("a role", role), ("an actor", actor)):
        if not text.strip():
            raise LedgerError(f"an operator is enrolled with {what}")
    check_storable(name, role, actor)
    if _live(conn, name) is not None:
        raise LedgerError(f"there is an operator {name} already; dismiss that one first")
    made = Operator(token_hash.hex()[:16], name, role, actor, at_us, None)
    if conn.execute("SELECT 1 FROM operator WHERE id = ?", (made.id,)).fetchone():
        raise LedgerError("this token exists already; make a new random one")
    conn.execute(
        "INSERT INTO operator (hash, id, name, role, actor, created_us) VALUES (?, ?, ?, ?, ?, ?)",
        (token_hash, made.id, name, role, actor, at_us),
    )
    return made


def by_hash(conn: sqlite3.Connection, token_hash: bytes) -> Operator | None:
    """The operator whose token this is, unless dismissed."""
    row = conn.execute(_SELECT + "WHERE hash = ? AND revoked_us IS NULL", (token_hash,)).fetchone()
    return _operator(row)


def dismiss(conn: sqlite3.Connection, name: str, at_us: int) -> Operator | None:
    """End an operator's token; who that was, or None."""
    found = _live(conn, name)
    if found is None:
        return None
    conn.execute("UPDATE operator SET revoked_us = ? WHERE id = ?", (at_us, found.id))
    return replace(found, revoked_us=at_us)


def listed(conn: sqlite3.Connection) -> list[Operator]:
    """All operators, dismissed ones too, the newest first."""
    rows = conn.execute(_SELECT + "ORDER BY created_us DESC, id").fetchall()
    return [Operator(*row) for row in rows]


def _live(conn: sqlite3.Connection, name: str) -> Operator | None:
    row = conn.execute(_SELECT + "WHERE name = ? AND revoked_us IS NULL", (name,)).fetchone()
    return _operator(row)


def _operator(row: tuple[Any, ...] | None) -> Operator | None:
    return None if row is None else Operator(*row)


def alert_is_new(conn: sqlite3.Connection, fingerprint: str, starts_at: str, at_us: int) -> bool:
    """Whether this alert comes in for the first time. A repeat keeps it known for longer.

    Raises LedgerError before anything is written.
    """
    check_storable(fingerprint, starts_at)
    known = conn.execute(
        "UPDATE alert SET at_us = max(at_us, ?) WHERE fingerprint = ? AND starts_at = ?",
        (at_us, fingerprint, starts_at),
    ).rowcount
    if not known:
        conn.execute("INSERT INTO alert VALUES (?, ?, ?)", (fingerprint, starts_at, at_us))
    return not known


def reap_alerts(conn: sqlite3.Connection, now_us: int, limit: int) -> int:
    """Drop up to `limit` alerts that were not repeated for long."""
    return conn.execute(
        "DELETE FROM alert WHERE (fingerprint, starts_at) IN "
        "(SELECT fingerprint, starts_at FROM alert WHERE at_us < ? LIMIT ?)",
        (now_us - ALERT_KEPT_US, limit),
    ).rowcount
