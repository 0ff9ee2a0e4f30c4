"""The proxy's side of a drill: what it opens, and that it neither stays open nor lifts what is not
its own. The flight itself is in tests/end_to_end/test_drill.py."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ledger.states import EventType
from ledger.store import Store
from policies.call import Request
from policies.policy import CANARY_HOST
from policies.verdict import Level, Pull, Scope
from proxy import drilling
from proxy.drilling import ACTOR, RUN
from proxy.identity import Credentials
from proxy.live import Live
from tests.proxy.controlled import Controlled, controlled

PORT = 31_337
GLOBAL = (Level.HALT, Scope.GLOBAL, "")
FIGURES = {
    "level": "halt", "scope": "run", "return_ms": 9.5, "contain_ms": 1.0, "before": 7, "after": 0,
}  # fmt: skip


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        yield made


async def begun(running: Controlled) -> dict[str, Any]:
    answer: dict[str, Any] = await running.asked("POST", "/v1/drill", port=PORT)
    return answer


async def told(running: Controlled, run: str, secret: str, port: int = PORT) -> str:
    """The reason code of a write to the canary's host."""
    request = Request("POST", "http", CANARY_HOST, port, "/x", (("host", CANARY_HOST),))
    answer = await running.gate.ask(request, Credentials(run, secret), running)
    if isinstance(answer, Live):
        await running.cut([answer], "test")
        return "allowed"
    return json.loads(answer.body)["reason"]


async def standing(running: Controlled) -> list[tuple[str, str]]:
    cords = (await running.asked("GET", "/v1/status"))["pulled"]
    return [(cord["rule"], cord["actor"]) for cord in cords if cord["rule"].startswith("halt")]


# ---- who may fly, and where to


async def test_the_drills_token_reaches_the_registered_port_and_no_other(
    running: Controlled,
) -> None:
    begin = await begun(running)
    assert await told(running, RUN, begin["secret"]) == "allowed"
    for port in (80, PORT + 1, 8640):
        assert await told(running, RUN, begin["secret"], port) == "destination_unlisted"
    await running.asked("DELETE", "/v1/drill")
    assert await told(running, RUN, begin["secret"]) == "destination_unlisted"


@pytest.mark.parametrize(
    "run, secret", [(RUN, "pullcord.drill"), ("r1", "pullcord.drill"), (RUN, "acme")]
)
async def test_in_open_mode_the_drills_names_open_nothing(
    running: Controlled, run: str, secret: str
) -> None:
    await begun(running)
    assert await told(running, run, secret) == "credentials_invalid"


async def test_another_run_may_not_use_the_canary_while_a_drill_runs(running: Controlled) -> None:
    await begun(running)
    assert await told(running, "r1", "acme") == "tool_not_allowed"


@pytest.mark.parametrize("grant", [{"run": RUN}, {"tenant": "pullcord.drill"}, {"parent": RUN}])
async def test_no_token_is_minted_in_the_drills_names(
    running: Controlled, grant: dict[str, str]
) -> None:
    refused = await running.refused("POST", "/v1/tokens", **({"run": "r1"} | grant))
    assert refused.status == 400
    assert "pullcord's own" in str(refused)


async def test_it_takes_an_admin(running: Controlled) -> None:
    token = await running.enrolled("release")
    status, _, _ = await running.at_port("POST", "/v1/drill", token, body={"port": PORT})
    assert status == 403
    assert running.service.decider.canary_port == 0


# ---- its end


async def test_one_drill_at_a_time(running: Controlled) -> None:
    await begun(running)
    assert "another drill runs" in str(await running.refused("POST", "/v1/drill", port=PORT))
    await running.asked("DELETE", "/v1/drill")
    await begun(running)


async def test_a_drill_that_is_left_alone_ends_by_itself(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drilling, "DRILL_SECONDS", 0.2)
    await begun(running)
    await running.asked("POST", "/v1/drill/pull", level="halt", scope="global")
    async with asyncio.timeout(10):
        while running.service.decider.pulls or running.service.decider.canary_port:
            await asyncio.sleep(0.01)


async def test_a_cord_of_the_drill_ends_by_its_time_though_nobody_releases_it(
    running: Controlled,
) -> None:
    await begun(running)
    await running.asked("POST", "/v1/drill/pull", level="halt", scope="global")
    (cord,) = running.service.decider.pulls.values()
    assert cord.until_us == cord.at_us + drilling.CORD_SECONDS * 1_000_000
    refused = await running.refused("POST", "/v1/drill/pull", level="halt", scope="global")
    assert "nothing to prove" in str(refused)


async def test_nothing_is_pulled_or_released_without_a_drill(running: Controlled) -> None:
    for act in ("pull", "release"):
        refused = await running.refused("POST", f"/v1/drill/{act}", level="halt", scope="global")
        assert "no drill runs" in str(refused)
    assert not running.service.decider.pulls


# ---- other people's cords


async def test_what_an_operator_pulled_meanwhile_stays(running: Controlled) -> None:
    await begun(running)
    await running.asked("POST", "/v1/drill/pull", level="halt", scope="global")
    await running.asked("POST", "/v1/pull", level="halt", scope="global", reason="a real one")
    refused = await running.refused("POST", "/v1/drill/release", level="halt", scope="global")
    assert "a real one" in str(running.service.decider.pulls[GLOBAL].reason)
    assert "it stays" in str(refused)
    await running.asked("DELETE", "/v1/drill")
    assert [rule for rule, _ in await standing(running)] == ["halt:global"]


async def test_what_an_operator_pulls_in_the_very_transaction_stays(running: Controlled) -> None:
    await begun(running)
    await running.asked("POST", "/v1/drill/pull", level="halt", scope="global")
    real = Pull(*GLOBAL, "a real one", "ada", running.clock.us)

    def at_once(store: Store) -> None:
        store.pull(real)
        drilling._lift(store, running.clock.us, GLOBAL)

    await running.service.decider.act(at_once)
    assert running.service.decider.pulls[GLOBAL] == real


async def test_there_is_no_drill_while_everything_is_stopped_already(running: Controlled) -> None:
    await running.asked("POST", "/v1/pull", level="freeze", scope="global")
    refused = await running.refused("POST", "/v1/drill", port=PORT)
    assert "nothing to prove" in str(refused)
    assert running.service.decider.canary_port == 0
    await running.asked("POST", "/v1/release", level="freeze", scope="global", reason="over")
    await begun(running)


# ---- how it went


async def test_a_result_is_in_the_ledger_and_in_readyz(running: Controlled) -> None:
    await begun(running)
    await running.asked("POST", "/v1/drill/result", passed=True, levels=[FIGURES])
    await begun(running)
    await running.asked("POST", "/v1/drill/result", passed=False, why="it flew", levels=[FIGURES])
    good, bad = [json.loads(row["detail"]) for row in running.rows(EventType.DRILLED)]
    assert good == {"passed": True, "leaked": False, "why": "", "levels": [FIGURES]}
    assert (bad["passed"], bad["why"]) == (False, "it flew")
    assert "the last drill failed: it flew" in str(await running.refused("GET", "/readyz"))
    assert not running.service.decider.pulls
    await running.asked("POST", "/v1/drill/result", passed=True, levels=[])
    assert await running.asked("GET", "/readyz") == {"ready": True}


async def test_a_canary_that_passes_halts_everything_where_the_setting_says_so(
    running: Controlled,
) -> None:
    leaked = {"passed": False, "leaked": True, "why": "it flew", "levels": []}
    await running.asked("POST", "/v1/drill/result", **leaked)
    assert await standing(running) == []
    running.service.settings = running.service.settings.model_copy(update={"failed_drill": "halt"})
    await running.asked("POST", "/v1/drill/result", **leaked | {"leaked": False})
    assert await standing(running) == []  # it could not fly: nothing got past
    await running.asked("POST", "/v1/drill/result", **leaked)
    assert await standing(running) == [("halt:global", ACTOR)]
    assert "nothing to prove" in str(await running.refused("POST", "/v1/drill", port=PORT))
