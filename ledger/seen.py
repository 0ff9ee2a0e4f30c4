"""What `decide` saw of a call beside the columns of its row, so that it can be judged again.

One JSON object that holds only what is not as usual: a plain read has none. Secrets in it are
masked, and a long text is left out; a condition on such an argument cannot be judged again. The
claim that a write met is told by `replay_of`, `reason` and the rows of that call; cords and windows
by the rows before it.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import orjson

from ledger.redact import MARK, mask, storable
from policies.call import NOTHING, Argument, Dialect, Effect, Identity, ToolCall, Worth
from policies.verdict import Reason

TEXT_CHARS_MAX = 2_048  # of one argument; the conditions that people write look at short ones
CUT = "[cut]"
"""Stands for a text that was longer."""


def told(
    call: ToolCall, who: Identity, key: bytes, traits: Mapping[str, Any] | None = None
) -> str | None:
    """The JSON; None for a call of which the columns tell all. `traits` are what the detectors go
    by (steps.py)."""
    worth = call.worth
    found: dict[str, Any] = {
        "keyed": call.key is not None,
        "dialect": "" if call.dialect is Dialect.HTTP else call.dialect.value,
        "fault": call.fault and call.fault.value,
        "own": call.own,
        "streamed": call.streamed,
        "operations": 0 if call.operations == 1 else call.operations,
        "bytes_up": worth.bytes_up,
        "tokens": worth.tokens,
        "spend_microusd": worth.spend_microusd,
        "model": worth.model and _text(worth.model, key),
        "unpriced": not worth.priced,
        "arguments": {
            path: [_argument(value, key) for value in values] for path, values in call.arguments
        },
        "unread": dict(call.unread),
        "read_only": who.read_only,
        "ancestors": who.ancestors if len(who.ancestors) > 2 else (),  # the others have columns
        "budgets": who.budgets,
        **(traits or {}),
    }
    found = {name: value for name, value in found.items() if value}
    if who.tools is not None:
        found["tools"] = who.tools
    return orjson.dumps(found).decode() if found else None


@dataclass(frozen=True, slots=True)
class Seen:
    """A call as it was judged. `lost` are the paths of arguments that the record does not hold as
    they were: what is asked of them cannot be judged again."""

    call: ToolCall
    identity: Identity
    lost: frozenset[str]


COLUMNS = (
    *("tool", "effect", "operation", "request_digest", "key", "host", "method", "seen"),
    *("run", "tenant", "parent", "root", "agent", "release"),
)
"""What `recalled` reads of a row."""

_EFFECTS: Mapping[str, Effect] = {effect.value: effect for effect in Effect}


def recalled(row: Mapping[str, Any]) -> Seen:
    """From the row of a decision: its columns, with `seen`. Which key was sent is not known any
    more, only that one was; `key` then says what the record shows of its claim."""
    told = _told(row["seen"])
    arguments = tuple((path, tuple(values)) for path, values in told.get("arguments", {}).items())
    fault = told.get("fault")
    worth = NOTHING
    if told:
        worth = Worth(
            told.get("tokens", 0),
            told.get("spend_microusd", 0),
            told.get("bytes_up", 0),
            told.get("model", ""),
            not told.get("unpriced", False),
        )
    call = ToolCall(
        tool=row["tool"],
        effect=_EFFECTS[row["effect"]],
        operation=row["operation"] or "",
        fingerprint=row["request_digest"] or b"",
        key=(row["key"] or "") if told.get("keyed") else None,
        dialect=Dialect(told["dialect"]) if "dialect" in told else Dialect.HTTP,
        fault=None if fault is None else Reason(fault),
        host=row["host"] or "",
        worth=worth,
        operations=told.get("operations", 1),
        arguments=arguments,
        unread=tuple(told.get("unread", {}).items()),
        own=told.get("own", False),
        streamed=told.get("streamed", False),
        method=row["method"] or "",
    )
    columns = tuple(dict.fromkeys(name for name in (row["parent"], row["root"]) if name))
    columns = tuple(name for name in columns if name != row["run"])
    tools = told.get("tools")
    identity = Identity(
        row["run"] or "",
        row["tenant"] or "",
        tuple(told.get("ancestors", columns)),
        row["agent"] or "",
        row["release"] or "",
        None if tools is None else tuple(tools),
        told.get("read_only", False),
        tuple((run, microusd) for run, microusd in told.get("budgets", ())),
    )
    return Seen(call, identity, frozenset(path for path, values in arguments if _is_lost(values)))


def arguments(text: str) -> Mapping[str, tuple[Argument, ...]]:
    """Of the member `arguments` of the JSON: what stood at each path, without those of which the
    record holds only a part."""
    told = json.loads(text, parse_float=Decimal)
    found = {path: tuple(values) for path, values in told.items()}
    return {path: values for path, values in found.items() if not _is_lost(values)}


def _told(text: str | None) -> dict[str, Any]:
    """Only arguments hold numbers that must stay exact, which takes a slower reader."""
    if not text:
        return {}
    if '"arguments"' in text:
        return dict(json.loads(text, parse_float=Decimal))
    return dict(orjson.loads(text))


def _is_lost(values: tuple[Argument, ...]) -> bool:
    return any(isinstance(value, str) and (value == CUT or MARK in value) for value in values)


def _argument(value: Argument, key: bytes) -> Any:
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value)) if value.is_finite() else CUT
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return orjson.Fragment(str(value))
    return _text(value, key) if isinstance(value, str) else value


def _text(text: str, key: bytes) -> str:
    return CUT if len(text) > TEXT_CHARS_MAX else mask(storable(text), key)
