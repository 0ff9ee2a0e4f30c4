"""Who may ask the control API for what: every route, every role, both doors; and who is refused."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledger.store import Grant
from proxy import control_access, operations
from proxy.control import ROUTES
from proxy.control_access import Role, Route
from proxy.control_socket import user_name
from proxy.identity import token_hash
from tests.proxy.controlled import Controlled, controlled

ME = user_name(os.geteuid())
LADDER = ["view", "pull", "release", "admin"]


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        yield made


def test_a_role_covers_those_before_it() -> None:
    assert [role.value for role in Role] == LADDER
    covered = [[str(low) for low in Role if high.covers(low)] for high in Role]
    assert covered == [LADDER[: end + 1] for end in range(4)]


def test_every_route_takes_the_role_that_it_should() -> None:
    """A new route has to be put into this table by hand."""
    told = {f"{route.method} {route.path}": route.role for route in ROUTES}
    assert told == {
        "GET /healthz": None,
        "GET /readyz": None,
        "GET /v1/status": "view",
        "POST /v1/pull": "pull",
        "POST /v1/alertmanager": "pull",
        "POST /v1/release": "release",
        "GET /v1/budgets": "view",
        "POST /v1/budgets/adjust": "admin",
        "POST /v1/budgets/set": "admin",
        "GET /v1/holds": "view",
        "GET /v1/holds/show": "release",
        "POST /v1/holds/approve": "release",
        "POST /v1/holds/reject": "pull",
        "GET /v1/incidents": "view",
        "GET /v1/incidents/show": "view",
        "POST /v1/incidents/open": "pull",
        "POST /v1/incidents/ack": "pull",
        "POST /v1/incidents/note": "pull",
        "POST /v1/incidents/step": "pull",
        "POST /v1/incidents/prove": "release",
        "POST /v1/incidents/notified": "release",
        "POST /v1/incidents/close": "release",
        "POST /v1/incidents/compensate": "release",
        "POST /v1/incidents/canary": "release",
        "POST /v1/incidents/canary/end": "pull",
        "POST /v1/incidents/canary/widen": "release",
        "POST /v1/calls/resolve": "release",
        "POST /v1/prune": "admin",
        "GET /v1/signals": "view",
        "GET /metrics": "view",
        "POST /v1/calls/verify": "release",
        "POST /v1/tokens": "admin",
        "GET /v1/tokens": "admin",
        "POST /v1/tokens/revoke": "admin",
        "POST /v1/operators": "admin",
        "POST /v1/drill": "admin",
        "DELETE /v1/drill": "admin",
        "POST /v1/drill/pull": "admin",
        "POST /v1/drill/release": "admin",
        "POST /v1/drill/result": "admin",
    }


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_each_route_at_the_port_opens_to_its_role_and_those_above(
    running: Controlled, route: Route
) -> None:
    """An empty body is no mistake in who asks: whoever gets so far was let in."""
    status, answer, headers = await running.at_port(route.method, route.path)
    if route.role is None:
        assert status == 200
        return
    assert status == 401
    assert headers["www-authenticate"].startswith("Bearer")
    assert f"the role {route.role}" in answer["error"]
    for role in Role:
        secret = await running.enrolled(role, f"of-{role}")
        status, answer, _ = await running.at_port(route.method, route.path, secret)
        if role.covers(route.role):
            assert status in (200, 400), answer
        else:
            assert status == 403
            assert (
                f"this takes the role {route.role}; operator:of-{role} has {role}"
                == (answer["error"])
            )


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
async def test_each_route_at_the_socket_opens_to_our_user_alone(
    running: Controlled, route: Route, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await running.status(route.method, route.path) in (200, 400)
    monkeypatch.setattr(control_access, "peer_uid", lambda _: 4_000_000_000)
    denied = await running.refused(route.method, route.path)
    assert denied.status == 403
    assert "4000000000" in str(denied)


async def test_root_may_do_what_our_user_may(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_access, "peer_uid", lambda _: 0)
    answer = await running.asked("POST", "/v1/pull", level="halt", scope="global")
    assert answer["pulled"]["actor"] == user_name(0)


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/pull/../status"])
async def test_what_is_no_route_is_told_to_those_alone_who_may_look(
    running: Controlled, path: str
) -> None:
    assert (await running.at_port("GET", path))[0] == 401
    secret = await running.enrolled("view")
    assert (await running.at_port("GET", "/nothing", secret))[0] == 404
    assert (await running.at_port("GET", "/v1/pull", secret))[0] == 405


# ---------------------------------------------------------------------------- tokens


async def test_a_view_token_pulls_nothing(running: Controlled) -> None:
    secret = await running.enrolled("view")
    halt = {"level": "halt", "scope": "global"}
    assert (await running.at_port("POST", "/v1/pull", secret, body=halt))[0] == 403
    assert running.service.decider.pulls == {}


async def test_an_operator_is_recorded_by_name(running: Controlled) -> None:
    secret = await running.enrolled("release", "grace")
    halt = {"level": "halt", "scope": "run", "subject": "r1", "reason": "loops"}
    status, answer, _ = await running.at_port("POST", "/v1/pull", secret, body=halt)
    assert (status, answer["pulled"]["actor"]) == (200, "operator:grace")
    lifted = {**halt, "reason": "mended"}
    assert (await running.at_port("POST", "/v1/release", secret, body=lifted))[0] == 200
    (row,) = running.rows("cord.released")
    assert (row["actor"], row["detail"]) == ("operator:grace", "mended")


async def test_a_token_that_is_revoked_opens_nothing_any_more(running: Controlled) -> None:
    secret = await running.enrolled("admin", "ada")
    assert (await running.at_port("GET", "/v1/status", secret))[0] == 200
    await running.asked("POST", "/v1/tokens/revoke", name="ada")
    assert (await running.at_port("GET", "/v1/status", secret))[0] == 401


async def test_a_runs_token_is_worthless(running: Controlled) -> None:
    act, now_us = running.service.decider.act, running.clock.us
    grant = Grant("r1", "acme")
    minted = await act(lambda store: operations.mint(store, grant, "test", now_us))
    for route in ROUTES:
        if route.role is not None:
            status, told, _ = await running.at_port(route.method, route.path, minted.secret)
            assert status == 401, route
            assert "a run's token opens nothing here" in told["error"]


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "Bearer",
        "Bearer ",
        "Bearer SECRET x",
        "Bearer  SECRETX",
        "Basic SECRET",
        "Digest SECRET",
        "SECRET",
        "Bearer " + "a" * 300,
        "Bearer sécret",
    ],
)
async def test_what_is_no_bearer_token_opens_nothing(running: Controlled, sent: str) -> None:
    secret = await running.enrolled("admin")
    headers = {"Authorization": sent.replace("SECRET", secret)}
    assert (await running.at_port("GET", "/v1/status", headers=headers))[0] == 401


async def test_the_scheme_is_read_in_any_case(running: Controlled) -> None:
    headers = {"Authorization": f"bearer {await running.enrolled('view')}"}
    assert (await running.at_port("GET", "/v1/status", headers=headers))[0] == 200


async def test_a_role_of_another_version_opens_nothing(running: Controlled) -> None:
    hashed = token_hash("secret")
    await running.service.decider.act(
        lambda store: store.enroll("ada", "emperor", hashed, actor="test", at_us=running.clock.us)
    )
    status, answer, _ = await running.at_port("GET", "/v1/status", "secret")
    assert (status, "knows no role 'emperor'" in answer["error"]) == (403, True)


async def test_readiness_tells_its_reasons_to_those_who_may_look(running: Controlled) -> None:
    running.service.listening = None
    assert (await running.at_port("GET", "/readyz"))[:2] == (503, {"ready": False})
    status, answer, _ = await running.at_port("GET", "/readyz", await running.enrolled("view"))
    assert (status, answer["reasons"]) == (503, ["the engine does not listen"])
    assert (await running.at_port("GET", "/readyz", "nonsense"))[0] == 401


async def test_when_the_ledger_fails_nobody_is_known_at_the_port(running: Controlled) -> None:
    secret = await running.enrolled("admin")
    (running.data / "ledger.db").rename(running.data / "elsewhere.db")
    halt = {"level": "halt", "scope": "global"}
    status, answer, _ = await running.at_port("POST", "/v1/pull", secret, body=halt)
    assert (status, "cannot tell who asks" in answer["error"]) == (503, True)
    assert "ledger.db" not in answer["error"]
    assert await running.asked("GET", "/v1/status")


# ---------------------------------------------------------------------------- pages in a browser


async def raw(running: Controlled, head: str) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    writer.write(head.replace("PORT", str(running.port)).encode() + b"\r\n\r\n")
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    return answer


@pytest.mark.parametrize("host", ["127.0.0.1:PORT", "localhost:PORT", "LOCALHOST:PORT"])
async def test_the_host_header_may_name_the_port(running: Controlled, host: str) -> None:
    answer = await raw(running, f"GET /healthz HTTP/1.1\r\nHost: {host}\r\nConnection: close")
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "head",
    [
        "GET /healthz HTTP/1.1\r\nHost: evil.example",
        "GET /healthz HTTP/1.1\r\nHost: evil.example:PORT",
        "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1",
        "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:1",
        "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1.evil.example:PORT",
        "GET /healthz HTTP/1.1\r\nHost: localhost.:PORT",
        "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nHost: evil.example",
        "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:PORT\r\nHost: 127.0.0.1:PORT",
        "GET /healthz HTTP/1.1\r\nHost:",
        "GET /healthz HTTP/1.1\r\nX-A: 1",
        "GET /healthz HTTP/1.0",
        "GET http://127.0.0.1:PORT/healthz HTTP/1.1\r\nHost: 127.0.0.1:PORT",
        "GET http://evil.example/healthz HTTP/1.1\r\nHost: 127.0.0.1:PORT",
        "CONNECT 127.0.0.1:PORT HTTP/1.1\r\nHost: 127.0.0.1:PORT",
        "OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1:PORT",
    ],
)
async def test_what_names_another_place_is_not_answered(running: Controlled, head: str) -> None:
    """DNS rebinding: the page's own name comes in as the host."""
    status = (await raw(running, head + "\r\nConnection: close"))[9:12]
    assert status in (b"421", b"400"), status


@pytest.mark.parametrize(
    "headers, expected",
    [
        ({"Origin": "http://127.0.0.1:PORT"}, 200),
        ({"Origin": "http://localhost:PORT"}, 200),
        ({"Origin": "https://127.0.0.1:PORT"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
    ],
    ids=str,
)
async def test_a_page_of_another_origin_is_refused_whatever_token_it_has(
    running: Controlled, headers: dict[str, str], expected: int
) -> None:
    secret = await running.enrolled("admin")
    sent = {name: text.replace("PORT", str(running.port)) for name, text in headers.items()}
    status, _, told = await running.at_port("GET", "/v1/status", secret, sent)
    assert status == expected
    assert not [name for name in told if name.startswith("access-control-")]


async def test_no_preflight_is_answered(running: Controlled) -> None:
    headers = {"Access-Control-Request-Method": "POST", "Origin": "http://evil.example"}
    status, _, told = await running.at_port("OPTIONS", "/v1/pull", headers=headers)
    assert status == 403
    assert not [name for name in told if name.startswith("access-control-")]


async def test_an_answer_is_kept_nowhere_and_names_no_version(running: Controlled) -> None:
    _, _, headers = await running.at_port("GET", "/v1/status", await running.enrolled("view"))
    assert headers["cache-control"] == "no-store"
    assert headers["server"] == "pullcord"


# ---------------------------------------------------------------------------- the record of it


async def test_who_is_refused_has_a_row_at_once(running: Controlled) -> None:
    secret = await running.enrolled("view", "grace")
    await running.at_port("POST", "/v1/pull", secret)
    await running.at_port("POST", "/v1/pull")
    async with asyncio.timeout(10):
        while len(running.rows("control.refused")) < 2:
            await asyncio.sleep(0.01)
    rows = {row["actor"]: row["detail"] for row in running.rows("control.refused")}
    assert set(rows) == {"operator:grace", "unknown"}
    assert rows["operator:grace"].startswith("403 POST /v1/pull: this takes the role pull")
    assert rows["unknown"].startswith("401 POST /v1/pull: ")
    assert secret not in str(rows)


async def test_a_flood_of_refusals_has_a_row_a_second_with_their_count(tmp_path: Path) -> None:
    loop = asyncio.get_running_loop()
    async with controlled(tmp_path) as running:
        began_seconds = loop.time()
        for _ in range(30):
            await running.at_port("GET", "/v1/status", "guess")
        took_seconds = loop.time() - began_seconds
    rows = running.rows("control.refused")
    counts = [
        int(row["detail"].rpartition(" of ")[2].rstrip(")")) if " of " in row["detail"] else 1
        for row in rows
    ]
    assert sum(counts) == 30
    assert len(rows) <= took_seconds / control_access.ROW_SECONDS + 2


async def test_a_stranger_at_the_socket_has_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with controlled(tmp_path) as running:
        monkeypatch.setattr(control_access, "peer_uid", lambda _: 4_000_000_000)
        await running.refused("POST", "/v1/pull")
    (row,) = running.rows("control.refused")
    assert row["actor"] == "uid 4000000000"


async def test_a_flood_does_not_stand_still_when_the_ledger_fails(tmp_path: Path) -> None:
    async with controlled(tmp_path) as running:
        (running.data / "ledger.db").rename(running.data / "elsewhere.db")
        assert (await running.at_port("POST", "/v1/pull"))[0] == 401
        (running.data / "elsewhere.db").rename(running.data / "ledger.db")
