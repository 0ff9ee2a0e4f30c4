"""A tree of runs that start each other: 1 root, 8 children, 64 grandchildren, one budget for all.

They mint their tokens themselves, at http://pullcord.invalid/self/tokens, and call all at once.
"""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from policies.ceilings import Count, Per
from tests.end_to_end import race
from tests.end_to_end.race import charged_microusd, ends, minted, posted_at_once
from tests.end_to_end.running import Run
from tests.end_to_end.test_kill_workers import World

CHILDREN, GRANDCHILDREN = 8, 64
SPAWNED = CHILDREN + GRANDCHILDREN
TRIED = 10  # by each child; there is room for eight
PASS = 10  # calls of $0.10

POLICY = f"""\
version: 1
tools:
  of.tree:
    match: {{host: api.origin.example, path: "/tree/**"}}
    cost: {{usd: 0.10}}
    allow_addresses: [127.0.0.0/8]
  of.run:
    match: {{host: api.origin.example, path: "/run/**"}}
    cost: {{usd: 0.10}}
    allow_addresses: [127.0.0.0/8]
  of.budget:
    match: {{host: api.origin.example, path: "/budget/**"}}
    cost: {{usd: 0.10}}
    allow_addresses: [127.0.0.0/8]
ceilings:
  - {{per: tree, tool: of.tree, count: spend_usd, at_most: 1.00}}
  - {{per: run, tool: of.run, count: spend_usd, at_most: 1.00}}
  - {{per: tree, count: spawned, at_most: {SPAWNED}}}
  - {{per: tenant, count: calls, unbounded: true}}
"""

ROUNDS = min(int(os.environ.get("ROUNDS", "3")), 20)
SPAWN_SECONDS = 30.0
THREADS = 32


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("tree")
    with race.two_engines(folder, POLICY) as made:
        yield made


def spawned(world: World, parent: Run, name: str) -> Run | str:
    """A new run that another one started itself; or why it may not."""
    with parent.session() as session:
        told = session.post(
            "http://pullcord.invalid/self/tokens", json={"run": name}, timeout=SPAWN_SECONDS
        )
    if told.status_code != 201:
        return told.headers["pullcord-decision"].partition("reason=")[2].partition(";")[0]
    made = told.json()
    return race.with_token(world.proxy, parent, name, made["tenant"], made["token"])


def all_spawned(world: World, wanted: Sequence[tuple[Run, str]]) -> tuple[list[Run], list[str]]:
    """All at once: those that came to be, and why the others did not."""
    with ThreadPoolExecutor(THREADS) as agents:
        told = list(agents.map(lambda wish: spawned(world, *wish), wanted))
    return (
        [each for each in told if isinstance(each, Run)],
        [each for each in told if isinstance(each, str)],
    )


def grown(world: World, root: Run) -> tuple[list[Run], list[str]]:
    """The whole tree, and why what was tried beyond it did not come to be."""
    children, refused = all_spawned(world, [(root, f"{root.name}.{n}") for n in range(CHILDREN)])
    assert (len(children), refused) == (CHILDREN, [])
    wanted = [(child, f"{child.name}.{n}") for n in range(TRIED) for child in children]
    grandchildren, refused = all_spawned(world, wanted)
    return [root, *children, *grandchildren], refused


@pytest.mark.proof
@pytest.mark.slow
@pytest.mark.parametrize("per", [Per.TREE, Per.RUN])
def test_a_tree_of_73_runs_shares_one_budget_and_one_ceiling_on_what_it_starts(
    world: World, per: Per, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 seconds a round. A run's budget is spent by its descendants, too."""
    runs, reached, spent, started = [], [], [], time.monotonic()
    for number in range(ROUNDS):
        root = minted(world.proxy, world.run, f"by-{per}-{number}", f"of-{per}-{number}")
        tree, refused = grown(world, root)
        assert refused == ["over_ceiling"] * (CHILDREN * TRIED - GRANDCHILDREN)
        start = len(world.upstream.arrived)
        told = posted_at_once([(run, f"/{per}/{run.name}") for run in tree])
        arrived = world.upstream.paths(start)
        found = race.rows(world.proxy, *tree)
        runs.append(len(tree))
        reached.append(len(arrived))
        spent.append(race.used(world.proxy, per, Count.SPEND, f"of.{per}", root.name))
        assert Counter(ends(told)) == {"allowed": PASS, "over_ceiling": len(tree) - PASS}
        assert len(set(arrived)) == PASS
        assert charged_microusd(found) == spent[-1]
        assert {row["root"] for row in found} == {root.name}
        assert race.used(world.proxy, Per.TREE, Count.SPAWNED, "*", root.name) == SPAWNED
        # The root's is spent, whoever asks for what is left of it.
        assert (
            ends(posted_at_once([(root, f"/{per}/again"), (tree[-1], f"/{per}/last")]))
            == ["over_ceiling"] * 2
        )
    with capsys.disabled():
        print(
            f"\ntree, budget per {per}, 2 workers, {ROUNDS} rounds: {set(runs)} runs of a tree "
            f"({CHILDREN * TRIED + CHILDREN} were tried to start, {SPAWNED} allowed), "
            f"{set(reached)} calls reached the upstream, {set(spent)} micro-dollars spent; "
            f"{time.monotonic() - started:.0f} s"
        )
    assert set(runs) == {1 + SPAWNED}
    assert set(reached) == {PASS}
    assert set(spent) == {PASS * 100_000}


@pytest.mark.slow
def test_a_budget_that_was_given_to_the_root_is_one_for_its_whole_tree(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """4 seconds. No ceiling of the policy bounds this tool; the root was minted with $1.00."""
    root = minted(world.proxy, world.run, "given", "given", budget_usd="1.00")
    tree, _ = grown(world, root)
    start = len(world.upstream.arrived)
    told = posted_at_once([(run, f"/budget/{run.name}") for run in tree])
    assert Counter(ends(told)) == {"allowed": PASS, "over_ceiling": len(tree) - PASS}
    assert len(set(world.upstream.paths(start))) == PASS
    # Nor does a child that is started now bring money of its own.
    assert ends(posted_at_once([(root, "/budget/again")])) == ["over_ceiling"]
    with capsys.disabled():
        print(f"\nbudget of a root: {len(tree)} runs, {PASS} calls paid")
