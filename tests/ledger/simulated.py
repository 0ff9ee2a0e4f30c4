"""The record of a world, given to a simulation that keeps all it says."""

from contextlib import closing
from dataclasses import dataclass, field

from ledger.connection import open_reader
from ledger.replaying import Replay, period, scratch
from policies.comparing import Comparison
from policies.decide import decide
from policies.policy import Policy
from policies.recognizing import Recognizing
from policies.simulated import Judged, Noticed
from policies.simulating import Simulation
from tests.ledger.world import World


@dataclass
class Heard(Comparison):
    """Keeps all that it hears."""

    verdicts: list[Judged] = field(default_factory=list)
    findings: list[Noticed] = field(default_factory=list)

    def judged(self, judged: Judged) -> None:
        self.verdicts.append(judged)
        super().judged(judged)

    def noticed(self, noticed: Noticed) -> None:
        self.findings.append(noticed)
        super().noticed(noticed)


def simulated(
    world: World,
    policy: Policy | None = None,
    since_us: int = 0,
    until_us: int | None = None,
    **known: Policy,
) -> Heard:
    """What another policy, or the same, says to all that a world has recorded."""
    policy = policy or world.policy
    with closing(open_reader(world.data)) as reader, scratch() as windows:
        chosen = period(reader, since_us, until_us, policy)
        policies = {one.digest: one for one in (world.policy, *known.values())}
        simulation = Simulation(policy, windows, Recognizing(policy, policies.get), decide)
        heard = Heard(simulation.is_told)
        for _ in Replay(reader, chosen, simulation, windows, heard).pieces():
            pass
        return heard
