"""Every test of the ledger runs on a real database in a folder of its own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ledger.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "data")
    yield made
    made.store.close()
