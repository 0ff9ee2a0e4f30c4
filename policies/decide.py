"""decide(policy, call, facts) -> Verdict: the first line of ORDER that applies wins.

Pure. It is called inside the admission transaction, so what it sees is what is true when the
intent is written. The order is a product decision and README states it.
"""

from collections.abc import Callable

from policies import ceilings
from policies.call import ClaimState, Effect, Facts, Identity, ToolCall
from policies.policy import CANARY, DRILL_TENANT, UNLISTED, Policy, covers, subjects
from policies.verdict import Action, Level, Pull, Pulls, Reason, Verdict

Line = Callable[[Policy, ToolCall, Identity, Facts], Verdict | None]


def _refuse(reason: Reason, rule: str, detail: str = "", earlier_call: str = "") -> Verdict:
    return Verdict(Action.REFUSE, reason, rule, detail, earlier_call=earlier_call)


def standing(
    policy: Policy, tool: str, identity: Identity, pulls: Pulls, level: Level
) -> Pull | None:
    """The widest cord of this level over a call, from the store or from the policy's own lines.

    A cord that lets the call's release pass does not stand over it; every other cord still counts.
    """
    if not pulls and not policy.pulls:
        return None
    for scope, subject in subjects(identity, tool):
        key = (level, scope, subject)
        for pull in (pulls.get(key), policy.pulls.get(key)):
            if pull is not None and not _lets_pass(pull, policy, identity.release):
                return pull
    return None


def _lets_pass(pull: Pull, policy: Policy, release: str) -> bool:
    """Whether a narrowed resume holds for a release. The policy has the last word on which are
    good: a release that is taken off its list is stopped again by every cord that let it pass."""
    return bool(release) and release in pull.but_releases and release in policy.known_good


def _halted(policy: Policy, call: ToolCall, identity: Identity, facts: Facts) -> Verdict | None:
    pull = standing(policy, call.tool, identity, facts.pulls, Level.HALT)
    return _refuse(Reason.HALTED, pull.rule, pull.reason) if pull else None


def _faulty(policy: Policy, call: ToolCall, identity: Identity, facts: Facts) -> Verdict | None:
    return _refuse(call.fault, f"tool:{call.tool}", call.detail) if call.fault else None


def _listed(policy: Policy, call: ToolCall, identity: Identity, facts: Facts) -> Verdict | None:
    if call.tool != UNLISTED or policy.unlisted == "allow":
        return None
    if policy.unlisted == "refuse":
        return _refuse(Reason.DESTINATION_UNLISTED, UNLISTED)
    if call.effect is not Effect.READ:
        return _refuse(Reason.DESTINATION_READ_ONLY, UNLISTED)
    return None


def _permitted(policy: Policy, call: ToolCall, identity: Identity, facts: Facts) -> Verdict | None:
    drilling = identity.tenant == DRILL_TENANT
    if drilling is not (call.tool == CANARY):
        return _refuse(Reason.TOOL_NOT_ALLOWED, f"tool:{call.tool}")
    granted = None if drilling else policy.tenants.get(identity.tenant)
    if granted is not None and not covers(granted, call.tool):
        return _refuse(Reason.TOOL_NOT_ALLOWED, f"tenant:{identity.tenant}")
    if identity.tools is not None and not covers(identity.tools, call.tool):
        return _refuse(Reason.TOOL_NOT_ALLOWED, f"token:{identity.run}")
    return None


def _frozen(policy: Policy, call: ToolCall, identity: Identity, facts: Facts) -> Verdict | None:
    if call.effect is not Effect.WRITE:
        return None
    pull = standing(policy, call.tool, identity, facts.pulls, Level.FREEZE)
    return _refuse(Reason.FROZEN, pull.rule, pull.reason) if pull else None


def _claimed(policy: Policy, call: ToolCall, identity: Identity, facts: Facts) -> Verdict | None:
    """The table of notes/store.md, section 2: what a write that meets a claim is told."""
    if call.effect is not Effect.WRITE:
        return None
    rule = f"tool:{call.tool}"
    key = policy.tool(call.tool).key
    if call.key is None and key.missing == "require":
        return _refuse(Reason.KEY_REQUIRED, rule, key.header or "")
    claim = facts.claim
    if claim is None:
        return None
    if claim.same_key and claim.fingerprint != call.fingerprint:
        return _refuse(Reason.KEY_REUSED, rule, earlier_call=claim.call_id)
    if claim.state is ClaimState.PENDING:
        return _refuse(Reason.IN_FLIGHT, rule, earlier_call=claim.call_id)
    if claim.has_answer:
        return Verdict(Action.REPLAY, Reason.REPLAYED, rule, earlier_call=claim.call_id)
    known = claim.state is ClaimState.DONE
    reason = Reason.DONE_BUT_NOT_STORED if known else Reason.OUTCOME_UNKNOWN
    return _refuse(reason, rule, earlier_call=claim.call_id)


def _bounded(policy: Policy, call: ToolCall, identity: Identity, facts: Facts) -> Verdict | None:
    for ceiling, subject, window in facts.windows.values():
        if ceilings.used(ceiling, window, facts.now_us) < ceiling.at_most:
            continue
        rule = f"ceiling:{ceiling.id}"
        pull = None
        if ceiling.then is not None:
            pull = Pull(ceiling.then, ceiling.per, subject, str(ceiling), rule, facts.now_us)
        return Verdict(
            Action.REFUSE,
            Reason.OVER_CEILING,
            rule,
            str(ceiling),
            retry_after_seconds=ceilings.wait_seconds(ceiling, window, facts.now_us),
            limit=ceilings.limit(ceiling, window, facts.now_us),
            pull=pull,
        )
    return None


ORDER: tuple[Line, ...] = (
    _halted,
    _faulty,
    _listed,
    _permitted,
    _frozen,
    _claimed,
    _bounded,
)


def decide(policy: Policy, call: ToolCall, facts: Facts) -> Verdict:
    """Judge one call. Identity comes first: without one, nothing else is looked at."""
    if facts.identity is None:
        return _refuse(facts.refused or Reason.CREDENTIALS_REQUIRED, "identity")
    for line in ORDER:
        verdict = line(policy, call, facts.identity, facts)
        if verdict is not None:
            return verdict
    rule = UNLISTED if call.tool == UNLISTED else f"tool:{call.tool}"
    return Verdict(Action.ALLOW, Reason.ALLOWED, rule)
