"""The recorded answers of an incident: taken out of the trace, and given again to an agent under
test, as plain HTTP on an address of its own. Nothing here reaches an upstream.

An agent is led here by its base URL, or by HTTP_PROXY for `http://` URLs.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from ledger.filters import Filter
from ledger.queries import calls
from ledger.sqlite import sqlite3
from ledger.traced import Side
from policies.verdict import Action
from proxy.exports import plain_headers, url
from proxy.traces import Shown

Answer = dict[str, Any]
"""Method, host, path with its query, the digest of the request's body, and the answer."""

ANSWERS_BYTES_MAX = 32 << 20  # of all bodies that are exported
REQUEST_BYTES_MAX = 16 << 20  # of one that an agent under test sends
ENDPOINTS_SHOWN_MAX = 20
STOP_SECONDS = 0.2

_BODILESS = frozenset({204, 304})
_NOT_KEPT = frozenset(
    {"connection", "date", "idempotent-replayed", "keep-alive", "server", "trailer", "upgrade"}
)

_FRAMING = frozenset({"connection", "content-encoding", "content-length", "transfer-encoding"})


def recorded(
    reader: sqlite3.Connection, call_ids: Iterable[str], traced: Callable[[Any], Shown]
) -> list[Answer]:
    """What these calls were answered, in their order, as far as the trace has it."""
    found, size = [], 0
    for call_id in call_ids:
        row = next(calls(reader, Filter("id = ?", (call_id,)), 1), None)
        shown = Shown() if row is None else traced(row)
        asked, said = shown.of(Side.REQUEST), shown.of(Side.RESPONSE)
        if row is None or row["decision"] == Action.REFUSE:
            continue  # what pullcord said, no service did
        if said is None or said.text is None or not row["status"]:
            continue
        size += len(said.text)
        if size > ANSWERS_BYTES_MAX:
            break
        where = urlsplit(url(row, asked))
        found.append(
            {
                "call": row["id"],
                "method": row["method"],
                "host": where.hostname or "",
                "path": _target(where.path, where.query),
                "body": digest((asked.text or "") if asked else ""),
                "status": row["status"],
                "headers": [
                    [name.decode(), value.decode()]
                    for name, value in plain_headers(said)
                    if name.decode().lower() not in _NOT_KEPT
                    and not name.lower().startswith(b"pullcord-")
                ],
                "text": said.text,
            }
        )
    return found


def digest(text: str) -> str:
    """Of a body: equal JSON is equal, however it is written."""
    try:
        text = json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))
    except (ValueError, RecursionError):
        pass  # it is no JSON, and stands for itself
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(slots=True)
class Answers:
    """Which answer is next: that of the same request; else the next of its endpoint. The last one
    is given again and again, as to a loop."""

    recorded: list[Answer]
    _same: dict[tuple[str, ...], list[Answer]] = field(default_factory=dict)
    _next: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for one in self.recorded:
            for key in _keys(one["method"], one["host"], one["path"], one["body"]):
                self._same.setdefault(key, []).append(one)

    def to(self, method: str, host: str, path: str, body: str) -> Answer | None:
        """`host` is empty where the request does not name the service it means. None where nothing
        like it was recorded."""
        for key in _keys(method, host, path, digest(body)):
            found = self._same.get(key)
            if found is not None:
                place = self._next.get(id(found), 0)
                self._next[id(found)] = place + 1
                return found[min(place, len(found) - 1)]
        return None

    def endpoints(self) -> list[str]:
        told = (f"{one['method']} {one['host']}{one['path']}" for one in self.recorded)
        return list(dict.fromkeys(told))[:ENDPOINTS_SHOWN_MAX]


def _keys(method: str, host: str, path: str, body: str) -> list[tuple[str, ...]]:
    """From the closest likeness to the farthest; for a request that names no host, those of any."""
    plain = path.partition("?")[0]
    likeness = ((method, path, body), (method, plain, body), (method, path), (method, plain))
    hosts = [host, ""] if host else [""]
    return list(dict.fromkeys((one, *like) for one in hosts for like in likeness))


def _is_sent(name: str, value: str) -> bool:
    """Of a file that anybody may have written: what frames the answer is said anew."""
    is_clean = all(char.isprintable() or char == "\t" for char in f"{name}{value}")
    return is_clean and name.isascii() and name != "" and name.lower() not in _FRAMING


def _target(path: str, query: str) -> str:
    return f"{path or '/'}{f'?{query}' if query else ''}"


class Origin:
    """Answers on one address. `told` hears of each request: what it was, and its status."""

    def __init__(self, recorded: list[Answer], told: Callable[[str, int], None]) -> None:
        self._answers = Answers(recorded)
        self._told = told
        server = web.Server(self._answer, access_log=None)
        self._runner = web.ServerRunner(server, shutdown_timeout=STOP_SECONDS)

    async def start(self, host: str, port: int) -> str:
        """Where it listens. Raises OSError."""
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        listening = self._runner.addresses[0]
        name = f"[{listening[0]}]" if ":" in listening[0] else listening[0]
        return f"{name}:{listening[1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = bytearray()
        async for piece in request.content.iter_any():
            body += piece
            if len(body) > REQUEST_BYTES_MAX:
                return self._refused(request, 413, "its body is too large")
        if request.method == "CONNECT":
            return self._refused(request, 501, "no TLS here: give the agent an http:// base URL")
        is_whole = request.raw_path.startswith(("http://", "https://"))  # as a proxy is asked
        host = (request.url.host or "") if is_whole else ""
        path = _target(request.url.raw_path, request.url.raw_query_string)
        found = self._answers.to(request.method, host, path, body.decode("utf-8", "replace"))
        if found is None:
            return self._refused(request, 404, "nothing like it was recorded in this incident")
        self._told(f"{request.method} {host}{path}", found["status"])
        has_body = request.method != "HEAD" and found["status"] not in _BODILESS
        return web.Response(
            status=found["status"],
            headers=[(name, value) for name, value in found["headers"] if _is_sent(name, value)],
            body=found["text"].encode("utf-8", "replace") if has_body else None,
        )

    def _refused(self, request: web.BaseRequest, status: int, why: str) -> web.StreamResponse:
        asked = f"{request.method} {request.raw_path}"
        self._told(asked, status)
        error = {"message": why, "type": "not_recorded", "code": "not_recorded"}
        told: Mapping[str, Any] = {
            "error": error, "message": why, "asked": asked, "recorded": self._answers.endpoints()
        }  # fmt: skip
        return web.json_response(told, status=status)
