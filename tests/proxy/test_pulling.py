"""Cords pulled and released through a real decider, store and gate. On the store: _alone.py."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ledger.connection import open_reader
from ledger.errors import LedgerUnavailable
from ledger.records import Worker
from ledger.tokens import Grant
from policies.call import Request
from policies.verdict import Level, Pull, Scope
from proxy import operations, process, pulling
from proxy.gate import Gate
from proxy.identity import Credentials
from proxy.letterbox import post
from proxy.live import Live
from proxy.operations import NotFound, OperationError
from proxy.refuse import Refusal
from tests.proxy.controlled import NOW_US, POLICY, Controlled, controlled

GOOD = "2026-11-20.3"  # the one release that the policy knows as good
RUN = (Level.HALT, Scope.RUN, "r1")


def cord(level: Level, scope: Scope, subject: str = "", **rest: Any) -> Pull:
    return Pull(level, scope, subject, rest.pop("reason", "loops"), "ada", NOW_US, **rest)


HALT_RUN = cord(*RUN)


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        yield made


async def release(running: Controlled, *releases: str, reason: str = "mended") -> dict[str, Any]:
    return await pulling.release(
        running.service, RUN, reason=reason, actor="ada", releases=releases
    )


# ---------------------------------------------------------------------------- pulling


async def test_a_halt_is_acknowledged_and_proven_from_the_record(running: Controlled) -> None:
    calls = [await running.called("r1") for _ in range(2)]
    await running.called("r2")
    answer = await pulling.pull(running.service, HALT_RUN)
    assert (answer["cut"], answer["changed"], answer["killed"]) == (2, True, [])
    assert (answer["acknowledged"], answer["acknowledged_ms"]) == (1, 0)
    assert answer["undo"] == 'pullcord resume run r1 --reason "..."'
    proof = answer["proof"]
    assert sorted(proof.pop("cut")) == sorted(live.call_id for live in calls)
    assert proof == {
        "at": "2027-01-15T08:00:00.000Z",
        "admitted_after": 0,
        "unknown": [],
        "unknown_writes": [],
        "already_done": [],
        "not_sent": 2,
        "still_open": [],
        "known": True,
    }


async def test_a_halt_of_a_tool_of_one_run_cuts_its_calls_alone(running: Controlled) -> None:
    mine = await running.called("r1")
    await running.called("r2")
    wanted = cord(Level.HALT, Scope.TOOL, "r1/mail.read")
    answer = await pulling.pull(running.service, wanted)
    assert running.cut_calls == ["r1 halt:tool:r1/mail.read"]
    assert (answer["cut"], answer["proof"]["cut"]) == (1, [mine.call_id])
    assert (answer["proof"]["admitted_after"], answer["proof"]["known"]) == (0, True)
    read = Request("GET", "https", "mail.example", 443, "/inbox")
    assert isinstance(await running.gate.ask(read, Credentials("r1", "acme"), running), Refusal)
    assert isinstance(await running.gate.ask(read, Credentials("r2", "acme"), running), Live)


async def test_a_throttle_cuts_nothing_and_a_thaw_lifts_it(running: Controlled) -> None:
    await running.called("r1")
    throttle = cord(Level.THROTTLE, Scope.RUN, "r1")
    await running.service.decider.act(lambda store: store.pull(throttle))
    await running.service.fleet.sweep()
    assert running.cut_calls == []
    read = Request("GET", "https", "mail.example", 443, "/inbox")
    asked = [await running.gate.ask(read, Credentials("r1", "acme"), running) for _ in range(8)]
    refused = [each for each in asked if isinstance(each, Refusal)]
    assert [each.status for each in refused] == [429, 429]
    assert dict(refused[0].headers)["retry-after"]
    name = (Level.FREEZE, Scope.RUN, "r1")
    answer = await pulling.release(running.service, name, reason="mended", actor="ada")
    assert answer["released"]["level"] == "throttle"
    assert isinstance(await running.gate.ask(read, Credentials("r1", "acme"), running), Live)


async def test_the_proof_knows_outcomes_that_were_still_to_be_written(running: Controlled) -> None:
    """A read's outcome waits for a commit to share; the proof does not forget it."""

    class Engine:
        async def cut(self, calls: Iterable[Live], reason: str) -> None:
            for live in calls:
                await running.gate.settle(live, status=None, complete=False, error=reason)

    read = Request("GET", "https", "mail.example", 443, "/inbox")
    live = await running.gate.ask(read, Credentials("r1", "acme"), Engine())
    assert isinstance(live, Live)
    answer = await pulling.pull(running.service, HALT_RUN)
    assert (answer["proof"]["cut"], answer["proof"]["still_open"]) == ([live.call_id], [])


async def test_a_call_that_was_done_and_lost_the_rest_of_its_answer_is_no_cut(
    running: Controlled,
) -> None:
    """Nor is one that the engine closed and that the record says another cord ended."""

    class Engine:
        async def cut(self, calls: Iterable[Live], reason: str) -> None:
            for live in calls:
                if live is done:
                    await running.gate.settle(live, status=200, complete=True, error=reason)
                else:
                    await running.gate.settle(live, status=None, complete=False, error="timeout")

    read = Request("GET", "https", "mail.example", 443, "/inbox")
    done, other = [
        await running.gate.ask(read, Credentials("r1", "acme"), Engine()) for _ in range(2)
    ]
    assert isinstance(done, Live)
    assert isinstance(other, Live)
    done.sent = other.sent = True
    answer = await pulling.pull(running.service, HALT_RUN)
    assert answer["proof"]["already_done"] == [done.call_id]
    assert (answer["cut"], answer["proof"]["cut"]) == (0, [])


async def test_a_time_that_is_shorter_than_what_stands_is_said(running: Controlled) -> None:
    hour = replace(HALT_RUN, until_us=NOW_US + 3_600_000_000)
    told = [
        (await pulling.pull(running.service, each))["stands_longer"]
        for each in (hour, replace(hour, until_us=NOW_US + 1), hour, HALT_RUN, hour)
    ]
    assert told == [False, True, False, False, True]


async def test_a_repeat_changes_nothing_and_sweeps_again(running: Controlled) -> None:
    await pulling.pull(running.service, HALT_RUN)
    running.clock.us += 1_000_000
    again = await pulling.pull(running.service, replace(HALT_RUN, at_us=running.clock.us))
    assert (again["changed"], again["cut"], again["acknowledged"]) == (False, 0, 1)
    assert (again["pulled"]["at"], again["proof"]["at"]) == ("2027-01-15T08:00:00.000Z",) * 2


async def test_a_pull_without_a_reason_keeps_the_one_that_was_given(running: Controlled) -> None:
    await pulling.pull(running.service, replace(HALT_RUN, until_us=NOW_US + 1))
    answer = await pulling.pull(running.service, replace(HALT_RUN, reason=""))
    assert (answer["changed"], answer["pulled"]["until"]) == (True, None)
    assert answer["pulled"]["reason"] == "loops"


async def test_what_an_engine_did_not_close_is_told_as_open(running: Controlled) -> None:
    live = await running.called("r1")
    running.gate.live.pop(live.call_id)  # as if the engine had lost it
    answer = await pulling.pull(running.service, HALT_RUN)
    assert answer["proof"]["still_open"] == [live.call_id]


async def test_a_freeze_cuts_nothing_and_tells_which_writes_go_on(running: Controlled) -> None:
    send = Request("POST", "https", "other.example", 443, "/", body=b"x")
    await running.called("r1")
    answer = await pulling.pull(running.service, cord(Level.FREEZE, Scope.TENANT, "acme"))
    assert (answer["cut"], answer["proof"]["still_open"]) == (0, [])
    refused = await running.gate.ask(send, Credentials("r1", "acme"), running)
    assert isinstance(refused, Refusal)


async def test_a_pull_that_cannot_be_stored_raises(running: Controlled) -> None:
    (running.data / "ledger.db").rename(running.data / "elsewhere.db")
    with pytest.raises(LedgerUnavailable):
        await pulling.pull(running.service, HALT_RUN)


async def test_a_cord_that_ends_by_time_is_lifted_then(running: Controlled) -> None:
    watching = asyncio.create_task(running.service.watch())
    try:
        await pulling.pull(running.service, replace(HALT_RUN, until_us=NOW_US + 60_000_000))
        await asyncio.sleep(0.6)
        assert running.service.decider.pulls
        running.clock.us += 60_000_000
        async with asyncio.timeout(5):
            while running.service.decider.pulls:
                await asyncio.sleep(0.05)
    finally:
        watching.cancel()
    (row,) = running.rows("cord.released")
    assert (row["rule"], row["actor"]) == ("halt:run:r1", "pullcord")


async def test_a_cord_that_would_have_ended_is_not_pulled(running: Controlled) -> None:
    with pytest.raises(OperationError, match="ended already"):
        await pulling.pull(running.service, replace(HALT_RUN, until_us=NOW_US))


# ---------------------------------------------------------------------------- releasing


async def test_a_release_tells_what_still_stands(running: Controlled) -> None:
    await pulling.pull(running.service, HALT_RUN)
    await pulling.pull(running.service, cord(Level.HALT, Scope.GLOBAL))
    answer = await release(running)
    assert answer["released"]["rule"] == "halt:run:r1"
    assert [each["rule"] for each in answer["standing"]] == ["halt:global", "freeze:tool:mail.send"]
    assert (answer["still"], answer["narrowed_to"], "warning" in answer) == (None, [], False)


async def test_a_resume_is_narrowed_to_known_good_releases_only(running: Controlled) -> None:
    await pulling.pull(running.service, HALT_RUN)
    with pytest.raises(OperationError, match=r"known_good \(there: 2026-11-20\.3\)"):
        await release(running, GOOD, "2026-11-21.1")
    assert running.service.decider.pulls == {RUN: HALT_RUN}
    answer = await release(running, GOOD)
    assert answer["narrowed_to"] == [GOOD]
    assert running.service.decider.pulls[RUN].but_releases == (GOOD,)
    with pytest.raises(NotFound):
        await pulling.release(
            running.service,
            (Level.HALT, Scope.RUN, "r2"),
            reason="x",
            actor="ada",
            releases=[GOOD],
        )
    with pytest.raises(OperationError, match="lifted whole"):
        await pulling.release(
            running.service,
            (Level.HALT, Scope.RELEASE, "x"),
            reason="x",
            actor="ada",
            releases=[GOOD],
        )


async def test_a_released_cord_is_struck_from_the_file_halt(running: Controlled) -> None:
    post(running.data, HALT_RUN)
    post(running.data, cord(Level.HALT, Scope.TENANT, "acme"))
    answer = await release(running)
    assert "warning" not in answer
    assert "run r1" not in (running.data / "HALT").read_text()
    assert list(running.service.decider.pulls) == [(Level.HALT, Scope.TENANT, "acme")]


async def test_a_file_that_cannot_be_changed_is_warned_of(running: Controlled) -> None:
    await pulling.pull(running.service, cord(Level.HALT, Scope.GLOBAL))
    (running.data / "HALT").mkdir()
    answer = await pulling.release(
        running.service, (Level.HALT, Scope.GLOBAL, ""), reason="mended", actor="ada"
    )
    assert "HALT cannot be changed" in answer["warning"]


# ---------------------------------------------------------------------------- the resume path


class Agents:
    """Runs with tokens, behind a gate that wants them."""

    def __init__(self, running: Controlled) -> None:
        self._running = running
        self.gate = Gate(running.service.decider, running.clock, "token")

    async def minted(self, run: str, parent: str = "", name: str = "") -> Credentials:
        """A new token of a run, for a release."""
        grant = Grant(run, parent=parent, release=name)
        service = self._running.service
        policy = service.decider.policy
        minted = await pulling.acted(
            service, lambda store: operations.mint(store, grant, "ada", NOW_US, policy)
        )
        return Credentials(run, minted.secret)

    async def ask(self, who: Credentials, host: str = "mail.example", path: str = "/") -> Any:
        request = Request("GET", "http", host, 80, path)
        return await self.gate.ask(request, who, self._running)

    async def is_let_through(self, who: Credentials) -> bool:
        return isinstance(await self.ask(who), Live)


async def test_a_halted_run_stays_halted_with_a_new_token_and_so_does_its_child(
    running: Controlled,
) -> None:
    agents = Agents(running)
    before = await agents.minted("r1")
    assert await agents.is_let_through(before)
    await pulling.pull(running.service, HALT_RUN)
    restarted = await agents.minted("r1")
    child = await agents.minted("r1-child", parent="r1")
    grandchild = await agents.minted("r1-child-2", parent="r1-child")
    other = await agents.minted("r2")
    told = [
        await agents.is_let_through(who) for who in (before, restarted, child, grandchild, other)
    ]
    assert told == [False, False, False, False, True]


async def test_a_narrowed_resume_brings_back_the_known_good_release_alone(
    running: Controlled,
) -> None:
    agents = Agents(running)
    await pulling.pull(running.service, HALT_RUN)
    await release(running, GOOD)
    unstamped = await agents.minted("r1")
    child = await agents.minted("r9", parent="r1")
    good, bad = await agents.minted("r1", name=GOOD), await agents.minted("r1", name="2026-11-21.1")
    told = [await agents.is_let_through(who) for who in (good, bad, unstamped, child)]
    assert told == [True, False, False, False]


async def test_a_run_is_told_the_truth_about_a_narrowed_halt(running: Controlled) -> None:
    agents = Agents(running)
    await pulling.pull(running.service, HALT_RUN)
    await release(running, GOOD)

    async def own(name: str) -> dict[str, Any]:
        who = await agents.minted("r1", name=name)
        view = await agents.ask(who, host="pullcord.invalid", path="/self")
        told: dict[str, Any] = json.loads(view.body)
        return told

    good, bad = await own(GOOD), await own("2026-11-21.1")
    assert (good["halted"], good["pulled"]) == (False, [])
    assert (bad["halted"], bad["pulled"]) == (True, [{"rule": "halt:run:r1", "reason": "loops"}])


async def test_a_denial_says_once_not_to_try_again_and_retries_charge_no_ceiling(
    tmp_path: Path,
) -> None:
    policy = POLICY + "ceilings: [{per: run, count: calls, at_most: 3, within: 1h}]\n"
    async with controlled(tmp_path, policy) as running:
        agents = Agents(running)
        who = await agents.minted("r1")
        await pulling.pull(running.service, HALT_RUN)
        for _ in range(10):
            refused = await agents.ask(who)
            told = json.loads(refused.body)["message"]
            assert (refused.status, told.count("Do not retry")) == (403, 1)
            assert "pullcord resume run r1" in told
        await release(running)
        passed = [await agents.is_let_through(who) for _ in range(4)]
        assert passed == [True, True, True, False]


# ---------------------------------------------------------------------------- the record


async def test_a_preview_counts_the_runs_and_the_calls_in_flight(running: Controlled) -> None:
    await running.called("r1")
    await running.called("r2")
    await running.service.decider.act(lambda _: None)
    with closing(open_reader(running.data)) as reader:
        halt = pulling.preview(reader, *RUN, NOW_US)
        everything = pulling.preview(reader, Level.HALT, Scope.GLOBAL, "", NOW_US)
    assert (halt["runs"], halt["calls"], halt["writes"]) == (["r1"], 1, 0)
    assert (everything["runs"], everything["calls"]) == (["r1", "r2"], 2)


def test_this_process_is_told_by_its_start_time_too() -> None:
    """What `killed` rests on: a number alone may be another's by now."""
    here = Worker("w", os.getpid(), process.started(os.getpid()), NOW_US)
    assert process.lives(here)
    assert not process.lives(replace(here, started="1"))
