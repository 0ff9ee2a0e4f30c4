"""What a call asked and was answered, value by value: from the trace, which is redacted, or from
the answer that is kept for repeats. What was masked, cut or never kept is told as not known.
"""

import json
from collections.abc import Callable
from urllib.parse import parse_qsl

from ledger.decoding import decoded
from ledger.records import Answer
from ledger.sqlite import sqlite3
from ledger.trace import messages
from ledger.traced import Kept, Side
from policies.content import FORM

MASKED = "[redacted:"
"""How the trace begins what it has masked."""


class Untold(Exception):
    """The value is not known; the message says why."""


class Bare(str):
    """What JSON writes without quotes: a number, or true or false."""

    __slots__ = ()


Document = Callable[[], object]
"""A body as nested mappings and lists. Raises Untold."""


def value(document: object, path: str, whose: str) -> str:
    """The single value at a dotted path. Raises Untold."""
    for step in path.split("."):
        if isinstance(document, list) and step.isdigit() and int(step) < len(document):
            document = document[int(step)]
        elif isinstance(document, dict) and step in document:
            document = document[step]
        else:
            raise Untold(f"{whose} holds nothing there")
    if isinstance(document, bool):
        return Bare(str(document).lower())
    if not isinstance(document, str):
        raise Untold("no single value stands there")
    if MASKED in document:
        raise Untold("the trace has masked it")
    return document


def in_trace(reader: sqlite3.Connection | None, call_id: str, side: Side) -> object:
    """The body of one side of a call, as the trace has it. Raises Untold."""
    word = "request" if side is Side.REQUEST else "response"
    if reader is None:
        raise Untold("nothing was traced")
    found = [kept for kept in messages(reader, call_id) if kept.side is side]
    if not found or found[0].text is None:
        why = f" ({found[0].why})" if found and found[0].why else ""
        raise Untold(f"the trace has no body of the {word}{why}")
    kept: Kept = found[0]
    if kept.is_cut:
        raise Untold(f"the trace has only the beginning of the {word}")
    return _parsed(kept.text or "", kept.media_type, word)


def in_answer(answer: Answer) -> object:
    """The body of an answer that is kept for repeats. Raises Untold."""
    headers = {name.lower(): text for name, text in answer.headers}
    body = decoded(answer.body, headers.get("content-encoding", ""))
    if body is None:
        raise Untold("the response is coded in a way that is not known")
    if body.is_cut:
        raise Untold("the response is too long")
    try:
        text = body.body.decode("utf-8")
    except UnicodeDecodeError:
        raise Untold("the response is no text") from None
    media_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    return _parsed(text, media_type, "response")


def _parsed(text: str, media_type: str, word: str) -> object:
    if media_type == FORM:
        return _fields(text)
    try:
        return json.loads(text, parse_float=Bare, parse_int=Bare)
    except (ValueError, RecursionError):
        raise Untold(f"the {word} is neither JSON nor a form") from None


def _fields(text: str) -> dict[str, object]:
    """`metadata[order]` stands at `metadata.order`."""
    found: dict[str, object] = {}
    for name, field in parse_qsl(text, keep_blank_values=True):
        here = found
        *above, last = name.replace("]", "").split("[")
        for step in above:
            below = here.setdefault(step, {})
            if not isinstance(below, dict):
                break
            here = below
        else:
            here[last] = field
    return found
