"""The trace on a terminal: what a call said and was answered, and which calls said a word."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxy.cli import filtering
from proxy.cli.terminal import escaped, loud, say

if TYPE_CHECKING:
    from ledger.filters import Filter
    from ledger.sqlite import sqlite3
    from ledger.traced import Kept
    from proxy.traces import Shown

_ARROWS = {"request": ">", "response": "<", "message_up": ">", "message_down": "<"}
_TITLES = {
    "request": "request",
    "response": "response",
    "message_up": "message sent",
    "message_down": "message received",
}


def chosen(connection: "sqlite3.Connection", data: Path, filters: Sequence[str]) -> "Filter":
    """The filters as a condition, `text:` too. Raises FilterError and LedgerError."""
    if not filtering.searches(filters):
        return filtering.parsed(filters)
    from proxy import traces

    with traces.opened(connection, data) as opened:
        return filtering.parsed(filters, opened)


def of_call(connection: "sqlite3.Connection", data: Path, row: dict[str, Any]) -> "Shown":
    from proxy import traces

    with traces.opened(connection, data) as opened:
        return opened.of(row)


def as_json(traced: "Shown") -> dict[str, Any]:
    from proxy.operations import timestamp

    messages = [
        {
            "side": one.side.value,
            "at": timestamp(one.at_us),
            "start": one.start,
            "headers": [list(pair) for pair in one.headers],
            "media_type": one.media_type,
            "bytes": one.body_bytes,
            "cut": one.is_cut,
            "digest": one.digest,
            "text": one.text,
            "why": one.why or None,
        }
        for one in traced.messages
    ]
    return {"trace": messages, "trace_note": traced.note or None}


def say_traced(traced: "Shown") -> None:
    for one in traced.messages:
        _say_message(one)
    if traced.note:
        say(f"trace            {loud(escaped(traced.note))}")


def _say_message(one: "Kept") -> None:
    from proxy.traces import remark

    arrow = _ARROWS[one.side.value]
    say()
    say(f"{_TITLES[one.side.value]}  {one.body_bytes} bytes  {escaped(remark(one))}".rstrip())
    if one.start:
        say(f"{arrow} {escaped(one.start)}")
    for name, value in one.headers:
        say(f"{arrow} {escaped(name)}: {escaped(value)}")
    if one.text:
        for line in one.text.splitlines():
            say(f"  {escaped(line)}")
