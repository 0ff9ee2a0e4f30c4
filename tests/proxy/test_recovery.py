"""`pullcord incident recover --canary`: who goes first, how they are watched, what follows; beside
a proxy, and without.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from ledger.connection import open_reader
from ledger.records import Ask
from ledger.states import CallState, ClaimAfter
from ledger.store import Outcome, Store
from ledger.trial_reads import Course, Health
from policies.call import Effect, Identity, Request, ToolCall
from policies.decide import decide
from policies.verdict import Reason
from proxy import recovering
from proxy.cli.hand import Hand
from proxy.recovery import Recovery, Watched
from tests.ledger.findings import ALERT
from tests.proxy.controlled import Controlled, FakeClock, controlled
from tests.proxy.test_control_incidents import found
from tests.proxy.test_recovering import GOOD, beside, config, opened, rolls_back, said

__all__ = ["config"]

RUN = ("halt", "run", "r1")


@pytest.fixture
async def running(tmp_path: Path, config: Path) -> AsyncIterator[Controlled]:
    """With an incident over run r1, of which release v7 did it."""
    async with controlled(tmp_path) as made:
        await found(made, release="v7")
        yield made


async def the_id(running: Controlled) -> str:
    """Of the first incident."""
    return str((await running.asked("GET", "/v1/incidents"))["incidents"][-1]["id"])


async def called(
    running: Controlled,
    name: str,
    run: str = "r1",
    release: str = GOOD,
    fault: Reason | None = None,
) -> Reason:
    """A read as this run, which ends well if it is let through."""

    def act(store: Store) -> Reason:
        at_us = running.clock.us
        request = Request("GET", "https", "mail.example", 443, "/inbox")
        call = ToolCall("mail.read", Effect.READ, "GET /inbox", name.encode() * 32, fault=fault)
        ask = Ask(name, at_us, Identity(run, "acme", release=release), request, call)
        policy = running.service.decider.policy
        reason = store.admit(ask, policy, decide).verdict.reason
        if reason is Reason.ALLOWED:
            ended = Outcome(
                *(name, at_us, CallState.DONE, ClaimAfter.KEPT, 200, 5, b"r" * 32, 1, None, "")
            )
            store.settle(ended, policy)
        return reason

    return await running.service.decider.act(act)


async def recovered(
    running: Controlled,
    config: Path,
    *meanwhile: Callable[[], Any],
    runs: tuple[str, ...] = (),
    seconds: float = 5,
) -> Watched:
    """What comes of one run that goes first, while these things happen, one after each look; the
    clock goes on by a second after each."""
    hand = Hand(running.data, str(config))
    loop, clock, left = asyncio.get_running_loop(), FakeClock(), list(meanwhile)

    def sleep(_: float) -> None:
        clock.us += 1_000_000
        if left:
            asyncio.run_coroutine_threadsafe(left.pop(0)(), loop).result(10)

    def do(one: str) -> Watched:
        with hand.reader() as reader:
            from proxy.incidents import named

            plan = recovering.plan(reader, named(reader, one), hand.policy(), GOOD, ())
        recovery = Recovery(hand, plan, "mended")
        if plan.trial is None:
            recovery.open(runs, 0 if runs else 1)
        return recovery.conclude(recovery.watch(seconds, clock, told.append, sleep))

    told: list[Course] = []
    found = await asyncio.to_thread(do, await the_id(running))
    assert not left
    return found


def halts(running: Controlled) -> dict[str, Any]:
    return {
        cord.rule: (cord.but_releases, cord.trial and cord.trial.runs)
        for cord in running.service.decider.latched.values()
    }


# ---------------------------------------------------------------------------------- the watch


async def test_where_it_fares_well_all_of_the_release_follows(
    running: Controlled, config: Path
) -> None:
    async def comes() -> None:
        assert await called(running, "x", "other") is Reason.ALLOWED  # of no concern
        assert await called(running, "a") is Reason.ALLOWED
        assert await called(running, "b", release="v7") is Reason.HALTED

    watched = await recovered(running, config, comes)
    assert watched.course.health is Health.GOOD
    assert [cord["rule"] for cord in watched.widened] == ["halt:run:r1"]
    assert halts(running) == {"halt:run:r1": ((GOOD,), None)}


async def test_where_a_detector_speaks_up_nobody_goes_first_any_more(
    running: Controlled, config: Path
) -> None:
    """At once, not when the time is over."""

    async def comes() -> None:
        await called(running, "a")
        await found(running, ALERT, detector="burn", release=GOOD, call="a")

    watched = await recovered(running, config, comes, seconds=3_600)
    assert (watched.stands, watched.widened) == (False, ())
    (said_of_it,) = watched.course.found
    assert said_of_it.startswith("detector:burn of run r1: it goes round")
    assert halts(running) == {"halt:run:r1": ((), None)}
    assert await called(running, "b") is Reason.HALTED


async def test_where_it_trips_its_own_cord_shuts_it_though_nobody_watched(
    running: Controlled, config: Path
) -> None:
    async def comes() -> None:
        await called(running, "a")
        await found(running, release=GOOD, call="a")
        assert halts(running) == {"halt:run:r1": ((), None)}

    watched = await recovered(running, config, comes)
    assert (watched.stands, watched.widened) == (False, ())
    assert watched.course.found
    (note,) = running.rows("incident.noted")
    assert note["detail"].startswith("nobody goes first any more: detector:loop of run r1")


async def test_where_nobody_came_it_stays_and_can_be_watched_on(
    running: Controlled, config: Path
) -> None:
    watched = await recovered(running, config)
    assert (watched.stands, watched.course.health) == (True, Health.IDLE)
    assert halts(running) == {"halt:run:r1": ((), ())}

    async def comes() -> None:
        await called(running, "a")

    assert (await recovered(running, config, comes)).widened


async def test_where_a_call_is_refused_it_stays(running: Controlled, config: Path) -> None:
    async def comes() -> None:
        await called(running, "a")
        fault = Reason.BATCH_OF_WRITES
        assert await called(running, "b", fault=fault) is fault

    watched = await recovered(running, config, comes)
    assert (watched.stands, watched.course.health) == (True, Health.DOUBTFUL)
    assert sum(watched.course.refused.values()) == 1
    assert halts(running)["halt:run:r1"] == ((), ("r1",))


async def test_where_another_cord_is_pulled_over_it_it_ends(
    running: Controlled, config: Path
) -> None:
    async def comes() -> None:
        await called(running, "a")
        await running.asked("POST", "/v1/pull", level="halt", scope="tool", subject="mail.read")

    watched = await recovered(running, config, comes)
    assert (watched.stands, watched.course.health) == (False, Health.BAD)
    assert halts(running)["halt:run:r1"] == ((), None)


async def test_where_somebody_pulls_the_cord_again_nothing_is_widened(
    running: Controlled, config: Path
) -> None:
    async def comes() -> None:
        await called(running, "a")
        await running.asked("POST", "/v1/pull", level="halt", scope="run", subject="r1")

    watched = await recovered(running, config, comes)
    assert (watched.stands, watched.widened) == (False, ())
    assert halts(running) == {"halt:run:r1": ((), None)}


async def test_what_is_found_after_the_last_look_counts(
    running: Controlled, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is judged where it is decided."""

    async def comes() -> None:
        await called(running, "a")

    through, loop = Hand.through_proxy, asyncio.get_running_loop()

    def late(hand: Hand, path: str, body: dict[str, Any]) -> Any:
        told = found(running, ALERT, detector="burn", run="r1", release=GOOD, call="a")
        asyncio.run_coroutine_threadsafe(told, loop).result(10)
        return through(hand, path, body)

    monkeypatch.setattr(Hand, "through_proxy", late)
    watched = await recovered(running, config, comes)
    assert (watched.stands, watched.widened) == (False, ())
    assert halts(running) == {"halt:run:r1": ((), None)}


async def test_only_the_proxy_that_runs_widens_it(
    running: Controlled, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def comes() -> None:
        await called(running, "a")

    monkeypatch.setattr(Hand, "through_proxy", lambda *_: None)
    watched = await recovered(running, config, comes)
    assert (watched.stands, watched.by_proxy, watched.widened) == (True, False, ())
    assert halts(running) == {"halt:run:r1": ((), ("r1",))}


# ---------------------------------------------------------------------------------- the command


async def test_the_command_says_what_it_did_and_what_to_type(running: Controlled) -> None:
    one = await the_id(running)
    words = (one, "--canary", "1", "--watch", "0", "--reason", "mended")
    out = await beside(*words, "--dry-run")
    assert "canary    the next 1 run to come, alone; watched for 0 s" in out
    out = await beside(*words, code=10)
    assert "it stays at the canary: no run of it has called yet; to watch on: pullcord" in out
    assert f"--release {GOOD} --canary 1 --reason" in out
    assert "to stop the canary: pullcord halt run r1" in out
    assert [row["detail"] for row in running.rows("cord.narrowed")] == [
        f"{GOOD} may pass by no run and 1 more: mended"
    ]
    await called(running, "a")
    assert "may go first already; watch them" in await beside(
        one, "--canary", "2", "--reason", "x", code=2
    )
    out = await beside(*words)
    assert "| run r1: 1 call, 0 writes, 1 done" in out
    assert f"resumed run r1 for release {GOOD} only" in out
    assert f"recovered {one} onto {GOOD}" in out
    (step,) = running.rows("incident.step")
    assert step["detail"] == (
        f"resumed for {GOOD} alone: mended "
        "(release v7 is halted; run r1 went first; its calls: 1; 1 cord)"
    )
    assert "was recovered onto" in await beside(one, "--reason", "again")
    assert len(running.rows("incident.step")) == 1


async def test_the_failure_is_told_with_its_code_and_as_json(running: Controlled) -> None:
    one = await the_id(running)
    words = (one, "--canary-run", "r1", "--watch", "0", "--reason", "mended", "--json")
    stays = json.loads((await beside(*words, code=10)).splitlines()[-1])
    assert stays["canary"]["state"] == "stays"
    assert stays["bad_release_halted"] is True
    await called(running, "a")
    await found(running, ALERT, detector="burn", release=GOOD, call="a")
    failed = json.loads((await beside(*words, code=3)).splitlines()[-1])
    assert failed["canary"]["state"] == "ended"
    assert failed["canary"]["found"][0].startswith("detector:burn of run r1: it goes round")
    assert "THE CANARY FAILED" in failed["why"]
    assert failed["released"] == []
    assert halts(running)["halt:run:r1"] == ((), None)


async def test_without_a_canary_all_of_the_release_follows_those_that_went_first(
    running: Controlled,
) -> None:
    one = await the_id(running)
    await beside(one, "--canary", "1", "--watch", "0", "--reason", "x", code=10)
    answer = json.loads((await beside(one, "--reason", "x", "--json")).splitlines()[-1])
    assert answer["released"][0]["narrowed_to"] == [GOOD]
    assert halts(running)["halt:run:r1"] == ((GOOD,), None)
    again = json.loads((await beside(one, "--reason", "x", "--json")).splitlines()[-1])
    assert (again["recovered_before"], again["released"]) == (True, [])


async def test_where_no_run_can_go_first_nothing_is_done(running: Controlled) -> None:
    one = await the_id(running)
    await running.asked(
        "POST", "/v1/release", level="halt", scope="run", subject="r1", reason="x", releases=[GOOD]
    )
    words = (one, "--canary", "1", "--watch", "0", "--reason", "x")
    assert f"no cord of it keeps {GOOD} out past which" in await beside(*words, code=2)
    assert "halt:release:v7" not in halts(running)


async def test_what_only_stops_takes_less_of_a_role(running: Controlled) -> None:
    one = await the_id(running)
    body = {"incident": one, "reason": "x"}
    cords = [{"level": "halt", "scope": "run", "subject": "r1"}]
    secret = await running.enrolled("pull")
    more = {**body, "cords": cords, "release": GOOD, "places": 1}
    status, _, _ = await running.at_port("POST", "/v1/incidents/canary", secret, body=more)
    assert status == 403
    await running.asked("POST", "/v1/incidents/canary", **more)
    status, told, _ = await running.at_port("POST", "/v1/incidents/canary/end", secret, body=body)
    assert (status, [cord["rule"] for cord in told["ended"]]) == (200, ["halt:run:r1"])
    for wrong in ({"release": "v9"}, {"runs": ["a b"]}, {"places": 0}, {"reason": " "}):
        refused = await running.refused("POST", "/v1/incidents/canary", **{**more, **wrong})
        assert refused.status in (400, 409)
    assert halts(running) == {"halt:run:r1": ((), None)}


# ---------------------------------------------------------------------------------- no proxy


def test_without_a_proxy_nobody_is_waited_for(config: Path) -> None:
    """What was opened counts when one starts, and is not wider then."""
    one = opened(config, release="v7")
    rolls_back(config, "print('back')")
    out = said(one.id, "--canary", "1", "--watch", "3", "--reason", "x", code=10)
    assert "no proxy runs, so none can go first or be judged (start it: pullcord up)" in out
    out = said(one.id, "--canary", "1", "--watch", "3", "--reason", "x", code=10)
    assert "| back" not in out  # it is rolled back already
    with closing(open_reader(config / "data")) as reader:
        kept = dict(reader.execute("SELECT subject, but_releases FROM pull"))["r1"]
    assert json.loads(kept)["releases"] == []
    assert json.loads(kept)["trial"]["places"] == 1


def test_ended_by_the_keyboard_it_stays_at_the_canary(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = opened(config, release="v7")

    def ended(*_: Any) -> Watched:
        raise KeyboardInterrupt

    monkeypatch.setattr(Recovery, "watch", ended)
    out = said(one.id, "--canary", "1", "--reason", "x", code=10)
    assert "it was not watched to its end; to watch on: pullcord incident recover" in out
    with closing(open_reader(config / "data")) as reader:
        kept = dict(reader.execute("SELECT subject, but_releases FROM pull"))["r1"]
    assert json.loads(kept)["trial"]["runs"] == []
