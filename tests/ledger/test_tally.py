"""What is counted in memory: what was recorded, once, and nothing that was rolled back."""

from ledger.states import CallState
from policies.call import Effect
from policies.verdict import Action
from tests.ledger.world import World, a_worker


def test_what_is_recorded_is_counted(world: World) -> None:
    world.decided(world.ask("w"))
    world.settle("w", used_microusd=7)
    world.decided(world.read("r"))
    world.settle("r", input_tokens=5, output_tokens=2, cost_microusd=30)
    refused = world.decided(world.read("n", claimant=None)).verdict
    told = world.store.tally
    assert told.calls == {
        (Action.ALLOW, Effect.WRITE): 1,
        (Action.ALLOW, Effect.READ): 1,
        (Action.REFUSE, Effect.READ): 1,
    }
    assert told.refused == {refused.reason: 1}
    assert told.outcomes == {CallState.DONE: 2}
    assert (told.input_tokens, told.output_tokens, told.spend_microusd) == (5, 2, 37)
    assert world.store.open_calls == 0


def test_what_is_rolled_back_is_not_counted(world: World) -> None:
    with world.failing():
        world.store.admit(world.ask("w"), world.policy, world.judge)
        world.settle("w")
    told = world.store.tally
    assert (told.calls, told.outcomes) == ({}, {})


def test_an_outcome_that_is_told_twice_counts_once(world: World) -> None:
    world.decided(world.read("r"))
    world.settle("r", cost_microusd=30)
    world.settle("r", cost_microusd=30)
    told = world.store.tally
    assert (told.outcomes, told.spend_microusd) == ({CallState.DONE: 1}, 30)


def test_what_an_engine_left_behind_is_counted_as_unknown(world: World) -> None:
    worker = a_worker()
    world.store.register(worker)
    world.decided(world.read("r", worker=worker.id))
    assert world.store.open_calls == 1
    world.store.forsake(worker.id, world.now_us, "gone")
    assert world.store.tally.outcomes == {CallState.UNKNOWN: 1}
    assert world.store.open_calls == 0


def test_a_copy_changes_no_more(world: World) -> None:
    before = world.store.tally
    world.decided(world.read("r"))
    assert before.calls == {}
