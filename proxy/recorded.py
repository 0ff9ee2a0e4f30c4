"""What a call asked and was answered, value by value: from the trace, which is redacted, or from
the answer that is kept for repeats. What was masked, cut or never kept is told as not known; and so
is what an agent sent in a way that two servers could read in two ways: it would decide what an
operator's call is about.
"""

import json
from collections.abc import Callable
from typing import NamedTuple

from ledger.decoding import decoded
from ledger.records import Answer
from ledger.sqlite import sqlite3
from ledger.trace import messages
from ledger.traced import Kept, Side
from policies.argument_paths import Place, UnreadError, check_spellings, squashed
from policies.canonical import is_json
from policies.content import FORM, UTF_8, read_content
from policies.form import Form

MASKED = "[redacted:"
"""How the trace begins what it has masked."""


class Untold(Exception):
    """The value is not known; the message says why."""


class Bare(str):
    """What JSON writes without quotes: a number, or true or false."""

    __slots__ = ()


class Asked(NamedTuple):
    """The body of a request, and the query beside it, which some servers take for the same."""

    body: object
    query: Form


Document = Callable[[], object]
"""A body: a form, or nested mappings and lists. Raises Untold."""


def value(document: object, path: str, whose: str) -> str:
    """The single value at a dotted path. Raises Untold."""
    try:
        found = _at(document, path, whose)
    except UnreadError as why:
        raise Untold(f"{whose} can be read in two ways: {why}") from None
    if isinstance(found, bool):
        return Bare(str(found).lower())
    if not isinstance(found, str):
        raise Untold("no single value stands there")
    if MASKED in found:
        raise Untold("the trace has masked it")
    return found


def _at(document: object, path: str, whose: str) -> object:
    place, is_asked = Place.of(path), isinstance(document, Asked)
    if isinstance(document, Asked):
        if document.query.related(place):
            raise UnreadError("the query of the URL names it, too")
        document = document.body
    if isinstance(document, Form):
        return _in_form(document, path, whose)
    for depth, (step, _) in enumerate(place.steps):
        if isinstance(document, list) and step.isdigit() and int(step) < len(document):
            document = document[int(step)]
        elif isinstance(document, dict) and step in document:
            if is_asked:
                _check_beside(document, step, place.alike[depth])
            document = document[step]
        else:
            raise Untold(f"{whose} holds nothing there")
    return document


def _check_beside(members: dict[str, object], step: str, alike: frozenset[str]) -> None:
    """Raises UnreadError where a member stands beside it that a server may take for it."""
    names: dict[str, list[str]] = {}
    for name in members:
        names.setdefault(squashed(name), []).append(name)
    check_spellings(names, step, alike)


def _in_form(form: Form, path: str, whose: str) -> str:
    """`metadata[order]` stands at `metadata.order`, `items[0][price]` at `items.0.price`."""
    first, *steps = path.split(".")
    name = first + "".join(f"[{step}]" for step in steps)
    listed = first + "".join("[]" if step.isdigit() else f".{step}" for step in steps)
    place = Place.of(listed)
    if not form.values(place):  # raises for all that is not spelled as it should be
        raise Untold(f"{whose} holds nothing there")
    found = [field.value for field in form.related(place) if field.name == name]
    if len(found) != 1 or found[0] is None:
        raise Untold("no single value stands there")
    return found[0]


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
    if side is Side.RESPONSE:
        return _parsed(kept.text or "", kept.media_type, word)
    return _asked(kept)


def _asked(kept: Kept) -> Asked:
    """Raises Untold for a body that is not plainly what its headers say."""
    names = ("content-type", "content-encoding", "transfer-encoding")
    found = [",".join(text for has, text in kept.headers if has.lower() == name) for name in names]
    content = read_content(*found)
    if why := content.hidden(UTF_8):
        raise Untold(f"the request can be read in two ways: {why}")
    if content.media_type != FORM and not is_json(content.media_type):
        raise Untold("the request is neither JSON nor a form by its content type")
    try:
        query = Form.read(kept.start.partition("?")[2].encode("utf-8", "surrogatepass"))
    except UnreadError as why:
        raise Untold(f"the query of the URL can be read in two ways: {why}") from None
    return Asked(_parsed(kept.text or "", content.media_type, "request"), query)


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
    try:
        if media_type == FORM:
            return Form.read(text.encode("utf-8", "surrogatepass"))
        return json.loads(text, parse_float=Bare, parse_int=Bare, object_pairs_hook=_each_once)
    except UnreadError as why:
        raise Untold(f"the {word} can be read in two ways: {why}") from None
    except (ValueError, RecursionError):
        raise Untold(f"the {word} is neither JSON nor a form") from None


def _each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise UnreadError("a key stands twice")
    return members
