"""What an answer tells, in a form in which two answers that tell the same are the same.

Of MCP what the tools said, also out of an event stream, without the ids of the messages; of all
else the body as it came. And whether it tells of a failure itself, under a status of success.
"""

import re
from collections.abc import Collection, Iterator
from typing import Any

import orjson

from policies.call import Dialect

Path = tuple[str, ...]
"""The names that lead to a member of a JSON object, from the outside in; none goes through a list.
"""

_RPC_ID = re.compile(
    rb'("jsonrpc"\s{0,9}:\s{0,9}"2\.0"\s{0,9},\s{0,9})"id"\s{0,9}:\s{0,9}'
    rb'(?:-?[0-9]{1,20}|"[^"\\]{0,200}")'
)


def read(text: bytes, dialect: Dialect, left_out: Collection[Path] = ()) -> tuple[bytes, bool]:
    """What is compared, and whether it tells of a failure. Raises nothing."""
    try:
        return _read(text, dialect, left_out)
    except orjson.JSONEncodeError:  # nested too deeply to be written
        return text, False


def _read(text: bytes, dialect: Dialect, left_out: Collection[Path]) -> tuple[bytes, bool]:
    if dialect is Dialect.MCP:
        messages = _messages(text)
        if messages is None:  # a long one, of which the end is missing
            return _RPC_ID.sub(rb"\1", text), False
        told = [_said(message, left_out) for message in messages]
        return b"\n".join([said for said, _ in told]), any(failed for _, failed in told)
    failed = dialect is Dialect.GRAPHQL and b'"errors"' in text and _has_no_data(text)
    if left_out:
        message = _json(text)
        if isinstance(message, dict):
            return _text(without(message, left_out)), failed
    return text, failed


def message(text: bytes, dialect: Dialect) -> dict[str, object] | None:
    """The JSON object that an answer is; of MCP the one that the tool's only text is."""
    if dialect is not Dialect.MCP:
        told = _json(text)
        return told if isinstance(told, dict) else None
    messages = _messages(text) or []
    contents = [_content(one.get("result")) for one in messages]
    texts = [block["text"] for content in contents for block in content if _is_text(block)]
    told = _json(texts[0].encode("utf-8", "surrogatepass")) if len(texts) == 1 else None
    return told if isinstance(told, dict) else None


def without(message: dict[str, object], left_out: Collection[Path]) -> dict[str, object]:
    """The object without these members; those that it does not have are not missed."""
    names = {path[0] for path in left_out if len(path) == 1}
    inner: dict[str, list[Path]] = {path[0]: [] for path in left_out if len(path) > 1}
    for path in left_out:
        if len(path) > 1:
            inner[path[0]].append(path[1:])
    return {
        name: without(member, inner[name]) if name in inner and isinstance(member, dict) else member
        for name, member in message.items()
        if name not in names
    }


def _json(text: bytes) -> object:
    if text.lstrip()[:1] not in (b"{", b"["):
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _text(value: object) -> bytes:
    return orjson.dumps(value)


def _has_no_data(text: bytes) -> bool:
    message = _json(text)
    entries = message if isinstance(message, list) else [message]
    return any(
        isinstance(entry, dict) and bool(entry.get("errors")) and not _has_any(entry.get("data"))
        for entry in entries
    )


def _has_any(data: object) -> bool:
    """A field that failed is null, beside others that did not."""
    if isinstance(data, dict):
        return any(value is not None for value in data.values())
    return data is not None


# MCP


def _messages(text: bytes) -> list[dict[str, object]] | None:
    """The JSON-RPC messages that answer; where none does, all. None if one cannot be read."""
    told: list[object] = []
    start = text.lstrip()[:1]
    for one in [text] if start in (b"{", b"[") else _events(text):
        try:
            message = orjson.loads(one)
        except orjson.JSONDecodeError:
            return None
        told += message if isinstance(message, list) else [message]
    messages = [one for one in told if isinstance(one, dict)]
    if not messages and text.strip():
        return None
    return [one for one in messages if "result" in one or "error" in one] or messages


def _events(text: bytes) -> Iterator[bytes]:
    """The data of each event of a stream."""
    data: list[bytes] = []
    for line in (*text.splitlines(), b""):
        if line.startswith(b"data:"):
            data.append(line[5:].strip())
        elif not line:
            if any(data):
                yield b"\n".join(data)
            data = []


def _said(message: dict[str, object], left_out: Collection[Path]) -> tuple[bytes, bool]:
    """What one message tells. The text of a tool stands for itself: inside JSON its quotes would be
    escaped, and nothing volatile be found in it."""
    if "error" in message:
        return _text(message["error"]), True
    result = message.get("result")
    if not isinstance(result, dict):
        return _text({name: value for name, value in message.items() if name != "id"}), False
    parts: list[bytes] = []
    for block in _content(result):
        if _is_text(block):
            told = block["text"].encode("utf-8", "surrogatepass")
            read = _json(told) if left_out else None
            parts.append(_text(without(read, left_out)) if isinstance(read, dict) else told)
        else:
            parts.append(_text(block))
    rest = {name: value for name, value in result.items() if name not in ("content", "_meta")}
    structured = rest.get("structuredContent")
    if left_out and isinstance(structured, dict):
        rest["structuredContent"] = without(structured, left_out)
    return b"\n".join((*parts, _text(rest))), rest.get("isError") is True


def _content(result: object) -> list[Any]:
    content = result.get("content") if isinstance(result, dict) else None
    return content if isinstance(content, list) else []


def _is_text(block: Any) -> bool:
    return isinstance(block, dict) and isinstance(block.get("text"), str)
