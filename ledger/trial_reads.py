"""How the runs fare that go first past the cords of an incident. Read from the record, on any
connection: by whoever watches them, and in the transaction that lets the rest of them follow.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ledger.cords import CordName, named, narrowed_to
from ledger.events import PROGRAM
from ledger.queries import Row, rows
from ledger.sqlite import sqlite3
from ledger.states import CallState, EventType
from policies.call import Effect, Identity
from policies.standing import would_stop
from policies.verdict import Trial

FOUND_MAX = 5  # findings that are told; one is enough
DESCENDANTS_MAX = 1_000  # runs below one that goes first of which the calls are counted

# A run below the one that goes first has the same root, and the record tells who is above it.
_BELOW = """
SELECT DISTINCT e.run AS run FROM event e
WHERE e.root = (
    SELECT coalesce((SELECT value FROM json_each(r.ancestors) ORDER BY key DESC LIMIT 1), r.name)
    FROM run r WHERE r.name = :run
) AND e.root <> e.run AND e.seq > :after AND EXISTS (
    SELECT 1 FROM run, json_each(run.ancestors) a WHERE run.name = e.run AND a.value = :run
) LIMIT :limit
"""
_CALLS = """
SELECT effect, tool, tenant, parent, root, state, rule, reason, status < 400 AS well,
count(*) AS calls FROM calls
WHERE run = :run AND seq > :after AND release IS :release
GROUP BY effect, tool, tenant, parent, root, state, rule, reason, well
"""
_ABOVE = """
SELECT a.value AS run FROM run, json_each(run.ancestors) a WHERE run.name = :run
"""
# A place is taken before the call that takes it; those that are named have theirs from the start.
_PLACES = """
SELECT seq, detail FROM event WHERE incident = :incident AND seq > :after AND type = :narrowed
ORDER BY seq
"""
# What the detectors say is told in a row; but what they said of this incident before is not told
# again, and shows in its evidence alone.
_FOUND = """
SELECT actor, detail FROM event WHERE run = :run AND seq > :after AND type IN (:alert, :trip, :cord)
ORDER BY seq LIMIT :limit
"""
_EVIDENCE = """
SELECT DISTINCT 'detector:' || i.detector AS actor, i.why AS detail
FROM incident i CROSS JOIN json_each(i.evidence) e CROSS JOIN event c ON c.call_id = e.value
WHERE i.state = 'open' AND +c.run = :run AND +c.seq > :after AND c.type = :intent LIMIT :limit
"""


class Health(StrEnum):
    """`bad`: something alerted or tripped. `doubtful`: a call was refused, or how one ended is
    unknown. `idle`: no call that the cords would have stopped was done with success yet, or one is
    still in flight or held. `good`: at least one was, and nothing else is so."""

    BAD = "bad"
    DOUBTFUL = "doubtful"
    IDLE = "idle"
    GOOD = "good"


@dataclass(frozen=True, slots=True)
class Course:
    """The runs that go first and the calls of them and their descendants, as that release, since
    each has its place. `refused` by reason and `unknown` are of all of them; the other numbers only
    of those that one of the cords would have stopped: `done` is with success, and not by replay.
    `found` is what detectors and cords said of them."""

    runs: tuple[str, ...] = ()
    places: int = 0
    calls: int = 0
    writes: int = 0
    done: int = 0
    unknown: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    found: tuple[str, ...] = ()
    pending: int = 0

    @property
    def health(self) -> Health:
        if self.found:
            return Health.BAD
        if self.refused or self.unknown:
            return Health.DOUBTFUL
        return Health.GOOD if self.done and not self.pending else Health.IDLE


_PENDING = frozenset({CallState.PENDING, CallState.HELD})


def course(reader: sqlite3.Connection, trial: Trial) -> Course:
    """Raises LedgerUnavailable."""
    cords = [named(rule) for rule in trial.cords]
    calls = writes = done = unknown = pending = 0
    refused: dict[str, int] = {}
    found: dict[str, None] = {}
    for run, since in _since(reader, trial).items():
        for row, stopped in _calls(reader, trial, run, since, cords):
            count = int(row["calls"])
            if row["state"] == CallState.REFUSED:
                why = f"{row['reason']} by {row['rule']}"
                refused[why] = refused.get(why, 0) + count
                continue
            unknown += count if row["state"] == CallState.UNKNOWN else 0
            if not stopped:
                continue
            calls += count
            writes += count if row["effect"] == Effect.WRITE else 0
            done += count if row["state"] == CallState.DONE and row["well"] else 0
            pending += count if row["state"] in _PENDING else 0
        found |= dict.fromkeys(_found(reader, run, trial.after_seq))
    told = tuple(found)[:FOUND_MAX]
    return Course(
        *(trial.runs, trial.places, calls, writes, done, unknown),
        refused=refused,
        found=told,
        pending=pending,
    )


def _since(reader: sqlite3.Connection, trial: Trial) -> dict[str, int]:
    """The runs that go first and those below them, each with the row behind which it does."""
    values = {"incident": trial.incident, "after": trial.after_seq}
    places: dict[str, int] = {}
    for row in rows(reader, _PLACES, {**values, "narrowed": EventType.NARROWED.value}):
        _, then = narrowed_to(row["detail"])
        for run in then.runs if then is not None else ():
            places.setdefault(run, int(row["seq"]))
    since: dict[str, int] = {}
    for run in trial.runs:
        seq = places.get(run, trial.after_seq)
        values = {"run": run, "limit": DESCENDANTS_MAX, "after": trial.after_seq}
        for name in (run, *(row["run"] for row in rows(reader, _BELOW, values))):
            since[name] = min(seq, since.get(name, seq))
    return since


def _calls(
    reader: sqlite3.Connection, trial: Trial, run: str, since: int, cords: list[CordName]
) -> Iterator[tuple[Row, bool]]:
    """Its calls, alike ones in one row, each with whether one of the cords would stop it if
    nobody went first."""
    above = [row["run"] for row in rows(reader, _ABOVE, {"run": run})]
    values = {"run": run, "release": trial.release, "after": since}
    for row in rows(reader, _CALLS, values):
        # One above it that was never minted a token for is known by the call alone.
        ancestors = tuple(filter(None, dict.fromkeys((*above, row["parent"], row["root"]))))
        who = Identity(run, row["tenant"] or "", ancestors, release=trial.release)
        effect, tool = Effect(row["effect"]), row["tool"] or ""
        yield row, any(would_stop(cord, tool, effect, who) for cord in cords)


def _found(reader: sqlite3.Connection, run: str, after_seq: int) -> list[str]:
    values = {"run": run, "after": after_seq, "limit": FOUND_MAX}
    kinds = {
        "alert": EventType.DETECTOR_ALERTED.value,
        "trip": EventType.DETECTOR_TRIPPED.value,
        "cord": EventType.PULLED.value,
    }
    told = [*rows(reader, _FOUND, {**values, **kinds})]
    if not told:
        told = [*rows(reader, _EVIDENCE, {**values, "intent": EventType.INTENT.value})]
    return [f"{row['actor']} of run {run}: {row['detail'] or 'a cord was pulled'}" for row in told]


_LAST = """
SELECT seq, detail FROM event WHERE incident = ? AND type = 'cord.narrowed'
AND detail LIKE '% may pass by %' ORDER BY seq DESC LIMIT 1
"""
_OPENED = """
SELECT max(seq) AS seq FROM event WHERE incident = ? AND type = 'cord.narrowed' AND seq <= ?
AND actor <> ?
"""
_OPENED_ON = """
SELECT DISTINCT e.rule AS rule FROM event o CROSS JOIN event e ON e.incident = o.incident
AND e.type = o.type AND e.at_us = o.at_us AND e.actor = o.actor AND e.detail = o.detail
WHERE o.seq = ?
"""


def last(reader: sqlite3.Connection, incident: str) -> Trial | None:
    """The runs that went first last, for an incident past whose cords none does now; None where
    none ever did. Raises LedgerUnavailable."""
    for row in rows(reader, _LAST, (incident,)):
        _, trial = narrowed_to(row["detail"])
        (began,) = rows(reader, _OPENED, (incident, row["seq"], PROGRAM))
        if trial is not None and began["seq"] is not None:
            seq = int(began["seq"])
            on = tuple(each["rule"] for each in rows(reader, _OPENED_ON, (seq,)))
            return replace(trial, incident=incident, after_seq=seq, cords=on)
    return None
