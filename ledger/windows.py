"""The ceilings' windows in the store: read once, charged in memory, written once a transaction.

The arithmetic is policies/ceilings.py; here are only the rows.
"""

from ledger.sqlite import sqlite3
from policies import ceilings
from policies.call import Identity, ToolCall
from policies.ceilings import EMPTY, Ceiling, Count, Window
from policies.policy import Policy

Drawn = dict[str, tuple[Ceiling, str, Window]]
"""The ceilings that one call draws on, by id: `Facts.windows`."""

_Name = tuple[str, str]

Committed = dict[_Name, Window]
"""Windows as the database holds them, for those that were looked at lately."""

COMMITTED_MAX = 10_000  # about 8 MB; beyond it they are read again


class Windows:
    """The windows that one transaction looks at and charges. Made anew for each."""

    def __init__(self, conn: sqlite3.Connection, committed: Committed) -> None:
        self._conn = conn
        self._committed = committed
        self._charged: dict[_Name, tuple[Window, int | None]] = {}

    def drawn(self, policy: Policy, call: ToolCall, identity: Identity) -> Drawn:
        return {
            ceiling.id: (ceiling, subject, self.window(ceiling, subject))
            for ceiling, subject in policy.bounds(call, identity)
        }

    def window(self, ceiling: Ceiling, subject: str) -> Window:
        name = (ceiling.id, subject)
        if name in self._charged:
            return self._charged[name][0]
        known = self._committed.get(name)
        if known is None:
            row = self._conn.execute(
                "SELECT packed FROM window WHERE ceiling = ? AND subject = ?", name
            ).fetchone()
            known = EMPTY if row is None else ceilings.unpack(row[0])
            self._committed[name] = known
        return known

    def charge(self, drawn: Drawn, now_us: int, counts: frozenset[Count]) -> None:
        """Count one call on each of its ceilings that count one of these."""
        for ceiling, subject, window in drawn.values():
            if ceiling.count in counts:
                charged = ceilings.charge(ceiling, window, now_us)
                self._charged[ceiling.id, subject] = (charged, _expires_us(ceiling, now_us))

    def write(self) -> None:
        if self._charged:
            self._conn.executemany(
                "INSERT OR REPLACE INTO window (ceiling, subject, packed, expires_us) "
                "VALUES (?, ?, ?, ?)",
                [
                    (*name, window.pack(), expires_us)
                    for name, (window, expires_us) in self._charged.items()
                ],
            )

    def remember(self) -> None:
        """After the commit."""
        if len(self._committed) > COMMITTED_MAX:
            self._committed.clear()
        for name, (window, _) in self._charged.items():
            self._committed[name] = window


def _expires_us(ceiling: Ceiling, now_us: int) -> int | None:
    """When the window will be empty again; None for a limit on a life."""
    return None if ceiling.within_us is None else now_us + ceiling.within_us + ceiling.bucket_us


def reap(conn: sqlite3.Connection, after: _Name, now_us: int, limit: int) -> tuple[_Name, int]:
    """Drop the windows that are empty again among the `limit` that follow `after`.

    Returns where to go on (from the start again when the end was reached) and how many went.
    """
    rows = conn.execute(
        "SELECT ceiling, subject, expires_us FROM window WHERE (ceiling, subject) > (?, ?) "
        "ORDER BY ceiling, subject LIMIT ?",
        (*after, limit),
    ).fetchall()
    gone = [
        (ceiling, subject) for ceiling, subject, end in rows if end is not None and end < now_us
    ]
    conn.executemany("DELETE FROM window WHERE ceiling = ? AND subject = ?", gone)
    return (rows[-1][0], rows[-1][1]) if len(rows) == limit else ("", ""), len(gone)
