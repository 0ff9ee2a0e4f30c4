"""Streams of events put together: what a model said piece by piece, as one text again.

A secret that was cut over two pieces shows only so, and then the pieces must not be kept beside
it. It works on any stream of JSON objects (OpenAI, Anthropic, Gemini, Cohere, Ollama): events of
one kind and place are merged, texts under the names that hold a model's words are joined. Pure.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from policies.meter.picker import TEXT_KEYS

EVENTS_MAX = 20_000  # of one stream; a long answer has some 5,000
_SAME_INDEX_WITHIN = 16  # list items that are looked at for one index

_TEXTS = TEXT_KEYS | {
    "chunk", "generated_text", "outputText", "output_text", "partialJson", "response", "value",
}  # fmt: skip
_NOISE = frozenset({"logprobs", "obfuscation", "p", "sequence_number"})
_PLACE = (
    "type", "object", "method", "id", "index", "item_id", "output_index", "content_index",
    "summary_index", "response_id",
)  # fmt: skip
_UNREADABLE = "[an event that could not be read]"

Show = Callable[[str], str]


class _Joined(list[str]):
    """The pieces of one text."""


class _Varied(list[Any]):
    """Values of one member that differ."""


@dataclass(slots=True)
class _Group:
    """Events of one kind and place."""

    name: str
    merged: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)
    is_joined: bool = False


def event_stream(text: str, is_cut: bool, show: Show) -> str | None:
    """A stream of server-sent events (HTML Living Standard, section 9.2.6) as one JSON document.

    `show` masks a text: where it finds a secret in joined pieces, the pieces are given up. None
    when there are too many events.
    """
    blocks = text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\ufeff").split("\n\n")
    if is_cut and blocks:
        blocks.pop()
    if len(blocks) > EVENTS_MAX:
        return None
    events = []
    for block in blocks:
        name, lines = "", []
        for line in block.split("\n"):
            kind, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if kind == "data":
                lines.append(value)
            elif kind == "event":
                name = value
        if lines:
            events.append((name, "\n".join(lines)))
    return assembled(events, show)


def lines(text: str, is_cut: bool, show: Show) -> str | None:
    """A stream of JSON objects, one a line. None when it is another or too long."""
    rows = [row for row in text.split("\n") if row.strip()]
    if is_cut and rows:
        rows.pop()
    if not 1 < len(rows) <= EVENTS_MAX or not all(row.lstrip()[:1] == "{" for row in rows):
        return None
    return assembled([("", row) for row in rows], show)


def array(text: str, show: Show) -> str | None:
    """A list of JSON objects, as Gemini streams without server-sent events. None for another."""
    items = _read(text)
    if not isinstance(items, list) or not 1 < len(items) <= EVENTS_MAX:
        return None
    return assembled([("", json.dumps(item)) for item in items], show)


def assembled(events: Iterable[tuple[str, str]], show: Show) -> str:
    """Events, each with its name and data, as one JSON document, in the order of their starts."""
    groups: dict[tuple[Any, ...], _Group] = {}
    texts: dict[str, list[str]] = {}
    count = 0
    for name, data in events:
        count += 1
        value = _read(data)
        if isinstance(value, dict):
            _add(groups, name, value)
        else:
            texts.setdefault(name, []).append(_UNREADABLE if data[:1] == "{" else data)
    shown = [part for group in groups.values() for part in _shown(group, show)]
    shown += [_named(name, _text(pieces, show)) for name, pieces in texts.items()]
    return json.dumps({"events": count, "stream": shown}, ensure_ascii=False)


def _read(data: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _add(groups: dict[tuple[Any, ...], _Group], name: str, event: dict[str, Any]) -> None:
    delta = event.get("delta")
    kind = delta.get("type") if isinstance(delta, dict) else None
    place = (name, *(_scalar(event.get(member)) for member in _PLACE), _scalar(kind))
    group = groups.get(place)
    if group is None:
        groups[place] = _Group(name, _fresh(event, ""), [event])
        return
    group.events.append(event)
    group.merged = _merge(group, group.merged, event, "", False)


def _scalar(value: Any) -> str | int | None:
    return value if isinstance(value, str | int) else None


def _fresh(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _fresh(each, key) for key, each in value.items() if key not in _NOISE}
    if isinstance(value, list):
        return [_fresh(each, "") for each in value]
    return _Joined([value]) if isinstance(value, str) and name in _TEXTS else value


def _merge(group: _Group, old: Any, new: Any, name: str, in_usage: bool) -> Any:
    """The newer event's value merged into the older's, which is changed."""
    if new is None:
        return old
    if old is None:
        return _fresh(new, name)
    if isinstance(old, _Joined) and isinstance(new, str):
        old.append(new)
        group.is_joined = True
        return old
    if isinstance(old, dict) and isinstance(new, dict):
        in_usage = in_usage or "usage" in name.lower()
        for key, value in new.items():
            if key in old:
                old[key] = _merge(group, old[key], value, key, in_usage)
            elif key not in _NOISE:
                old[key] = _fresh(value, key)
        return old
    if isinstance(old, _Varied):
        if new != old[-1]:
            old.append(new)
        return old
    if isinstance(old, list) and isinstance(new, list) and not isinstance(old, _Joined):
        for position, item in enumerate(new):
            _merge_item(group, old, item, position, name)
        return old
    if in_usage or old == new:
        return new
    return _Varied([old, new])


def _merge_item(group: _Group, old: list[Any], item: Any, position: int, name: str) -> None:
    """By the index that an item names, else by its place. Parts of a message follow each other:
    only a text goes on in the one before it."""
    if not isinstance(item, dict):
        if item not in old[-_SAME_INDEX_WITHIN:]:
            old.append(item)
        return
    at = position if position < len(old) else None
    if isinstance(item.get("index"), int):
        near = range(max(0, len(old) - _SAME_INDEX_WITHIN), len(old))
        at = next((i for i in near if _index(old[i]) == item["index"]), None)
    elif name == "parts":
        last = old[-1] if old else None
        goes_on = isinstance(last, dict) and last.keys() == item.keys() and "text" in item
        at = len(old) - 1 if goes_on else None
    if at is not None and isinstance(old[at], dict):
        old[at] = _merge(group, old[at], item, "", False)
    else:
        old.append(_fresh(item, ""))


def _index(item: Any) -> Any:
    return item.get("index") if isinstance(item, dict) else None


def _shown(group: _Group, show: Show) -> Iterable[dict[str, Any]]:
    """As one where texts were joined, else each event as it was."""
    is_joined = group.is_joined or len(group.events) == 1
    merged, has_secret = _plain(group.merged, show)
    if is_joined or has_secret:
        yield _named(group.name, merged, len(group.events))
    else:
        yield from (_named(group.name, _plain(_fresh(each, ""), show)[0]) for each in group.events)


def _named(name: str, data: Any, count: int = 1) -> dict[str, Any]:
    shown: dict[str, Any] = {"event": name} if name else {}
    if count > 1:
        shown["merged"] = count
    return shown | {"data": data}


def _plain(value: Any, show: Show) -> tuple[Any, bool]:
    """As JSON knows it, and whether values that differ make a secret when they are joined."""
    if isinstance(value, _Joined):
        return "".join(value), False
    if isinstance(value, _Varied) and all(isinstance(each, str) for each in value):
        joined = "".join(value)
        return (joined, True) if show(joined) != joined else (list(value), False)
    if isinstance(value, dict):
        pairs = {key: _plain(each, show) for key, each in value.items()}
        return {key: each for key, (each, _) in pairs.items()}, any(s for _, s in pairs.values())
    if isinstance(value, list):
        parts = [_plain(each, show) for each in value]
        return [each for each, _ in parts], any(secret for _, secret in parts)
    return value, False


def _text(pieces: list[str], show: Show) -> str:
    """Data that is no object: one a line, or joined where that shows a secret."""
    joined, separate = "".join(pieces), "\n".join(pieces)
    return joined if show(joined) != joined else separate
