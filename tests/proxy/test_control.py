"""The control API over a real Unix socket, with a real store, decider and gate behind it."""

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from policies.verdict import Level, Pull, Scope
from proxy import control, control_access, control_service, operations
from proxy.control_client import SOCKET, Unreachable, ask
from proxy.control_socket import ControlError, bound, peer_uid, user_name
from proxy.live import Live
from tests.proxy.controlled import NOW_US, Controlled, controlled

ME = user_name(os.geteuid())


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        yield made


async def test_a_living_proxy_is_healthy_and_ready(running: Controlled) -> None:
    assert await running.asked("GET", "/healthz") == {"ok": True}
    assert await running.asked("GET", "/readyz") == {"ready": True}


async def test_it_is_not_ready_while_nothing_listens_or_the_policy_is_red(
    running: Controlled,
) -> None:
    running.service.listening = None
    running.policy.path.write_text("version: 1\n\ntols: {}\n")
    assert running.policy.changed() is None
    error = await running.refused("GET", "/readyz")
    assert error.status == 503
    assert "the engine does not listen" in str(error)
    assert "policy.yaml:3:1" in str(error)


async def test_it_is_not_ready_when_the_store_fails_and_says_why(running: Controlled) -> None:
    (running.data / "ledger.db").rename(running.data / "elsewhere.db")
    pull = await running.refused("POST", "/v1/pull", level="halt", scope="global")
    assert pull.status == 503
    error = await running.refused("GET", "/readyz")
    assert "the ledger" in str(error)
    state = await running.asked("GET", "/v1/status")
    assert "the ledger" in state["ledger"]["error"]
    assert await running.asked("GET", "/healthz") == {"ok": True}


async def test_status_tells_the_policy_the_cords_and_the_calls_in_flight(
    running: Controlled,
) -> None:
    live = await running.called("r1")
    running.clock.us += 2_500_000
    await running.asked("POST", "/v1/pull", level="halt", scope="run", subject="r2", reason="x")
    state = await running.asked("GET", "/v1/status")
    assert state["listening"] == "127.0.0.1:8640"
    assert state["identity"] == "open"
    assert state["up_seconds"] == 2
    assert state["policy"] == {
        "digest": running.policy.good.digest,
        "source": str(running.policy.path),
        "error": None,
    }
    assert state["prices"]["date"] == running.service.prices.date
    assert [(cord["rule"], cord["reason"]) for cord in state["pulled"]] == [
        ("halt:run:r2", "x"),
        ("freeze:tool:mail.send", f"{running.policy.path}:2"),
    ]
    (call,) = state["calls"]
    assert (call["id"], call["run"], call["tool"]) == (live.call_id, "r1", "mail.read")
    assert call["seconds"] == 2.5


async def test_a_halt_cuts_its_own_calls_and_says_how_to_undo_it(running: Controlled) -> None:
    await running.called("r1")
    await running.called("r1")
    await running.called("r2")
    answer = await running.asked(
        "POST", "/v1/pull", level="halt", scope="run", subject="r1", reason="loops"
    )
    assert answer["cut"] == 2
    assert running.cut_calls == ["r1 halt:run:r1"] * 2
    assert answer["changed"]
    assert answer["undo"] == 'pullcord resume run r1 --reason "..."'
    assert answer["pulled"]["actor"] == ME
    assert running.service.decider.pulls


async def test_a_freeze_cuts_nothing(running: Controlled) -> None:
    await running.called("r1")
    answer = await running.asked("POST", "/v1/pull", level="freeze", scope="global")
    assert (answer["cut"], running.cut_calls) == (0, [])


async def test_a_second_pull_leaves_the_first_standing(running: Controlled) -> None:
    halt = {"level": "halt", "scope": "tenant", "subject": "acme"}
    await running.asked("POST", "/v1/pull", **halt, reason="first")
    answer = await running.asked("POST", "/v1/pull", **halt, reason="second")
    assert not answer["changed"]
    assert answer["pulled"]["reason"] == "first"


async def test_a_release_needs_a_reason_and_gives_the_cord_back(running: Controlled) -> None:
    halt = {"level": "halt", "scope": "global"}
    await running.asked("POST", "/v1/pull", **halt, reason="all")
    assert (await running.refused("POST", "/v1/release", **halt)).status == 400
    assert (await running.refused("POST", "/v1/release", **halt, reason=" ")).status == 400
    answer = await running.asked("POST", "/v1/release", **halt, reason="mended")
    assert answer["released"]["reason"] == "all"
    assert answer["still"] is None
    assert running.service.decider.pulls == {}


async def test_a_release_tells_that_the_policy_still_says_so(running: Controlled) -> None:
    freeze = {"level": "freeze", "scope": "tool", "subject": "mail.send"}
    await running.asked("POST", "/v1/pull", **freeze)
    answer = await running.asked("POST", "/v1/release", **freeze, reason="mended")
    written = f"{running.policy.path}:2"
    assert answer["still"]["reason"] == written
    error = await running.refused("POST", "/v1/release", **freeze, reason="again")
    assert error.status == 400
    assert written in str(error)


async def test_what_is_not_there_is_not_found(running: Controlled) -> None:
    halt = {"level": "halt", "scope": "tool", "subject": "mail.sent"}
    assert (await running.refused("POST", "/v1/pull", **halt)).status == 404
    gone = await running.refused("POST", "/v1/release", **halt, reason="x")
    assert gone.status == 404
    assert (await running.refused("POST", "/v1/tokens/revoke", name="r9")).status == 404
    unknown = await running.refused("GET", "/v2/status")
    assert (unknown.status, "restart it" in str(unknown)) == (501, True), "a route that is not"


async def test_an_act_that_is_refused_does_not_fail_the_calls_of_its_batch(
    running: Controlled,
) -> None:
    held = threading.Event()
    holding = running.service.decider.act(lambda store: held.wait(30))
    wrong = Pull(Level.HALT, Scope.TOOL, "mail.sent", "", "ada", NOW_US)
    policy = running.service.decider.policy
    act = control_service.act(running.service, lambda store: operations.pull(store, policy, wrong))
    together = asyncio.gather(act, running.called("r1"), return_exceptions=True)
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
    running: Controlled, body: dict[str, Any], told: str
) -> None:
    error = await running.refused("POST", "/v1/pull", **body)
    assert error.status == 400
    assert told in str(error)


async def test_a_body_that_is_too_large_is_not_read(running: Controlled) -> None:
    halt = {"level": "halt", "scope": "global", "reason": "x" * 70_000}
    assert (await running.refused("POST", "/v1/pull", **halt)).status == 413
    assert running.service.decider.pulls == {}


async def test_a_token_shows_its_secret_once(running: Controlled) -> None:
    minted = await running.asked(
        "POST", "/v1/tokens", run="r1", tenant="acme", tools=["mail.*"], expires_seconds=60
    )
    assert minted["expires"] == "2027-01-15T08:01:00.000Z"
    (listed,) = (await running.asked("GET", "/v1/tokens"))["tokens"]
    secret = minted.pop("secret")
    assert listed == minted
    assert secret not in str(listed)
    gone = await running.asked("POST", "/v1/tokens/revoke", name=minted["id"])
    assert [token["id"] for token in gone["revoked"]] == [minted["id"]]
    (listed,) = (await running.asked("GET", "/v1/tokens"))["tokens"]
    assert listed["revoked"] == "2027-01-15T08:00:00.000Z"


async def test_a_token_of_another_tenants_run_is_refused(running: Controlled) -> None:
    await running.asked("POST", "/v1/tokens", run="r1", tenant="acme")
    error = await running.refused("POST", "/v1/tokens", run="r1", tenant="umbrella")
    assert error.status == 409


async def test_another_user_is_refused(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_access, "peer_uid", lambda _: 4_000_000_000)
    for method, path in (("GET", "/v1/status"), ("POST", "/v1/pull"), ("GET", "/nothing")):
        error = await running.refused(method, path)
        assert error.status == 403
        assert "4000000000" in str(error)
    assert running.service.decider.pulls == {}


def test_the_peer_is_told_by_the_kernel() -> None:
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        assert peer_uid(here) == os.geteuid()


def test_a_user_without_a_name_has_a_number() -> None:
    assert user_name(4_000_000_000) == "uid 4000000000"


async def test_only_the_owner_may_open_the_socket(running: Controlled) -> None:
    assert (running.data / SOCKET).stat().st_mode & 0o777 == 0o600


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


async def test_a_data_directory_may_lie_deeper_than_an_address_is_long(tmp_path: Path) -> None:
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()

    async def healthy(_: web.Request) -> web.Response:
        return web.json_response({"ok": True})

    app = web.Application()
    app.router.add_get("/healthz", healthy)
    runner = await control.serve(app, deep / SOCKET)
    assert (deep / SOCKET).stat().st_mode & 0o777 == 0o600
    assert await asyncio.to_thread(ask, deep, "GET", "/healthz") == {"ok": True}
    with pytest.raises(ControlError, match="another pullcord answers"):
        bound(deep / SOCKET)
    await runner.cleanup()
    with pytest.raises(Unreachable, match="pullcord up"):
        ask(deep, "GET", "/healthz")


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


# ---------------------------------------------------------------------------- how far a cord goes


async def test_a_cord_may_end_by_time(running: Controlled) -> None:
    halt = {"level": "halt", "scope": "run", "subject": "r1"}
    answer = await running.asked("POST", "/v1/pull", **halt, for_seconds=1800)
    assert answer["pulled"]["until"] == "2027-01-15T08:30:00.000Z"
    (cord,) = running.service.decider.pulls.values()
    assert cord.until_us == NOW_US + 1_800_000_000


@pytest.mark.parametrize("seconds", [0, -1, 10**12, 1.5, "soon"])
async def test_a_time_that_is_none_pulls_nothing(running: Controlled, seconds: object) -> None:
    halt = {"level": "halt", "scope": "global", "for_seconds": seconds}
    error = await running.refused("POST", "/v1/pull", **halt)
    assert (error.status, str(error).partition(":")[0]) == (400, "for_seconds")
    assert running.service.decider.pulls == {}


async def test_a_dry_run_tells_what_a_cord_would_stop_and_pulls_nothing(
    running: Controlled,
) -> None:
    await running.called("r1")
    halt = {"level": "halt", "scope": "run", "subject": "r1"}
    told = await running.asked("POST", "/v1/pull", **halt, dry_run=True)
    assert (told["scope"], told["subject"], told["calls"]) == ("run", "r1", 1)
    assert running.service.decider.pulls == {}
    assert running.cut_calls == []
    wrong = {"level": "halt", "scope": "tool", "subject": "mail.sent", "dry_run": True}
    assert (await running.refused("POST", "/v1/pull", **wrong)).status == 404


async def test_a_release_may_be_narrowed_to_known_good_releases(running: Controlled) -> None:
    halt = {"level": "halt", "scope": "run", "subject": "r1"}
    await running.asked("POST", "/v1/pull", **halt)
    lift = {**halt, "reason": "mended", "releases": ["2026-11-20.3"]}
    assert (await running.asked("POST", "/v1/release", **lift))["narrowed_to"] == ["2026-11-20.3"]
    (cord,) = running.service.decider.pulls.values()
    assert cord.but_releases == ("2026-11-20.3",)
    unknown = {**lift, "releases": ["2026-11-19.2"]}
    assert (await running.refused("POST", "/v1/release", **unknown)).status == 400
