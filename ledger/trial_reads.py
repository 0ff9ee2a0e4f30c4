"""How the runs fare that go first past the cords of an incident. Read from the record, on any
connection: by whoever watches them, and in the transaction that lets the rest of them follow.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from ledger import cord_reads, open_incidents
from ledger.cords import CordName, name, named, narrowed_to
from ledger.events import PROGRAM
from ledger.incident_reads import DRILL
from ledger.queries import Row, pulls, rows
from ledger.sqlite import sqlite3
from ledger.states import CallState, EventType
from policies.call import Effect, Identity
from policies.standing import would_stop
from policies.verdict import Pull, Scope, Trial

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
# again, and shows in its evidence alone: of those to which something was added since.
_FOUND = """
SELECT actor, detail FROM event WHERE run = :run AND seq > :after AND type IN (:alert, :trip, :cord)
ORDER BY seq LIMIT :limit
"""
_EVIDENCE = """
SELECT DISTINCT 'detector:' || i.detector AS actor, i.why AS detail, c.run AS run
FROM incident i CROSS JOIN json_each(i.evidence) e CROSS JOIN event c ON c.call_id = e.value
WHERE i.state = 'open'
AND +i.updated_us >= coalesce((SELECT at_us FROM event WHERE seq = :after), 0)
AND +c.run IN (SELECT value FROM json_each(:runs)) AND +c.seq > :after AND c.type = :intent
LIMIT :limit
"""


class Health(StrEnum):
    """`bad`: something alerted or tripped, or a cord was pulled over one. `doubtful`: a call was
    refused, or how one ended is unknown, or more failed than were done with success. `idle`: no
    call that the cords would have stopped was done with success yet, or one is still in flight or
    held. `good`: at least one was, and nothing else is so."""

    BAD = "bad"
    DOUBTFUL = "doubtful"
    IDLE = "idle"
    GOOD = "good"


@dataclass(frozen=True, slots=True)
class Course:
    """The runs that go first and the calls of them and their descendants, as that release, since
    each has its place. `refused` by reason and `unknown` are of all of them; the other numbers only
    of those that one of the cords would have stopped: `done` is with success, and not by replay,
    `failed` with a status of 400 or more. `found` is what detectors and cords said of them."""

    runs: tuple[str, ...] = ()
    places: int = 0
    calls: int = 0
    writes: int = 0
    done: int = 0
    unknown: int = 0
    refused: Mapping[str, int] = field(default_factory=dict)
    found: tuple[str, ...] = ()
    pending: int = 0
    failed: int = 0

    @property
    def health(self) -> Health:
        if self.found:
            return Health.BAD
        if self.refused or self.unknown or 0 < self.done < self.failed:
            return Health.DOUBTFUL
        return Health.GOOD if self.done and not self.pending else Health.IDLE


_PENDING = frozenset({CallState.PENDING, CallState.HELD})


def course(reader: sqlite3.Connection, trial: Trial, lines: Iterable[Pull] = ()) -> Course:
    """`lines` are the cords of the policy in force. Raises LedgerUnavailable."""
    cords = [named(rule) for rule in trial.cords]
    later, lines = [*_later(reader, trial)], [*lines]
    calls = writes = done = unknown = pending = failed = 0
    refused: dict[str, int] = {}
    found: dict[str, None] = {}
    places = _since(reader, trial)
    for run, since in places.items():
        for row, who in _calls(reader, trial, run, since):
            count, is_refused = int(row["calls"]), row["state"] == CallState.REFUSED
            # A line that refused it may be an old one; one that lets it pass no more is none.
            over = _over(later if is_refused else [*later, *lines], row, who)
            found |= dict.fromkeys(over)
            if is_refused:
                why = f"{row['reason']} by {row['rule']}"
                refused[why] = refused.get(why, 0) + count
                continue
            unknown += count if row["state"] == CallState.UNKNOWN else 0
            if not _would_stop(cords, row, who):
                continue
            calls += count
            writes += count if row["effect"] == Effect.WRITE else 0
            if row["state"] == CallState.DONE:
                done += count if row["well"] else 0
                failed += count if row["well"] == 0 else 0
            pending += count if row["state"] in _PENDING else 0
        found |= dict.fromkeys(_found(reader, run, trial.after_seq))
    found = found or dict.fromkeys(_evidence(reader, [*places], trial.after_seq))
    told = (trial.shut,) if trial.shut else tuple(found)[:FOUND_MAX]
    return Course(
        *(trial.runs, trial.places, calls, writes, done, unknown),
        refused=refused,
        found=told,
        pending=pending,
        failed=failed,
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
        for each in (run, *(row["run"] for row in rows(reader, _BELOW, values))):
            since[each] = min(seq, since.get(each, seq))
    return since


def _calls(
    reader: sqlite3.Connection, trial: Trial, run: str, since: int
) -> Iterator[tuple[Row, Identity]]:
    """Its calls, alike ones in one row, each with whose they are."""
    above = [row["run"] for row in rows(reader, _ABOVE, {"run": run})]
    values = {"run": run, "release": trial.release, "after": since}
    for row in rows(reader, _CALLS, values):
        # One above it that was never minted a token for is known by the call alone.
        ancestors = tuple(filter(None, dict.fromkeys((*above, row["parent"], row["root"]))))
        who = Identity(run, row["tenant"] or "", ancestors, release=trial.release)
        yield row, who


def _would_stop(cords: Iterable[CordName], row: Row, who: Identity) -> bool:
    """Whether one of the cords would stop such calls if nobody went first."""
    effect, tool = Effect(row["effect"]), row["tool"] or ""
    return any(would_stop(cord, tool, effect, who) for cord in cords)


def _later(reader: sqlite3.Connection, trial: Trial) -> Iterator[Pull]:
    """The other cords that somebody pulled since, and that stand."""
    for cord in pulls(reader):
        counts = cord.rule not in trial.cords and trial.release not in cord.but_releases
        if cord.actor == DRILL or not counts:
            continue
        if cord_reads.pulled(reader, cord.rule, trial.after_seq):
            yield cord


def _over(cords: Iterable[Pull], row: Row, who: Identity) -> Iterator[str]:
    """What to tell of those that stop such calls. One over the run itself is in a row of its."""
    for cord in cords:
        if cord.names.get(Scope.RUN) != who.run and _would_stop([name(cord)], row, who):
            why = f": {cord.reason}" if cord.reason else ""
            yield f"{cord.rule} was pulled over run {who.run}, by {cord.actor}{why}"


def _found(reader: sqlite3.Connection, run: str, after_seq: int) -> list[str]:
    values = {"run": run, "after": after_seq, "limit": FOUND_MAX}
    kinds = {
        "alert": EventType.DETECTOR_ALERTED.value,
        "trip": EventType.DETECTOR_TRIPPED.value,
        "cord": EventType.PULLED.value,
    }
    told = rows(reader, _FOUND, {**values, **kinds})
    return [f"{row['actor']} of run {run}: {row['detail'] or 'a cord was pulled'}" for row in told]


def _evidence(reader: sqlite3.Connection, runs: list[str], after_seq: int) -> list[str]:
    """Of all of them at once: each asking reads the evidence of what is open."""
    names = {"runs": open_incidents.as_list(runs), "intent": EventType.INTENT.value}
    found = rows(reader, _EVIDENCE, {**names, "after": after_seq, "limit": FOUND_MAX})
    return [f"{row['actor']} of run {row['run']}: {row['detail']}" for row in found]


def with_run(reader: sqlite3.Connection, standing: Iterable[Pull], run: str) -> list[Trial]:
    """The trials in which this run, or one above it, goes first."""
    tried = {each.trial.incident: each.trial for each in standing if each.trial}
    if not tried:
        return []
    above = {run, *(row["run"] for row in rows(reader, _ABOVE, {"run": run}))}
    return [each for each in tried.values() if not each.shut and above.intersection(each.runs)]


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
