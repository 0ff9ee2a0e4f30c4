"""What became of the cords past which some runs went first, read from the cords themselves: nobody
else's word is taken for it, for another command, a person or a time that was up may have been
quicker.
"""

from dataclasses import dataclass
from enum import StrEnum

from ledger import cord_reads, queries
from ledger.sqlite import sqlite3
from ledger.states import EventType
from policies.verdict import Pull, Trial


class State(StrEnum):
    """`stays`: they go first past all of them. `widened`: all of the release passes every one.
    `lifted`: everything passes at least one of them, and the release the others. `ended`: else,
    also where they still go first past some of them."""

    STAYS = "stays"
    WIDENED = "widened"
    LIFTED = "lifted"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Fate:
    """`said` is how the cords changed past which they go first no more, and by whom; `is_left`:
    they still go first past some cord."""

    state: State
    said: tuple[str, ...] = ()
    is_left: bool = False


def fate(reader: sqlite3.Connection, trial: Trial) -> Fate:
    """Of those that were opened together. Raises LedgerUnavailable."""
    standing = {cord.rule: cord for cord in queries.pulls(reader)}
    first = [rule for rule in trial.cords if is_first(standing.get(rule), trial)]
    rest = [rule for rule in trial.cords if rule not in first]
    if not rest:
        return Fate(State.STAYS, is_left=True)
    gone = [rule for rule in rest if rule not in standing]
    shut = [
        rule
        for rule in rest
        if rule in standing and trial.release not in standing[rule].but_releases
    ]
    said = tuple(_said(reader, trial, rule, rule in gone, rule in shut) for rule in rest)
    if first or shut:
        return Fate(State.ENDED, said, bool(first))
    return Fate(State.LIFTED if gone else State.WIDENED, said)


def is_first(cord: Pull | None, trial: Trial) -> bool:
    """Whether the runs of this trial, and of no later one, go first past it."""
    held = cord.trial if cord is not None else None
    return held is not None and (held.incident, held.after_seq) == (trial.incident, trial.after_seq)


def _said(reader: sqlite3.Connection, trial: Trial, rule: str, is_gone: bool, is_shut: bool) -> str:
    kind, what = EventType.NARROWED, f"lets all of {trial.release} pass"
    if is_gone:
        kind, what = EventType.RELEASED, "was lifted"
    elif is_shut:
        kind, what = EventType.PULLED, "was pulled again"
    move = cord_reads.newest(reader, kind, rule, trial.after_seq)
    if move is None:
        return f"{rule} {what}"
    if kind is EventType.NARROWED:
        return f"{rule} {what}, by {move.actor}"
    return f"{rule} {what} by {move.actor}" + (f": {move.detail}" if move.detail else "")
