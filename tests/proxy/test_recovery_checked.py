"""What `pullcord incident recover` looks at before it does anything and meanwhile: a canary that is
open or was ended, what can be none, a recovery beside another, a proxy that is slow.
"""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest

from ledger.records import Ask
from ledger.states import CallState, ClaimAfter
from ledger.store import Outcome, Store
from ledger.tokens import Grant
from policies.call import Effect, Identity, Request, ToolCall
from policies.decide import decide
from policies.verdict import Pull, Reason
from proxy import recovering
from proxy.cli.hand import Hand
from proxy.fate import State
from proxy.recovering import Plan, Ran
from proxy.recovery import Recovery
from tests.ledger.findings import ALERT
from tests.proxy.controlled import Controlled
from tests.proxy.test_control_incidents import found
from tests.proxy.test_fate import FREEZE, HALT, STOP, running, watched
from tests.proxy.test_recovering import GOOD, beside, config, rolls_back
from tests.proxy.test_recovery import called, halts, recovered, the_id

__all__ = ["config", "running"]


async def admitted(running: Controlled, name: str, tool: str, status: int = 0) -> Reason:
    """A read of run r1, which ends with this status; without one it does not end."""

    def act(store: Store) -> Reason:
        at_us, policy = running.clock.us, running.service.decider.policy
        request = Request("GET", "https", "mail.example", 443, "/inbox")
        call = ToolCall(tool, Effect.READ, "GET /inbox", name.encode() * 32)
        who = Identity("r1", "acme", release=GOOD, tools=("mail.*",))
        reason = store.admit(Ask(name, at_us, who, request, call), policy, decide).verdict.reason
        if status:
            ended = CallState.DONE, ClaimAfter.KEPT, status, 5, b"r" * 32, 1, None, ""
            store.settle(Outcome(name, at_us, *ended), policy)
        return reason

    return await running.service.decider.act(act)


# ---------------------------------------------------------------------------------- a canary before


async def test_without_a_canary_one_that_fares_badly_is_ended_all_the_same(
    running: Controlled,
) -> None:
    words = await watched(running)
    await found(running, ALERT, detector="burn", release=GOOD, call="a")
    assert "detector:burn of run r1" in await beside(words[0], "--dry-run")
    out = await beside(words[0], "--reason", "x", code=3)
    assert "THE CANARY FAILED: detector:burn of run r1: it goes round" in out
    assert halts(running)[HALT] == halts(running)[FREEZE] == ((), None)
    assert running.rows("incident.step") == []


async def test_without_a_canary_one_over_which_a_cord_is_pulled_is_ended_all_the_same(
    running: Controlled,
) -> None:
    words = await watched(running)
    running.clock.us += 1_000
    await running.asked(
        "POST", "/v1/pull", level="halt", scope="release", subject=GOOD, reason="bad, too"
    )
    assert halts(running)[HALT] == ((), ("r1",))
    out = await beside(words[0], "--reason", "x", code=3)
    assert f"THE CANARY FAILED: halt:release:{GOOD} was pulled over run r1" in out
    assert halts(running)[HALT] == halts(running)[FREEZE] == ((), None)


async def test_the_plan_tells_of_the_canary_that_was_ended_until_something_follows(
    running: Controlled,
) -> None:
    words = await watched(running)
    await found(running, ALERT, detector="burn", release=GOOD, call="a")
    await beside(*words, code=3)
    told = "nobody goes first any more: detector:burn of run r1: it goes round"
    assert f"before    {told}" in await beside(words[0], "--reason", "x", "--dry-run")
    plan = json.loads((await beside(words[0], "--dry-run", "--json")).splitlines()[-1])
    assert plan["canary_ended"].startswith(told)
    await beside(words[0], "--reason", "mended")
    plan = json.loads((await beside(words[0], "--dry-run", "--json")).splitlines()[-1])
    assert plan["canary_ended"] is None


async def test_calls_that_still_run_are_told(running: Controlled) -> None:
    words = (await the_id(running), "--canary", "1", "--watch", "0", "--reason", "mended")
    await beside(*words, code=10)
    assert await admitted(running, "a", "mail.read") is Reason.ALLOWED
    out = await beside(*words, code=10)
    assert "1 call, 0 writes, 0 done, 1 not ended" in out
    assert "it stays at the canary: 1 call of it has not ended yet" in out
    plan = json.loads((await beside(words[0], "--dry-run", "--json")).splitlines()[-1])
    assert plan["fares"]["pending"] == 1


async def test_what_is_in_doubt_for_good_says_so_at_once(running: Controlled, config: Path) -> None:
    async def refused() -> None:
        assert await admitted(running, "a", "mail.read", 200) is Reason.ALLOWED
        assert await admitted(running, "b", "no.such") is not Reason.ALLOWED

    came = await recovered(running, config, refused, seconds=3_600)
    assert (came.fate.state, bool(came.course.refused)) == (State.STAYS, True)
    words = (await the_id(running), "--canary", "1", "--watch", "0", "--reason", "mended")
    out = await beside(*words, code=10)
    assert "that stays so; to begin anew: pullcord freeze tenant acme; pullcord halt" in out
    assert "to watch on" not in out


async def test_where_its_calls_failed_it_is_not_said_that_they_run(running: Controlled) -> None:
    words = (await the_id(running), "--canary", "1", "--watch", "0", "--reason", "mended")
    await beside(*words, code=10)
    assert await admitted(running, "a", "mail.read", 500) is Reason.ALLOWED
    assert "ended yet" not in await beside(*words, code=10)


# ---------------------------------------------------------------------------------- none can go


@pytest.mark.parametrize(
    "options, why",
    [
        (("--canary", "200"), "between 1 and 100 runs may go first"),
        (("--canary-run", "a b"), "can be no run"),
        (("--canary-run", "other"), "run other was started with release v7, so it can never"),
    ],
)
async def test_what_can_be_no_canary_rolls_nothing_back(
    running: Controlled, config: Path, options: tuple[str, ...], why: str
) -> None:
    rolls_back(config, "print('back')")

    def mint(store: Store) -> None:
        token = b"other".ljust(32, b"_")
        policy, at_us = running.service.decider.policy, running.clock.us
        store.mint(
            Grant("other", "acme", release="v7"), token, actor="ann", at_us=at_us, policy=policy
        )

    await running.service.decider.act(mint)
    out = await beside(await the_id(running), *options, "--watch", "0", "--reason", "x", code=2)
    assert why in out
    assert "| back" not in out
    assert "halt:release:v7" not in halts(running)


async def test_one_past_whose_cord_runs_of_another_incident_go_is_refused_at_once(
    running: Controlled, config: Path
) -> None:
    rolls_back(config, "print('back')")
    other = await running.asked(
        "POST", "/v1/incidents/open", kind="run", name="r0", reason="another"
    )
    cords = [{"level": "halt", "scope": "tenant", "subject": "acme"}]
    body = {"incident": other["id"], "cords": cords, "release": GOOD, "places": 1, "reason": "x"}
    await running.asked("POST", "/v1/incidents/canary", **body)
    one = next(
        each["id"]
        for each in (await running.asked("GET", "/v1/incidents"))["incidents"]
        if each["id"] != other["id"]
    )
    out = await beside(one, "--canary", "1", "--watch", "0", "--reason", "x", code=2)
    assert f"runs go first past {HALT} for incident {other['id']}" in out
    assert "| back" not in out


async def test_a_run_that_nobody_has_started_is_asked_about(running: Controlled) -> None:
    words = (await the_id(running), "--watch", "0", "--reason", "x", "--dry-run")
    assert "has never seen run never-was" in await beside(*words, "--canary-run", "never-was")
    assert "has never seen run" not in await beside(*words, "--canary-run", "r0")


# ---------------------------------------------------------------------------------- the rollback


async def test_beside_another_recovery_nothing_is_done(running: Controlled, config: Path) -> None:
    rolls_back(config, "print('back')")
    one = await the_id(running)
    with recovering.turn(running.data):
        out = await beside(one, "--reason", "x", code=2)
        assert f"another recovery goes on here (pid {os.getpid()})" in out
        assert "onto " in await beside(one, "--dry-run")
    assert halts(running)[HALT] == ((), None)
    assert "| back" in await beside(one, "--reason", "x")


async def test_the_turn_is_held_until_the_rollback_has_ended_and_not_while_it_is_watched(
    running: Controlled, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolls_back(config, "print('back')")
    said: list[str] = []

    def rolled(plan: Plan) -> Ran:
        with pytest.raises(Exception, match="another recovery"), recovering.turn(running.data):
            raise AssertionError
        said.append("held")
        return Ran(0, "back")

    def watch(*_: Any) -> Any:
        with recovering.turn(running.data):
            raise KeyboardInterrupt

    monkeypatch.setattr(recovering, "roll_back", rolled)
    monkeypatch.setattr(Recovery, "watch", watch)
    out = await beside(await the_id(running), "--canary", "1", "--reason", "x", code=10)
    assert "it was not watched to its end" in out
    assert said == ["held"]


async def test_killed_between_two_cords_it_rolls_back_once(
    running: Controlled, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolls_back(config, "print('back')")
    one, resume, seen = await the_id(running), Recovery.resume, list[Pull]()

    def dies(self: Recovery, cord: Pull) -> Any:
        seen.append(cord)
        return resume(self, cord) if len(seen) < 2 else 1 / 0

    with monkeypatch.context() as patched:
        patched.setattr(Recovery, "resume", dies)
        assert "| back" in await beside(one, "--reason", "x", code=1)
    out = await beside(one, "--reason", "x")
    assert "| back" not in out
    assert "the rollback was run already" in out
    assert halts(running)[HALT] == halts(running)[FREEZE] == ((GOOD,), None)


async def test_after_a_canary_that_failed_the_rollback_is_told_the_bad_release_again(
    running: Controlled, config: Path
) -> None:
    rolls_back(config, "import os; print('BAD=[' + os.environ['PULLCORD_BAD_RELEASE'] + ']')")
    words = (await the_id(running), "--canary", "1", "--watch", "0", "--reason", "mended")
    assert "BAD=[v7]" in await beside(*words, code=10)
    assert await called(running, "a") is Reason.ALLOWED
    await running.asked("POST", "/v1/pull", **STOP)
    await beside(*words, code=3)
    assert "BAD=[v7]" in await beside(*words, code=10)


# ---------------------------------------------------------------------------------- meanwhile


async def test_a_proxy_that_misses_one_answer_is_waited_for_and_one_that_is_gone_is_not(
    running: Controlled, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = [True, False, False]

    async def comes() -> None:
        await called(running, "a")

    async def nothing() -> None:
        pass

    monkeypatch.setattr(Hand, "has_proxy", lambda *_: not heard or heard.pop(0))
    came = await recovered(running, config, nothing, nothing, comes)
    assert [cord["rule"] for cord in came.widened] == [HALT, FREEZE]
    await running.asked("POST", "/v1/pull", **STOP)
    heard[:] = [True, *[False] * 9]
    came = await recovered(running, config, *[nothing] * 4, seconds=3_600)
    assert (came.by_proxy, came.fate.state, len(heard)) == (False, State.STAYS, 5)


async def test_no_start_pulls_again_by_the_file_what_lets_more_pass(running: Controlled) -> None:
    file = running.data / "HALT"
    running.clock.us += 1_000
    file.write_text("halt tenant acme  # by hand\nhalt run other\n")
    while "halt:run:other" not in halts(running):
        await asyncio.sleep(0.02)
    await watched(running)
    assert file.read_text() == "halt run other\n"
