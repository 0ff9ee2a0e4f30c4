"""How many calls were decided and how they ended since this process opened its ledger: counted in
memory as their rows are written, so that nobody has to count rows. Canaries of drills are left out.
"""

from dataclasses import dataclass, field

from ledger.records import Outcome
from policies.call import Effect
from policies.detectors.step import Step
from policies.policy import CANARY
from policies.verdict import Action, Reason, Verdict


@dataclass(slots=True)
class Tally:
    """Of one transaction, or of all that have committed. Its keys are words of ours: bounded."""

    calls: dict[tuple[Action, Effect], int] = field(default_factory=dict)
    refused: dict[Reason, int] = field(default_factory=dict)
    outcomes: dict[str, int] = field(default_factory=dict)
    input_tokens: int = 0
    output_tokens: int = 0
    spend_microusd: int = 0

    def decided(self, tool: str, effect: Effect, verdict: Verdict) -> None:
        if tool == CANARY:
            return
        name = (verdict.action, effect)
        self.calls[name] = self.calls.get(name, 0) + 1
        if verdict.action is Action.REFUSE:
            self.refused[verdict.reason] = self.refused.get(verdict.reason, 0) + 1

    def ended(self, step: Step | None, outcome: Outcome) -> None:
        """An admitted call; `step` is what was known of it."""
        if step is not None and step.tool == CANARY:
            return
        self.outcomes[outcome.state] = self.outcomes.get(outcome.state, 0) + 1
        self.input_tokens += outcome.input_tokens or 0
        self.output_tokens += outcome.output_tokens or 0
        self.spend_microusd += outcome.cost_microusd or outcome.used_microusd or 0

    def add(self, other: "Tally") -> None:
        for name, count in other.calls.items():
            self.calls[name] = self.calls.get(name, 0) + count
        for reason, count in other.refused.items():
            self.refused[reason] = self.refused.get(reason, 0) + count
        for state, count in other.outcomes.items():
            self.outcomes[state] = self.outcomes.get(state, 0) + count
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.spend_microusd += other.spend_microusd

    def copied(self) -> "Tally":
        """Safe in any thread."""
        return Tally(
            dict(self.calls),
            dict(self.refused),
            dict(self.outcomes),
            self.input_tokens,
            self.output_tokens,
            self.spend_microusd,
        )
