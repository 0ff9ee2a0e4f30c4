"""Calls of the ledger as a flow file of mitmproxy: `mitmproxy -nr FILE` opens it.

Headers and bodies are the trace's, redacted there. A body that is not known is missing, not empty,
and mitmproxy says so.
"""

import io
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit

from mitmproxy import connection, flow, http, websocket
from mitmproxy.io import FlowWriter
from wsproto.frame_protocol import Opcode

from ledger.traced import Kept, Side
from proxy import exports
from proxy.traces import Shown

Row = dict[str, Any]

_PORTS = {"https": 443, "http": 80}


def flows(rows: Iterable[Row], traced: exports.Traced) -> Iterator[bytes]:
    """One flow at a time, in the form of this version of mitmproxy."""
    buffer = io.BytesIO()
    writer = FlowWriter(buffer)
    for row in rows:
        writer.add(_flow(row, traced(row)))
        yield buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()


def _flow(row: Row, shown: Shown) -> http.HTTPFlow:
    started = datetime.fromisoformat(row["at"]).timestamp()
    ended = started + (row["latency_ms"] or 0.0) / 1_000
    asked = urlsplit(exports.url(row, shown.of(Side.REQUEST)))
    port = asked.port or _PORTS[asked.scheme]
    made = http.HTTPFlow(
        connection.Client(peername=("", 0), sockname=("", 0), timestamp_start=started),
        connection.Server(address=(exports.host(row), port), tls=asked.scheme == "https"),
    )
    made.id = row["id"]
    made.timestamp_created = started
    made.request = _request(row, asked, port, shown.of(Side.REQUEST), started)
    if row["status"]:
        made.response = _response(row, shown.of(Side.RESPONSE), started, ended)
    else:
        made.error = flow.Error(f"{row['state']}: {row['reason']}", ended)
    said = [_message(one) for one in shown.messages if one.side in (Side.UP, Side.DOWN)]
    if said:
        made.websocket = websocket.WebSocketData(said)
    made.comment = f"{row['decision']}: {row['reason']}; {row['state']}; run {row['run']}"
    if shown.note:
        made.comment += f"; {shown.note}"
    made.metadata = {name: value for name, value in row.items() if value is not None}
    return made


def _request(
    row: Row, asked: SplitResult, port: int, kept: Kept | None, started: float
) -> http.Request:
    host = exports.host(row)
    target = asked.path + (f"?{asked.query}" if asked.query else "")
    headers = exports.plain_headers(kept) or [(b"host", host.encode())]
    return http.Request(
        host=host.strip("[]"),
        port=port,
        method=str(row["method"] or "").encode(),
        scheme=asked.scheme.encode(),
        authority=host.encode(),
        path=target.encode(),
        http_version=b"HTTP/1.1",
        headers=http.Headers(headers),
        content=exports.content(kept),
        trailers=None,
        timestamp_start=started,
        timestamp_end=started,
    )


def _response(row: Row, kept: Kept | None, started: float, ended: float) -> http.Response:
    return http.Response(
        http_version=b"HTTP/1.1",
        status_code=row["status"],
        reason=exports.phrase(row["status"]).encode(),
        headers=http.Headers(exports.plain_headers(kept)),
        content=exports.content(kept),
        trailers=None,
        timestamp_start=started,
        timestamp_end=ended,
    )


def _message(kept: Kept) -> websocket.WebSocketMessage:
    from_client, said = kept.side is Side.UP, (kept.text or "").encode()
    return websocket.WebSocketMessage(Opcode.TEXT, from_client, said, kept.at_us / 1e6)
