"""Incidents as rows, for the tests of what is told of them."""

from typing import Any

from ledger.sqlite import sqlite3

OPENED_US = 1_800_000_000_000_000


def an_incident(conn: sqlite3.Connection, name: str = "i1", /, **changes: Any) -> str:
    """Opened just now over run `r1` of tenant `acme`, an alert unless told otherwise, a trip with
    its cord. Its id."""
    row = {
        "id": name,
        "kind": "run",
        "name": f"r-{name}",
        "tenant": "acme",
        "state": "open",
        "severity": "alert",
        "detector": "loop",
        "why": "the same call 12 times, and nothing new",
        "rule": f"halt:run:r-{name}" if changes.get("severity") == "trip" else "",
        "run": f"r-{name}",
        "root": f"r-{name}",
        "tool": "pay",
        "release": "v7",
        "agent": "biller",
        "findings": 1,
        "evidence": '["c1","c2"]',
        "opened_us": OPENED_US,
        "updated_us": OPENED_US,
        **changes,
    }
    places = ", ".join(f":{column}" for column in row)
    conn.execute(f"INSERT INTO incident ({', '.join(row)}) VALUES ({places})", row)
    return name


def changed(conn: sqlite3.Connection, name: str, **changes: Any) -> None:
    told = ", ".join(f"{column} = :{column}" for column in changes)
    conn.execute(f"UPDATE incident SET {told} WHERE id = :id", {**changes, "id": name})


def tripped(conn: sqlite3.Connection, name: str = "i1", at_us: int = OPENED_US) -> None:
    rule = f"halt:run:r-{name}"
    changed(conn, name, severity="trip", rule=rule, raised_us=at_us, updated_us=at_us)


def ended(conn: sqlite3.Connection, name: str = "i1", at_us: int = OPENED_US) -> None:
    changed(conn, name, state="closed", closed_us=at_us, closed_by="ann")
