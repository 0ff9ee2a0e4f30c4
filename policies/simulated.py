"""What a simulation is fed with, and what it says: plain frozen values, quick to make, since there
are millions of them."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from policies.call import Draw, Identity, ToolCall
from policies.ceilings import Count
from policies.detectors.rules import Rule
from policies.detectors.step import Finding, Step
from policies.policy import Policy
from policies.verdict import Action, Pull, Pulls, Reason, Verdict


class Windows(Protocol):
    """What ceilings count: those of the store, over memory of the simulation's own."""

    def draws(
        self,
        policy: Policy,
        call: ToolCall,
        identity: Identity,
        counts: frozenset[Count] | None = None,
        pulls: Pulls | None = None,
    ) -> tuple[Draw, ...]: ...

    def draws_of_spawn(self, policy: Policy, child: Identity) -> tuple[Draw, ...]: ...

    def charge(
        self,
        draws: Iterable[Draw],
        now_us: int,
        host: str = "",
        counts: frozenset[Count] | None = None,
    ) -> Any: ...

    def settle(self, leases: Any, now_us: int, used: Mapping[str, int | None]) -> None: ...


class Asked(NamedTuple):
    """A call of the record and what was said to it. `path` is None where it is masked; `key` is the
    beginning of its claim's; `policy` the digest of the one that judged it."""

    call_id: str
    at_us: int
    call: ToolCall
    identity: Identity
    action: Action
    reason: Reason
    rule: str
    policy: str
    lost: frozenset[str] = frozenset()
    path: str | None = None
    key: str = ""
    earlier_call: str = ""


class Ended(NamedTuple):
    """How a call ended. `used` is what its reservations become, by count; None: they stay."""

    call_id: str
    at_us: int
    used: Mapping[str, int | None]
    cost_microusd: int = 0


class Judged(NamedTuple):
    """What the policy says to a call: `verdict`, or `why` nobody can tell. `cause` is the detector,
    ceiling or other rule by which it is stopped; `is_own` that it is a cord of the simulation.
    `pulled` is the cord that is pulled by it, `crossed` are ceilings that only tell."""

    asked: Asked
    verdict: Verdict | None
    why: str = ""
    cause: str = ""
    is_own: bool = False
    pulled: Pull | None = None
    crossed: tuple[str, ...] = ()

    @property
    def action(self) -> Action:
        """Taken to be as recorded where nobody can tell."""
        return self.asked.action if self.verdict is None else self.verdict.action


class Noticed(NamedTuple):
    """What a detector would have said, and the cord that it would have pulled; None for none."""

    finding: Finding
    rule: Rule
    step: Step
    pull: Pull | None


class Spared(NamedTuple):
    """A call that was made and would not have been has ended: what it cost, and what stops it."""

    cause: str
    identity: Identity
    cost_microusd: int
