"""The record read again, row by row in its order, into a simulation of a policy.

Its windows are the store's own (windows.py) over a scratch database, its steps those that the
detectors were fed. Rows are read in pieces, on a connection that cannot write, so that a proxy that
runs meanwhile is not in the way of its own log. Nothing here judges.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Protocol

import orjson

from ledger import cords, seen, steps
from ledger.errors import LedgerError, unavailable
from ledger.queries import database, first_decided, rows
from ledger.redact import MARK
from ledger.sqlite import sqlite3
from ledger.states import CallState, EventType
from ledger.steps import Forgotten, Reader
from ledger.windows import COMMITTED_MAX, Committed, InFlight, Leases, Windows
from policies.call import Draw, Identity, ToolCall
from policies.ceilings import Count
from policies.detectors.step import Step
from policies.policy import UNDO_RUN, Policy
from policies.simulated import Asked, Ended, Judged, Noticed, Spared
from policies.simulating import Simulation
from policies.verdict import Action, Level, Pull, Pulls, Reason, Scope, Verdict

PIECE_ROWS = 5_000  # read at once, and then nothing is held in the ledger
WARM_UP_SECONDS_MAX = 86_400  # before the period
FLUSH_ROWS = 20_000  # so often the scratch windows are written down, and memory is given back

_MORE = (
    *("rule", "decision", "reason", "path", "method", "operation", "key", "replay_of"),
    *("policy", "actor", "detail", "seq"),
)
COLUMNS = (*steps.COLUMNS, *_MORE)
"""Of `event`: what is read of a row, so that it can also be read of one that was taken out of a
ledger (incident_export.py)."""
_STEP = len(steps.COLUMNS)
_TYPE, _AT, _CALL, _RUN = (COLUMNS.index(name) for name in ("type", "at_us", "call_id", "run"))
_RULE, _ACTOR, _DETAIL, _SEQ = (COLUMNS.index(name) for name in ("rule", "actor", "detail", "seq"))
_SEEN, _STATE, _COST, _POLICY = (
    COLUMNS.index(name) for name in ("seen", "state", "cost_microusd", "policy")
)
_seen = itemgetter(*(COLUMNS.index(name) for name in seen.COLUMNS))
_judged = itemgetter(*(COLUMNS.index(name) for name in ("decision", "reason", "path", "replay_of")))
_ACTIONS: Mapping[str, Action] = {action.value: action for action in Action}
_REASONS: Mapping[str, Reason] = {reason.value: reason for reason in Reason}
_READ = (
    f"SELECT {', '.join(COLUMNS)} FROM event "  # noqa: S608 - names of ours
    "WHERE seq > ? AND seq < ? ORDER BY seq LIMIT ?"
)
_CORDS = (
    f"SELECT {', '.join(COLUMNS)} FROM event INDEXED BY event_act "  # noqa: S608 - names of ours
    "WHERE actor IS NOT NULL AND type IN ('cord.pulled', 'cord.narrowed', 'cord.released') "
    "AND seq < ? ORDER BY seq"
)

# What a row raises that nobody recorded: a wrong type, a number that is too large, no word of ours.
_WRONG = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError),
    *(sqlite3.ProgrammingError, sqlite3.InterfaceError),
)

Row = tuple[Any, ...]


class NotAsRecorded(LedgerError):
    """A row that cannot be read; `seq` is its number."""

    def __init__(self, seq: int, why: str) -> None:
        super().__init__(
            f"row {seq} of the record is not as it was recorded ({why}); look at it with: "
            "pullcord ledger verify"
        )
        self.seq = seq


@dataclass(frozen=True, slots=True)
class Period:
    """Numbers of rows: the warm-up begins at `warm`, the period at `first`, and `end` is behind
    it. `warm_us` is how long the warm-up is."""

    warm: int
    first: int
    end: int
    warm_us: int

    @property
    def rows(self) -> int:
        return self.end - self.warm


def period(
    reader: sqlite3.Connection, since_us: int, until_us: int | None, policy: Policy
) -> Period:
    """What is read for a period. Its warm-up is as long as the longest window of the policy."""
    windows = [one.within_us + one.bucket_us for one in policy.ceilings if one.within_us]
    warm_us = min(max(windows, default=0), WARM_UP_SECONDS_MAX * 1_000_000)
    (newest,) = rows(reader, "SELECT coalesce(max(seq), 0) AS seq FROM event", ())
    end = newest["seq"] + 1 if until_us is None else first_decided(reader, until_us)
    first = min(first_decided(reader, since_us), end)
    return Period(min(first_decided(reader, since_us - warm_us), first), first, end, warm_us)


def policies_of(reader: sqlite3.Connection) -> Callable[[str], str | None]:
    """The text of a policy by its digest, as the record keeps it."""

    def text(digest: str) -> str | None:
        found = next(rows(reader, "SELECT text FROM policy WHERE digest = ?", (digest,)), None)
        return None if found is None else str(found["text"])

    return text


@contextmanager
def scratch() -> Iterator["Scratch"]:
    """Windows that are empty, and gone when it is left."""
    conn = sqlite3.connect("", isolation_level=None)  # in memory, and in a file where that is full
    try:
        conn.execute("PRAGMA journal_mode=OFF")
        conn.execute("PRAGMA cache_size=-65536")
        for table in _SCRATCH:
            conn.execute(table)
        yield Scratch(conn)
    finally:
        conn.close()


_SCRATCH = (
    "CREATE TABLE window (window TEXT, subject TEXT, packed BLOB, expires_us INTEGER, "
    "PRIMARY KEY (window, subject)) WITHOUT ROWID",
    "CREATE TABLE seen (window TEXT, subject TEXT, host TEXT, "
    "PRIMARY KEY (window, subject, host)) WITHOUT ROWID",
)


class Scratch:
    """The windows of the store over a database that nobody keeps."""

    def __init__(self, conn: sqlite3.Connection) -> None:
        self._conn = conn
        self._committed = Committed(COMMITTED_MAX)
        self._in_flight: InFlight = {}
        self._windows = Windows(conn, self._committed, self._in_flight)

    def draws(
        self,
        policy: Policy,
        call: ToolCall,
        identity: Identity,
        counts: frozenset[Count] | None = None,
        pulls: Pulls | None = None,
    ) -> tuple[Draw, ...]:
        return self._windows.draws(policy, call, identity, counts, pulls)

    def draws_of_spawn(self, policy: Policy, child: Identity) -> tuple[Draw, ...]:
        return self._windows.draws_of_spawn(policy, child)

    def charge(
        self,
        draws: Iterable[Draw],
        now_us: int,
        host: str = "",
        counts: frozenset[Count] | None = None,
    ) -> Leases:
        return self._windows.charge(draws, now_us, host, counts)

    def settle(self, leases: Leases, now_us: int, used: Mapping[str, int | None]) -> None:
        self._windows.settle(leases, now_us, used)

    def flush(self) -> None:
        """Write down what was charged, so that little is kept in memory."""
        self._windows.write()
        self._windows.remember()
        self._windows = Windows(self._conn, self._committed, self._in_flight)


class Listener(Protocol):
    """Who makes something of it."""

    def judged(self, judged: Judged) -> None: ...

    def noticed(self, noticed: Noticed) -> None: ...

    def spared(self, spared: Spared) -> None: ...

    def pulled(self, pull: Pull) -> None:
        """A cord that was pulled in the period, as recorded."""

    def not_started(self, refused: Verdict, child: Identity) -> None:
        """A run that would not have been started."""


class Replay:
    """Feeds a simulation. `listener` hears of what it says, in the order of the record."""

    def __init__(
        self,
        reader: sqlite3.Connection,
        chosen: Period,
        simulation: Simulation,
        windows: Scratch,
        listener: "Listener",
    ) -> None:
        self._reader = reader
        self._period = chosen
        self._simulation = simulation
        self._windows = windows
        self._listener = listener
        self._steps = Reader()
        self._digests: dict[int, str] = {}

    def pieces(self) -> Iterator[int]:
        """Goes on by one piece each time; how many rows were read. Raises NotAsRecorded, and
        LedgerUnavailable."""
        for row in self._rows(_CORDS, (self._period.warm,)):
            self._moved(row)
        last, read = self._period.warm - 1, 0
        if self._period.first == self._period.warm:
            self._simulation.begin()
        while found := self._rows(_READ, (last, self._period.end, PIECE_ROWS)):
            for row in found:
                self._read(row)
            last = found[-1][_SEQ]
            read += len(found)
            if read % FLUSH_ROWS == 0:
                self._windows.flush()
            yield read
        if not self._simulation.has_begun:
            self._simulation.begin()

    def _rows(self, statement: str, values: tuple[int, ...]) -> list[Row]:
        try:
            return self._reader.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise unavailable(error, database(self._reader)) from error

    def _read(self, row: Row) -> None:
        if row[_SEQ] >= self._period.first and not self._simulation.has_begun:
            self._simulation.begin()
        try:
            self._heard(row)
        except _WRONG as error:
            raise NotAsRecorded(row[_SEQ], type(error).__name__) from error

    def _heard(self, row: Row) -> None:
        kind = row[_TYPE]
        if kind == _OUTCOME:
            spared = self._simulation.ended(_ended(row))
            if spared is not None:
                self._listener.spared(spared)
        elif kind in _DECISIONS:
            undoes = row[_RUN] == UNDO_RUN  # a person's act, that no agent's policy judges
            judged = None if undoes else self._simulation.judge(self._asked(row))
            if judged is not None:
                self._listener.judged(judged)
        elif kind in _MOVES:
            self._moved(row)
        elif kind == EventType.SPAWNED:
            self._spawned(row)
        elif kind == EventType.HOLD_APPROVED:
            self._simulation.approved(row[_CALL] or "")
        told = self._steps.read(row[:_STEP])
        if isinstance(told, Forgotten):
            self._simulation.forget(told.scope, told.subject)
        elif told is not None:
            self._fed(told)

    def _fed(self, step: Step) -> None:
        for noticed in self._simulation.feed(step):
            self._listener.noticed(noticed)

    def _asked(self, row: Row) -> Asked:
        told = dict(zip(seen.COLUMNS, _seen(row), strict=True))
        recalled = seen.recalled(told)
        decision, reason, path, earlier_call = _judged(row)
        return Asked(
            row[_CALL],
            row[_AT],
            recalled.call,
            recalled.identity,
            _ACTIONS[decision],
            _REASONS[reason],
            row[_RULE] or "",
            self._digest(row[_POLICY]),
            recalled.lost,
            None if path is None or MARK in path or "…" in path else path,
            told["key"] or "",
            earlier_call or "",
        )

    def _digest(self, policy: int | None) -> str:
        if policy is None:
            return ""
        if policy not in self._digests:
            found = rows(self._reader, "SELECT digest FROM policy WHERE id = ?", (policy,))
            self._digests[policy] = next((str(row["digest"]) for row in found), "")
        return self._digests[policy]

    def _spawned(self, row: Row) -> None:
        told = dict(zip(COLUMNS, row, strict=True))
        above = orjson.loads(told["seen"] or b"{}").get("ancestors") or _above(told)
        run, tenant = told["run"] or "", told["tenant"] or ""
        child = Identity(run, tenant, tuple(above), told["agent"] or "", told["release"] or "")
        refused = self._simulation.spawned(child, row[_AT])
        if refused is not None:
            self._listener.not_started(refused, child)

    def _moved(self, row: Row) -> None:
        pull = pull_of(row)
        if pull is not None:
            is_released = row[_TYPE] == EventType.RELEASED
            self._simulation.moved(pull, is_released=is_released, call_id=row[_CALL] or "")
            if row[_TYPE] == EventType.PULLED and self._simulation.has_begun:
                self._listener.pulled(pull)


def _above(told: Mapping[str, Any]) -> tuple[str, ...]:
    names = dict.fromkeys(name for name in (told["parent"], told["root"]) if name)
    return tuple(name for name in names if name != told["run"])


def _ended(row: Row) -> Ended:
    """What it used as the store settled it."""
    cost, told = row[_COST], orjson.loads(row[_SEEN] or b"{}")
    unused = told.get("unused", 0)
    microusd = told.get("used_microusd") or cost
    tokens = told.get("used_tokens")
    was_sent = row[_STATE] != _NOT_SENT
    used: dict[str, int | None] = {
        Count.TOKENS: 0 if unused & 1 or not was_sent else tokens,
        Count.SPEND: 0 if unused & 2 or not was_sent else microusd,
    }
    return Ended(row[_CALL], row[_AT], used, microusd or 0)


def pull_of(row: Row) -> Pull | None:
    """A cord from the row of its pulling, narrowing or release; None of a kind that is not known.
    When one ends by itself, that is a row of its own."""
    level, _, rest = (row[_RULE] or "").partition(":")
    scope, _, subject = rest.partition(":")
    try:
        known = Level(level), Scope(scope)
    except ValueError:
        return None
    detail, narrowed = row[_DETAIL] or "", row[_TYPE] == EventType.NARROWED
    releases, trial = cords.narrowed_to(detail) if narrowed else ((), None)
    who = row[_ACTOR] or ""
    return Pull(*known, subject, detail, who, row[_AT], but_releases=releases, trial=trial)


_OUTCOME = EventType.OUTCOME.value
_NOT_SENT = CallState.NOT_SENT.value
_DECISIONS = frozenset(
    kind.value for kind in (EventType.INTENT, EventType.REFUSED, EventType.REPLAYED, EventType.HELD)
)
_MOVES = frozenset(
    kind.value for kind in (EventType.PULLED, EventType.NARROWED, EventType.RELEASED)
)
