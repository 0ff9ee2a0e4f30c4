"""What a simulation came to, against what the record says happened. Pure; bounded, however long.

By rule: a detector, a ceiling, anything else that stops. A flip is a call that would have passed
and did not, or the other way round.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from policies.call import Identity
from policies.detectors.step import Severity
from policies.simulated import Judged, Noticed, Spared
from policies.verdict import Action, Pull, Reason, Verdict

EXAMPLES = 3  # calls of each kind that are shown
RUNS_MAX = 10_000  # of each rule: how many runs are told apart
RULES_MAX = 500  # how many rules are told apart
OTHERS = "other rules"

Wanted = Callable[[tuple[str, ...], str], bool]
"""Whether it is told of: a run with those above it, and its tenant."""


def _all(runs: tuple[str, ...], tenant: str) -> bool:
    return True


@dataclass(slots=True)
class Counted:
    """How many calls, and the first of them."""

    calls: int = 0
    examples: list[str] = field(default_factory=list)

    def add(self, *call_ids: str) -> None:
        self.calls += 1
        for call_id in call_ids:
            if call_id and len(self.examples) < EXAMPLES and call_id not in self.examples:
                self.examples.append(call_id)


@dataclass(slots=True)
class Tally:
    """Of one rule. `found` are the names of what a detector finds something wrong with, `cords` how
    many are pulled; `stopped` are all calls that it stops or holds, `spared` those of them that
    were made; `crossed` counts calls that a ceiling only tells of. What is saved counts from the
    trip, in each run to the last call that was made all the same."""

    found: dict[Severity, set[str]] = field(default_factory=dict)
    cords: int = 0
    crossed: int = 0
    stopped: Counted = field(default_factory=Counted)
    spared: Counted = field(default_factory=Counted)
    noticed: Counted = field(default_factory=Counted)
    saved_us: int = 0
    saved_microusd: int = 0
    runs: dict[str, int] = field(default_factory=dict)
    """Each run that it met, with when it was last saved anything; 0 where nothing was yet."""

    @property
    def examples(self) -> list[str]:
        return (self.spared.examples or self.noticed.examples or self.stopped.examples)[:EXAMPLES]

    def met(self, run: str, at_us: int = 0) -> None:
        """`at_us`: from when, or until when, something is saved."""
        last_us = self.runs.get(run)
        if last_us is None and len(self.runs) >= RUNS_MAX:
            return
        if last_us and at_us > last_us:
            self.saved_us += at_us - last_us
        self.runs[run] = max(last_us or 0, at_us)


@dataclass(frozen=True, slots=True)
class Flip:
    """What was said to a call, and what would have been."""

    was: tuple[Action, Reason]
    would: tuple[Action, Reason]


@dataclass(slots=True)
class Comparison:
    """Hears of a simulation. `is_told` says of a call that was held whether what came of it is told
    already; `flipped` is told each flip as it comes."""

    is_told: Callable[[str], bool]
    wanted: Wanted = _all
    flipped: Callable[[Judged], None] | None = None
    rules: dict[str, Tally] = field(default_factory=dict)
    flips: dict[Flip, Counted] = field(default_factory=dict)
    unjudged: dict[str, Counted] = field(default_factory=dict)
    calls: int = 0
    otherwise: int = 0
    """Stopped then and now, for another reason."""
    not_begun: int = 0
    """Runs that others started and would not have."""
    _own: set[tuple[str, str]] = field(default_factory=set)
    _recorded: set[tuple[str, str]] = field(default_factory=set)
    _above: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Runs between which and their root there are others, with all that are above."""

    @property
    def changes(self) -> bool:
        """Whether anything would have been otherwise."""
        return bool(self.flips or self.not_begun) or not self._own <= self._recorded

    def judged(self, judged: Judged) -> None:
        asked = judged.asked
        who = asked.identity
        if len(who.ancestors) > 1 and who.run not in self._above:
            if len(self._above) >= RUNS_MAX:
                del self._above[next(iter(self._above))]
            self._above[who.run] = who.ancestors
        if not self.wanted((who.run, *who.ancestors), who.tenant):
            return
        self.calls += 1
        verdict = judged.verdict
        if verdict is None:
            self.unjudged.setdefault(judged.why, Counted()).add(asked.call_id)
            return
        for rule in judged.crossed:
            tally = self._tally(rule)
            tally.crossed += 1
            tally.noticed.add(asked.call_id)
            tally.met(who.run)
        if judged.pulled is not None:
            self._cord(judged.pulled)
        if verdict.action in (Action.REFUSE, Action.HOLD):
            self._stopped(judged)
        if verdict.action is not asked.action:
            if not self.is_told(asked.call_id) or asked.action is Action.HOLD:
                self._flip(judged, verdict)
        elif verdict.reason is not asked.reason:
            self.otherwise += 1

    def _stopped(self, judged: Judged) -> None:
        asked, tally = judged.asked, self._tally(judged.cause)
        tally.stopped.add(asked.call_id)
        was_made = asked.action is Action.ALLOW and judged.action is Action.REFUSE
        if was_made:
            tally.spared.add(asked.call_id)
        tally.met(asked.identity.run, asked.at_us if was_made and judged.is_own else 0)

    def _flip(self, judged: Judged, verdict: Verdict) -> None:
        asked = judged.asked
        flip = Flip((asked.action, asked.reason), (verdict.action, verdict.reason))
        self.flips.setdefault(flip, Counted()).add(asked.call_id)
        if self.flipped is not None:
            self.flipped(judged)

    def noticed(self, noticed: Noticed) -> None:
        step, finding = noticed.step, noticed.finding
        if not self.wanted((step.run, *self._above.get(step.run, (step.root,))), step.tenant):
            return
        tally = self._tally(f"detector:{finding.detector}")
        names = tally.found.setdefault(finding.severity, set())
        if len(names) < RUNS_MAX:
            names.add(finding.name)
        tally.noticed.add(*finding.evidence[-1:])
        tally.met(step.run, step.at_us if noticed.pull is not None else 0)
        if noticed.pull is not None:
            self._cord(noticed.pull)

    def _cord(self, pull: Pull) -> None:
        self._tally(pull.actor).cords += 1
        self._own.add((pull.rule, pull.actor))

    def spared(self, spared: Spared) -> None:
        who = spared.identity
        if self.wanted((who.run, *who.ancestors), who.tenant):
            self._tally(spared.cause).saved_microusd += spared.cost_microusd

    def pulled(self, pull: Pull) -> None:
        self._recorded.add((pull.rule, pull.actor))

    def not_started(self, refused: Verdict, child: Identity) -> None:
        if self.wanted((child.run, *child.ancestors), child.tenant):
            tally = self._tally(refused.rule)
            tally.stopped.add()
            tally.met(child.parent)
            self.not_begun += 1

    def _tally(self, rule: str) -> Tally:
        for one_each in _ONE_EACH:
            if rule.startswith(f"{one_each}:"):
                rule = one_each
        if rule not in self.rules and len(self.rules) >= RULES_MAX:
            rule = OTHERS
        return self.rules.setdefault(rule, Tally())


_ONE_EACH = ("token", "ceiling:budget")
"""Rules of which each run has one of its own."""
