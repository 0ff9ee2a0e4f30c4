"""How the writes of a tool are undone, compiled."""

import json
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import Any

from policies.call import Effect
from policies.document import Document, Location, Mistake
from policies.load_records import LOOKING, PLACE
from policies.mistakes import suggestion
from policies.policy import Reversibility, Undo
from policies.schema import PolicyFile
from policies.schema_undo import NoUndo, UndoRule

PLACES = ("call", "run", "tenant", "at", "at_seconds")
"""What a call that undoes may name of the write, beside `request.PATH` and `response.PATH`."""
BODIES = ("request.", "response.")

_SAYS = {"unneeded": Reversibility.REVERSIBLE, "impossible": Reversibility.IRREVERSIBLE}


def undo(rule: UndoRule | None) -> Undo | Reversibility | None:
    if rule is None:
        return None
    if isinstance(rule, NoUndo):
        return _SAYS[rule.word]
    return Undo(
        tool=rule.tool,
        method=rule.method,
        path=rule.path,
        query=tuple(rule.query.items()),
        headers=tuple((name.lower(), value) for name, value in rule.headers.items()),
        auth=rule.auth,
        form=None if rule.form is None else tuple(rule.form.items()),
        json=None if rule.json_ is None else json.dumps(_plain(rule.json_), ensure_ascii=False),
    )


def _plain(value: Any) -> Any:
    """As JSON has it. A decimal that no float stands for exactly is told by `_of_numbers`."""
    if isinstance(value, dict):
        return {name: _plain(below) for name, below in value.items()}
    if isinstance(value, list):
        return [_plain(below) for below in value]
    return float(value) if isinstance(value, Decimal) else value


def mistakes(file: PolicyFile, read: Document) -> Iterable[Mistake]:
    """What no part of the file can know of itself."""
    for name, rule in file.tools.items():
        if rule.undo is None:
            continue
        here: Location = ("tools", name, "undo")
        if rule.effect not in (None, Effect.WRITE):
            text = f"{name} is a {rule.effect}, and only what a write did is undone"
            yield read.at(here, text, of_key=True)
        elif not isinstance(rule.undo, NoUndo):
            yield from _of_undo(rule.undo, file, read, here)


def _of_undo(rule: UndoRule, file: PolicyFile, read: Document, here: Location) -> Iterable[Mistake]:
    named = file.tools.get(rule.tool)
    if named is None:
        text = f"no tool is named {rule.tool!r}{suggestion(rule.tool, list(file.tools))}"
        yield read.at((*here, "tool"), text)
    elif named.effect not in (None, Effect.WRITE):
        text = f"{rule.tool} is a {named.effect}, and only a write undoes another"
        yield read.at((*here, "tool"), text)
    elif named.stream:
        text = f"{rule.tool} streams its bodies; name a tool of which the body is read"
        yield read.at((*here, "tool"), text)
    else:
        yield from _of_named(rule, file, read, here)
    if rule.method in LOOKING:
        text = f"'method' must be one that changes something, not {rule.method}"
        yield read.at((*here, "method"), text)
    if rule.path is not None and ("?" in rule.path or "#" in rule.path):
        yield read.at((*here, "path"), "'path' must hold no query; it has a 'query' beside it")
    for where, value in _values(rule):
        if isinstance(value, Decimal) and Decimal(repr(float(value))) != value:
            text = "has more digits than a number of JSON keeps; put it in quotes"
            yield read.at((*here, *where), text)
        for place in PLACE.findall(value) if isinstance(value, str) else ():
            if place not in PLACES and not place.startswith(BODIES):
                known = f"there are {', '.join(PLACES)}, request.PATH and response.PATH"
                yield read.at((*here, *where), f"{{{place}}} is unknown; {known}")


def _of_named(
    rule: UndoRule, file: PolicyFile, read: Document, here: Location
) -> Iterable[Mistake]:
    """A tool that never writes, never by this method, or at no one path: that is seen here, and
    not only in an incident."""
    match = file.tools[rule.tool].match
    methods = set(match.method)
    line = read.at(("tools", rule.tool), "", of_key=True).line
    told = f"{rule.tool} (line {line}) is only for {', '.join(sorted(methods))}"
    if "*" not in methods and rule.method not in LOOKING:
        if not methods - LOOKING:
            yield read.at((*here, "tool"), f"{told}, and 'undo' needs a write")
        elif rule.method is not None and rule.method not in methods:
            yield read.at((*here, "tool"), f"{told}, and 'undo' needs a tool for {rule.method}")
    if rule.path is None and (match.path is None or "{" in match.path or "*" in match.path):
        text = f"{rule.tool} (line {line}) is at many paths; say which, as 'path'"
        yield read.at((*here, "tool"), text)


def _values(rule: UndoRule) -> Iterator[tuple[Location, object]]:
    """Whatever may hold places, and where it stands."""
    yield ("path",), rule.path or ""
    for key, each in (("query", rule.query), ("headers", rule.headers), ("form", rule.form or {})):
        for name, text in each.items():
            yield (key, name), text
    yield from _below(("json",), rule.json_ or {})


def _below(here: Location, value: object) -> Iterator[tuple[Location, object]]:
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _below((*here, name), below)
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from _below((*here, number), below)
    else:
        yield here, value
