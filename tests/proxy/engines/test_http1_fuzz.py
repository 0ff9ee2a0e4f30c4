"""Connections that say anything in any pieces: nobody hangs, nothing crashes, and whatever reaches
an upstream was judged just so.

FUZZ_SECONDS of it, 8 where nothing is said, and an hour under `make proof`; of the mitmproxy
engine a quarter of that. The same conversations each time.
"""

import asyncio
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.engine import LOOPS, Engine
from tests.proxy.engines import crashes
from tests.proxy.engines.fuzzing import FUZZ_SECONDS, Conversation, World, conversations, world
from tests.proxy.engines.malformed import quiet

EXAMPLES = 50  # in a round, each of several conversations; a round goes on to its end

SHARES: dict[Engine, float] = {"http1": 1.0, "mitmproxy": 0.25}


@pytest.mark.proof
@pytest.mark.parametrize("engine", SHARES)
def test_whatever_is_said_nothing_hangs_and_nothing_passes_unjudged(
    engine: Engine, tmp_path: Path
) -> None:
    deadline = time.monotonic() + FUZZ_SECONDS * SHARES[engine]
    with asyncio.Runner(loop_factory=LOOPS[engine]) as runner, crashes.watched() as seen, quiet():
        opening = world(engine, tmp_path)
        made = runner.run(opening.__aenter__())
        try:
            number = 0
            while time.monotonic() < deadline:
                _round(number, made, runner, seen)
                number += 1
            assert made.recorder.odd == []
        finally:
            runner.run(opening.__aexit__(None, None, None))
        made.check()
    print(f"\n{engine}: {made.count} conversations, of which {made.arrived} requests arrived")
    assert made.arrived > made.count // 20, "hardly anything was right"
    assert seen == []


def _round(number: int, made: World, runner: asyncio.Runner, crashed: list[str]) -> None:
    @seed(number)
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(conversations(), min_size=1, max_size=8))
    def hold(many: list[Conversation]) -> None:
        runner.run(made.hold(many))
        assert crashed == []

    hold()
