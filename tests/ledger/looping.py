"""A run that asks for the same again and again, and what the detectors find of it."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ledger.watching import Found, Watch
from policies.call import Identity, Traits
from policies.detectors.rules import SHIPPED, Mode, Rule
from policies.detectors.step import Severity, Step
from tests.ledger.world import R1, World

R2 = Identity("r2", "acme")


class Listening(Watch):
    """Remembers what was found over what came in, and how often its state was made."""

    def __init__(self) -> None:
        super().__init__()
        self.found, self.steps = list[Found](), list[str]()
        self.made, self._is_reading = 0, False

    def make(self, *args: Any) -> bool:
        self._is_reading, self.made, self.steps = True, self.made + 1, []
        try:
            return super().make(*args)
        finally:
            self._is_reading = False

    def feed(self, step: Step) -> list[Found]:
        self.steps += [step.call_id] if self._runs is not None else []
        return super().feed(step)

    def _found(self, *args: Any) -> list[Found]:
        found = super()._found(*args)
        if not self._is_reading:
            self.found += found
        return found


class Looping:
    """A run that asks for the same again and again, every second."""

    def __init__(self, world: World) -> None:
        self.world, self.calls = world, 0
        self.watch = self.listen()

    def listen(self) -> Listening:
        self.watch = self.world.store._memory.watch = Listening()
        return self.watch

    def call(self, who: Identity = R1, *, body: str = "same", fails: bool = False) -> list[Found]:
        """What was found over one call."""
        world, self.calls = self.world, self.calls + 1
        world.wait(1)
        call_id, before = f"c{self.calls}", len(self.watch.found)
        ask = replace(world.read(call_id, claimant=who), traits=Traits(body.encode() * 8))
        world.decided(ask)
        outcome = replace(world.outcome(call_id), result=b"the same" * 4)
        if fails:
            with world.failing():
                assert world.store.settle(outcome, world.policy)
        assert world.store.settle(outcome, world.policy)
        return self.watch.found[before:]

    def tripped(self, within: int = 40, **rest: Any) -> int:
        """After how many calls."""
        for number in range(1, within + 1):
            if any(one.finding.severity is Severity.TRIP for one in self.call(**rest)):
                return number
        return 0


def with_rules(world: World, rules: Mapping[str, Rule]) -> None:
    world.policy = replace(world.policy, detectors=rules)


def with_limits(world: World, detector: str, limits: Any, mode: Mode = Mode.ALERT) -> None:
    with_rules(world, {**SHIPPED, detector: Rule(mode, limits)})


USUAL = 8
"""The call over which the loop trips."""
