"""Calls of the ledger in the formats of other programs. Streams: rows in, text out, one at a time.

Rows are those of `ledger query --json`. Bodies and headers are not recorded, nor the scheme and the
port of a call; what cannot be known is told as such, never made up.
"""

import csv
import io
import ipaddress
import json
import re
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from ledger.queries import CALL_COLUMNS

Row = dict[str, Any]

MISSING = (
    "heads and bodies are not recorded, nor scheme and port: https is assumed; secrets in hosts "
    "and paths are masked"
)

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


def har(rows: Iterable[Row], version: str) -> Iterator[str]:
    """HTTP Archive 1.2 (W3C web performance group's draft). Each entry has what pullcord knows
    beside the exchange in `_pullcord`."""
    head = {"version": "1.2", "creator": {"name": "pullcord", "version": version}}
    comment = json.dumps(MISSING)
    yield json.dumps({"log": head})[:-2] + f', "comment": {comment}, "entries": [\n'
    separator = ""
    for row in rows:
        yield separator + json.dumps(_entry(row), separators=(",", ":"))
        separator = ",\n"
    yield "\n]}}\n"


def _entry(row: Row) -> Row:
    latency_ms = row["latency_ms"] or 0.0
    return {
        "startedDateTime": row["at"],
        "time": latency_ms,
        "request": {
            "method": row["method"],
            "url": url(row),
            "httpVersion": "unknown",
            "cookies": [],
            "headers": [],
            "queryString": [],  # query strings are not recorded
            "headersSize": -1,
            "bodySize": -1,
        },
        "response": _response(row),
        "cache": {},
        "timings": {"send": 0, "wait": latency_ms, "receive": 0},
        "comment": f"{row['decision']}: {row['reason']}; {row['state']}",
        "_pullcord": row,
    }


def _response(row: Row) -> Row:
    """Status 0, as browsers write it, where no answer came."""
    return {
        "status": row["status"] or 0,
        "statusText": phrase(row["status"]),
        "httpVersion": "unknown",
        "cookies": [],
        "headers": [],
        "content": {"size": 0, "mimeType": "x-unknown", "comment": "bodies are not recorded"},
        "redirectURL": "",
        "headersSize": -1,
        "bodySize": -1,
    }


def url(row: Row) -> str:
    """An absolute URL, whatever was written into host and path."""
    return f"https://{host(row)}{path(row)}"


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
