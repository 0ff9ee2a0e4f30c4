"""What `status` is told beside the proxy's own state, also when little can be told."""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ledger.records import Worker
from ledger.states import EventType
from ledger.store import Store
from policies.call import Request
from policies.verdict import Level, Pull, Scope
from proxy import process, pulling, screen, secret_keys
from proxy.identity import Credentials
from proxy.letterbox import post
from proxy.refuse import Refusal
from tests.proxy.controlled import NOW_US, Controlled, controlled

HALT_RUN = Pull(Level.HALT, Scope.RUN, "r1", "loops", "ada", NOW_US)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        yield made


async def test_status_tells_the_fleet_and_what_each_cord_has_refused(running: Controlled) -> None:
    await running.called("r2")
    await pulling.pull(running.service, HALT_RUN)
    for _ in range(3):
        with pytest.raises(AssertionError):
            await running.called("r1")
    state = await screen.status_of(running.service)
    assert state["fleet"] == {
        "runs": 2,
        "calls_per_minute": 4,
        "refused_per_minute": 3,
        "engines": 1,
    }
    assert [(cord["rule"], cord["blocked"], cord["latched"]) for cord in state["pulled"]] == [
        ("halt:run:r1", 3, True),
        ("freeze:tool:mail.send", None, True),
    ]
    assert (state["drill"], state["halt_file"]) == (None, None)
    assert state["clock"] == {"stepped_seconds": 0.0}


async def test_status_tells_how_the_last_drill_ended(running: Controlled) -> None:
    async def drilled(passed: bool, why: str, at_us: int) -> None:
        detail = json.dumps({"passed": passed, "why": why, "levels": []}, separators=(",", ":"))
        await running.service.decider.act(
            lambda store: store.note(EventType.DRILLED, actor="ada", at_us=at_us, detail=detail)
        )

    await drilled(True, "", NOW_US)
    running.clock.us += 90_000_000
    passed = (await screen.status_of(running.service))["drill"]
    assert (passed["passed"], passed["why"], passed["age_seconds"]) == (True, "", 90)
    await drilled(False, "a write arrived", NOW_US + 1)
    failed = (await screen.status_of(running.service))["drill"]
    assert (failed["passed"], failed["why"], failed["actor"]) == (False, "a write arrived", "ada")


async def test_a_store_that_fails_leaves_the_rest_of_the_screen(running: Controlled) -> None:
    await pulling.pull(running.service, HALT_RUN)
    (running.data / "ledger.db").rename(running.data / "elsewhere.db")
    post(running.data, Pull(Level.HALT, Scope.TENANT, "acme", "", "ada", NOW_US))
    await asyncio.sleep(0)
    state = await screen.status_of(running.service)
    assert state["fleet"]["calls_per_minute"] is None
    assert state["limits"]["refused_per_minute"] is None
    assert [(cord["rule"], cord["blocked"], cord["latched"]) for cord in state["pulled"]] == [
        ("halt:tenant:acme", None, False),
        ("halt:run:r1", None, True),
        ("freeze:tool:mail.send", None, True),
    ]
    assert state["halt_file"] == str(running.data / "HALT")


async def test_what_the_file_pulled_is_latched_and_refuses(running: Controlled) -> None:
    (running.data / "HALT").touch()
    read = Request("GET", "https", "mail.example", 443, "/inbox")
    refused = await running.gate.ask(read, Credentials("r1", "acme"), running)
    assert isinstance(refused, Refusal)
    assert refused.status == 403
    (cord, _) = (await screen.status_of(running.service))["pulled"]
    assert (cord["rule"], cord["latched"]) == ("halt:global", True)


async def test_a_cord_on_a_tool_that_the_policy_lost_is_told_as_one_that_stops_nothing(
    running: Controlled,
) -> None:
    def act(store: Store) -> None:
        for tool in ("mail.read", "mail.gone", "unlisted"):
            store.pull(Pull(Level.HALT, Scope.TOOL, tool, "", "ada", NOW_US))

    await running.service.decider.act(act)
    state = await screen.status_of(running.service)
    assert {cord["subject"]: cord["effective"] for cord in state["pulled"]} == {
        "mail.gone": False,
        "mail.read": True,
        "mail.send": True,
        "unlisted": True,
    }
    policy = running.service.decider.policy
    for read, effective in ((policy, False), (None, True)):
        told = screen.status_on_disk(running.data, NOW_US, read)["pulled"]
        assert {c["effective"] for c in told if c["subject"] == "mail.gone"} == {effective}


def test_without_a_ledger_there_is_still_a_screen(tmp_path: Path) -> None:
    state = screen.status_on_disk(tmp_path, NOW_US)
    assert (state["pulled"], state["fleet"]["engines"], state["drill"]) == ([], None, None)
    (tmp_path / "HALT").touch()
    (cord,) = screen.status_on_disk(tmp_path, NOW_US)["pulled"]
    assert (cord["rule"], cord["latched"]) == ("halt:global", False)


def test_engines_that_outlived_their_decider_are_counted(tmp_path: Path) -> None:
    store = Store.open(tmp_path, secret_keys.vault_key(tmp_path), lambda: NOW_US)
    pid = os.getpid()
    store.register(Worker("w1", pid, process.started(pid), NOW_US))
    store.register(Worker("w2", pid, "another start", NOW_US))
    store.close()
    assert screen.status_on_disk(tmp_path, NOW_US)["fleet"]["engines"] == 1
