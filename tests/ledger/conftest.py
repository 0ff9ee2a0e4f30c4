"""Every test of the ledger runs on a real database in a folder of its own."""

import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from policies.ceilings import Count, Then
from tests.ledger.world import World, a_ceiling, a_policy


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty ledger, closed: making the schema anew for every test is slow on a busy disk."""
    data = tmp_path_factory.mktemp("template")
    World(data).store.close()
    return data / "ledger.db"


@pytest.fixture
def world(tmp_path: Path, template: Path) -> Iterator[World]:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(template, data)
    made = World(data)
    yield made
    made.store.close()


@pytest.fixture
def held(world: World) -> World:
    """Every write is held: the ceiling has no room at all."""
    world.policy = a_policy(a_ceiling(0, count=Count.WRITES, then=Then.HOLD))
    return world


@pytest.fixture
def heard() -> Iterator[None]:
    """Ctrl-C as Python hears it, also where the shell that began all this ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
