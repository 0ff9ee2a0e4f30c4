"""An incident of the past as a test of the policy: how far it would let it go now.

The rows that were exported are judged by the very rules that judge calls live (ledger/replaying.py,
policies/simulating.py), by the clock of the record, without a network. Nothing here prints.
"""

import contextlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from ledger import exported_rows
from ledger.errors import LedgerError
from ledger.replaying import COLUMNS, NotAsRecorded, Period, Replay, Row, scratch
from policies.call import Effect, Identity
from policies.ceilings import usd
from policies.decide import decide
from policies.load import PolicyError, load, load_file
from policies.policy import Policy, subjects
from policies.recognizing import Recognizing
from policies.simulated import Judged, Noticed, Spared
from policies.simulating import Simulation
from policies.verdict import Action, Level, Pull, Reason, Verdict
from proxy.regression_files import BEFORE, POLICY, Case, Expected
from proxy.regression_folder import RegressionError, text_of

_SEQ = COLUMNS.index("seq")

# What goes on being said, until somebody edits the policy or lifts a cord. Others pass again: what
# a window has no room for, a write in flight.
_LASTING = frozenset(
    {
        *(Reason.HALTED, Reason.FROZEN, Reason.DESTINATION_UNLISTED, Reason.READ_ONLY),
        *(Reason.DESTINATION_READ_ONLY, Reason.TOOL_NOT_ALLOWED, Reason.ARGUMENT_REFUSED),
        *(Reason.KEY_REQUIRED, Reason.BODY_TOO_LARGE),
        *(Reason.HELD, Reason.HOLD_REJECTED, Reason.HOLD_EXPIRED),
    }
)


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a policy lets an incident go. `calls` of the `asked` ones by which it went wrong were
    let through or answered from the record, until `us` microseconds after the first was asked;
    `microusd` is what all calls of the incident cost by then. `contained`: from there on each of
    them is stopped, by `rule`, for good; else `rule` is what slowed it, if anything. `tripped` are
    the healthy runs that it stops, with the call and the rule; `unjudged` calls nobody can judge
    again."""

    contained: bool
    calls: int
    asked: int
    microusd: int
    us: int
    rule: str
    reason: str
    unjudged: int
    tripped: tuple[tuple[str, str, str], ...]
    healthy_runs: int
    healthy_calls: int


@dataclass(frozen=True, slots=True)
class Check:
    """One expectation: what it is, what was wanted and what is so."""

    what: str
    wanted: str
    found: str
    kept: bool


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a policy makes of a case, and whether that is what is expected."""

    case: Case
    policy: Policy
    reached: Reached
    checks: tuple[Check, ...]

    @property
    def kept(self) -> bool:
        return all(check.kept for check in self.checks)


@dataclass(frozen=True, slots=True)
class Proof:
    """The policy of that day must break the test, the mended one keep it; `why` is empty where
    that is so."""

    before: Judgement
    after: Judgement
    why: str


def judged(case: Case, policy: Policy) -> Judgement:
    """Raises RegressionError for rows that cannot be read."""
    reached = reach(case, policy)
    return Judgement(case, policy, reached, tuple(_checks(case.expected, reached)))


def proven(case: Case, policy: Policy) -> Proof:
    """Raises RegressionError, also where the policy of that day can't be used any more."""
    before, after = judged(case, policy_before(case)), judged(case, policy)
    return Proof(before, after, _unproven(before, after))


def policy_in(case: Case, file: Any = None) -> Policy:
    """The one that stands in the directory, or in another file. Raises PolicyError, and
    RegressionError for a link."""
    if file is not None:
        return load_file(file)
    path = case.folder / POLICY
    return load(text_of(path), str(path))


def policy_before(case: Case) -> Policy:
    """That of the day. Raises PolicyError."""
    return load(case.policies[case.incident["before"]], str(case.folder / BEFORE))


def expected_of(reached: Reached) -> Expected:
    """What a test may ask for: all that this policy reaches, dollars where any were spent; one call
    fewer than happened where it contains nothing, so that the test fails until one does."""
    if not reached.contained:
        return Expected(calls=max(reached.calls - 1, 0))
    return Expected(reached.calls, reached.microusd or None, reached.us)


# ---------------------------------------------------------------------------------- judging


def reach(case: Case, policy: Policy) -> Reached:
    """Raises RegressionError for rows that cannot be read."""
    both = {row[_SEQ]: row for row in (*case.healthy, *case.rows)}
    told = _replayed(case, policy, [both[seq] for seq in sorted(both)], case.first)
    alone = _replayed(case, policy, case.healthy, 0)
    column = COLUMNS.index("call_id")
    of_it = {row[column] for row in case.rows if row[_SEQ] >= case.first}
    calls = {name: call for name, call in told.calls.items() if name in of_it}
    bad = [call for call in calls.values() if case.went_wrong(call.tool, call.who.release)]
    passed = [number for number, call in enumerate(bad) if call.passed]
    last = passed[-1] if passed else -1
    contained, rule, reason = _stopped(bad, last, told.pulls)
    spent, by_then = exported_rows.costs(case.rows), bad[last].at_us if passed else -1
    return Reached(
        contained,
        len(passed),
        len(bad),
        sum(spent[name] for name, call in calls.items() if call.passed and call.at_us <= by_then),
        bad[last].at_us - bad[0].at_us if passed else 0,
        rule,
        reason,
        sum(call.passed is None or call.is_guessed for call in bad),
        tuple((run, *why) for run, why in sorted(alone.tripped.items())),
        len({call.who.run for call in alone.calls.values()}),
        len(alone.calls),
    )


@dataclass(frozen=True, slots=True)
class _Call:
    """What is said to a call; `passed` is None where nobody can tell, and it is taken to pass, as
    it did then, where it is `is_guessed`."""

    at_us: int
    who: Identity
    tool: str
    effect: Effect
    passed: bool | None
    lasts: bool
    rule: str
    reason: str
    is_guessed: bool = False


@dataclass(slots=True)
class _Heard:
    """Keeps what a simulation says to each call. A call that was held and then decided is told as
    it was decided. `tripped` are runs of which a call is stopped that was not, `unborn` those that
    would not have been started, with the rule: they and those below them call nobody."""

    policy: Policy
    calls: dict[str, _Call] = field(default_factory=dict)
    pulls: list[Pull] = field(default_factory=list)
    tripped: dict[str, tuple[str, str]] = field(default_factory=dict)
    unborn: dict[str, str] = field(default_factory=dict)

    def judged(self, judged: Judged) -> None:
        asked, verdict = judged.asked, judged.verdict
        who = asked.identity
        rule = next(filter(None, map(self.unborn.get, (who.run, *who.ancestors))), "")
        if rule:
            self.calls[asked.call_id] = _Call(
                *(asked.at_us, who, asked.call.tool, asked.call.effect),
                *(False, True, rule, Reason.OVER_CEILING.value),
            )
            return
        if judged.pulled is not None:
            self.pulls.append(judged.pulled)
        passed: bool | None = judged.action in (Action.ALLOW, Action.REPLAY)
        is_guessed = verdict is None and asked.action is Action.ALLOW
        if verdict is None and not is_guessed:
            passed = None
        self.calls[asked.call_id] = _Call(
            *(asked.at_us, who, asked.call.tool, asked.call.effect),
            passed,
            verdict is not None and _lasts(self.policy, verdict),
            judged.cause,
            "" if verdict is None else verdict.reason.value,
            is_guessed,
        )
        if passed is False and asked.action in (Action.ALLOW, Action.REPLAY):
            self.tripped.setdefault(who.run, (asked.call_id, judged.cause))

    def noticed(self, noticed: Noticed) -> None:
        if noticed.pull is not None:
            self.pulls.append(noticed.pull)
            self.tripped.setdefault(noticed.step.run, (noticed.step.call_id, noticed.pull.actor))

    def not_started(self, refused: Verdict, child: Identity) -> None:
        self.tripped.setdefault(child.run, ("", refused.rule))
        self.unborn.setdefault(child.run, refused.rule)
        self.pulls += filter(None, (refused.pull,))

    def spared(self, spared: Spared) -> None:
        """What it would have saved is no question here."""

    def pulled(self, pull: Pull) -> None:
        """What was pulled then is another policy's."""


def _lasts(policy: Policy, verdict: Verdict) -> bool:
    if verdict.pull is not None and verdict.pull.level is not Level.THROTTLE:
        return True
    if verdict.reason is not Reason.OVER_CEILING:
        return verdict.reason in _LASTING
    if verdict.rule.startswith("ceiling:budget"):
        return True
    return any(
        verdict.rule == f"ceiling:{one.id}" and one.within_us is None for one in policy.ceilings
    )


def _stopped(bad: list[_Call], last: int, pulls: Iterable[Pull]) -> tuple[bool, str, str]:
    """Whether none passes any more behind the last that passed, with the rule and the reason. Where
    none was asked for after it, a cord that stands over it says so."""
    for call in bad[last + 1 :]:
        if call.passed is False and call.lasts:
            return True, call.rule, call.reason
    if last >= 0:
        for pull in pulls:
            if _stands_over(pull, bad[last]):
                reason = Reason.HALTED if pull.level is Level.HALT else Reason.FROZEN
                return True, pull.actor, reason.value
    slowed = next((call for call in bad if call.passed is False), None)
    return (False, slowed.rule, slowed.reason) if slowed else (False, "", "")


def _stands_over(pull: Pull, call: _Call) -> bool:
    if (pull.scope, pull.subject) not in subjects(call.who, call.tool):
        return False
    is_write = call.effect is Effect.WRITE
    return pull.level is Level.HALT or (pull.level is Level.FREEZE and is_write)


def _replayed(case: Case, policy: Policy, rows: Iterable[Row], first: int) -> _Heard:
    """All the rows; from that number on they are judged. Raises RegressionError."""
    ready = list(rows)
    heard = _Heard(policy)
    if not ready:
        return heard
    warm = min(ready[0][_SEQ], first) if first else ready[0][_SEQ]
    chosen = Period(warm, max(first, warm), ready[-1][_SEQ] + 1, 0)
    recognizing = Recognizing(policy, _before(case, policy))
    try:
        with exported_rows.opened(ready, case.policies) as reader, scratch() as windows:
            simulation = Simulation(policy, windows, recognizing, decide)
            for _ in Replay(reader, chosen, simulation, windows, heard).pieces():
                pass
    except NotAsRecorded as error:
        place = case.places.get(error.seq, str(case.folder))
        raise RegressionError(f"{place}: it is no row of a record") from None
    except LedgerError as error:
        raise RegressionError(f"{case.folder}: {error}") from None
    return heard


def _before(case: Case, policy: Policy) -> Callable[[str], Policy | None]:
    known: dict[str, Policy | None] = {policy.digest: policy}

    def before(digest: str) -> Policy | None:
        if digest not in known:
            known[digest] = None
            with contextlib.suppress(PolicyError):
                known[digest] = load(case.policies.get(digest, ""))
        return known[digest]

    return before


# ---------------------------------------------------------------------------------- expecting


def _checks(expected: Expected, reached: Reached) -> Iterable[Check]:
    measures = (
        ("call", expected.calls, reached.calls, str),
        ("dollar", expected.microusd, reached.microusd, lambda microusd: f"${usd(microusd)}"),
        ("second", expected.us, reached.us, lambda us: f"{us / 1e6:g} s"),
    )
    for what, wanted, found, told in measures:
        if wanted is not None:
            kept = reached.contained and found <= wanted
            was = told(found) if reached.contained else "never contained"
            yield Check(f"contained by {what}", told(wanted), was, kept)
    trips = len(reached.tripped)
    yield Check("false trips", str(expected.false_trips), str(trips), trips <= expected.false_trips)


def _unproven(before: Judgement, after: Judgement) -> str:
    incident = after.case.incident["id"]
    mend = (
        "mend the policy, or give the mended one: --policy FILE. Where no policy can: "
        f'pullcord incident close {incident} --reason "..." --waive "..."'
    )
    if before.policy.digest == after.policy.digest:
        return f"both policies are the same, so nothing was mended; {mend}"
    if not after.kept:
        return f"the policy {after.policy.source} does not keep the test; {mend}"
    if before.kept:
        return f"the policy of that day keeps the test as well, so it proves no mend; {mend}"
    return ""


# ---------------------------------------------------------------------------------- telling


def as_json(judgement: Judgement) -> dict[str, Any]:
    """For programs."""
    reached = judgement.reached
    return {
        "incident": judgement.case.incident["id"],
        "policy": judgement.policy.source,
        "digest": judgement.policy.digest,
        "kept": judgement.kept,
        "contained": reached.contained,
        "calls": reached.calls,
        "asked": reached.asked,
        "spend_usd": usd(reached.microusd),
        "seconds": reached.us / 1e6,
        "rule": reached.rule or None,
        "reason": reached.reason or None,
        "not_judgeable": reached.unjudged,
        "healthy_runs": reached.healthy_runs,
        "healthy_calls": reached.healthy_calls,
        "false_trips": [
            {"run": run, "call": call or None, "rule": rule} for run, call, rule in reached.tripped
        ],
        "checks": [
            {"what": one.what, "wanted": one.wanted, "found": one.found, "kept": one.kept}
            for one in judgement.checks
        ],
    }


def as_lines(judgement: Judgement) -> list[str]:
    """For people, in a terminal and under pytest; text of the world in it is to be escaped."""
    reached, policy = judgement.reached, judgement.policy
    told = [
        judgement.case.name,
        f"policy     {policy.source} ({policy.digest[:12]})",
        _how(reached),
    ]
    for check in judgement.checks:
        mark = "kept  " if check.kept else "BROKEN"
        told.append(f"{mark}     {check.what}: at most {check.wanted}; it is {check.found}")
    told.append(
        f"healthy    {reached.healthy_runs} runs with {reached.healthy_calls} calls; "
        f"{len(reached.tripped)} would be stopped"
    )
    for run, call, rule in reached.tripped[:RUNS_SHOWN_MAX]:
        told.append(f"  {run}{f' at call {call}' if call else ''}, by {rule}")
    if reached.unjudged:
        told.append(f"not judgeable: {reached.unjudged} calls; they are taken as they were")
    return told


RUNS_SHOWN_MAX = 20


def _how(reached: Reached) -> str:
    spent = f", ${usd(reached.microusd)}" if reached.microusd else ""
    far = f"{reached.calls} of {reached.asked} calls{spent}"
    rule = f"{reached.rule} ({reached.reason})"
    if reached.contained:
        return f"contained  after {far}, {reached.us / 1e6:g} s after the first bad call, by {rule}"
    slowed = f"; only slowed down by {rule}" if reached.rule else ""
    return f"contained  never: {far} passed{slowed}"
