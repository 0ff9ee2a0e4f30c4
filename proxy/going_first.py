"""Runs of a good release that go first past the cords of an incident, before all of it may: the
acts as JSON, on a store in its transaction, whoever owns it. What a person is shown of it, and in
which order it is done, is in recovery.py.
"""

from collections.abc import Sequence
from typing import Any

from ledger.containment import is_known
from ledger.incident_stamps import started_as
from ledger.sqlite import sqlite3
from ledger.store import Store
from ledger.trial_reads import Course, Health
from ledger.trials import PLACES_MAX
from policies.policy import Policy
from policies.verdict import Pull, Scope, Trial
from proxy import operations
from proxy.identity import NAME

Answer = dict[str, Any]


def opened(
    store: Store,
    policy: Policy | None,
    incident_id: str,
    cords: Sequence[operations.CordName],
    *,
    release: str,
    runs: Sequence[str],
    places: int,
    reason: str,
    actor: str,
    at_us: int,
    after_seq: int | None = None,
) -> Answer:
    """These runs, and so many more that come, go first, unless one of the cords was pulled behind
    the row `after_seq`. Raises OperationError, and LedgerError for what cannot be."""
    _check(reason)
    if policy is None or release not in policy.known_good:
        source = policy.source if policy else "no policy that can be read"
        raise operations.OperationError(
            f"release {release!r} is not known to be good (releases: known_good in {source})"
        )
    check(runs, places)
    found = store.open_trial(
        *(incident_id, cords, release, runs, places),
        reason=reason,
        actor=actor,
        at_us=at_us,
        after_seq=after_seq,
    )
    return {"opened": [operations.pull_as_json(cord) for cord in found]}


def check(runs: Sequence[str], places: int) -> None:
    """Raises OperationError for those of which nobody could go first."""
    for run in runs:
        if not NAME.fullmatch(run):
            raise operations.OperationError(f"{run!r} can be no run: A-Z a-z 0-9 . _ ~ - only")
    if places < 0 or not 0 < len(set(runs)) + places <= PLACES_MAX:
        raise operations.OperationError(f"between 1 and {PLACES_MAX} runs may go first")


def unseen(reader: sqlite3.Connection, release: str, runs: Sequence[str]) -> list[str]:
    """The runs that nobody has started yet. Raises OperationError for one that was started as
    another release, for it stays that."""
    for run in runs:
        other = started_as(reader, run)
        if other not in (None, release):
            raise operations.OperationError(
                f"run {run} was started with {f'release {other}' if other else 'no release'}, so "
                f"it can never go first as {release}"
            )
    return [run for run in runs if not is_known(reader, Scope.RUN, run)]


def ended(store: Store, incident_id: str, *, reason: str, actor: str, at_us: int) -> Answer:
    """Nobody goes first any more. Raises OperationError."""
    _check(reason)
    found = store.end_trial(incident_id, reason=reason, actor=actor, at_us=at_us)
    return {"ended": [operations.pull_as_json(cord) for cord in found]}


def widened(
    store: Store, policy: Policy, incident_id: str, *, reason: str, actor: str, at_us: int
) -> Answer:
    """All of the release may follow, if the runs fare well at this moment; where they fare badly
    nobody goes first any more. Raises OperationError, LedgerError."""
    _check(reason)
    course, cords = store.widen_trial(incident_id, policy, reason=reason, actor=actor, at_us=at_us)
    return {**as_json(course), "widened": [operations.pull_as_json(cord) for cord in cords]}


def as_json(course: Course) -> Answer:
    return {
        "health": course.health,
        "runs": list(course.runs),
        "places_left": course.places,
        "calls": course.calls,
        "writes": course.writes,
        "done": course.done,
        "failed": course.failed,
        "pending": course.pending,
        "unknown": course.unknown,
        "refused": dict(course.refused),
        "found": list(course.found),
    }


def trial_of(answer: Answer) -> Trial:
    """Of what `opened` gave: as it was opened."""
    made = answer["opened"][0]["trial"]
    names = {name: tuple(made[name]) for name in ("runs", "cords", "roots")}
    return Trial(**{**made, **names})


def is_bad(answer: Answer) -> bool:
    """Of what `widened` gave."""
    return bool(answer["health"] == Health.BAD)


def cord_names(cords: Sequence[Pull]) -> list[dict[str, str]]:
    """As the control API takes them."""
    return [{"level": cord.level, "scope": cord.scope, "subject": cord.subject} for cord in cords]


def _check(reason: str) -> None:
    operations.check_text("the reason", reason)
    if not any(each.isprintable() and not each.isspace() for each in reason):
        raise operations.OperationError("it needs a reason that can be read: --reason TEXT")
