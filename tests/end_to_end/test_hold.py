"""Calls held for a person by the running program: by plain HTTP, inside TLS and by HTTP/2, with one
worker and with two. What passes is counted by the upstream.
"""

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from proxy import control_client
from tests.end_to_end import origin
from tests.end_to_end.ingress import Http2
from tests.end_to_end.line import Line, Told
from tests.end_to_end.origin import Origin
from tests.end_to_end.running import Proxy, Run
from tests.engine import each

POLICY = """\
version: 1
tools:
  refunds:
    match: {host: api.origin.example, path: "/refunds/**"}
    allow_addresses: [127.0.0.0/8]
    hold: true
    hold_seconds: 60
  quick:
    match: {host: api.origin.example, path: "/quick/**"}
    allow_addresses: [127.0.0.0/8]
    hold: true
    hold_seconds: 1
  orders:
    match: {host: api.origin.example, path: "/orders/**"}
    allow_addresses: [127.0.0.0/8]
ceilings:
  - {per: tool, tool: orders, count: calls, at_most: 0, then: hold}
"""

WAYS = ("plain", "tls", "http2")
WAIT_SECONDS = 15.0
POLL_SECONDS = 0.05

pytestmark = pytest.mark.slow


@dataclass
class Holding:
    """A proxy whose writes wait, one run of it, and the person."""

    proxy: Proxy
    upstream: Origin
    run: Run
    callers: ThreadPoolExecutor
    closing: ExitStack
    count: int = 0
    lines: dict[int, Line | Http2] = field(default_factory=dict)

    def path(self, tool: str = "refunds") -> str:
        """One that no other test asks for."""
        self.count += 1
        return f"/{tool}/{self.proxy.workers}-{self.count}"

    def ask(
        self, way: str, path: str, body: str | None = "5 USD", method: str = "POST"
    ) -> "Future[Told]":
        """A call on a connection of its own. `lines` has it by the future's id."""
        line = Http2(self.run) if way == "http2" else Line(self.run, tls=way == "tls", seconds=60)
        self.closing.callback(line.close)
        asking = self.callers.submit(line.ask, method, path, body or "")
        self.lines[id(asking)] = line
        return asking

    def leave(self, asking: "Future[Told]") -> None:
        """Its client goes away without waiting. The TLS layer is left out: a thread reads there."""
        socket.socket.shutdown(self.lines[id(asking)].sock, socket.SHUT_RDWR)

    def control(self, method: str, path: str, **body: str) -> Any:
        return control_client.ask(self.proxy.folder / "data", method, path, body or None)

    def tickets(self, path: str) -> list[dict[str, Any]]:
        listed = self.control("GET", "/v1/holds")["holds"]
        return [each for each in listed if each["what"].split()[1] == path]

    def waiting(self, path: str) -> str:
        """The one ticket that waits for this path, once it does."""
        found: list[str] = []

        def came() -> bool:
            waits = [each for each in self.tickets(path) if each["state"] == "waiting"]
            found[:] = [each["ticket"] for each in waits]
            return bool(found)

        until(came)
        (ticket,) = found
        return ticket

    def approve(self, ticket: str) -> None:
        self.control("POST", "/v1/holds/approve", ticket=ticket, reason="looked at it")

    def arrived(self, path: str) -> int:
        return self.upstream.paths().count(path)

    def states(self, path: str) -> list[str]:
        rows = self.proxy.ledger(f"run:{self.run.name}")
        return [row["state"] for row in rows if row["path"] == path]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(POLL_SECONDS)


def reason(asking: "Future[Told]") -> str | None:
    return asking.result(timeout=WAIT_SECONDS).reason


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    with origin.serving(tmp_path_factory.mktemp("origin")) as served:
        yield served


@pytest.fixture(scope="module", params=[1, 2], ids=["1 worker", "2 workers"])
def holding(
    request: pytest.FixtureRequest, upstream: Origin, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Holding]:
    folder = tmp_path_factory.mktemp("proxy")
    proxy = Proxy(folder, POLICY, upstream.ca, upstream.routes, workers=request.param)
    proxy.start()
    with ExitStack() as closing, ThreadPoolExecutor(8) as callers:
        yield Holding(proxy, upstream, proxy.mint("acme"), callers, closing)
    proxy.stop()
    assert proxy.broken() == []


@pytest.mark.parametrize("way", each(WAYS))
def test_an_approval_lets_exactly_that_request_through_once(holding: Holding, way: str) -> None:
    path = holding.path()
    asking = holding.ask(way, path)
    ticket = holding.waiting(path)
    assert holding.arrived(path) == 0
    holding.approve(ticket)
    told = asking.result(timeout=WAIT_SECONDS)
    assert (told.status, told.json["was"]) == (200, "5 USD")
    assert reason(holding.ask(way, path)) == "replayed"
    other = holding.ask(way, path, "6 USD")
    second = holding.waiting(path)
    assert second != ticket
    holding.control("POST", "/v1/holds/reject", ticket=second, reason="too much")
    assert reason(other) == "hold_rejected"
    assert "too much" in other.result().json["message"]
    assert holding.arrived(path) == 1
    assert holding.states(path) == ["done", "replayed", "refused"]


@pytest.mark.parametrize("way", each(WAYS))
def test_nobody_decides(holding: Holding, way: str) -> None:
    path = holding.path("quick")
    asking = holding.ask(way, path)
    assert reason(asking) == "hold_expired"
    assert asking.result().headers["x-should-retry"] == "false"
    assert holding.arrived(path) == 0
    (ticket,) = holding.tickets(path)
    assert ticket["state"] == "expired"


@pytest.mark.parametrize("way", each(WAYS))
def test_a_halt_wins(holding: Holding, way: str) -> None:
    path = holding.path()
    cord = {"level": "halt", "scope": "run", "subject": holding.run.name}
    asking = holding.ask(way, path)
    ticket = holding.waiting(path)
    holding.control("POST", "/v1/pull", **cord)
    assert reason(asking) == "halted"
    holding.approve(ticket)
    assert reason(holding.ask(way, path)) == "halted"
    holding.control("POST", "/v1/release", **cord, reason="it was an exercise")
    assert holding.arrived(path) == 0
    assert reason(holding.ask(way, path)) == "allowed"
    assert holding.arrived(path) == 1


@pytest.mark.parametrize("way", each(WAYS))
def test_a_client_that_left_finds_the_approval_when_it_comes_back(
    holding: Holding, way: str
) -> None:
    path = holding.path()
    asking = holding.ask(way, path)
    ticket = holding.waiting(path)
    holding.leave(asking)
    until(lambda: holding.states(path) == ["not_sent"])
    holding.approve(ticket)
    assert asking.exception(timeout=WAIT_SECONDS) is not None
    assert holding.arrived(path) == 0
    assert reason(holding.ask(way, path)) == "allowed"
    assert holding.arrived(path) == 1
    assert [each["state"] for each in holding.tickets(path)] == ["used"]


@pytest.mark.parametrize("way", each(WAYS))
def test_two_identical_writes_are_one_effect(holding: Holding, way: str) -> None:
    path = holding.path()
    asking = [holding.ask(way, path) for _ in range(2)]
    ticket = holding.waiting(path)
    until(lambda: len(holding.states(path)) == 2)
    holding.approve(ticket)
    assert sorted(str(reason(each)) for each in asking) == ["allowed", "replayed"]
    assert holding.arrived(path) == 1
    assert len(holding.tickets(path)) == 1


@pytest.mark.parametrize("way", each(WAYS))
def test_a_ceiling_holds_reads_too(holding: Holding, way: str) -> None:
    path = holding.path("orders")
    asking = holding.ask(way, path, None, "GET")
    holding.approve(holding.waiting(path))
    assert reason(asking) == "allowed"
    again = holding.ask(way, path, None, "GET")
    ticket = holding.waiting(path)
    holding.control("POST", "/v1/holds/reject", ticket=ticket)
    assert reason(again) == "hold_rejected"
    assert holding.arrived(path) == 1


def test_a_person_types_what_the_screen_says(holding: Holding) -> None:
    path = holding.path()
    asking = holding.ask("tls", path, "amount: 5 \x1b[31m")
    ticket = holding.waiting(path)
    assert "pullcord hold list" in holding.proxy.cli("status")
    lines = holding.proxy.cli("hold", "list", "--json").splitlines()
    assert ticket in [json.loads(line)["ticket"] for line in lines]
    shown = holding.proxy.cli("hold", "show", ticket)
    assert f"POST https://api.origin.example{path}" in shown
    assert "| amount: 5 \\x1b[31m" in shown
    assert "approved" in holding.proxy.cli("hold", "approve", ticket, "--reason", "looked")
    assert reason(asking) == "allowed"
    holding.proxy.cli("hold", "approve", ticket, code=2)
    (call,) = holding.proxy.ledger(f"path:{path}")
    types = [each["type"] for each in _events(holding, call["id"])]
    assert types == [
        *("call.held", "hold.opened", "hold.approved"),
        *("hold.used", "call.intent", "call.outcome"),
    ]


def _events(holding: Holding, call_id: str) -> list[dict[str, Any]]:
    told: dict[str, Any] = json.loads(holding.proxy.cli("ledger", "show", call_id, "--json"))
    events: list[dict[str, Any]] = told["events"]
    return events


def test_no_body_stands_in_the_clear_on_the_disk(holding: Holding) -> None:
    path, secret = holding.path(), "a-word-of-the-body"
    asking = holding.ask("plain", f"{path}?key=a-word-of-the-query", secret)
    ticket = holding.waiting(path)
    data = holding.proxy.folder / "data"
    for file in data.glob("ledger.db*"):
        assert secret.encode() not in file.read_bytes()
        assert b"a-word-of-the-query" not in file.read_bytes()
    assert secret in holding.control("GET", f"/v1/holds/show?ticket={ticket}")["arguments"]["body"]
    holding.control("POST", "/v1/holds/reject", ticket=ticket)
    assert reason(asking) == "hold_rejected"


@pytest.mark.parametrize("workers", [1, 2])
def test_tickets_and_approvals_outlive_a_crash(
    upstream: Origin, tmp_path: Path, workers: int
) -> None:
    """Two starts."""
    proxy = Proxy(tmp_path, POLICY, upstream.ca, upstream.routes, workers=workers)
    proxy.start()
    with ExitStack() as closing, ThreadPoolExecutor(4) as callers:
        holding = Holding(proxy, upstream, proxy.mint("acme"), callers, closing)
        first, second = f"/refunds/crash-{workers}-a", f"/refunds/crash-{workers}-b"
        asking = [holding.ask("plain", path) for path in (first, second)]
        approved, waits = holding.waiting(first), holding.waiting(second)
        holding.leave(asking[0])
        until(lambda: holding.states(first) == ["not_sent"])
        holding.approve(approved)
        proxy.end(signal.SIGKILL)
        proxy.start()
        assert [each.exception(timeout=WAIT_SECONDS) is not None for each in asking] == [True] * 2
        assert reason(holding.ask("plain", first)) == "allowed"
        again = holding.ask("plain", second)
        assert holding.waiting(second) == waits
        holding.approve(waits)
        assert reason(again) == "allowed"
        assert (holding.arrived(first), holding.arrived(second)) == (1, 1)
    proxy.stop()
    assert proxy.broken() == []
