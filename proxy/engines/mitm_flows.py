"""Calls of the ledger as a flow file of mitmproxy: `mitmproxy -nr FILE` opens it.

Heads only, as far as the ledger knows them: bodies are missing, not empty, and mitmproxy says so.
"""

import io
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any

from mitmproxy import connection, flow, http
from mitmproxy.io import FlowWriter

from proxy import exports

Row = dict[str, Any]

_PORT = 443


def flows(rows: Iterable[Row]) -> Iterator[bytes]:
    """One flow at a time, in the form of this version of mitmproxy."""
    buffer = io.BytesIO()
    writer = FlowWriter(buffer)
    for row in rows:
        writer.add(_flow(row))
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _flow(row: Row) -> http.HTTPFlow:
    started = datetime.fromisoformat(row["at"]).timestamp()
    ended = started + (row["latency_ms"] or 0.0) / 1_000
    made = http.HTTPFlow(
        connection.Client(peername=("", 0), sockname=("", 0), timestamp_start=started),
        connection.Server(address=(exports.host(row), _PORT), tls=True),
    )
    made.id = row["id"]
    made.timestamp_created = started
    made.request = _request(row, started)
    if row["status"]:
        made.response = _response(row, started, ended)
    else:
        made.error = flow.Error(f"{row['state']}: {row['reason']}", ended)
    made.comment = f"{row['decision']}: {row['reason']}; {row['state']}; run {row['run']}"
    made.metadata = {name: value for name, value in row.items() if value is not None}
    return made


def _request(row: Row, started: float) -> http.Request:
    host = exports.host(row)
    return http.Request(
        host=host.strip("[]"),
        port=_PORT,
        method=str(row["method"] or "").encode(),
        scheme=b"https",
        authority=host.encode(),
        path=exports.path(row).encode(),
        http_version=b"HTTP/1.1",
        headers=http.Headers(((b"host", host.encode()),)),
        content=None,
        trailers=None,
        timestamp_start=started,
        timestamp_end=started,
    )


def _response(row: Row, started: float, ended: float) -> http.Response:
    return http.Response(
        http_version=b"HTTP/1.1",
        status_code=row["status"],
        reason=exports.phrase(row["status"]).encode(),
        headers=http.Headers(),
        content=None,
        trailers=None,
        timestamp_start=started,
        timestamp_end=ended,
    )
