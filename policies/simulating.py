"""A policy over calls that were judged under another: what it would have said to each. Pure.

The loop is open: the calls come as they were recorded, whatever this policy says of the ones
before. A call that it would have stopped holds nothing, costs nothing and feeds no detector; one
that only it lets pass counts on ceilings, and what would have come of it nobody knows. What cannot
be told is said, and such a call goes on as it did. The cords of people and of programs outside
stand as recorded; those of ceilings and detectors are pulled by the simulation itself.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from policies import bounds
from policies.call import Claim, ClaimState, Draw, Effect, Facts, Identity, ToolCall
from policies.ceilings import Count
from policies.detectors.response import Responding
from policies.detectors.rules import Mode, Rule
from policies.detectors.runs import DetectorError, Runs
from policies.detectors.step import Finding, Kind, Severity, Step, Subject
from policies.policy import Policy, covers, subjects
from policies.recognizing import Recognizing
from policies.simulated import Asked, Ended, Judged, Noticed, Spared, Windows
from policies.standing import narrowed_as
from policies.verdict import Action, Level, Pull, Pulls, Reason, Scope, Verdict

KEPT_MAX = 200_000  # of each: calls in flight, calls that were stopped, writes that were made

UNJUDGED = "it could not be judged then, either"
LOST = "the record does not hold an argument that a condition asks for"
REPEATS_UNMADE = "it repeats a write that would not have been made"
REPEATS_UNKNOWN = "it may repeat a write, and the record does not say what came of that"

CordName = tuple[Level, Scope, str]
Judge = Callable[[Policy, ToolCall, Facts], Verdict]


@dataclass(slots=True)
class Simulation:
    """Fed with the record in its order. Until `begin`, all goes on as recorded, so that windows
    and detectors are warm; from then on the policy judges."""

    policy: Policy
    windows: Windows
    recognizing: Recognizing
    decide: Judge
    _begun: bool = False
    _pulls: dict[CordName, Pull] = field(default_factory=dict)
    _named: dict[tuple[Scope, str], int] = field(default_factory=dict)
    _own: dict[str, Pull] = field(default_factory=dict)
    _open: dict[str, Any] = field(default_factory=dict)
    _stopped: dict[str, tuple[str, Identity]] = field(default_factory=dict)
    _held: dict[str, bool] = field(default_factory=dict)
    _approved: dict[str, None] = field(default_factory=dict)
    _unmade: dict[str, None] = field(default_factory=dict)
    _made: dict[object, str] = field(default_factory=dict)
    _only_here: dict[object, None] = field(default_factory=dict)
    _replayed: str = ""
    _ended: str = ""
    _refused: str = ""
    _runs: Runs = field(init=False)
    _responding: Responding = field(default_factory=Responding)
    _ceilings: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        rules = self.policy.detectors
        self._runs = Runs({name: rule.limits for name, rule in rules.items()})
        self._ceilings = frozenset(f"ceiling:{ceiling.id}" for ceiling in self.policy.ceilings)

    @property
    def has_begun(self) -> bool:
        return self._begun

    def begin(self) -> None:
        self._begun = True

    # Calls

    def judge(self, asked: Asked) -> Judged | None:
        """What is said to a call; None before the simulation has begun."""
        call = self.recognizing.again(asked.call, asked.path, asked.policy)
        pulls = self._over(asked, call)
        drawn = self._draws(asked, call, pulls)
        judged = self._judged(asked, call, drawn, pulls) if self._begun else Judged(asked, None)
        self._refused = asked.call_id if asked.action is Action.REFUSE else ""
        if judged.action is Action.REFUSE:
            judged = self._stop(asked, judged)
        elif asked.action is not Action.HOLD:
            self._let_pass(asked, call, drawn, judged)
        if asked.action is Action.HOLD:
            _keep(self._held, asked.call_id, judged.action is Action.ALLOW)
        return judged if self._begun else None

    def is_told(self, call_id: str) -> bool:
        """Whether a call that was held would have passed at once: what came of it is no news."""
        return self._held.get(call_id, False)

    def approved(self, ticket: str) -> None:
        """A person let the call pass that opened this ticket."""
        _keep(self._approved, ticket, None)

    def _over(self, asked: Asked, call: ToolCall | str) -> Pulls:
        """All cords, if any may stand over the call: mostly none does, and that is quickly seen."""
        if not self._pulls or isinstance(call, str):
            return {}
        names = subjects(asked.identity, call.tool)
        return self._pulls if any(name in self._named for name in names) else {}

    def _draws(self, asked: Asked, call: ToolCall | str, pulls: Pulls) -> tuple[Draw, ...]:
        if isinstance(call, str) or call.fault is not None or asked.rule == "identity":
            return ()
        return self.windows.draws(self.policy, call, asked.identity, pulls=pulls)

    def _judged(
        self, asked: Asked, call: ToolCall | str, drawn: tuple[Draw, ...], pulls: Pulls
    ) -> Judged:
        if asked.reason in _UNJUDGED:
            return Judged(asked, None, UNJUDGED)
        if asked.rule == "identity":
            facts = Facts(asked.at_us, None, asked.reason)
            return self._said(asked, self.decide(self.policy, asked.call, facts))
        if isinstance(call, str):
            return Judged(asked, None, call)
        approved = asked.call_id in self._held and (
            asked.action is Action.ALLOW or asked.call_id in self._approved
        )
        if call.fault is not None:
            facts = Facts(asked.at_us, asked.identity, None, pulls)
            return self._said(asked, self.decide(self.policy, call, facts))
        claim = self._claim(asked, call)
        known = None if isinstance(claim, str) else claim
        facts = Facts(asked.at_us, asked.identity, None, pulls, known, drawn, approved)
        verdict = self.decide(self.policy, call, facts)
        if verdict.reason in _BEFORE_ARGUMENTS:
            return self._said(asked, verdict)
        if self._is_lost(asked, call):
            return Judged(asked, None, LOST)
        if isinstance(claim, str) and verdict.reason not in _BEFORE_CLAIMS:
            return Judged(asked, None, claim)
        judged = self._said(asked, verdict)
        return judged._replace(crossed=_crossed(drawn, asked.at_us)) if verdict.alerts else judged

    def _said(self, asked: Asked, verdict: Verdict) -> Judged:
        """What a call that waited for a person was told in the end is the end of its waiting."""
        if verdict.action is Action.HOLD:
            ended = asked.reason in _ENDS_OF_HOLDS or (
                asked.reason in _NO_HOLDS and asked.rule == verdict.rule
            )
            if ended:
                verdict = Verdict(asked.action, asked.reason, asked.rule)
        own = self._own.get(verdict.rule.removeprefix(_THROTTLED))
        cause = verdict.rule if own is None else own.actor
        return Judged(asked, verdict, cause=cause, is_own=own is not None)

    def _is_lost(self, asked: Asked, call: ToolCall) -> bool:
        """Whether anything is asked of an argument that the record does not hold as it was."""
        if call.own:
            return False
        where = self.policy.tool(call.tool).where
        if not (where or self.policy.tenants or self.policy.agents):
            return False
        wanted = [one.path for one in where]
        who = asked.identity
        for holder in (self.policy.tenants.get(who.tenant), self.policy.agents.get(who.agent)):
            for grant in (holder.allow or ()) if holder is not None else ():
                if grant.where and covers((grant.tool,), call.tool):
                    wanted += [one.path for one in grant.where]
        if not wanted:
            return False
        known = {path for path, _ in (*call.arguments, *call.unread)} - asked.lost
        return not known.issuperset(wanted)

    # Claims

    def _claim(self, asked: Asked, call: ToolCall) -> Claim | str | None:
        """The claim that the write met, as what was said to it tells; else why nobody can tell."""
        if call.effect is not Effect.WRITE:
            return None
        body = (asked.identity.tenant, call.fingerprint)
        changed = (
            call.tool != asked.call.tool
            or asked.call.effect is not Effect.WRITE
            or not self.recognizing.keeps_keys(call.tool, asked.policy)
        )
        met = _MET.get(asked.reason)
        if met is not None:
            if asked.earlier_call in self._unmade:
                return REPEATS_UNMADE
            state, answered = met
            same = asked.reason is not Reason.KEY_REUSED
            fingerprint = call.fingerprint if same else b""
            claim = Claim(asked.earlier_call, state, fingerprint, True, answered)
            return REPEATS_UNKNOWN if changed else claim
        if asked.key in self._only_here or body in self._only_here:
            return REPEATS_UNKNOWN
        if asked.reason in _MET_NONE and not changed:
            return None
        repeats = (asked.key and asked.key in self._made) or body in self._made
        return REPEATS_UNKNOWN if repeats else None

    # What follows

    def _stop(self, asked: Asked, judged: Judged) -> Judged:
        if asked.action is Action.ALLOW:
            _keep(self._stopped, asked.call_id, (judged.cause, asked.identity))
            if asked.call.effect is Effect.WRITE:
                _keep(self._unmade, asked.call_id, None)
        pull = None if judged.verdict is None else judged.verdict.pull
        return judged._replace(pulled=pull) if pull is not None and self._pull(pull) else judged

    def _let_pass(
        self, asked: Asked, call: ToolCall | str, drawn: tuple[Draw, ...], judged: Judged
    ) -> None:
        """It is charged as the store charges it. What would be held is taken to be approved."""
        if isinstance(call, str) or call.fault is not None or asked.rule == "identity":
            if asked.action is Action.ALLOW:
                _keep(self._open, asked.call_id, ())
            return
        if judged.action is Action.REPLAY:
            self.windows.charge(drawn, asked.at_us, counts=_REPLAYED)
            self._replayed = asked.call_id
        elif asked.action is Action.ALLOW:
            leases = self.windows.charge(drawn, asked.at_us, call.host)
            _keep(self._open, asked.call_id, leases)
        else:
            self.windows.charge(drawn, asked.at_us, call.host, _BUT_IN_FLIGHT)
        if call.effect is Effect.WRITE and judged.action is not Action.REPLAY:
            self._take(asked, call)

    def _take(self, asked: Asked, call: ToolCall) -> None:
        names: list[object] = (
            [(asked.identity.tenant, call.fingerprint)] if call.fingerprint else []
        )
        names += [asked.key] if asked.key else []
        for name in names:
            if asked.action is Action.ALLOW:
                _keep(self._made, name, asked.call_id)
            else:
                _keep(self._only_here, name, None)

    def ended(self, ended: Ended) -> Spared | None:
        """A call has ended; what that spared, if it would not have been made."""
        leases = self._open.pop(ended.call_id, None)
        if leases is not None:
            self._ended = ended.call_id
            self.windows.settle(leases, ended.at_us, ended.used)
        stopped = self._stopped.pop(ended.call_id, None)
        return None if stopped is None else Spared(*stopped, ended.cost_microusd)

    def spawned(self, child: Identity, at_us: int) -> Verdict | None:
        """A run was started by another; the verdict of a ceiling that has no room for it."""
        drawn = self.windows.draws_of_spawn(self.policy, child)
        # A cord is the parent's where the child itself would be stopped: it never comes to be.
        parent = replace(child, run=child.parent, ancestors=child.ancestors[1:])
        facts = Facts(at_us, parent, drawn=drawn)
        verdict = bounds.bounded(_NO_CALL, parent, facts) if self._begun else None
        if verdict is None:
            self.windows.charge(drawn, at_us)
        elif verdict.pull is not None:
            self._pull(verdict.pull)
        return verdict

    # Cords

    def moved(self, pull: Pull, *, is_released: bool, call_id: str = "") -> None:
        """A cord was pulled, narrowed or released then. That of a ceiling or a detector is what
        this policy makes of it, from its beginning; one that a ceiling pulled over a running call
        stands, if there still is that ceiling: what such a call asked for is in no row."""
        name = (pull.level, pull.scope, pull.subject)
        if is_released:
            self._own.pop(pull.rule, None)
            if self._pulls.pop(name, None) is not None:
                self._count(pull, -1)
            return
        ours = pull.actor.partition(":")[0] in _OURS
        over_running = pull.actor in self._ceilings and call_id != self._refused
        if ours and self._begun and not over_running and not pull.lets_some_pass:
            return
        self._put(narrowed_as(self._pulls.get(name), pull))

    def _put(self, pull: Pull) -> None:
        name = (pull.level, pull.scope, pull.subject)
        if name not in self._pulls:
            self._count(pull, 1)
        self._pulls[name] = pull

    def _count(self, pull: Pull, more: int) -> None:
        """How many cords of all levels there are over it."""
        name = (pull.scope, pull.subject)
        left = self._named.get(name, 0) + more
        self._named[name] = left
        if not left:
            del self._named[name]

    def _pull(self, pull: Pull) -> bool:
        """A cord of the simulation's own; False where one stands that is as tight."""
        if not self._begun:
            return False
        name = (pull.level, pull.scope, pull.subject)
        standing = self._pulls.get(name)
        if standing is not None and not standing.lets_some_pass:
            return False
        self._put(pull)
        self._own[pull.rule] = pull
        return True

    # Detectors

    def feed(self, step: Step) -> list[Noticed]:
        """A settled call, or an act of a run, if it would have been."""
        if step.kind in (Kind.MODEL, Kind.TOOL):
            if step.call_id != (self._replayed if step.replayed else self._ended):
                return []
        elif self._is_stopped(step.run) or self._is_stopped(step.root):
            return []
        try:
            findings = self._runs.feed(step)
        except DetectorError as error:
            return self._failed(error, step)
        noticed = []
        for finding in findings:
            rule = self.policy.detectors[finding.detector]
            if rule.mode is not Mode.OFF:
                pull = self._responding.cord(finding, rule, step)
                noticed += self._noticed(finding, rule, step, pull)
        return noticed

    def _noticed(
        self, finding: Finding, rule: Rule, step: Step, pull: Pull | None
    ) -> list[Noticed]:
        if not self._begun:
            return []
        pulled = rule.mode is Mode.ENFORCE and pull is not None and self._pull(pull)
        return [Noticed(finding, rule, step, pull if pulled else None)]

    def _failed(self, error: DetectorError, step: Step) -> list[Noticed]:
        """A run that no detector watches is halted, as it is live."""
        name, why = error.detector, str(error)
        finding = Finding(name, Severity.TRIP, Subject.RUN, step.run, why, (step.call_id,))
        pull = Pull(Level.HALT, Scope.RUN, step.run, why, f"detector:{name}", step.at_us)
        return self._noticed(finding, Rule(Mode.ENFORCE, None), step, pull)

    def forget(self, scope: Scope, subject: str) -> None:
        """A person let it go on: the detectors begin anew with it."""
        self._runs.forget(scope, subject)
        self._responding.forget(scope, subject)

    def _is_stopped(self, run: str) -> bool:
        return f"{Level.HALT}:{Scope.RUN}:{run}" in self._own


_NO_CALL = ToolCall("", Effect.MODEL, "", b"")
_THROTTLED = "ceiling:"
"""Before the name of a throttle, in the rule of what it has no room for."""
_UNJUDGED = frozenset({Reason.POLICY_FAILURE, Reason.DETECTOR_FAILURE})
_ENDS_OF_HOLDS = frozenset({Reason.HELD, Reason.HOLD_REJECTED, Reason.HOLD_EXPIRED})
_NO_HOLDS = frozenset({Reason.OVER_CEILING, Reason.BODY_TOO_LARGE})
"""Said to a call that would be held, where no person can be asked."""
_BEFORE_ARGUMENTS = frozenset(
    {
        *(Reason.HALTED, Reason.DESTINATION_UNLISTED, Reason.DESTINATION_READ_ONLY),
        *(Reason.TOOL_NOT_ALLOWED, Reason.READ_ONLY),
    }
)
_BEFORE_CLAIMS = frozenset({Reason.ARGUMENT_REFUSED, Reason.FROZEN, Reason.KEY_REQUIRED})
_MET: Mapping[Reason, tuple[ClaimState, bool]] = {
    Reason.REPLAYED: (ClaimState.DONE, True),
    Reason.KEY_REUSED: (ClaimState.DONE, True),
    Reason.IN_FLIGHT: (ClaimState.PENDING, False),
    Reason.OUTCOME_UNKNOWN: (ClaimState.UNKNOWN, False),
    Reason.DONE_BUT_NOT_STORED: (ClaimState.DONE, False),
}
_MET_NONE = frozenset({Reason.ALLOWED, Reason.OVER_CEILING, *_ENDS_OF_HOLDS})
"""What is said only to a write that met no claim."""
_REPLAYED = frozenset({Count.CALLS})
_BUT_IN_FLIGHT = frozenset(Count) - {Count.IN_FLIGHT}
_OURS = frozenset({"ceiling", "detector"})


def _crossed(drawn: tuple[Draw, ...], now_us: int) -> tuple[str, ...]:
    """The rules of the ceilings that only tell of this call."""
    found = (draw.ceiling.id for draw in drawn if bounds.crossed((draw,), now_us))
    return tuple(dict.fromkeys(f"ceiling:{name}" for name in found))


def _keep[K, V](known: dict[K, V], key: K, value: V) -> None:
    """Put in as the newest; beyond KEPT_MAX the oldest goes."""
    known.pop(key, None)
    if len(known) >= KEPT_MAX:
        del known[next(iter(known))]
    known[key] = value
