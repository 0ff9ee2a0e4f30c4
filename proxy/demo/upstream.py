"""The demo's upstream: payments, issues, an MCP tool and a model API, over TLS on loopback.

It trusts whoever calls: every refund that arrives is made, whatever its idempotency key says. So
what it counted is the proof of what the proxy let through. Nothing here knows the proxy.
"""

import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from proxy.clock import Clock
from proxy.demo import certificates
from proxy.dial import AddrInfo

DOMAIN = "demo.test"  # `test` never resolves anywhere (RFC 6761, section 6.2)
HOSTS = tuple(f"{name}.{DOMAIN}" for name in ("payments", "issues", "tools", "model"))
LOOPBACK = "127.0.0.1"
STOP_SECONDS = 1.0  # no answer of this server takes longer

CHARGES = tuple(f"ch_{number}" for number in range(1001, 1041))
CHARGE_CENTS = 4_900


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request as it arrived: when (UTC microseconds), and with which marks of the proxy."""

    at_us: int
    run: str
    tenant: str
    has_credentials: bool


@dataclass(slots=True)
class Upstream:
    """What arrived and what was done. `refunds` holds the charge of each refund made, in order."""

    clock: Clock
    port: int = 0
    ca_file: Path = Path()
    arrivals: list[Arrival] = field(default_factory=list)
    refunds: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def effects(self) -> int:
        return len(self.refunds) + len(self.notes)

    @property
    def refunded_twice(self) -> list[str]:
        return [charge for charge, times in Counter(self.refunds).items() if times > 1]

    async def resolve(self, host: str, port: int) -> Sequence[AddrInfo]:
        """The names of the demo lead here, as an entry in a hosts file would; no other resolves."""
        if host not in HOSTS:
            raise socket.gaierror(socket.EAI_NONAME, "the demo resolves its own names only")
        stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        return [(socket.AF_INET, *stream, (LOOPBACK, self.port))]

    @web.middleware
    async def record(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        headers = request.headers
        self.arrivals.append(
            Arrival(
                self.clock.now_us(),
                headers.get("X-Run-Id", ""),
                headers.get("X-Tenant-Id", ""),
                "Proxy-Authorization" in headers,
            )
        )
        return await handler(request)

    # Payments

    async def list_charges(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [_charge(name) for name in CHARGES]})

    async def read_charge(self, request: web.Request) -> web.Response:
        return web.json_response(_charge(request.match_info["charge"]))

    async def refund(self, request: web.Request) -> web.Response:
        form = await request.post()
        charge = str(form["charge"])
        self.refunds.append(charge)
        made = {"id": f"re_{len(self.refunds)}", "charge": charge, "status": "pending"}
        return web.json_response(made)

    # Issues, tools, model

    async def list_issues(self, request: web.Request) -> web.Response:
        title = "Customer wants the money of ch_1001 back"
        return web.json_response([{"number": 31, "title": title, "state": "open"}])

    async def call_tool(self, request: web.Request) -> web.Response:
        """MCP, Streamable HTTP: `tools/call` answered as one JSON message."""
        message = await request.json()
        name, arguments = message["params"]["name"], message["params"]["arguments"]
        if name == "tickets.note":
            self.notes.append(str(arguments["text"]))
        content = [{"type": "text", "text": f"{name}: ok"}]
        result = {"content": content, "isError": False}
        return web.json_response({"jsonrpc": "2.0", "id": message["id"], "result": result})

    async def complete(self, request: web.Request) -> web.Response:
        """The chat completions of a model that always says to go on."""
        message = {"role": "assistant", "content": "Go on until the customer has the money."}
        usage = {"prompt_tokens": 60, "completion_tokens": 10, "total_tokens": 70}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return web.json_response(
            {
                "id": "chatcmpl-demo",
                "object": "chat.completion",
                "choices": [choice],
                "model": "demo-1",
                "usage": usage,
            }
        )


def _charge(name: str) -> dict[str, Any]:
    return {"id": name, "amount": CHARGE_CENTS, "currency": "usd", "refunded": False}


@contextlib.asynccontextmanager
async def serving(clock: Clock, directory: Path) -> AsyncIterator[Upstream]:
    """Serve on a free port of loopback. The throw-away authority is written into `directory`."""
    upstream = Upstream(clock)
    upstream.ca_file, chain_file = certificates.write(directory, HOSTS, clock.now_us())
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(chain_file)
    app = web.Application(middlewares=[upstream.record])
    app.router.add_get("/v1/charges", upstream.list_charges)
    app.router.add_get("/v1/charges/{charge}", upstream.read_charge)
    app.router.add_post("/v1/refunds", upstream.refund)
    app.router.add_get("/repos/acme/shop/issues", upstream.list_issues)
    app.router.add_post("/mcp", upstream.call_tool)
    app.router.add_post("/v1/chat/completions", upstream.complete)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=STOP_SECONDS)
    await runner.setup()
    try:
        await web.TCPSite(runner, LOOPBACK, 0, ssl_context=tls).start()
        upstream.port = runner.addresses[0][1]
        yield upstream
    finally:
        await runner.cleanup()
