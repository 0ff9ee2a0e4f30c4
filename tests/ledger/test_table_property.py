"""The store against a model of the decision table, over random walks with crashes in them.

10,000 steps by default and 3,000 for each of ROUNDS beyond (`make proof`). SEED gives the same
walks again; what diverges is told with the shortest walk that was found to diverge.
"""

import os
import random
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.ledger.table_walk import RULES, Step, chosen, walked

TOLD = {
    *("allow", "replay", "in_flight", "outcome_unknown", "done_but_not_stored"),
    *("key_reused", "key_required"),
}
STEPS = 240  # of a walk
WALKS = 5 * len(RULES) + max(0, int(os.environ.get("ROUNDS", "3")) - 3) * 12
SHRINK_SECONDS = 30.0


def shrunk(folder: Path, template: Path, rule: int, steps: list[Step]) -> list[Step]:
    """A shorter walk that diverges, too: ever smaller parts are left out while it does."""
    deadline, size = time.monotonic() + SHRINK_SECONDS, len(steps) // 2
    tries = 0
    while size:
        start = 0
        while start < len(steps):
            if time.monotonic() > deadline:
                return steps
            tries += 1
            fewer = steps[:start] + steps[start + size :]
            walk = walked(folder / f"try-{tries}", template, rule, fewer)
            if walk.why:
                steps = fewer[: walk.made]
            else:
                start += size
        size //= 2
    return steps


@pytest.mark.proof
@pytest.mark.slow
def test_the_store_does_what_the_table_says_whatever_happens_in_which_order(
    tmp_path: Path, template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """15 seconds for 10,000 steps."""
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    started, kinds, told = time.monotonic(), Counter[str](), Counter[str]()
    for number in range(WALKS):
        rule = number % len(RULES)
        steps = chosen(random.Random(f"{seed} {number}"), STEPS)
        walk = walked(tmp_path / f"walk-{number}", template, rule, steps)
        kinds += Counter(step[0] for step in steps[: walk.made])
        told += walk.told
        if walk.why:
            least = shrunk(tmp_path, template, rule, steps[: walk.made])
            why = walked(tmp_path / "least", template, rule, least).why
            lines = "\n".join(f"  {step}" for step in least)
            pytest.fail(
                f"seed {seed}, walk {number}, {RULES[rule]}:\n{lines}\n{why}", pytrace=False
            )
    with capsys.disabled():
        took = f"{time.monotonic() - started:.0f} s"
        print(f"\ntable: seed {seed}, {kinds.total()} steps, {took}: {dict(kinds)}, {dict(told)}")
    assert kinds.total() >= 10_000
    assert set(told) == TOLD
    assert min(*kinds.values(), *told.values()) >= 20
