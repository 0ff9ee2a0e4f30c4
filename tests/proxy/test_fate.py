"""What becomes of a canary that somebody else ends, lets through or lifts meanwhile, and what a
recovery leaves as it is; beside a proxy.
"""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from ledger.store import Store
from policies.verdict import Level, Pull, Reason, Scope
from proxy import recovering
from proxy.cli.hand import Hand
from proxy.control_client import ask
from proxy.fate import State
from proxy.recovering import Plan, Ran
from proxy.recovery import Recovery
from tests.ledger.findings import ALERT
from tests.proxy.controlled import Controlled, controlled
from tests.proxy.test_control_incidents import found
from tests.proxy.test_recovering import GOOD, beside, config, rolls_back
from tests.proxy.test_recovery import called, halts, recovered, the_id

__all__ = ["config"]

HALT, FREEZE = "halt:tenant:acme", "freeze:tenant:acme"
STOP = {"level": "halt", "scope": "tenant", "subject": "acme", "reason": "STOP"}


@pytest.fixture
async def running(tmp_path: Path, config: Path) -> AsyncIterator[Controlled]:
    """With an incident over tenant acme, of which release v7 did it, and two cords of it."""
    async with controlled(tmp_path) as made:
        assert await called(made, "z", "r0", "v7") is Reason.ALLOWED
        await made.asked("POST", "/v1/incidents/open", kind="tenant", name="acme", reason="twice")
        for level in ("halt", "freeze"):
            await made.asked("POST", "/v1/pull", **{**STOP, "level": level, "reason": "x"})
        yield made


async def watched(running: Controlled, code: int = 10) -> tuple[str, ...]:
    """A canary of which a run has called; the words that watch it on."""
    words = (await the_id(running), "--canary", "1", "--watch", "0", "--reason", "mended")
    await beside(*words, code=code)
    assert await called(running, "a") is Reason.ALLOWED
    return words


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, running: Controlled, act: Callable[[Callable[[], Any]], Any]
) -> None:
    """Instead of the widening, which it is given to do."""
    through = Hand.through_proxy

    def late(hand: Hand, path: str, body: dict[str, Any]) -> Any:
        return act(lambda: through(hand, path, body))

    monkeypatch.setattr(Hand, "through_proxy", late)


def pulled_anew(running: Controlled) -> None:
    running.clock.us += 1_000
    ask(running.data, "POST", "/v1/pull", STOP)


# ---------------------------------------------------------------------------------- pulled again


async def test_a_cord_that_is_pulled_again_ends_it_past_all_of_them(
    running: Controlled, config: Path
) -> None:
    async def comes() -> None:
        await called(running, "a")
        running.clock.us += 1_000
        await running.asked("POST", "/v1/pull", **STOP)
        assert halts(running)[FREEZE] == ((), ("r1",))

    came = await recovered(running, config, comes, seconds=3_600)
    assert (came.fate.state, came.widened) == (State.ENDED, ())
    (said,) = came.fate.said
    assert said.startswith(f"{HALT} was pulled again by ")
    assert said.endswith(": STOP")
    assert halts(running) == {HALT: ((), None), FREEZE: ((), None)}
    (note,) = running.rows("incident.noted")
    assert note["detail"] == f"nobody goes first any more: {said}"


async def test_the_command_releases_no_cord_that_was_pulled_again(running: Controlled) -> None:
    words = await watched(running)
    await running.asked("POST", "/v1/pull", **STOP)
    out = await beside(*words, code=3)
    assert f"THE CANARY WAS ENDED: {HALT} was pulled again by " in out
    cords = halts(running)
    assert (cords[HALT], cords[FREEZE]) == (((), None), ((), None))
    assert running.rows("incident.step") == []


async def test_one_that_is_pulled_right_behind_the_widening_stands(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = await watched(running)

    def act(widen: Callable[[], Any]) -> Any:
        answer = widen()
        pulled_anew(running)
        return answer

    meanwhile(monkeypatch, running, act)
    # What it let pass it keeps so: only the cord that is pulled now says something else.
    assert f"{HALT} was pulled again by " in await beside(*words, code=3)
    cords = halts(running)
    assert (cords[HALT], cords[FREEZE]) == (((), None), ((GOOD,), None))


async def test_a_cord_that_is_pulled_while_the_rollback_runs_is_left(
    running: Controlled, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rolls_back(config, "print('back')")

    def rolled(plan: Plan) -> Ran:
        ask(running.data, "POST", "/v1/release", {**STOP, "reason": "look"})
        pulled_anew(running)
        return Ran(0, "back")

    monkeypatch.setattr(recovering, "roll_back", rolled)
    out = await beside(await the_id(running), "--reason", "x", "--json", code=10)
    answer = json.loads(out.splitlines()[-1])
    assert [cord["rule"] for cord in answer["left"]] == [HALT]
    assert "pullcord resume tenant acme --reason" in answer["why"]
    assert [one["released"]["rule"] for one in answer["released"]] == [FREEZE]
    cords = halts(running)
    assert (cords[HALT], cords[FREEZE]) == (((), None), ((GOOD,), None))
    (step,) = running.rows("incident.step")
    assert step["detail"].endswith("; 1 cord, 1 left)")


def pulled_meanwhile(running: Controlled, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody pulls the cord while the rollback runs."""
    rolls_back(config, "print('back')")

    def rolled(plan: Plan) -> Ran:
        pulled_anew(running)
        return Ran(0, "back")

    monkeypatch.setattr(recovering, "roll_back", rolled)


async def test_a_cord_that_is_pulled_as_it_stands_while_the_rollback_runs_is_left(
    running: Controlled, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it changes but who wants it."""
    pulled_meanwhile(running, config, monkeypatch)
    out = await beside(await the_id(running), "--reason", "x", "--json", code=10)
    answer = json.loads(out.splitlines()[-1])
    assert [cord["rule"] for cord in answer["left"]] == [HALT]
    cords = halts(running)
    assert (cords[HALT], cords[FREEZE]) == (((), None), ((GOOD,), None))


async def test_no_run_goes_first_past_a_cord_that_is_pulled_while_the_rollback_runs(
    running: Controlled, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pulled_meanwhile(running, config, monkeypatch)
    words = (await the_id(running), "--canary", "1", "--watch", "0", "--reason", "x")
    out = await beside(*words, code=2)
    assert f"{HALT} was pulled since, by " in out
    assert ": STOP; look: pullcord status; if it may flow all the same, type this again" in out
    cords = halts(running)
    assert (cords[HALT], cords[FREEZE]) == (((), None), ((), None))


async def test_one_that_is_pulled_between_the_look_and_the_release_is_left(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is looked at once more in the transaction that narrows it."""
    release = Hand.release

    def late(hand: Hand, body: dict[str, Any]) -> Any:
        if body["level"] == "freeze":
            ask(running.data, "POST", "/v1/pull", {**STOP, "level": "freeze"})
        return release(hand, body)

    monkeypatch.setattr(Hand, "release", late)
    out = await beside(await the_id(running), "--reason", "x", code=10)
    assert f"{FREEZE}, to lift it: pullcord thaw tenant acme --reason" in out
    cords = halts(running)
    assert (cords[HALT], cords[FREEZE]) == (((GOOD,), None), ((), None))


async def test_a_throttle_is_lifted_alone(running: Controlled) -> None:
    """Not with a freeze of its name that is pulled meanwhile."""
    await running.asked("POST", "/v1/release", **{**STOP, "level": "freeze"})

    def throttled(store: Store) -> None:
        detector = "detector:loop"
        store.pull(Pull(Level.THROTTLE, Scope.TENANT, "acme", "", detector, running.clock.us))

    await running.service.decider.act(throttled)
    words = await watched(running)
    await running.asked("POST", "/v1/pull", **{**STOP, "level": "freeze"})
    out = await beside(*words, code=10)
    assert f"{FREEZE}, to lift it: pullcord thaw tenant acme --reason" in out
    cords = halts(running)
    assert cords[HALT] == cords["throttle:tenant:acme"] == ((GOOD,), None)
    assert cords[FREEZE] == ((), None)


# ---------------------------------------------------------------------------------- let through


async def test_where_another_command_was_quicker_it_is_told_so(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = await watched(running)

    def act(widen: Callable[[], Any]) -> Any:
        widen()
        return widen()

    meanwhile(monkeypatch, running, act)
    out = await beside(*words)
    assert "it was let through whole: " in out
    assert f"{HALT} lets all of {GOOD} pass, by " in out
    assert halts(running)[HALT] == halts(running)[FREEZE] == ((GOOD,), None)
    (note,) = running.rows("incident.noted")
    assert note["detail"].startswith("the canary was overtaken: ")
    assert f"{HALT} lets all of {GOOD} pass, by " in note["detail"]
    assert len(running.rows("incident.step")) == 1


async def test_where_the_answer_is_lost_the_cords_tell_it(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = await watched(running)
    meanwhile(monkeypatch, running, lambda widen: widen() and None)
    out = await beside(*words)
    assert "it was let through whole" in out
    assert "it stays at the canary" not in out
    assert len(running.rows("incident.step")) == 1


async def test_where_it_is_lifted_nothing_is_said_to_have_failed(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = await watched(running)

    def act(widen: Callable[[], Any]) -> Any:
        for level in ("halt", "freeze"):
            ask(running.data, "POST", "/v1/release", {**STOP, "level": level, "reason": "fine"})
        return widen()

    meanwhile(monkeypatch, running, act)
    answer = json.loads((await beside(*words, "--json")).splitlines()[-1])
    assert (answer["canary"]["state"], answer["released"]) == ("lifted", [])
    assert f"{HALT} was lifted by " in answer["why"]
    assert "every release passes" in answer["why"]
    assert running.rows("incident.step") == []
    (note,) = running.rows("incident.noted")
    assert note["detail"].startswith("the canary was overtaken: ")
    assert f"{HALT} was lifted by " in note["detail"]


async def test_what_fared_badly_has_failed_though_somebody_let_it_pass(
    running: Controlled, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = await watched(running)
    await found(running, ALERT, detector="burn", release=GOOD, call="a")
    end = Hand.act

    def late(hand: Hand, path: str, body: dict[str, Any], directly: Any) -> Any:
        if path.endswith("/canary/end"):
            for level in ("halt", "freeze"):
                ask(hand.data, "POST", "/v1/release", {**STOP, "level": level, "releases": [GOOD]})
        return end(hand, path, body, directly)

    monkeypatch.setattr(Hand, "act", late)
    out = await beside(*words, code=3)
    assert "THE CANARY FAILED: detector:burn of run r1: it goes round. Yet it flows: " in out
    assert "to stop it again: pullcord freeze tenant acme; pullcord halt tenant acme" in out


# ---------------------------------------------------------------------------------- killed


@pytest.mark.parametrize("again", [("--canary", "1", "--watch", "0"), ()])
async def test_killed_before_its_step_is_recorded_it_rolls_back_once(
    running: Controlled, config: Path, monkeypatch: pytest.MonkeyPatch, again: tuple[str, ...]
) -> None:
    rolls_back(config, "print('back')")
    words = await watched(running)
    with monkeypatch.context() as patched:
        patched.setattr(Recovery, "record", lambda *_, **__: 1 / 0)
        await beside(*words, code=1)
    assert halts(running)[HALT] == halts(running)[FREEZE] == ((GOOD,), None)
    out = await beside(words[0], *again, "--reason", "mended")
    assert "| back" not in out
    assert "the rollback was run already" in out
    assert len(running.rows("incident.step")) == 1
    assert "was recovered onto" in await beside(words[0], *again, "--reason", "mended")


async def test_after_a_canary_that_failed_it_rolls_back_anew(
    running: Controlled, config: Path
) -> None:
    rolls_back(config, "print('back')")
    words = await watched(running)
    await running.asked("POST", "/v1/pull", **STOP)
    await beside(*words, code=3)
    assert "| back" in await beside(*words, code=10)
