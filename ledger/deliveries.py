"""Which incidents each alert channel has been told of, and which it has still to be.

What is due follows from the incidents themselves, so that nothing is lost however the sender ends:
a row here says that an event was delivered, or that it never will be. What ends between the two is
sent again.

A table of an older version has no row for an acknowledgement. So it is one of an alert, whose time
is negative: that of the acknowledgement, below nought.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from ledger.sqlite import sqlite3

DUE_MAX = 256  # of one channel, looked at once
WRITES_SECONDS = 3_600  # in which writes count for what a person is told
ROWS_MAX = 2_000  # of a run, in which they are looked for
STANDING_MAX = 1_000  # that Alertmanager is told of again and again
GIVE_UP_SECONDS = 86_400  # what could not be delivered for a day is no news
TOGETHER_SECONDS = 10  # a trip right behind an alert makes one message of both; so do two cords
LATE_SECONDS = 60  # what is told so late is still met by a look at what is new


class Event(StrEnum):
    ALERT = "alert"
    TRIP = "trip"
    ACKED = "acked"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Incident:
    """One as it is now. `kind` and `name` say what it is about, `cord` what was pulled last, empty
    for nothing; `calls` are those that convinced the detector. `raised_us` is when it was last
    worth telling again, `acked_us` when somebody has seen it; `owner` takes care of it."""

    id: str
    severity: str
    kind: str
    name: str
    tenant: str
    run: str
    tool: str
    release: str
    agent: str
    detector: str
    why: str
    cord: str
    opened_us: int
    raised_us: int | None
    closed_us: int | None
    calls: tuple[str, ...]
    acked_us: int | None = None
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Due:
    """What a channel has to be told; `told` is what it was told of the same incident before,
    `writes` how many its run has made lately, where that is known. `acks` is how many
    acknowledgements it was told of, `threads` what that number was whenever it was told of more."""

    incident: Incident
    event: Event
    told: frozenset[str] = frozenset()
    writes: int | None = None
    acks: int = 0
    threads: tuple[int, ...] = (0,)

    @property
    def key(self) -> tuple[str, str, int]:
        return self.incident.id, self.event, self.since_us

    @property
    def since_us(self) -> int:
        found = self.incident
        if found.closed_us is not None:
            return found.closed_us
        if self.event is Event.ACKED and found.acked_us is not None:
            return found.acked_us
        return found.opened_us if found.raised_us is None else found.raised_us


@dataclass(frozen=True, slots=True)
class Delivery:
    """How it ended: `sent`, or `failed` for good, after so many tries. `since_us` is that of what
    was due."""

    incident: str
    channel: str
    event: Event
    since_us: int
    sent: bool
    at_us: int
    tries: int
    error: str = ""


_INCIDENT = (
    "i.id, i.severity, i.kind, i.name, i.tenant, i.run, i.tool, i.release, i.agent, i.detector, "
    "i.why, i.rule, i.opened_us, i.raised_us, i.closed_us, i.evidence, i.acked_us, i.owner"
)
_TOLD = (
    "SELECT json_group_array(json_array(t.event, t.since_us)) FROM delivery t "
    "WHERE t.incident = i.id AND t.channel = :channel AND t.state = 'sent'"
)
_SINCE = "coalesce(i.raised_us, i.opened_us)"  # as the index has it
# Somebody has seen it as it is; what gets worse afterwards is told again.
_UNSEEN = "(i.acked_us IS NULL OR i.raised_us > i.acked_us)"
# Whoever was told a moment ago is not told at once again, whatever is pulled.
_OPEN = f"""
SELECT {_INCIDENT}, ({_TOLD}) FROM (
    SELECT i.*,
        row_number() OVER (PARTITION BY i.severity, i.tenant ORDER BY {_SINCE}, i.id) AS turn
    FROM incident i
    WHERE i.state = 'open' AND {_SINCE} >= :from_us AND {_UNSEEN}
    AND (i.severity = 'trip' AND i.rule <> '' OR i.opened_us <= :together_us)
    AND NOT EXISTS (
        SELECT 1 FROM delivery d
        WHERE d.incident = i.id AND d.channel = :channel AND d.event = i.severity
        AND d.since_us > 0
        AND (d.since_us >= {_SINCE} OR d.at_us > :together_us AND d.at_us <= :now_us)
    )
) i
ORDER BY i.severity = 'trip' DESC, i.turn, {_SINCE}, i.id LIMIT {DUE_MAX}
"""  # noqa: S608 - our own columns
_CLOSED = f"""
SELECT {_INCIDENT}, ({_TOLD}) AS told FROM incident i
WHERE i.closed_us >= :old_us AND told <> '[]' AND NOT EXISTS (
    SELECT 1 FROM delivery d
    WHERE d.incident = i.id AND d.channel = :channel AND d.event = 'closed'
)
ORDER BY i.closed_us LIMIT {DUE_MAX}
"""  # noqa: S608
# People's acts are few, and an index has them by type. Who was told of it since the acknowledgement
# before is told of this one, unless it got worse meanwhile.
_ACKED = f"""
SELECT {_INCIDENT}, ({_TOLD}) FROM incident i
WHERE i.id IN (
    SELECT incident FROM event INDEXED BY event_act
    WHERE actor IS NOT NULL AND type = 'incident.acked' AND at_us >= :old_us
) AND i.state = 'open' AND i.acked_us >= :old_us AND i.acked_us >= {_SINCE} AND EXISTS (
    SELECT 1 FROM delivery d
    WHERE d.incident = i.id AND d.channel = :channel AND d.state = 'sent' AND d.since_us > (
        SELECT coalesce(-min(a.since_us), 0) FROM delivery a
        WHERE a.incident = i.id AND a.channel = :channel AND a.event = 'alert' AND a.since_us < 0
    )
) ORDER BY i.acked_us LIMIT {DUE_MAX}
"""  # noqa: S608
_STANDING = f"""
SELECT {_INCIDENT} FROM incident i
WHERE i.state = 'open' AND {_UNSEEN} AND EXISTS (
    SELECT 1 FROM delivery d
    WHERE d.incident = i.id AND d.channel = ? AND d.event = i.severity AND d.state = 'sent'
)
ORDER BY i.id LIMIT {STANDING_MAX}
"""  # noqa: S608


def due(
    conn: sqlite3.Connection, channel: str, now_us: int, from_us: int = 0, *, acks: bool = False
) -> list[Due]:
    """What a channel has to be told now: trips first, and tenant by tenant, so that none waits
    behind many of another. Of an open incident it is told how bad it is, unless somebody has
    acknowledged it so, and of that with `acks`; of a closed one, that it is over, if it was told of
    it at all. What is older than `from_us` is not looked at."""
    given = {
        "channel": channel,
        "now_us": now_us,
        "from_us": from_us,
        "old_us": max(from_us, now_us - GIVE_UP_SECONDS * 1_000_000 + 1),
        "together_us": now_us - TOGETHER_SECONDS * 1_000_000,
    }
    looks = {_OPEN: None, _CLOSED: Event.CLOSED, **({_ACKED: Event.ACKED} if acks else {})}
    found = []
    for query, event in looks.items():
        for *columns, told in conn.execute(query, given):
            one = _incident(columns)
            found.append(_due(one, event or Event(one.severity), json.loads(told)))
    return found


def _due(one: Incident, event: Event, rows: list[tuple[str, int]]) -> Due:
    acks = [-since_us for _, since_us in rows if since_us < 0]
    told = {(name, since_us) for name, since_us in rows if since_us > 0}
    return Due(
        one,
        event,
        told=frozenset(name for name, _ in told),
        acks=len(acks),
        threads=tuple(sorted({sum(at_us < since_us for at_us in acks) for _, since_us in told})),
    )


def look_from(found: list[Due], now_us: int) -> int:
    """From when on the next look may find anything, after one that found this: nothing that is due
    or will be by time alone is older."""
    if len(found) >= DUE_MAX:
        return 0
    return min([now_us - LATE_SECONDS * 1_000_000, *(one.since_us for one in found)])


def writes(conn: sqlite3.Connection, run: str, now_us: int) -> int:
    """How many writes of a run were let through in the last hour, as far as they are among its
    newest rows."""
    (found,) = conn.execute(
        "SELECT count(*) FROM "
        "(SELECT type, effect, at_us FROM event WHERE run = ? ORDER BY seq DESC LIMIT ?) "
        "WHERE type = 'call.intent' AND effect = 'write' AND at_us > ?",
        (run, ROWS_MAX, now_us - WRITES_SECONDS * 1_000_000),
    ).fetchone()
    return int(found)


def standing(conn: sqlite3.Connection, channel: str) -> list[Incident]:
    """Those that are open, that the channel was told of as they are, and that nobody has
    acknowledged."""
    return [_incident(row) for row in conn.execute(_STANDING, (channel,)).fetchall()]


def record(conn: sqlite3.Connection, delivery: Delivery) -> None:
    conn.execute(
        "INSERT OR REPLACE INTO delivery (incident, channel, event, state, at_us, tries, error, "
        "since_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            delivery.incident,
            delivery.channel,
            Event.ALERT if delivery.event is Event.ACKED else delivery.event,
            "sent" if delivery.sent else "failed",
            delivery.at_us,
            delivery.tries,
            delivery.error,
            -delivery.since_us if delivery.event is Event.ACKED else delivery.since_us,
        ),
    )


def told(conn: sqlite3.Connection, incident: str) -> list[Delivery]:
    """Whom an incident was told to, in order."""
    rows = conn.execute(
        "SELECT incident, channel, event, since_us, state = 'sent', at_us, tries, error "
        "FROM delivery WHERE incident = ? ORDER BY at_us, channel, event, since_us",
        (incident,),
    ).fetchall()
    return [
        Delivery(
            *(one, channel, Event.ACKED if since_us < 0 else Event(event), abs(since_us)),
            *(bool(sent), at_us, tries, error),
        )
        for one, channel, event, since_us, sent, at_us, tries, error in rows
    ]


def _incident(columns: Sequence[Any]) -> Incident:
    calls, *acked = columns[-3:]
    values: tuple[Any, ...] = (*columns[:-3], tuple(json.loads(calls)), *acked)
    return Incident(*values)
