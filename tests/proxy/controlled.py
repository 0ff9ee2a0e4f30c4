"""A proxy without an engine, with its control API open at both doors, for the tests of that API."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from ledger.connection import open_reader
from ledger.records import Worker
from ledger.states import CallState, ClaimAfter
from ledger.store import Outcome, Store
from policies.call import Request
from proxy import control, control_operators, secret_keys
from proxy.control_access import Role
from proxy.control_client import SOCKET, Refused, ask
from proxy.deciding import PolicyFile, Service
from proxy.fleet import InProcess
from proxy.gate import Gate
from proxy.identity import Credentials
from proxy.live import Live
from proxy.settings import Settings
from tests.ports import free_port

NOW_US = 1_800_000_000_000_000

POLICY = """\
version: 1
frozen: [mail.send]
releases: {known_good: ["2026-11-20.3"]}
tools:
  mail.send: {match: {host: mail.example, method: POST}, effect: write}
  mail.read: {match: {host: mail.example, method: GET}, effect: read}
alerts:
  - {match: {alertname: AgentLoop}, pull: halt, scope: run, label: run}
  - {match: {alertname: BadTool}, pull: freeze, scope: tool, label: tool}
  - {match: {alertname: Burning}, pull: halt, scope: global}
"""


@dataclass
class FakeClock:
    us: int = NOW_US

    def now_us(self) -> int:
        return self.us

    def monotonic_seconds(self) -> float:
        return self.us / 1e6

    def stepped_seconds(self) -> float:
        return 0.0

    def start_after(self, newest_us: int) -> None:
        """This one is trusted."""


@dataclass(eq=False)
class Controlled:
    """`cut_calls` collects what an engine would have closed; `port` is the control port."""

    service: Service
    policy: PolicyFile
    gate: Gate
    clock: FakeClock
    data: Path
    port: int
    cut_calls: list[str] = field(default_factory=list)

    async def cut(self, calls: Iterable[Live], reason: str) -> None:
        closed = list(calls)
        for live in closed:
            self.cut_calls.append(f"{live.identity.run} {reason}")
            self.gate.live.pop(live.call_id)
        for live in closed:
            outcome = Outcome(
                live.call_id,
                self.clock.us,
                CallState.NOT_SENT,
                ClaimAfter.KEPT,
                None,
                0,
                None,
                0,
                None,
                reason,
            )
            await self.service.decider.settle(outcome, durable=True)

    async def called(self, run: str) -> Live:
        """A read of `run` that was let through and has not ended."""
        request = Request("GET", "https", "mail.example", 443, "/inbox")
        live = await self.gate.ask(request, Credentials(run, "acme"), self)
        assert isinstance(live, Live)
        return live

    async def asked(self, method: str, path: str, **body: Any) -> Any:
        """What the socket answers."""
        return await asyncio.to_thread(ask, self.data, method, path, body or None)

    async def refused(self, method: str, path: str, **body: Any) -> Refused:
        try:
            answer = await self.asked(method, path, **body)
        except Refused as refused:
            return refused
        raise AssertionError(answer)

    async def status(self, method: str, path: str) -> int:
        """The status of what the socket answers to an empty body."""
        status, _ = await self.at_socket(method, path)
        return status

    async def at_socket(self, method: str, path: str) -> tuple[int, str]:
        """Status and text of what the socket answers to an empty body."""
        connector = aiohttp.UnixConnector(str(self.data / SOCKET))
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.request(method, f"http://localhost{path}") as answer,
        ):
            return answer.status, await answer.text()

    async def enrolled(self, role: str, name: str = "ada") -> str:
        """The secret of a new operator's token."""
        made = await self.service.decider.act(
            lambda store: control_operators.enroll(store, name, Role(role), "test", self.clock.us)
        )
        return made.secret

    async def at_port(
        self,
        method: str,
        path: str,
        token: str | None = None,
        headers: dict[str, str] | None = None,
        body: Any = None,
    ) -> tuple[int, Any, dict[str, str]]:
        """Status, JSON or text, and headers of what the port answers; headers in lower case."""
        sent = dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        url = f"http://127.0.0.1:{self.port}{path}"
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, headers=sent, json=body) as answer,
        ):
            told = {name.lower(): value for name, value in answer.headers.items()}
            if method == "HEAD":
                return answer.status, None, told
            is_json = answer.content_type == "application/json"
            return answer.status, await (answer.json() if is_json else answer.text()), told

    def rows(self, kind: str) -> list[dict[str, Any]]:
        """The record's rows of one type, oldest first."""
        with closing(open_reader(self.data)) as reader:
            found = reader.execute(
                "SELECT actor, detail, run, tenant, tool, rule FROM event WHERE type = ? "
                "ORDER BY seq",
                (kind,),
            ).fetchall()
        names = ("actor", "detail", "run", "tenant", "tool", "rule")
        return [dict(zip(names, row, strict=True)) for row in found]


@asynccontextmanager
async def controlled(root: Path, policy: str = POLICY) -> AsyncIterator[Controlled]:
    """Until the end of the block, when rows that wait are written."""
    (root / "policy.yaml").write_text(policy, "utf-8")
    clock, port = FakeClock(), free_port()
    data = root / "data"
    store = Store.open(data, secret_keys.vault_key(data), clock.now_us)
    settings = Settings(config=root, data=data, identity="open", control=f"127.0.0.1:{port}")
    file = PolicyFile(settings.policy_file, "keep")
    service = Service(settings, clock, file, store)
    service.listening = "127.0.0.1:8640"
    gate = Gate(service.decider, clock, "open", logs_passing=True)
    await service.fleet.join(InProcess(gate, Worker("w1", 1, "", clock.us)))
    async with AsyncExitStack() as closing_last:
        closing_last.callback(store.close)
        closing_last.push_async_callback(service.decider.stop)
        at_socket = await control.serve(control.build(service), data / SOCKET)
        closing_last.push_async_callback(at_socket.cleanup)
        at_port = await control.serve_port(service, f"127.0.0.1:{port}")
        closing_last.push_async_callback(at_port.cleanup)
        yield Controlled(service, file, gate, clock, data, port)
