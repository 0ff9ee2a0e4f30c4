"""MCP over HTTP: JSON-RPC 2.0 messages, of which only `tools/call` does what a policy can name.

Sources: MCP 2025-11-25 and 2026-07-28, Streamable HTTP transport. The server's own annotations
(readOnlyHint) are not looked at. A body that two readers could understand differently is a fault.
"""

import base64
import binascii

import orjson

from policies.call import Effect, Request
from policies.canonical import NotPlainJsonError, read_json, write_json
from policies.protocols.reading import AMBIGUOUS, Operation, Reading, looks_alike

# The protocol's own requests: they look, they shake hands, they stop what the client itself
# asked for. Notifications are the protocol's own too.
OWN = frozenset({
    "initialize", "ping", "server/discover", "tools/list", "resources/list", "resources/read",
    "resources/templates/list", "resources/subscribe", "resources/unsubscribe",
    "subscriptions/listen", "prompts/list", "prompts/get", "logging/setLevel",
    "completion/complete", "tasks/get", "tasks/list", "tasks/result", "tasks/cancel",
})  # fmt: skip
SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "QUERY"})

ENTRIES_MAX = 100  # the protocol dropped batches in 2025-06-18; clients sent a handful

_ENVELOPE = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
_PARAMS = frozenset({"name", "arguments", "uri"})


class _AmbiguousError(ValueError):
    """The message is not plainly one JSON-RPC 2.0 message."""


def read(request: Request, path_is_known: bool) -> Reading:
    """Read a request to an MCP endpoint.

    `path_is_known` says that the policy names the endpoint's path. Without it a DELETE may as
    well reach something else on the host, so it is not taken for the end of a session.
    """
    if not request.body:
        return _without_body(request, path_is_known)
    try:
        message = read_json(request.body)
        entries = message if isinstance(message, list) else [message]
        if not 1 <= len(entries) <= ENTRIES_MAX:
            return AMBIGUOUS
        operations = tuple(_operation(entry) for entry in entries)
        _check_headers(request, entries)
        rpc_id = None if isinstance(message, list) else _rpc_id(entries[0])
    except (_AmbiguousError, NotPlainJsonError):
        return AMBIGUOUS
    counted = [_what_counts(entry) for entry in entries]
    if isinstance(message, list) and len(entries) == 1:
        counted.append("batch")  # it is answered with a list, which is no answer to the plain call
    return Reading(operations, rpc_id, counted)


def _without_body(request: Request, path_is_known: bool) -> Reading:
    own = request.method in SAFE
    if request.method == "DELETE":
        own = path_is_known and request.header("mcp-session-id") is not None
    elif not own:
        return AMBIGUOUS
    effect = Effect.READ if own else Effect.WRITE
    operation = Operation((), effect, request.method, own=True)
    return Reading((operation,), message=request.header("mcp-session-id"))


def _operation(entry: object) -> Operation:
    if not isinstance(entry, dict) or entry.get("jsonrpc") != "2.0":
        raise _AmbiguousError
    if looks_alike(entry, _ENVELOPE):
        raise _AmbiguousError
    answers = "result" in entry or "error" in entry
    if answers == ("method" in entry):
        raise _AmbiguousError
    if answers:
        return Operation((), Effect.READ, "response", own=True)
    method = entry["method"]
    if not isinstance(method, str):
        raise _AmbiguousError
    if method == "tools/call":
        params = _params(entry)
        name = params.get("name")
        if not isinstance(name, str) or not name:
            raise _AmbiguousError
        label, sent = f"tools/call {name}", params.get("arguments", {})
        return Operation((name,), Effect.WRITE, label, arguments=lambda: [sent])
    if method in OWN or method.startswith("notifications/"):
        return Operation((), Effect.READ, method, own=True)
    return Operation((), Effect.WRITE, method)


def _params(entry: dict[str, object]) -> dict[str, object]:
    params = entry.get("params", {})
    if not isinstance(params, dict) or looks_alike(params, _PARAMS):
        raise _AmbiguousError
    return params


def _check_headers(request: Request, entries: list[object]) -> None:
    """`Mcp-Method` and `Mcp-Name` route some servers, so they must say what the body says."""
    for header, read_body in (("mcp-method", _method_of), ("mcp-name", _name_of)):
        sent = ((name.replace("_", "-"), value) for name, value in request.headers)
        values = [value for name, value in sent if name == header]
        if not values:
            continue
        if len(values) > 1 or len(entries) > 1:
            raise _AmbiguousError
        if _plain(values[0].strip()) != read_body(entries[0]):
            raise _AmbiguousError


def _method_of(entry: object) -> object:
    return entry.get("method") if isinstance(entry, dict) else None


def _name_of(entry: object) -> object:
    params = entry.get("params") if isinstance(entry, dict) else None
    if not isinstance(params, dict):
        return None
    named = (params.get(key) for key in ("name", "uri", "taskId"))
    return next((name for name in named if isinstance(name, str)), None)


def _plain(value: str) -> str:
    """A header's text; `=?base64?...?=` carries what a header cannot (SEP-2243)."""
    if not (value.startswith("=?base64?") and value.endswith("?=")):
        return value
    try:
        return base64.b64decode(value[9:-2], validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        raise _AmbiguousError from None


def _rpc_id(entry: object) -> str | int | None:
    value = entry.get("id") if isinstance(entry, dict) else None
    if isinstance(value, str):
        return value
    if isinstance(value, orjson.Fragment):
        text = write_json(value).decode()
        return int(text) if text.lstrip("-").isdigit() and len(text) < 20 else None
    return None


def _what_counts(entry: object) -> object:
    """The message without its id and `_meta`, which every retry mints anew."""
    if not isinstance(entry, dict):
        return entry
    counted = {key: value for key, value in entry.items() if key != "id"}
    params = counted.get("params")
    if isinstance(params, dict):
        counted["params"] = {key: value for key, value in params.items() if key != "_meta"}
    return counted
