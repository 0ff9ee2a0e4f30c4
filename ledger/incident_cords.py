"""The cords over an incident: which they are, and behind which of them all of it stood still.

Which rows of the record they are is said in incident_reads.py, which calls belong to it in
incident_scope.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ledger import incident_calls
from ledger.filters import parse
from ledger.incident_reads import Pulled
from ledger.incident_scope import terms
from ledger.open_incidents import Incident
from ledger.sqlite import sqlite3
from policies.verdict import Level, Pull, Scope


class Stood(NamedTuple):
    """A cord that was pulled over an incident, whoever pulled it, and between which rows of the
    record it stood as it was; `until_seq` is None while it does. `is_narrowed`: it ended there by
    letting a release pass."""

    pull: Pull
    seq: int
    until_seq: int | None
    is_narrowed: bool = False


@dataclass(frozen=True, slots=True)
class Containment:
    """Behind which cord nothing of the incident was let through until calls could pass one of its
    cords again: up to the row `until_seq`, None while none can. Where something was, the last cord;
    `is_whole` is False then."""

    cord: Stood
    until_seq: int | None
    is_whole: bool


def stood(cords: Sequence[Pulled]) -> list[Stood]:
    """In order; throttles only where nothing else was pulled: they let some pass."""
    stopping = [one for one in cords if not one.rule.startswith(f"{Level.THROTTLE}:")]
    return [_stood(one) for one in stopping or cords]


def _stood(one: Pulled) -> Stood:
    level, scope, *subject = one.rule.split(":", 2)
    pull = Pull(Level(level), Scope(scope), "".join(subject), "", one.actor, one.at_us)
    return Stood(pull, one.seq, one.until_seq, one.narrowed_seq is not None)


def containment(
    reader: sqlite3.Connection, incident: Incident, cords: Sequence[Stood]
) -> Containment | None:
    """By these cords over it, in order. None where none of them stops anything. Raises
    LedgerUnavailable.

    A cord was needed where a write of the incident was let through behind the one before; where the
    incident never wrote, any call. Behind one that let a release pass the recovery has begun, and
    what was pulled later is of another time.
    """
    stopping = [cord for cord in cords if cord.pull.level is not Level.THROTTLE]
    effects = _effects(reader, incident) if stopping else ()
    first, resumed = None, None
    for place, cord in enumerate(stopping):
        following = stopping[place + 1].seq if place + 1 < len(stopping) else None
        ends = [one for one in stopping[: place + 1] if following is None or one.is_narrowed]
        resumed = _resumed_seq(ends, cord.seq)
        end = min((seq for seq in (following, resumed) if seq is not None), default=None)
        if _passed(reader, incident, effects, cord.seq, end):
            first = None
        else:
            first = first or cord
            if following is None or end == resumed:
                return Containment(first, resumed, is_whole=True)
    return Containment(stopping[-1], resumed, is_whole=False) if stopping else None


def _effects(reader: sqlite3.Connection, incident: Incident) -> tuple[str, ...]:
    """Of which of its calls one that passes is too many."""
    writes = ("effect:write",)
    return writes if _passed(reader, incident, writes, 0, None) else ()


def _passed(
    reader: sqlite3.Connection,
    incident: Incident,
    effects: Sequence[str],
    after_seq: int,
    until_seq: int | None,
) -> bool:
    between = f"seq:{after_seq + 1}..{'' if until_seq is None else until_seq - 1}"
    chosen = parse((*terms(incident), *effects, "decision:allow", between), 0)
    return bool(incident_calls.newest(reader, chosen, 1))


def _resumed_seq(cords: Sequence[Stood], seq: int) -> int | None:
    """When calls could first pass one of these cords again, of those that stood at that row."""
    ends = [cord.until_seq for cord in cords if cord.until_seq is not None]
    return min((end for end in ends if end > seq), default=None)
