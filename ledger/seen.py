"""What `decide` saw of a call beside the columns of its row, so that it can be judged again.

One JSON object that holds only what is not as usual: a plain read has none. Secrets in it are
masked, and a long text is left out; a condition on such an argument cannot be judged again. The
claim that a write met is told by `replay_of`, `reason` and the rows of that call; cords, tokens and
windows by the rows before it.
"""

from decimal import Decimal
from typing import Any

import orjson

from ledger.redact import mask, storable
from policies.call import Argument, Dialect, Identity, ToolCall

TEXT_CHARS_MAX = 2_048  # of one argument; the conditions that people write look at short ones
CUT = "[cut]"
"""Stands for a text that was longer."""


def told(call: ToolCall, who: Identity, key: bytes) -> str | None:
    """The JSON; None for a call of which the columns tell all."""
    worth = call.worth
    found: dict[str, Any] = {
        "keyed": call.key is not None,
        "dialect": "" if call.dialect is Dialect.HTTP else call.dialect.value,
        "fault": call.fault and call.fault.value,
        "own": call.own,
        "operations": 0 if call.operations == 1 else call.operations,
        "bytes_up": worth.bytes_up,
        "tokens": worth.tokens,
        "spend_microusd": worth.spend_microusd,
        "model": worth.model and _text(worth.model, key),
        "arguments": {
            path: [_argument(value, key) for value in values] for path, values in call.arguments
        },
        "unread": dict(call.unread),
        "read_only": who.read_only,
        "ancestors": who.ancestors if len(who.ancestors) > 2 else (),  # the others have columns
    }
    found = {name: value for name, value in found.items() if value}
    if who.tools is not None:
        found["tools"] = who.tools
    return orjson.dumps(found).decode() if found else None


def _argument(value: Argument, key: bytes) -> Any:
    if isinstance(value, Decimal):
        return orjson.Fragment(str(value)) if value.is_finite() else CUT
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return orjson.Fragment(str(value))
    return _text(value, key) if isinstance(value, str) else value


def _text(text: str, key: bytes) -> str:
    return CUT if len(text) > TEXT_CHARS_MAX else mask(storable(text), key)
