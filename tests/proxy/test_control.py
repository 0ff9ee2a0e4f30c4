"""The control API over a real Unix socket, with a real store, decider and gate behind it."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from ledger.store import Store
from policies.call import Request
from policies.load import load
from policies.policy import Policy
from policies.verdict import Level, Pull, Scope
from proxy import control, operations
from proxy.control_client import SOCKET, Refused, Unreachable, ask
from proxy.control_socket import ControlError, bound, peer_uid, user_name
from proxy.decider import Decider
from proxy.gate import Gate, Live
from proxy.identity import Credentials
from proxy.settings import Settings

NOW_US = 1_800_000_000_000_000
ME = user_name(os.geteuid())

POLICY = """\
version: 1
frozen: [mail.send]
tools:
  mail.send: {match: {host: mail.example, method: POST}, effect: write}
  mail.read: {match: {host: mail.example, method: GET}, effect: read}
"""


@dataclass
class FakeClock:
    us: int = NOW_US

    def now_us(self) -> int:
        return self.us

    def monotonic_seconds(self) -> float:
        return self.us / 1e6


@dataclass
class Running:
    """A service without an engine; `cut` collects what an engine would have closed."""

    decider: Decider
    gate: Gate
    settings: Settings
    clock: FakeClock
    started_us: int = NOW_US
    listening: str | None = "127.0.0.1:8640"
    policy_error: str | None = None
    cut_calls: list[str] = field(default_factory=list)

    def sweep(self) -> int:
        return self.gate.sweep()

    def cut(self, calls: Iterable[Live], reason: str) -> None:
        self.cut_calls += [f"{live.identity.run} {reason}" for live in calls]

    async def called(self, run: str) -> Live:
        """A read of `run` that was let through and has not ended."""
        request = Request("GET", "https", "mail.example", 443, "/inbox")
        live = await self.gate.ask(request, Credentials(run, "acme"), self)
        assert isinstance(live, Live)
        return live


@pytest.fixture
def policy() -> Policy:
    return load(POLICY, "config/policy.yaml")


@pytest.fixture
async def service(tmp_path: Path, policy: Policy) -> AsyncIterator[Running]:
    clock = FakeClock()
    store = Store.open(tmp_path, operations.vault_key(tmp_path), clock.now_us)
    decider = Decider.start(store, policy)
    settings = Settings(config=tmp_path, data=tmp_path, identity="open")
    running = Running(decider, Gate(decider, clock, "open"), settings, clock)
    runner = await control.serve(control.build(running), tmp_path / SOCKET)
    yield running
    await runner.cleanup()
    await decider.stop()
    store.close()


async def asked(service: Running, method: str, path: str, **body: Any) -> Any:
    return await asyncio.to_thread(ask, service.settings.data, method, path, body or None)


async def refused(service: Running, method: str, path: str, **body: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        await asked(service, method, path, **body)
    return caught.value


async def test_a_living_proxy_is_healthy_and_ready(service: Running) -> None:
    assert await asked(service, "GET", "/healthz") == {"ok": True}
    assert await asked(service, "GET", "/readyz") == {"ready": True}


async def test_it_is_not_ready_while_nothing_listens_or_the_policy_is_red(
    service: Running,
) -> None:
    service.listening, service.policy_error = None, "policy.yaml:3:1: unknown key 'tols'"
    error = await refused(service, "GET", "/readyz")
    assert error.status == 503
    assert "the engine does not listen" in str(error)
    assert "policy.yaml:3:1" in str(error)


async def test_it_is_not_ready_when_the_store_fails_and_says_why(service: Running) -> None:
    (service.settings.data / "ledger.db").rename(service.settings.data / "elsewhere.db")
    pull = await refused(service, "POST", "/v1/pull", level="halt", scope="global")
    assert pull.status == 503
    error = await refused(service, "GET", "/readyz")
    assert "the ledger" in str(error)
    state = await asked(service, "GET", "/v1/status")
    assert "the ledger" in state["ledger"]["error"]
    assert await asked(service, "GET", "/healthz") == {"ok": True}


async def test_status_tells_the_policy_the_cords_and_the_calls_in_flight(
    service: Running, policy: Policy
) -> None:
    live = await service.called("r1")
    service.clock.us += 2_500_000
    await asked(service, "POST", "/v1/pull", level="halt", scope="run", subject="r2", reason="x")
    state = await asked(service, "GET", "/v1/status")
    assert state["listening"] == "127.0.0.1:8640"
    assert state["identity"] == "open"
    assert state["up_seconds"] == 2
    assert state["policy"] == {
        "digest": policy.digest,
        "source": "config/policy.yaml",
        "error": None,
    }
    assert [(cord["rule"], cord["reason"]) for cord in state["pulled"]] == [
        ("halt:run:r2", "x"),
        ("freeze:tool:mail.send", "config/policy.yaml:2"),
    ]
    (call,) = state["calls"]
    assert (call["id"], call["run"], call["tool"]) == (live.call_id, "r1", "mail.read")
    assert call["seconds"] == 2.5


async def test_a_halt_cuts_its_own_calls_and_says_how_to_undo_it(service: Running) -> None:
    await service.called("r1")
    await service.called("r1")
    await service.called("r2")
    answer = await asked(
        service, "POST", "/v1/pull", level="halt", scope="run", subject="r1", reason="loops"
    )
    assert answer["cut"] == 2
    assert service.cut_calls == ["r1 halt:run:r1"] * 2
    assert answer["changed"]
    assert answer["undo"] == 'pullcord resume run r1 --reason "..."'
    assert answer["pulled"]["actor"] == ME
    assert service.decider.pulls


async def test_a_freeze_cuts_nothing(service: Running) -> None:
    await service.called("r1")
    answer = await asked(service, "POST", "/v1/pull", level="freeze", scope="global")
    assert (answer["cut"], service.cut_calls) == (0, [])


async def test_a_second_pull_leaves_the_first_standing(service: Running) -> None:
    halt = {"level": "halt", "scope": "tenant", "subject": "acme"}
    await asked(service, "POST", "/v1/pull", **halt, reason="first")
    answer = await asked(service, "POST", "/v1/pull", **halt, reason="second")
    assert not answer["changed"]
    assert answer["pulled"]["reason"] == "first"


async def test_a_release_needs_a_reason_and_gives_the_cord_back(service: Running) -> None:
    halt = {"level": "halt", "scope": "global"}
    await asked(service, "POST", "/v1/pull", **halt, reason="all")
    assert (await refused(service, "POST", "/v1/release", **halt)).status == 400
    assert (await refused(service, "POST", "/v1/release", **halt, reason=" ")).status == 400
    answer = await asked(service, "POST", "/v1/release", **halt, reason="mended")
    assert answer["released"]["reason"] == "all"
    assert answer["still"] is None
    assert service.decider.pulls == {}


async def test_a_release_tells_that_the_policy_still_says_so(service: Running) -> None:
    freeze = {"level": "freeze", "scope": "tool", "subject": "mail.send"}
    await asked(service, "POST", "/v1/pull", **freeze)
    answer = await asked(service, "POST", "/v1/release", **freeze, reason="mended")
    assert answer["still"]["reason"] == "config/policy.yaml:2"
    error = await refused(service, "POST", "/v1/release", **freeze, reason="again")
    assert error.status == 400
    assert "config/policy.yaml:2" in str(error)


async def test_what_is_not_there_is_not_found(service: Running) -> None:
    halt = {"level": "halt", "scope": "tool", "subject": "mail.sent"}
    assert (await refused(service, "POST", "/v1/pull", **halt)).status == 404
    gone = await refused(service, "POST", "/v1/release", **halt, reason="x")
    assert gone.status == 404
    assert (await refused(service, "POST", "/v1/tokens/revoke", name="r9")).status == 404
    assert (await refused(service, "GET", "/v2/status")).status == 404


async def test_an_act_that_is_refused_does_not_fail_the_calls_of_its_batch(
    service: Running,
) -> None:
    held = threading.Event()
    holding = service.decider.act(lambda store: held.wait(30))
    wrong = Pull(Level.HALT, Scope.TOOL, "mail.sent", "", "ada", NOW_US)
    policy = service.decider.policy
    act = control._act(service, lambda store: operations.pull(store, policy, wrong))
    together = asyncio.gather(act, service.called("r1"), return_exceptions=True)
    await asyncio.sleep(0)  # both are queued now, behind the one that is held
    held.set()
    refusal, live = await together
    assert await holding
    assert isinstance(refusal, operations.NotFound)
    assert isinstance(live, Live)


@pytest.mark.parametrize(
    "body, told",
    [
        ({"level": "stop", "scope": "global"}, "level: Input should be 'freeze' or 'halt'"),
        ({"level": "halt", "scope": "planet"}, "scope: Input should be"),
        ({"level": "halt", "scope": "global", "forever": 1}, "forever: Extra inputs are not"),
        ({"scope": "global"}, "level: Field required"),
        ({}, "Invalid JSON"),
    ],
)
async def test_a_body_that_is_not_understood_is_told_by_field(
    service: Running, body: dict[str, Any], told: str
) -> None:
    error = await refused(service, "POST", "/v1/pull", **body)
    assert error.status == 400
    assert told in str(error)


async def test_a_body_that_is_too_large_is_not_read(service: Running) -> None:
    halt = {"level": "halt", "scope": "global", "reason": "x" * 70_000}
    assert (await refused(service, "POST", "/v1/pull", **halt)).status == 413
    assert service.decider.pulls == {}


async def test_a_token_shows_its_secret_once(service: Running) -> None:
    minted = await asked(
        service, "POST", "/v1/tokens", run="r1", tenant="acme", tools=["mail.*"], expires_seconds=60
    )
    assert minted["expires"] == "2027-01-15T08:01:00.000Z"
    (listed,) = (await asked(service, "GET", "/v1/tokens"))["tokens"]
    secret = minted.pop("secret")
    assert listed == minted
    assert secret not in str(listed)
    gone = await asked(service, "POST", "/v1/tokens/revoke", name=minted["id"])
    assert [token["id"] for token in gone["revoked"]] == [minted["id"]]
    (listed,) = (await asked(service, "GET", "/v1/tokens"))["tokens"]
    assert listed["revoked"] == "2027-01-15T08:00:00.000Z"


async def test_a_token_of_another_tenants_run_is_refused(service: Running) -> None:
    await asked(service, "POST", "/v1/tokens", run="r1", tenant="acme")
    error = await refused(service, "POST", "/v1/tokens", run="r1", tenant="umbrella")
    assert error.status == 409


async def test_another_user_is_refused(service: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "peer_uid", lambda _: 4_000_000_000)
    for method, path in (("GET", "/v1/status"), ("POST", "/v1/pull"), ("GET", "/nothing")):
        error = await refused(service, method, path)
        assert error.status == 403
        assert "4000000000" in str(error)
    assert service.decider.pulls == {}


def test_the_peer_is_told_by_the_kernel() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        assert peer_uid(here) == os.geteuid()


def test_a_user_without_a_name_has_a_number() -> None:
    assert user_name(4_000_000_000) == "uid 4000000000"


async def test_only_the_owner_may_open_the_socket(service: Running) -> None:
    assert (service.settings.data / SOCKET).stat().st_mode & 0o777 == 0o600


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET))
    with bound(tmp_path / SOCKET) as listener:
        assert listener.getsockname() == str(tmp_path / SOCKET)


def test_a_socket_that_answers_is_not_taken_over(tmp_path: Path) -> None:
    with bound(tmp_path / SOCKET), pytest.raises(ControlError, match="another pullcord answers"):
        bound(tmp_path / SOCKET)


def test_a_file_in_the_place_of_the_socket_is_kept(tmp_path: Path) -> None:
    (tmp_path / SOCKET).write_text("notes")
    with pytest.raises(ControlError, match="is no socket"):
        bound(tmp_path / SOCKET)
    assert (tmp_path / SOCKET).read_text() == "notes"


def test_a_path_too_long_for_a_socket_is_told(tmp_path: Path) -> None:
    with pytest.raises(ControlError, match="--data"):
        bound(tmp_path / ("x" * 120))


async def test_the_socket_goes_with_its_proxy(tmp_path: Path) -> None:
    runner = await control.serve(web.Application(), tmp_path / SOCKET)
    await runner.cleanup()
    assert not (tmp_path / SOCKET).exists()


def test_nobody_there_is_told_with_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="pullcord up"):
        ask(tmp_path, "GET", "/healthz")
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / SOCKET))
    with pytest.raises(Unreachable, match="pullcord up"):
        ask(tmp_path, "GET", "/healthz")


def test_a_proxy_that_hangs_is_not_waited_for(tmp_path: Path) -> None:
    with bound(tmp_path / SOCKET), pytest.raises(Unreachable, match=r"within 0\.05 seconds"):
        ask(tmp_path, "GET", "/healthz", timeout_seconds=0.05)


def test_something_else_on_the_socket_is_told(tmp_path: Path) -> None:
    listener = bound(tmp_path / SOCKET)

    async def speak() -> None:
        server = await asyncio.start_unix_server(lambda _, writer: writer.close(), sock=listener)
        async with server:
            with pytest.raises(Unreachable, match="cannot be asked"):
                await asyncio.to_thread(ask, tmp_path, "GET", "/healthz")

    asyncio.run(speak())
