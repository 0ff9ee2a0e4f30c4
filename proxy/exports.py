"""Calls of the ledger in the formats of other programs. Streams: rows in, text out, one at a time.

Rows are those of `ledger query --json`; headers and bodies are the trace's, redacted there. What is
not known is told as such, never made up.
"""

import csv
import io
import ipaddress
import json
import re
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from ledger.queries import CALL_COLUMNS
from ledger.traced import Kept, Side
from proxy.traces import Shown, remark

Row = dict[str, Any]
Traced = Callable[[Row], Shown]
"""What the trace has of a call."""

MASKED = (
    "secrets are masked; of a call that is not in the trace heads and bodies are not known, and "
    "https is assumed"
)
_AROUND = ("content-encoding", "content-length", "transfer-encoding")  # of a body as it was sent

# What a spreadsheet takes for the start of a formula, in some places also the wide forms (OWASP).
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NO_HOST = re.compile(r"[^A-Za-z0-9._-]+")
_SAFE_IN_PATH = "/%:@!$&'()*+,;=~-._"


def jsonl(rows: Iterable[Row]) -> Iterator[str]:
    """One JSON object a line, as `ledger query --json` prints them."""
    for row in rows:
        yield json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n"


def as_csv(rows: Iterable[Row]) -> Iterator[str]:
    """RFC 4180, with a line of titles. A cell that a spreadsheet would take for a formula begins
    with an apostrophe; what is not printable stands as an escape."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)

    def line(cells: Iterable[object]) -> str:
        buffer.seek(0)
        buffer.truncate()
        writer.writerow(cells)
        return buffer.getvalue()

    yield line(CALL_COLUMNS)
    for row in rows:
        yield line(_cell(row[name]) for name in CALL_COLUMNS)


def _cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = value.strip(" \u00a0\ufeff")
    harmless = f"'{value}" if text.startswith(_FORMULA) else value
    if harmless.isprintable():
        return harmless
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in harmless)


def har(rows: Iterable[Row], traced: Traced, version: str) -> Iterator[str]:
    """HTTP Archive 1.2 (W3C web performance group's draft). Each entry has what pullcord knows
    beside the exchange in `_pullcord`."""
    head = {"version": "1.2", "creator": {"name": "pullcord", "version": version}}
    comment = json.dumps(MASKED)
    yield json.dumps({"log": head})[:-2] + f', "comment": {comment}, "entries": [\n'
    separator = ""
    for row in rows:
        yield separator + json.dumps(_entry(row, traced(row)), separators=(",", ":"))
        separator = ",\n"
    yield "\n]}}\n"


def _entry(row: Row, shown: Shown) -> Row:
    latency_ms = row["latency_ms"] or 0.0
    words = (f"{row['decision']}: {row['reason']}; {row['state']}", shown.note)
    entry = {
        "startedDateTime": row["at"],
        "time": latency_ms,
        "request": _request(row, shown.of(Side.REQUEST)),
        "response": _response(row, shown.of(Side.RESPONSE)),
        "cache": {},
        "timings": {"send": 0, "wait": latency_ms, "receive": 0},
        "comment": "; ".join(filter(None, words)),
        "_pullcord": row,
    }
    said = [one for one in shown.messages if one.side in (Side.UP, Side.DOWN)]
    if said:  # as browsers write them
        entry["_webSocketMessages"] = [
            {
                "type": "send" if one.side is Side.UP else "receive",
                "time": one.at_us / 1e6,
                "opcode": 1,
                "data": one.text or "",
            }
            for one in said
        ]
    return entry


def _request(row: Row, kept: Kept | None) -> Row:
    asked = url(row, kept)
    request = {
        "method": row["method"],
        "url": asked,
        "httpVersion": "unknown",
        "cookies": [],
        "headers": _headers(kept),
        "queryString": [
            {"name": name, "value": value}
            for name, value in parse_qsl(urlsplit(asked).query, keep_blank_values=True)
        ],
        "headersSize": -1,
        "bodySize": kept.body_bytes if kept else -1,
    }
    if kept is not None and kept.body_bytes:
        data = {"mimeType": kept.media_type, "params": [], "text": kept.text or ""}
        request["postData"] = {**data, **_remark(kept)}
    return request


def _response(row: Row, kept: Kept | None) -> Row:
    """Status 0, as browsers write it, where no answer came."""
    content: Row = {"size": 0, "mimeType": "x-unknown", "comment": "it is not in the trace"}
    if kept is not None:
        size_bytes = kept.body_bytes if kept.text is None else len(kept.text.encode())
        content = {"size": size_bytes, "mimeType": kept.media_type or "x-unknown"}
        content |= {} if kept.text is None else {"text": kept.text}
        content |= _remark(kept)
    return {
        "status": row["status"] or 0,
        "statusText": phrase(row["status"]),
        "httpVersion": "unknown",
        "cookies": [],
        "headers": _headers(kept),
        "content": content,
        "redirectURL": next((v for n, v in kept.headers if n.lower() == "location"), "")
        if kept
        else "",
        "headersSize": -1,
        "bodySize": kept.body_bytes if kept else -1,
    }


def _headers(kept: Kept | None) -> list[Row]:
    return [{"name": name, "value": value} for name, value in kept.headers] if kept else []


def _remark(kept: Kept) -> Row:
    said = remark(kept)
    return {"comment": said} if said else {}


def content(kept: Kept | None) -> bytes | None:
    """A body as it can be shown; None where there is none here."""
    if kept is None or kept.text is None:
        return None if kept is None or kept.body_bytes else b""
    return kept.text.encode()


def plain_headers(kept: Kept | None) -> list[tuple[bytes, bytes]]:
    """The headers that fit the body as it is kept: decoded, and maybe cut."""
    return [
        (name.encode("utf-8", "replace"), value.encode("utf-8", "replace"))
        for name, value in (kept.headers if kept else ())
        if name.lower() not in _AROUND
    ]


def url(row: Row, kept: Kept | None = None) -> str:
    """An absolute URL, whatever was written into host and path. With its query where its request
    was traced."""
    scheme, found, rest = (kept.start.partition(" ")[2] if kept else "").partition("://")
    if not found or scheme not in ("http", "https"):
        return f"https://{host(row)}{path(row)}"
    authority, _, target = rest.partition("/")
    port = authority.rpartition(":")[2]
    where = host(row) + (f":{port}" if port.isdecimal() and not authority.endswith("]") else "")
    return f"{scheme}://{where}/{quote(target, safe=_SAFE_IN_PATH + '?')}"


def host(row: Row) -> str:
    """As it may stand in a URL: a mark of what was masked, and what no host may hold, is dashed."""
    name = str(row["host"] or "")
    try:
        return f"[{ipaddress.IPv6Address(name)}]"
    except ValueError:
        return _NO_HOST.sub("-", name).strip("-.") or "unknown.invalid"


def path(row: Row) -> str:
    text = quote(str(row["path"] or ""), safe=_SAFE_IN_PATH)
    return text if text.startswith("/") else f"/{text}"


def phrase(status: int | None) -> str:
    try:
        return HTTPStatus(status or 0).phrase
    except ValueError:
        return ""
