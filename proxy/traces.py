"""What the trace has of calls, for people, and why it has nothing where it has not.

On connections that cannot write. A trace that cannot be read is said to be so; the record beside it
is shown all the same.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from ledger import untraced
from ledger.errors import LedgerError
from ledger.redaction import BINARY, CODED, DIGEST, TOO_LONG, UNREADABLE
from ledger.sqlite import sqlite3
from ledger.trace import DAMAGED, PRUNED, messages, open_trace, search, until_us
from ledger.trace_schema import DATABASE, unusable
from ledger.traced import Kept, Side
from policies.verdict import Action

FOUND_MAX = 10_000  # calls that one `text:` finds, the newest

Row = dict[str, Any]

# Why there is no body, by `Kept.why`.
_WHY = {
    DIGEST: "of this tool, or by the setting trace, the digest alone",
    BINARY: "it is no text",
    CODED: "it is in a coding that cannot be read",
    TOO_LONG: "looking through it for secrets would take too long",
    UNREADABLE: "it could not be looked through for secrets",
    PRUNED: "it was pruned, by its age or for room",
    DAMAGED: "what stands in its place is not what was kept; look: pullcord ledger verify",
}


def remark(kept: Kept) -> str:
    """What a person must know of a body that is not here whole; empty where nothing is missing."""
    if kept.text is None:
        return f"not kept: {_WHY.get(kept.why, kept.why)}" if kept.body_bytes else ""
    return "only its beginning is kept" if kept.is_cut else ""


@dataclass(frozen=True, slots=True)
class Shown:
    """The messages of a call in order. `note` is what a person must know of them beside."""

    messages: tuple[Kept, ...] = ()
    note: str = ""

    def of(self, side: Side) -> Kept | None:
        """The request, or the response."""
        return next((one for one in self.messages if one.side is side), None)


class Traces:
    """Reads the trace beside a reader of the ledger. Made by `opened`."""

    def __init__(self, ledger: sqlite3.Connection, data: Path) -> None:
        self._ledger = ledger
        self._path = data / DATABASE
        self._losses: list[untraced.Loss] | None = None
        self._failure = ""
        self._pruned_us: int | None = None  # what was caught until then may be pruned
        self._trace: sqlite3.Connection | None = None
        try:
            self._trace = open_trace(data)
        except LedgerError as error:
            self._failure = f"the trace cannot be read: {error}"

    def close(self) -> None:
        if self._trace is not None:
            self._trace.close()

    def of(self, row: Row) -> Shown:
        """What the trace has of this call of the ledger."""
        kept: tuple[Kept, ...] = ()
        if self._trace is not None:
            try:
                kept = tuple(messages(self._trace, row["id"]))
                self._pruned_us = until_us(self._trace)
            except (sqlite3.Error, LedgerError, ValueError) as error:
                self._failure = f"the trace cannot be read: {error}"
        return Shown(kept, self._note(row, kept))

    def found(self, text: str) -> list[str]:
        """The calls that said or were answered these words. Raises LedgerError."""
        if self._trace is None:
            raise LedgerError(self._failure or f"nothing is traced: there is no {self._path}")
        try:
            return search(self._trace, text, FOUND_MAX)
        except sqlite3.Error as error:
            raise unusable(error, self._path) from error

    def _note(self, row: Row, kept: tuple[Kept, ...]) -> str:
        if self._failure:
            return self._failure
        sides = {one.side for one in kept}
        if Side.REQUEST in sides and (Side.RESPONSE in sides or not _was_answered(row)):
            return self._replayed(row)
        missing = "of its answer " if Side.REQUEST in sides else ""
        missing = "of its request " if Side.RESPONSE in sides else missing
        why = self._why_missing(row)
        return f"nothing {missing}is in the trace: {why}"

    def _replayed(self, row: Row) -> str:
        first = row["replay_of"]
        if row["decision"] != Action.REPLAY or not first:
            return ""
        return f"answered with what was kept of {first}: pullcord ledger show {first}"

    def _why_missing(self, row: Row) -> str:
        if not row["run"]:
            return "nobody that pullcord knows called"
        began_us, ended_us = _times_us(row)
        is_old = self._pruned_us is not None and began_us <= self._pruned_us
        if is_old and self._rule(row) != "none":
            return _WHY[PRUNED]
        if self._losses is None:
            self._losses = list(untraced.losses(self._ledger))
        for loss in self._losses:
            if loss.since_us <= ended_us and began_us <= loss.until_us:
                return f"it may be lost, as {loss.messages} messages were then: {loss.why}"
        if self._rule(row) == "none":
            return "the policy keeps none of this tool (trace: none)"
        if row["state"] == "pending":
            return "it has not ended"
        return "the setting trace was none, or pullcord ended before it was kept"

    def _rule(self, row: Row) -> str | None:
        """What the policy that judged it says of its tool."""
        from policies.load import PolicyError, load

        text = untraced.policy_text(self._ledger, row["policy"] or "")
        try:
            return load(text, "the policy then").tool(row["tool"]).trace if text else None
        except PolicyError:
            return None


def _was_answered(row: Row) -> bool:
    """Whether an upstream's answer to it came."""
    return row["decision"] == Action.ALLOW and row["status"] is not None


def _times_us(row: Row) -> tuple[int, int]:
    """When it came and when it had ended, to the millisecond; of what has not, when it came."""
    began_us = round(datetime.fromisoformat(row["at"]).timestamp() * 1e6)
    return began_us, began_us + round((row["latency_ms"] or 0.0) * 1e3) + 1_000


@contextlib.contextmanager
def opened(ledger: sqlite3.Connection, data: Path) -> Iterator[Traces]:
    made = Traces(ledger, data)
    try:
        yield made
    finally:
        made.close()
