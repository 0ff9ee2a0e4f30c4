"""Five runaways through the running program, with one engine and with two: each is stopped in time,
by the smallest cord that does it, and nothing of it passes after.

The numbers are those of the detectors' limits (policies/detectors/), for the pace of each agent.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.end_to_end.line import asked
from tests.end_to_end.runaways import (
    TRIED_AFTER,
    Found,
    World,
    loop,
    policy,
    runaways,
    until_stopped,
)

Print = Callable[[str], None]


@pytest.fixture(scope="module", params=[1, 2], ids=["1 worker", "2 workers"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    with runaways(tmp_path_factory.mktemp("runaways"), request.param, policy()) as made:
        yield made
        # Nothing more comes of them, however long it is waited for.
        made.proxy.move(60)
        time.sleep(1)
        messages = Counter(one["incident"] for one in made.upstream.alerts)
        assert set(messages.values()) == {1}, made.upstream.alerts


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Print:
    def say(text: str) -> None:
        with capsys.disabled():
            print(f"\n{text}")

    return say


def checked(
    world: World, name: str, tenant: str, say: Print, *, tool: str = "", cord: str
) -> Found:
    found, alerts = world.found(tenant, tool), world.alerts(tenant)
    say(found.line(name, world.proxy.workers, len(alerts), TRIED_AFTER))
    assert found.after == 0
    assert found.incidents == 1
    assert found.cords == (cord,)
    assert cord in world.cords()
    assert len(alerts) == 1
    assert alerts[0]["pulled"] == cord
    assert alerts[0]["type"] == "incident.tripped"
    return found


@pytest.mark.alone
@pytest.mark.slow
def test_a_tight_loop_is_stopped_in_its_one_tool(world: World, say: Print) -> None:
    """4 seconds. One read, every 2 s, whose answer differs by its clock and request id alone."""
    run = world.mint("loop")
    passed = until_stopped(loop(world, run), 40)
    cord = f"halt:tool:{run.name}/loop.api"
    found = checked(world, "tight loop", run.tenant, say, tool="loop.api", cord=cord)
    assert found.alerted_at in range(1, 9)
    assert found.tripped_at == passed <= 17
    assert world.upstream.paths().count("/loop/status/7") == passed
    assert world.ask(run, "GET", "/again/other").reason == "allowed"  # all else of the run goes on


@pytest.mark.alone
@pytest.mark.slow
def test_a_model_that_only_talks_to_itself_is_stopped_with_its_run(
    world: World, say: Print
) -> None:
    """3 seconds. One word of a person, then model calls of $0.06."""
    run = world.mint("spiral")
    passed = until_stopped(lambda _: world.ask_model(run, "spiral"), 20)
    cord = f"halt:run:{run.name}"
    found = checked(world, "reflection spiral", run.tenant, say, cord=cord)
    assert found.detectors == ("spiral",)
    assert found.tripped_at == passed <= 12
    assert found.usd >= 0.5
    assert world.upstream.paths().count("/spiral/v1/chat/completions") == passed


@pytest.mark.alone
@pytest.mark.slow
def test_dear_calls_of_which_nothing_comes_are_stopped_at_two_dollars(
    world: World, say: Print
) -> None:
    """2 seconds. Calls of $0.75: the first answers a person, so the next three are too many."""
    run = world.mint("burn")
    passed = until_stopped(lambda _: world.ask_model(run, "burn"), 10)
    cord = f"halt:run:{run.name}"
    found = checked(world, "burn", run.tenant, say, cord=cord)
    assert found.detectors == ("burn",)
    a_call_usd = found.usd / passed
    assert 2.0 <= found.usd - a_call_usd < 2.0 + a_call_usd
    assert world.upstream.paths().count("/burn/v1/messages") == passed


@pytest.mark.alone
@pytest.mark.slow
def test_a_tree_that_fans_out_is_stopped_at_its_root(world: World, say: Print) -> None:
    """3 seconds. A run starts runs that start runs, as fast as they can."""
    root = world.mint("fan")
    runs, refused = [root], []
    for number in range(40):
        parent = runs[number // 6 % len(runs)]
        child = world.spawn(parent, f"{root.name}.{number}")
        if isinstance(child, str):
            refused.append(child)
        else:
            runs.append(child)
        if len(refused) == TRIED_AFTER:
            break
    tried = [world.ask(run, "GET", "/again/1").reason for run in (root, runs[1], runs[-1])]
    cord = f"halt:run:{root.name}"
    found = checked(world, "fan-out (runs started)", root.tenant, say, cord=cord)
    assert found.detectors == ("fan_out",)
    assert found.alerted_at == 9
    assert found.tripped_at == len(runs) - 1 == 15
    assert set(refused) == set(tried) == {"halted"}


@pytest.mark.alone
@pytest.mark.slow
def test_a_run_that_writes_too_much_writes_no_more_and_may_read(world: World, say: Print) -> None:
    """4 seconds. Every write succeeds, and each is another."""
    run = world.mint("spike")
    passed = until_stopped(lambda n: world.ask(run, "POST", f"/spike/{n}", {"n": n}), 80)
    cord = f"freeze:run:{run.name}"
    found = checked(world, "write spike", run.tenant, say, cord=cord)
    assert found.detectors == ("write_spike",)
    assert found.tripped_at == passed == 61
    assert sum(path.startswith("/spike/") for path in world.upstream.paths()) == 61
    assert world.ask(run, "GET", "/spike/1").reason == "allowed"


@pytest.mark.alone
@pytest.mark.slow
def test_of_many_at_once_none_that_is_judged_after_the_trip_passes(
    world: World, say: Print
) -> None:
    """3 seconds. Eight agents of one run write as fast as they can. What was let through before
    the trip may reach the upstream and is cut; its row in the record comes before."""
    run, place = world.mint("many"), "many"

    def write(agent: int) -> int:
        answers = [asked(run, "POST", f"/{place}/{agent}/{n}", f"{agent}, {n}") for n in range(20)]
        return sum(told.reason == "allowed" for told in answers)

    with ThreadPoolExecutor(8) as agents:
        passed = sum(agents.map(write, range(8)))
    world.quiet()
    cord = f"freeze:run:{run.name}"
    found = checked(world, "write spike by eight at once", run.tenant, say, cord=cord)
    arrived = sum(path.startswith(f"/{place}/") for path in world.upstream.paths())
    assert 61 <= passed <= arrived <= found.tripped_at <= 61 + 8


@pytest.mark.alone
@pytest.mark.slow
def test_a_recipient_of_five_runs_that_nobody_knew_gets_nothing_more(
    world: World, say: Print
) -> None:
    """2 seconds. Run after run is talked into paying the same account."""
    tenant, paid = f"payers-{world.proxy.workers}", {"to": "DE02120300000000202051", "amount": 9}
    runs = [world.mint("pay", tenant=tenant) for _ in range(5 + TRIED_AFTER + 1)]
    passed = until_stopped(lambda n: world.ask(runs[n], "POST", "/pay/out", paid), 10)
    found = checked(world, "new recipient (runs that pay)", tenant, say, cord="freeze:tool:pay.api")
    assert found.detectors == ("first_seen_destination",)
    assert found.alerted_at == 3
    assert found.tripped_at == passed == 5
    assert world.upstream.paths().count("/pay/out") == 5
    assert world.ask(runs[0], "GET", "/pay/out").reason == "allowed"


@pytest.mark.alone
@pytest.mark.slow
def test_a_release_that_breaks_in_run_after_run_is_stopped_as_one(world: World, say: Print) -> None:
    """8 seconds. 205 calls of the release before it, in five runs; then five runs of the next."""
    tenant = f"released-{world.proxy.workers}"
    old, new = (
        [world.mint("release", tenant=tenant, release=release) for _ in range(5)]
        for release in ("r1", "r2")
    )
    for number in range(205):
        path = f"/bad/{'broken' if number % 100 == 0 else 'fine'}/{number}"
        assert world.ask(old[number % 5], "GET", path).reason == "allowed"
    before = len(world.upstream.arrived)
    passed = until_stopped(lambda n: world.ask(new[n % 5], "GET", f"/bad/broken/{n}"), 40)
    found = checked(world, "bad release", tenant, say, cord="halt:release:r2")
    assert found.detectors == ("release",)
    assert found.tripped_at == 205 + passed
    assert passed <= 12
    assert len(world.upstream.arrived) - before == passed
    assert world.ask(old[0], "GET", "/bad/fine/again").reason == "allowed"
