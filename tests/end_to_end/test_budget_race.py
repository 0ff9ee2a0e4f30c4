"""64 calls at once, each worth $0.10, against budgets of $1.00 for life: not one too many, also
when engines and decider are killed under them. `make proof` takes 50 rounds (ROUNDS).
"""

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from ledger.connection import open_reader
from policies.ceilings import Count, Per
from tests.end_to_end import race
from tests.end_to_end.race import LOST, charged_microusd, ends, minted, posted_at_once
from tests.end_to_end.running import Proxy, Run
from tests.end_to_end.test_kill_workers import World

POLICY = """\
version: 1
tools:
  of.run:
    match: {host: api.origin.example, path: "/run/**"}
    cost: {usd: 0.10}
    allow_addresses: [127.0.0.0/8]
  of.tenant:
    match: {host: api.origin.example, path: "/tenant/**"}
    cost: {usd: 0.10}
    allow_addresses: [127.0.0.0/8]
ceilings:
  - {per: run, tool: of.run, count: spend_usd, at_most: 1.00}
  - {per: tenant, tool: of.tenant, count: spend_usd, at_most: 1.00}
  - {per: run, count: calls, unbounded: true}
  - {per: tenant, count: calls, unbounded: true}
"""

ROUNDS = int(os.environ.get("ROUNDS", "3"))
KILLS = min(ROUNDS, 20)
CALLS = 64
PASS = 10  # of them
WORTH_MICROUSD = 100_000
BUDGET_MICROUSD = PASS * WORTH_MICROUSD
PAUSES_SECONDS = (0.05, 0.1, 0.2)  # of the upstream, so that a kill finds calls in flight
PATIENCE_SECONDS = (0.04, 0.1, 0.2)  # of agents; one for each round
MOMENTS = (0, 1, 5, PASS)  # so many calls have arrived when a kill comes
ENGINE, DECIDER, ALL = "an engine", "the decider", "all of it"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("race")
    with race.two_engines(folder, POLICY) as made:
        yield made


def spent_microusd(world: World, per: Per, subject: str) -> int:
    return race.used(world.proxy, per, Count.SPEND, f"of.{per}", subject)


def wished(runs: list[Run], per: Per, label: str) -> list[tuple[Run, str]]:
    """A write for each call, all different."""
    return [
        (runs[number % len(runs)], f"/{per}/{runs[0].name}/{label}-{number}")
        for number in range(CALLS)
    ]


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("per", [Per.RUN, Per.TENANT])
def test_of_64_calls_at_once_exactly_those_pass_that_the_budget_pays(
    world: World, per: Per, capsys: pytest.CaptureFixture[str]
) -> None:
    """1 second a round. A tenant's budget is raced for by four of its runs."""
    world.both()
    spent, reached, started = [], [], time.monotonic()
    for number in range(ROUNDS):
        tenant, runs = f"{per}-{number}", 1 if per is Per.RUN else 4
        agents = [
            minted(world.proxy, world.run, f"{tenant}-{each}", tenant) for each in range(runs)
        ]
        subject, start = agents[0].name if per is Per.RUN else tenant, len(world.upstream.arrived)
        told = posted_at_once(wished(agents, per, "once"))
        arrived = world.upstream.paths(start)
        found = race.rows(world.proxy, *agents)
        spent.append(spent_microusd(world, per, subject))
        reached.append(len(arrived))
        assert Counter(ends(told)) == {"allowed": PASS, "over_ceiling": CALLS - PASS}
        assert len(set(arrived)) == PASS
        assert Counter(row["state"] for row in found) == {"done": PASS, "refused": CALLS - PASS}
        assert charged_microusd(found) == BUDGET_MICROUSD
        # A budget for life is a hard end: nothing tells the agent to try again.
        refused = [each.headers for each in told if each is not None and each.status == 429]
        hints = {(each.get("retry-after"), each.get("x-should-retry")) for each in refused}
        assert hints == {(None, "false")}
    with capsys.disabled():
        print(
            f"\nbudget of a {per}, {CALLS} calls at once, 2 workers, {ROUNDS} rounds: reached the "
            f"upstream {told_of(reached)}; spent {told_of(spent)} of {BUDGET_MICROUSD} "
            f"micro-dollars; overspend {max(0, max(spent) - BUDGET_MICROUSD)}; "
            f"{time.monotonic() - started:.0f} s"
        )
    assert set(spent) == {BUDGET_MICROUSD}
    assert set(reached) == {PASS}


def told_of(figures: list[int]) -> str:
    return f"{min(figures)} to {max(figures)}"


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_agents_that_hang_up_before_the_answer_have_paid(
    world: World, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 seconds a round. What was sent is paid for, whoever is there to hear the answer."""
    world.both()
    world.upstream.pause_seconds = lambda: random.choice(PAUSES_SECONDS)
    states, left, spent, reached = Counter[str](), Counter[str](), [], []
    for number in range(ROUNDS):
        run = minted(world.proxy, world.run, f"{method.lower()}-{number}", "acme")
        start = len(world.upstream.arrived)
        patience_seconds = PATIENCE_SECONDS[number % len(PATIENCE_SECONDS)]
        left += Counter(
            ends(posted_at_once(wished([run], Per.RUN, "left"), method, patience_seconds))
        )
        race.rows(world.proxy, run)
        posted_at_once(wished([run], Per.RUN, "after"), method)
        allowed = [row for row in race.rows(world.proxy, run) if row["decision"] == "allow"]
        of_round = Counter(row["state"] for row in allowed)
        states += of_round
        spent.append(spent_microusd(world, Per.RUN, run.name))
        reached.append(len(world.upstream.paths(start)))
        assert spent[-1] == WORTH_MICROUSD * (of_round["done"] + of_round["unknown"])
    with capsys.disabled():
        print(
            f"\nbudget and agents that hang up, {method}, {ROUNDS} rounds: {left[LOST]} did so, "
            f"{dict(states)}; reached the upstream {told_of(reached)}; spent {told_of(spent)} of "
            f"{BUDGET_MICROUSD} micro-dollars"
        )
    assert left[LOST] >= 1
    assert max(reached) <= PASS
    assert set(spent) == {BUDGET_MICROUSD}


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("victim", [ENGINE, DECIDER, ALL])
def test_a_kill_in_the_middle_overspends_nothing_and_unknown_keeps_its_reservation(
    world: World, victim: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 seconds a round, 6 if all of it is killed. Another 64 calls come for what is left."""
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    choice, started = random.Random(seed), time.monotonic()
    world.upstream.pause_seconds = lambda: random.choice(PAUSES_SECONDS)
    states: Counter[str] = Counter()
    told: Counter[str] = Counter()
    spent, reached = [], []
    for number in range(KILLS):
        run = minted(world.proxy, world.run, f"{victim.split()[1]}-{number}", "acme")
        start = len(world.upstream.arrived)
        told += Counter(killed_under(world, victim, run, choice))
        told += Counter(ends(posted_at_once(wished([run], Per.RUN, "after"))))
        arrived = world.upstream.paths(start)
        allowed = [row for row in race.rows(world.proxy, run) if row["decision"] == "allow"]
        of_round = Counter(row["state"] for row in allowed)
        states += of_round
        spent.append(spent_microusd(world, Per.RUN, run.name))
        reached.append(len(arrived))
        paid = {row["path"] for row in allowed if row["state"] in ("done", "unknown")}
        assert len(arrived) == len(set(arrived)), "made twice"
        assert set(arrived) <= paid, "made, and nobody paid"
        assert spent[-1] == WORTH_MICROUSD * (of_round["done"] + of_round["unknown"])
    with capsys.disabled():
        print(
            f"\nbudget and kill -9 of {victim}: seed {seed}, 2 workers, {KILLS} rounds of twice "
            f"{CALLS} calls: {dict(states)}, told {dict(told)}; reached the upstream "
            f"{told_of(reached)}; spent {told_of(spent)} of {BUDGET_MICROUSD} micro-dollars; "
            f"overspend {max(0, max(spent) - BUDGET_MICROUSD)}; {time.monotonic() - started:.0f} s"
        )
    assert max(reached) <= PASS
    assert set(spent) == {BUDGET_MICROUSD}
    # What an engine dies with is unknown. Of what it holds while the decider dies, it tells the
    # next one.
    assert (states["unknown"] > 0) is (told[LOST] > 0) is (victim is not DECIDER)


def killed_under(world: World, victim: str, run: Run, choice: random.Random) -> list[str]:
    """How 64 calls end under which somebody is killed, when some of them are on their way."""
    pid, start = int(world.status()["pid"]), len(world.upstream.arrived)
    moment = choice.choice(MOMENTS if victim is DECIDER else MOMENTS[1:])
    with race.racing(wished([run], Per.RUN, "before")) as (barrier, answers):
        barrier.wait(race.START_SECONDS)
        until(lambda: len(world.upstream.arrived) - start >= moment, poll_seconds=0.001)
        if victim is ENGINE:
            pid = busiest(world.proxy)
        if victim is ALL:
            world.proxy.end(signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
        told = ends(answers())
    if victim is ALL:
        world.proxy.start()
    until(lambda: is_over(world, victim, pid))
    return told


def busiest(proxy: Proxy) -> int:
    """The engine that holds the most calls."""
    with closing(open_reader(proxy.folder / "data")) as reader:
        found = reader.execute(
            "SELECT pid FROM open_call JOIN worker ON worker.id = open_call.worker "
            "GROUP BY pid ORDER BY count(*) DESC LIMIT 1"
        ).fetchone()
    assert found is not None, "nothing is in flight"
    return int(found[0])


def is_over(world: World, victim: str, pid: int) -> bool:
    """Whether others serve in the place of those that were killed."""
    engines = world.both()
    return pid not in engines if victim is ENGINE else world.status()["pid"] != pid


def until(condition: Callable[[], bool], poll_seconds: float = 0.05) -> None:
    deadline = time.monotonic() + race.SETTLED_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(poll_seconds)
