"""Detectors that may wait say what they find a moment after the call was settled: when nobody waits
for it, or before the next step at the latest.
"""

from dataclasses import replace

import pytest

from ledger.sqlite import sqlite3
from ledger.store import LedgerUnavailable
from ledger.watching import Watch
from policies.call import Identity, Traits
from policies.detectors import loop, write_spike
from policies.detectors.rules import SHIPPED, Mode, Rule
from policies.verdict import Action, Reason
from tests.ledger.world import World

R1 = Identity("r1", "acme")
CORD = ["freeze:run:r1"]


@pytest.fixture
def spike(world: World) -> World:
    """Two writes of a run within a minute are too many."""
    rules = {**SHIPPED, write_spike.NAME: Rule(Mode.ENFORCE, write_spike.Limits(run_writes=1))}
    world.policy = replace(world.policy, detectors=rules)
    return world


def write(world: World, name: str) -> None:
    """Admitted and settled, and nothing more."""
    world.wait(1)
    ask = world.ask(name, body=name, claimant=R1)
    (decision,) = world.admit(replace(ask, traits=Traits(name.encode() * 8)))
    assert decision.verdict.action is Action.ALLOW
    assert world.store.settle(world.outcome(name), world.policy)


def pulled(world: World) -> list[str]:
    return [pull.rule for pull in world.store.pulls.values()]


def test_what_may_wait_is_found_when_nobody_waits(spike: World) -> None:
    write(spike, "a")
    write(spike, "b")
    assert not pulled(spike)
    assert spike.store.is_behind
    spike.store.follow()
    assert pulled(spike) == CORD
    assert not spike.store.is_behind
    asked = spike.decided(spike.ask("c", body="c", claimant=R1))
    assert asked.verdict.reason is Reason.FROZEN
    spike.check_memory()


def test_it_is_found_before_the_next_step_at_the_latest(spike: World) -> None:
    write(spike, "a")
    write(spike, "b")
    spike.wait(1)
    spike.admit(spike.read("other"))
    assert not pulled(spike)
    spike.store.settle(spike.outcome("other"), spike.policy)
    assert pulled(spike) == CORD


def test_it_is_found_once(spike: World) -> None:
    write(spike, "a")
    write(spike, "b")
    for _ in range(3):
        spike.store.follow()
    spike.store._memory.watch.lost()  # as after a transaction that failed
    assert spike.store.watch(spike.policy, spike.now_us)
    spike.store.follow()
    ((tripped,),) = spike.rows("SELECT count(*) FROM event WHERE type = 'detector.tripped'")
    assert tripped == 1


def test_what_could_not_be_recorded_is_not_forgotten(spike: World) -> None:
    write(spike, "a")
    write(spike, "b")
    holder = sqlite3.connect(str(spike.data / "ledger.db"), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(LedgerUnavailable):
        spike.store.follow(patient=False)
    holder.execute("ROLLBACK")
    holder.close()
    assert not pulled(spike)
    assert spike.store.is_behind
    spike.store.follow()
    assert pulled(spike) == CORD


def test_a_loop_is_found_in_the_transaction_that_settles_the_call(spike: World) -> None:
    rules = {**SHIPPED, loop.NAME: Rule(Mode.ENFORCE, loop.Limits(fast_burst=1))}
    spike.policy = replace(spike.policy, detectors=rules)
    number = 0
    while not pulled(spike):
        number += 1
        spike.wait(1)
        spike.admit(replace(spike.read(f"c{number}", claimant=R1), traits=Traits(b"the same")))
        outcome = replace(spike.outcome(f"c{number}"), result=b"likewise" * 4)
        assert spike.store.settle(outcome, spike.policy)
    assert pulled(spike) == ["halt:tool:r1/read"]


def test_a_call_that_could_not_be_settled_is_as_it_was(world: World) -> None:
    """Whatever of its end it was told."""
    world.decided(world.read("a", claimant=R1))
    step = world.store._memory.open_calls["a"].step
    assert step is not None
    before = replace(step)
    with world.failing():
        world.store.settle(replace(world.outcome("a"), result=b"likewise" * 4), world.policy)
    assert world.store._memory.open_calls["a"].step == before
    world.end(replace(world.outcome("a"), result=b"likewise" * 4))
    assert step.result


def test_a_person_who_lets_a_run_go_on_hears_no_more_of_before(spike: World) -> None:
    watch = spike.store._memory.watch
    assert isinstance(watch, Watch)
    write(spike, "a")
    write(spike, "b")
    spike.store.follow()
    (pull,) = spike.store.pulls.values()
    spike.store.release(
        pull.level, pull.scope, pull.subject, reason="looked", actor="ann", at_us=spike.now_us
    )
    spike.store.follow()
    assert not pulled(spike)
