"""A process that works on a store until it kills itself at a named point: `crash_child DATA POINT`.

It prints each promise that it would have made to an agent, flushed, before it goes on.
"""

import os
import signal
import sys
from pathlib import Path

from tests.ledger.world import World, a_ceiling, a_policy, a_pull, a_worker

POINTS = (
    "before anything",
    "inside the admission",
    "before the commit",
    "after the admission",
    "inside the settlement",
    "before its commit",
    "after the settlement",
    "after a cord",
    "after a read",
    "inside the loss of a worker",
    "after the loss of a worker",
)


def say(*words: object) -> None:
    print(*words, flush=True)


def work(world: World, point: str) -> None:
    def at(name: str) -> None:
        if name == point:
            os.kill(os.getpid(), signal.SIGKILL)

    store = world.store
    world.policy = a_policy(a_ceiling(100))
    at("before anything")
    with store.transaction(durable=True):
        store.admit(world.ask("a", key="k1"), world.policy, world.judge)
        at("inside the admission")
        batch = store._open_batch()
        batch.write()
        batch.write = lambda: at("before the commit")  # type: ignore[method-assign]
    say("admitted a")
    at("after the admission")
    with store.transaction(durable=True):
        world.settle("a")
        at("inside the settlement")
        batch = store._open_batch()
        batch.write()
        batch.write = lambda: at("before its commit")  # type: ignore[method-assign]
    say("settled a")
    at("after the settlement")
    store.pull(a_pull(subject="r9"))
    say("pulled r9")
    at("after a cord")
    with store.transaction(durable=False):
        store.admit(world.read("r"), world.policy, world.judge)
    say("admitted r")
    at("after a read")
    store.register(a_worker())
    with store.transaction(durable=True):
        store.admit(world.ask("w", body="w", worker="w1"), world.policy, world.judge)
    with store.transaction(durable=True):
        store.forsake("w1", world.now_us, "silent")
        at("inside the loss of a worker")
    say("forsook w1")
    at("after the loss of a worker")


if __name__ == "__main__":
    work(World(Path(sys.argv[1])), sys.argv[2])
