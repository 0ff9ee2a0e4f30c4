"""Which releases the runs of an incident were started with, and which models they asked."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ledger.connection import open_reader
from ledger.incident_stamps import Stamp, stamps
from policies.call import Identity, Worth
from tests.ledger.findings import ALERT, the_one, told
from tests.ledger.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.store.close()


def calls(world: World, run: str, release: str, *models: str, parent: str = "") -> None:
    """One write, then a model call for each model."""
    who = Identity(run, "acme", (parent,) if parent else (), release=release)
    asks = [world.ask(f"{run} pays", body=run, claimant=who)]
    asks += [
        world.ask(f"{run} {number}", effect="model", tool="read", body=f"{run} {number}",
                  claimant=who, worth=Worth(tokens=1, model=model))
        for number, model in enumerate(models)
    ]  # fmt: skip
    for ask in asks:
        assert world.decided(ask).verdict.action == "allow"
        world.settle(ask.call_id)


def found(world: World) -> dict[str, Stamp]:
    with closing(open_reader(world.data)) as reader:
        return {stamp.run: stamp for stamp in stamps(reader, the_one(world))}


def test_each_run_of_the_tree_has_its_stamp_and_its_models(world: World) -> None:
    told(world, ALERT)
    calls(world, "r1", "v7", "large", "large", "small")
    calls(world, "kid", "v8", parent="r1")
    calls(world, "r2", "v7", "large", "small")
    assert found(world) == {
        "r1": Stamp("r1", "v7", 4, 1, ("large", "small"), ("large", "small"), 4),
        "kid": Stamp("kid", "v8", 1, 1, passed=1),
    }


def test_who_asks_what_most_runs_of_the_release_do_not_contradicts_it(world: World) -> None:
    told(world, ALERT)
    for number in range(2, 5):
        calls(world, f"r{number}", "v7", "large")
    calls(world, "r1", "v7", "large", "cheap")
    one = found(world)["r1"]
    assert (one.models, one.usual, one.contradicts) == (("cheap", "large"), ("large",), True)


@pytest.mark.parametrize("others", [(), ("large",)], ids=["one alone", "one against one"])
def test_without_most_of_them_none_is_usual(world: World, others: tuple[str, ...]) -> None:
    told(world, ALERT)
    calls(world, "r1", "v7", "cheap")
    for number, model in enumerate(others, 2):
        calls(world, f"r{number}", "v7", model)
    one = found(world)["r1"]
    assert (one.usual, one.contradicts) == ((), False)


def test_a_run_without_a_release_contradicts_nothing(world: World) -> None:
    told(world, ALERT)
    calls(world, "r1", "", "large")
    calls(world, "r2", "", "small")
    calls(world, "r3", "", "small")
    assert not found(world)["r1"].contradicts
