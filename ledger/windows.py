"""What ceilings count, in the store: read once, charged in memory, written once a transaction.

The arithmetic is policies/ceilings.py; here are only the rows. What a call reserves (tokens, money)
or occupies (a place in flight) is its leases: kept with the open call, given back when it ends.
Places in flight are no rows at all: they are the leases of the calls that are open.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import orjson

from ledger.recent import Recent
from ledger.sqlite import sqlite3
from policies import bounds, ceilings
from policies.call import Draw, Identity, ToolCall
from policies.ceilings import EMPTY, RESERVED, Ceiling, Count, Per, Window
from policies.policy import Policy
from policies.standing import throttled
from policies.verdict import Pulls

Name = tuple[str, str]
"""A window: what is counted, and for whom."""

Committed = Recent[Name, Window]
"""Windows as the database holds them, for those that were looked at lately."""

InFlight = dict[Name, int]
"""How many open calls hold a place, by window."""

COMMITTED_MAX = 32_768  # some 26 MB; beyond it the stalest are read again when they are wanted

# An enumeration's members are slow to look up, and every call asks for these.
_IN_FLIGHT, _DESTINATIONS = Count.IN_FLIGHT, Count.DESTINATIONS

MESSAGES = frozenset({Count.CALLS, Count.WRITES, Count.STEPS, Count.BYTES_UP})
"""What one more message of a running call counts on."""

PARTS = frozenset({Count.BYTES_UP})
"""What more of its body counts on."""


class Lease(NamedTuple):
    """What an open call holds of one window. `bucket` is where a reservation was charged."""

    window: str
    subject: str
    kind: str
    within_us: int | None
    bucket: int
    amount: int

    @property
    def name(self) -> Name:
        return self.window, self.subject

    @property
    def ceiling(self) -> Ceiling:
        """Enough of the ceiling for arithmetic; its limit may be another by now."""
        return Ceiling(self.window, Per.RUN, Count(self.kind), 0, self.within_us)


Leases = tuple[Lease, ...]


def packed(leases: Leases) -> str:
    return orjson.dumps([tuple(lease) for lease in leases]).decode()


def unpacked(text: str) -> Leases:
    return tuple(Lease(*fields) for fields in orjson.loads(text))


def occupied(leases: Iterable[Leases]) -> InFlight:
    """The places in flight that these calls hold."""
    found: InFlight = {}
    for held in leases:
        for lease in held:
            if lease.kind == _IN_FLIGHT:
                found[lease.name] = found.get(lease.name, 0) + lease.amount
    return found


class Windows:
    """The windows that one transaction looks at and charges. Made anew for each."""

    def __init__(self, conn: sqlite3.Connection, committed: Committed, in_flight: InFlight) -> None:
        self._conn = conn
        self._committed = committed
        self._in_flight = in_flight
        self._charged: dict[Name, tuple[Ceiling, Window, int]] = {}
        self._places: InFlight = {}  # more or fewer than committed

    # What a call draws on

    def draws(
        self,
        policy: Policy,
        call: ToolCall,
        identity: Identity,
        counts: frozenset[Count] | None = None,
        pulls: Pulls | None = None,
    ) -> tuple[Draw, ...]:
        """The ceilings over a call, or of these counts only; with those of a throttle among these
        cords."""
        drawn = []
        over = bounds.drawn_on(policy, call, identity)
        if pulls:
            over += throttled(policy, call, identity, pulls)
        for ceiling, subject, amount in over:
            count = ceiling.count
            if counts is not None and count not in counts:
                continue
            if count is _DESTINATIONS and self._has_seen(ceiling, subject, call.host):
                amount = 0
            drawn.append(Draw(ceiling, subject, self.window(ceiling, subject), amount))
        return tuple(drawn)

    def draws_of_spawn(self, policy: Policy, child: Identity) -> tuple[Draw, ...]:
        """The ceilings over one more run of a tree."""
        return tuple(
            Draw(ceiling, subject, self.window(ceiling, subject), 1)
            for ceiling in policy.ceilings
            if ceiling.count is Count.SPAWNED
            for subject in bounds.spawn_subjects(ceiling.per, child)
        )

    def window(self, ceiling: Ceiling, subject: str) -> Window:
        return self._window(ceiling, (ceiling.window or ceiling.id, subject))

    def _window(self, ceiling: Ceiling, name: Name) -> Window:
        if ceiling.count is _IN_FLIGHT:
            places = self._in_flight.get(name, 0) + self._places.get(name, 0)
            return Window(0, (places,))
        charged = self._charged.get(name)
        if charged is not None:
            return charged[1]
        known = self._committed.get(name)
        if known is None:
            row = self._conn.execute(
                "SELECT packed FROM window WHERE window = ? AND subject = ?", name
            ).fetchone()
            known = EMPTY if row is None else ceilings.unpack(ceiling, row[0])
            self._committed[name] = known
        return known

    def _has_seen(self, ceiling: Ceiling, subject: str, host: str) -> bool:
        found = self._conn.execute(
            "SELECT 1 FROM seen WHERE window = ? AND subject = ? AND host = ?",
            (ceiling.window or ceiling.id, subject, host),
        )
        return found.fetchone() is not None

    # What it takes, and gives back

    def charge(
        self,
        draws: Iterable[Draw],
        now_us: int,
        host: str = "",
        counts: frozenset[Count] | None = None,
    ) -> Leases:
        """Count a call on each window once, whoever shares it; what it holds until it ends."""
        leases: list[Lease] = []
        done: set[Name] = set()
        for ceiling, subject, _, amount in draws:
            name, count = (ceiling.window or ceiling.id, subject), ceiling.count
            if not amount or name in done or (counts is not None and count not in counts):
                continue
            done.add(name)
            if count is _IN_FLIGHT:
                self._places[name] = self._places.get(name, 0) + amount
                leases.append(Lease(*name, count, None, 0, amount))
                continue
            bucket = self._put(ceiling, name, now_us, amount).newest
            if count in RESERVED:
                leases.append(Lease(*name, count, ceiling.within_us, bucket, amount))
            elif count is _DESTINATIONS:
                self._conn.execute(
                    "INSERT INTO seen (window, subject, host) VALUES (?, ?, ?)", (*name, host)
                )
        return tuple(leases)

    def _put(self, ceiling: Ceiling, name: Name, now_us: int, amount: int) -> Window:
        charged = ceilings.charge(ceiling, self._window(ceiling, name), now_us, amount)
        self._charged[name] = (ceiling, charged, now_us)
        return charged

    def grow(self, lease: Lease, now_us: int, amount: int) -> Lease:
        """A running call reserves more."""
        self._put(lease.ceiling, lease.name, now_us, amount)
        return lease._replace(amount=lease.amount + amount)

    def settle(self, leases: Leases, now_us: int, used: Mapping[str, int | None]) -> None:
        """A call ended: its places are free, and what it reserved becomes what it used, by count.

        None: nobody knows, so what was reserved stays.
        """
        for lease in leases:
            name, kind = lease[:2], lease.kind
            if kind == _IN_FLIGHT:
                self._places[name] = self._places.get(name, 0) - lease.amount
                continue
            actual = used.get(kind)
            if actual is not None:
                ceiling = lease.ceiling
                window = self.window(ceiling, lease.subject)
                settled = ceilings.settle(
                    ceiling, window, now_us, lease.bucket, lease.amount, actual
                )
                self._charged[name] = (ceiling, settled, now_us)

    def adjust(self, ceiling: Ceiling, subject: str, now_us: int, amount: int) -> Window:
        """Add to a window by hand, or take off it; never below nothing. The window after it."""
        # As of now, so that its oldest bucket is one that still counts.
        window = ceilings.charge(ceiling, self.window(ceiling, subject), now_us, max(0, amount))
        if amount < 0:
            window = ceilings.settle(
                ceiling, window, now_us, ceilings.oldest(ceiling, window), -amount, 0
            )
        self._charged[ceiling.window or ceiling.id, subject] = (ceiling, window, now_us)
        return window

    # The end of the transaction

    def write(self) -> None:
        if self._charged:
            self._conn.executemany(
                "INSERT OR REPLACE INTO window (window, subject, packed, expires_us) "
                "VALUES (?, ?, ?, ?)",
                [
                    (*name, ceilings.pack(ceiling, window), _expires_us(ceiling, now_us))
                    for name, (ceiling, window, now_us) in self._charged.items()
                ],
            )

    def remember(self) -> None:
        """After the commit."""
        for name, (_, window, now_us) in self._charged.items():
            self._committed.turn(now_us)
            self._committed[name] = window
        for name, more in self._places.items():
            left = self._in_flight.get(name, 0) + more
            if left > 0:
                self._in_flight[name] = left
            else:
                self._in_flight.pop(name, None)


def _expires_us(ceiling: Ceiling, now_us: int) -> int | None:
    """When the window will be empty again; None for a limit on a life."""
    return None if ceiling.within_us is None else now_us + ceiling.within_us + ceiling.bucket_us


def reap(conn: sqlite3.Connection, after: Name, now_us: int, limit: int) -> tuple[Name, int]:
    """Drop the windows that are empty again among the `limit` that follow `after`.

    Returns where to go on (from the start again when the end was reached) and how many went.
    """
    rows = conn.execute(
        "SELECT window, subject, expires_us FROM window WHERE (window, subject) > (?, ?) "
        "ORDER BY window, subject LIMIT ?",
        (*after, limit),
    ).fetchall()
    gone = [(window, subject) for window, subject, end in rows if end is not None and end < now_us]
    conn.executemany("DELETE FROM window WHERE window = ? AND subject = ?", gone)
    return (rows[-1][0], rows[-1][1]) if len(rows) == limit else ("", ""), len(gone)
