"""Runaways that know what they are looked at by, and forge it: something stops each of them all the
same, within the bound that its test states.
"""

import time
from collections.abc import Callable, Iterator
from secrets import token_hex

import pytest

from tests.end_to_end.line import Told
from tests.end_to_end.runaways import (
    World,
    loop,
    policy,
    runaways,
    until_stopped,
)

BUDGET_USD = 5.0  # of a run, by the policy; also the shipped one's
AT_ONCE_SECONDS = 20.0


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with runaways(tmp_path_factory.mktemp("hostile"), 1, policy()) as made:
        yield made


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[[str], None]:
    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return say


@pytest.mark.alone
@pytest.mark.slow
def test_forged_marks_of_progress_hide_no_loop(world: World, say: Callable[[str], None]) -> None:
    """4 seconds. Each call says that the run has made progress, and the run says so, too."""
    run = world.mint("forged")

    def call(number: int) -> Told:
        world.proxy.move(2.0)
        with run.session() as session:
            session.post("http://pullcord.invalid/self/progress", json={"mark": 2 * number + 1})
        headers = {"X_Pullcord_Progress": str(2 * number + 2)}
        return world.ask(run, "GET", "/forged/status/7", **headers)

    passed = until_stopped(call, 30)
    found = world.found(run.tenant, "forged.api")
    say(f"forged marks: trip at {found.tripped_at} ({', '.join(found.detectors)}), bound 17")
    assert found.after == 0
    assert passed <= 17


@pytest.mark.alone
@pytest.mark.slow
def test_a_nonce_under_a_name_that_nobody_knows_hides_no_loop(
    world: World, say: Callable[[str], None]
) -> None:
    """6 seconds. Another path and another field each time, and always the same answer."""
    run = world.mint("nonce")

    def call(_: int) -> Told:
        world.proxy.move(2.0)
        return world.ask(run, "GET", f"/nonce/status/{token_hex(8)}?zork={token_hex(8)}")

    passed = until_stopped(call, 80)
    found = world.found(run.tenant, "nonce.api")
    say(
        f"nonces: alert at {found.alerted_at}, trip at {found.tripped_at} "
        f"({', '.join(found.detectors)}), {found.seconds:.0f} s; bound 70"
    )
    assert found.after == 0
    assert passed <= 70


@pytest.mark.alone
@pytest.mark.slow
def test_words_of_people_that_the_agent_makes_up_cost_no_more_than_its_budget(
    world: World, say: Callable[[str], None]
) -> None:
    """6 seconds. Each model call holds another word of a person, so the run is answering all the
    time: no detector can know better, and its ceiling on spend halts it."""
    run = world.mint("human")
    passed = until_stopped(lambda _: world.ask_model(run, "human", token_hex(8)), 120)
    found = world.found(run.tenant)
    spent = world.rows(
        "SELECT sum(o.cost_microusd) FROM event o JOIN event i USING (call_id) "
        "WHERE o.type = 'call.outcome' AND i.type = 'call.intent' AND i.tenant = ?",
        run.tenant,
    )[0][0]
    say(
        f"made-up people: {passed} model calls, ${spent / 1e6:.2f}, bound ${BUDGET_USD:.2f} and "
        f"one call, which costs more here than can be known before it; "
        f"alert at {found.alerted_at}; detectors {found.detectors}"
    )
    assert spent <= BUDGET_USD * 1e6 + spent / passed
    assert f"halt:run:{run.name}" in world.cords()


@pytest.mark.alone
@pytest.mark.slow
def test_a_loop_that_is_spread_over_child_runs_ends_with_their_tree(
    world: World, say: Callable[[str], None]
) -> None:
    """6 seconds. Six calls, which tell nobody anything, and on with a new child: bound 15 runs."""
    root, calls, children = world.mint("spread"), 0, 0
    while not isinstance(child := world.spawn(root, f"{root.name}.{children}"), str):
        children += 1
        assert children < 30
        call = loop(world, child, "spread")
        calls += sum(call(number).reason == "allowed" for number in range(6))
    found = world.found(root.tenant)
    say(
        f"a loop over child runs: {children} runs, {calls} calls, {found.seconds:.0f} s "
        f"({', '.join(found.detectors)}); {', '.join(found.cords)}; bound 15 runs, 90 calls"
    )
    assert child == "halted"
    assert children <= 15
    assert calls <= 90
    assert world.ask(root, "GET", "/again/1").reason == "halted"


@pytest.mark.alone
@pytest.mark.slow
def test_a_loop_as_fast_as_it_can_is_over_within_seconds(
    world: World, say: Callable[[str], None]
) -> None:
    """10 seconds. What comes within one second counts once, as calls that were asked for at once
    do: bounded by time, and by the ceiling on calls that this policy has not."""
    run, started, calls = world.mint("fast"), time.monotonic(), 0
    while time.monotonic() - started < AT_ONCE_SECONDS:
        if world.ask(run, "GET", "/fast/status/7").reason != "allowed":
            break
        calls += 1
    found = world.found(run.tenant, "fast.api")
    say(
        f"a loop at full speed: {calls} calls, trip after {found.seconds:.1f} s "
        f"({', '.join(found.detectors)}); bound 10 s, and the shipped 300 calls a minute"
    )
    assert found.after == 0
    assert found.seconds <= 10
