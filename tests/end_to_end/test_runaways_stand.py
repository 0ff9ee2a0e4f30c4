"""What a trip outlives, how a person ends it, and what each mode of a detector does; with one
engine and with two.
"""

import os
import signal
from collections.abc import Iterator

import pytest

from tests.end_to_end.runaways import World, loop, policy, runaways, until_stopped
from tests.end_to_end.test_kill_workers import until

CALLS_TO_TRIP = 10  # of the loop, at its pace
KILLED_AFTER = 8
NAMES = (
    *("loop", "spiral", "burn", "fan_out", "novelty"),
    *("write_spike", "first_seen_destination", "release"),
)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 worker", "2 workers"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with runaways(tmp_path_factory.mktemp("stand"), request.param, policy()) as made:
        yield made


def killed(world: World) -> None:
    """SIGKILL to the process that decides; it is back when this returns."""
    if world.proxy.workers == 1:
        world.proxy.end(signal.SIGKILL)
        world.proxy.start()
        return
    decider = world.status()["pid"]
    os.kill(decider, signal.SIGKILL)
    until(lambda: world.decider() not in (None, decider))


def in_force(world: World, mode: str) -> None:
    """An edit of the file, and until it is accepted."""
    accepted = "SELECT count(*) FROM event WHERE type = 'policy.accepted'"
    before = world.rows(accepted)
    world.proxy.edit_policy(policy(", ".join(f'{name}: "{mode}"' for name in NAMES)))
    until(lambda: world.rows(accepted) != before)


@pytest.mark.alone
@pytest.mark.slow
def test_a_killed_decider_delays_no_trip_and_lifts_none(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 seconds, most of them starts. Killed in the middle of a loop, and again after its trip. The
    seconds in which nobody decides are a pause of the loop, so it trips some calls later."""
    run = world.mint("lost")
    call = loop(world, run, "lost")
    assert {call(number).reason for number in range(KILLED_AFTER)} == {"allowed"}
    killed(world)
    passed = KILLED_AFTER + until_stopped(call, 20)
    killed(world)
    assert {call(number).reason for number in range(5)} == {"halted"}
    found = world.found(run.tenant, "lost.api")
    with capsys.disabled():
        print(
            f"\nkill -9 of the decider after {KILLED_AFTER} calls, {world.proxy.workers} "
            f"workers: alert at {found.alerted_at}, trip at {found.tripped_at} of {CALLS_TO_TRIP} "
            f"without it; {found.after} calls after it, killed again"
        )
    assert passed == found.tripped_at
    assert passed < KILLED_AFTER + CALLS_TO_TRIP  # it did not begin anew
    assert found.after == 0
    assert found.incidents == 1


@pytest.mark.alone
@pytest.mark.slow
def test_a_person_lets_it_go_on_and_it_takes_a_new_loop_to_trip_again(world: World) -> None:
    """4 seconds."""
    run = world.mint("again")
    call = loop(world, run, "again")
    assert until_stopped(call, 20) == CALLS_TO_TRIP
    tool = f"{run.name}/again.api"
    world.proxy.cli("resume", "tool", tool, "--reason", "it was told to wait")
    passed = until_stopped(call, 20)
    assert passed == CALLS_TO_TRIP
    assert f"halt:tool:{tool}" in world.cords() or f"halt:run:{run.name}" in world.cords()


@pytest.mark.alone
@pytest.mark.slow
def test_each_mode_does_what_it_says_from_the_edit_on(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """8 seconds. The same loop four times, each in another mode; then one that is enforced from
    its middle on."""
    told: dict[str, tuple[int, int, int]] = {}
    before = world.cords()
    runs = {mode: world.mint(mode) for mode in ("off", "observe", "alert")}
    calls = {mode: loop(world, run, "modes") for mode, run in runs.items()}
    for mode, run in runs.items():
        in_force(world, mode)
        call = calls[mode]
        assert {call(number).reason for number in range(15)} == {"allowed"}
        rows = dict(
            world.rows(
                "SELECT type, count(*) FROM event WHERE tenant = ? AND type LIKE 'detector.%' "
                "GROUP BY type",
                run.tenant,
            )
        )
        told[mode] = (
            rows.get("detector.observed", 0),
            rows.get("detector.alerted", 0) + rows.get("detector.tripped", 0),
            len(world.incidents(run.tenant)),
        )
        assert world.cords() == before
    in_force(world, "enforce")
    passed = until_stopped(calls["alert"], 5)
    with capsys.disabled():
        print(
            f"\nmodes, {world.proxy.workers} workers, 15 calls each: (would have, told, incidents) "
            f"{told}; a loop that is enforced from its middle on: {passed} more calls"
        )
    assert told["off"] == (0, 0, 0)
    assert told["observe"][0] > 0
    assert told["observe"][1:] == (0, 0)
    assert told["alert"][0] == 0
    assert told["alert"][1] > 0
    assert told["alert"][2] == 1
    assert passed <= 1
    assert world.cords() > before
