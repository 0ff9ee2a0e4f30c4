"""How the runs fare that go first past the cords of an incident. Read from the record, on any
connection: by whoever watches them, and in the transaction that lets the rest of them follow.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ledger.cords import narrowed_to
from ledger.events import PROGRAM
from ledger.queries import rows
from ledger.sqlite import sqlite3
from ledger.states import CallState, EventType
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
SELECT effect, decision, state, rule, reason, count(*) AS calls FROM calls
WHERE run = :run AND seq > :after AND release IS :release
GROUP BY effect, decision, state, rule, reason
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
    """`bad`: something alerted or tripped. `doubtful`: a call was refused, or how a write ended is
    unknown. `idle`: no call has ended yet. `good`: at least one has, and nothing else is so."""

    BAD = "bad"
    DOUBTFUL = "doubtful"
    IDLE = "idle"
    GOOD = "good"


@dataclass(frozen=True, slots=True)
class Course:
    """The runs that go first and the calls that they and their descendants made since, as that
    release; `refused` by reason; `found` is what detectors and cords said of them."""

    runs: tuple[str, ...] = ()
    places: int = 0
    calls: int = 0
    writes: int = 0
    done: int = 0
    unknown: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    found: tuple[str, ...] = ()

    @property
    def health(self) -> Health:
        if self.found:
            return Health.BAD
        if self.refused or self.unknown:
            return Health.DOUBTFUL
        return Health.GOOD if self.done else Health.IDLE


def course(reader: sqlite3.Connection, trial: Trial) -> Course:
    """Raises LedgerUnavailable."""
    after = {"after": trial.after_seq}
    names = dict.fromkeys(trial.runs)
    for run in trial.runs:
        below = rows(reader, _BELOW, {"run": run, "limit": DESCENDANTS_MAX, **after})
        names |= dict.fromkeys(row["run"] for row in below)
    calls = writes = done = unknown = 0
    refused: dict[str, int] = {}
    found: dict[str, None] = {}
    for run in names:
        values = {"run": run, "release": trial.release, **after}
        for row in rows(reader, _CALLS, values):
            count = int(row["calls"])
            if row["state"] == CallState.REFUSED:
                why = f"{row['reason']} by {row['rule']}"
                refused[why] = refused.get(why, 0) + count
                continue
            calls += count
            writes += count if row["effect"] == "write" else 0
            done += count if row["state"] in (CallState.DONE, CallState.REPLAYED) else 0
            unknown += count if row["state"] == CallState.UNKNOWN else 0
        found |= dict.fromkeys(_found(reader, run, trial.after_seq))
    told = tuple(found)[:FOUND_MAX]
    return Course(
        *(trial.runs, trial.places, calls, writes, done, unknown), refused=refused, found=told
    )


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


def last(reader: sqlite3.Connection, incident: str) -> Trial | None:
    """The runs that went first last, for an incident past whose cords none does now; None where
    none ever did. Raises LedgerUnavailable."""
    for row in rows(reader, _LAST, (incident,)):
        _, trial = narrowed_to(row["detail"])
        (began,) = rows(reader, _OPENED, (incident, row["seq"], PROGRAM))
        if trial is not None and began["seq"] is not None:
            return replace(trial, incident=incident, after_seq=int(began["seq"]))
    return None
