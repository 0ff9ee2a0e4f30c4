"""decide(policy, call, facts) -> Verdict: the first line of ORDER that applies wins.

Pure. It is called inside the admission transaction, so what it sees is what is true when the
intent is written. The order is a product decision and docs/policy.md states it.
"""

from collections.abc import Callable, Iterator

from policies import bounds
from policies.call import ClaimState, Effect, Facts, Identity, ToolCall
from policies.conditions import failing
from policies.policy import CANARY, DRILL_TENANT, UNLISTED, Grant, Holder, Policy, covers
from policies.standing import standing
from policies.verdict import Action, Level, Reason, Scope, Verdict

Line = Callable[[Policy, ToolCall, Identity, Facts], Verdict | None]


def _refuse(reason: Reason, rule: str, detail: str = "", earlier_call: str = "") -> Verdict:
    return Verdict(Action.REFUSE, reason, rule, detail, earlier_call=earlier_call)


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
    """Tenant, agent and token must each allow the tool, and its method."""
    drilling = identity.tenant == DRILL_TENANT
    if drilling is not (call.tool == CANARY):
        return _refuse(Reason.TOOL_NOT_ALLOWED, f"tool:{call.tool}")
    for rule, holder in _holders(policy, identity):
        if holder.allow is None:
            continue
        naming = [grant for grant in holder.allow if covers((grant.tool,), call.tool)]
        if not any(_by_method(grant, call) for grant in naming):
            methods = sorted({name for grant in naming for name in grant.methods or ()})
            detail = f"only by {', '.join(methods)}" if methods else ""
            return _refuse(Reason.TOOL_NOT_ALLOWED, rule, detail)
    if identity.tools is not None and not covers(identity.tools, call.tool):
        return _refuse(Reason.TOOL_NOT_ALLOWED, f"token:{identity.run}")
    return None


def _holders(policy: Policy, identity: Identity) -> Iterator[tuple[str, Holder]]:
    """Whoever of the caller's the policy lists, each with the rule that names it."""
    if identity.tenant == DRILL_TENANT:
        return
    if identity.tenant in policy.tenants:
        yield f"tenant:{identity.tenant}", policy.tenants[identity.tenant]
    if identity.agent in policy.agents:
        yield f"agent:{identity.agent}", policy.agents[identity.agent]


def _by_method(grant: Grant, call: ToolCall) -> bool:
    return grant.methods is None or call.method in grant.methods


def _reading(policy: Policy, call: ToolCall, identity: Identity, facts: Facts) -> Verdict | None:
    """Whoever may only read makes no writes."""
    if call.effect is not Effect.WRITE:
        return None
    for rule, holder in _holders(policy, identity):
        if holder.read_only:
            return _refuse(Reason.READ_ONLY, rule)
    return _refuse(Reason.READ_ONLY, f"token:{identity.run}") if identity.read_only else None


def _conditioned(
    policy: Policy, call: ToolCall, identity: Identity, facts: Facts
) -> Verdict | None:
    """What the tool asks of every call, and what a grant asks that lets it pass. Of several grants
    one that holds is enough; else the first says what is wrong."""
    if wrong := failing(policy.tool(call.tool).where, call):
        return _refuse(Reason.ARGUMENT_REFUSED, f"tool:{call.tool}", wrong)
    for rule, holder in _holders(policy, identity):
        if holder.allow is None:
            continue
        found = [
            failing(grant.where, call)
            for grant in holder.allow
            if _by_method(grant, call) and covers((grant.tool,), call.tool)
        ]
        if all(found):
            return _refuse(Reason.ARGUMENT_REFUSED, rule, found[0] if found else "")
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
    return bounds.bounded(call, identity, facts)


def _held(policy: Policy, call: ToolCall, identity: Identity, facts: Facts) -> Verdict | None:
    """A write that a person must agree to, unless one has."""
    tool = policy.tool(call.tool)
    if call.effect is not Effect.WRITE or not tool.hold or facts.approved:
        return None
    rule = f"tool:{call.tool}"
    return Verdict(Action.HOLD, Reason.HELD, rule, wait_seconds=tool.hold_seconds)


ORDER: tuple[Line, ...] = (
    _halted,
    _faulty,
    _listed,
    _permitted,
    _reading,
    _conditioned,
    _frozen,
    _claimed,
    _bounded,
    _held,
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
    crossed = bounds.crossed(facts.drawn, facts.now_us)
    return Verdict(Action.ALLOW, Reason.ALLOWED, rule, alerts=crossed)


# ---------------------------------------------------------------------------------- undoing


def _stopped_for_all(
    policy: Policy, call: ToolCall, identity: Identity, facts: Facts
) -> Verdict | None:
    """What stands over everybody, or over all calls of the tool. Cords on a run, a tenant or a
    release, and on the tool for one run alone, stand while what they stopped is undone."""
    for level, reason in ((Level.HALT, Reason.HALTED), (Level.FREEZE, Reason.FROZEN)):
        for scope, subject in ((Scope.GLOBAL, ""), (Scope.TOOL, call.tool)):
            name = (level, scope, subject)
            pull = facts.pulls.get(name) or policy.pulls.get(name)
            if pull is not None:
                return _refuse(reason, pull.rule, pull.reason)
    return None


def _asked_of_all(
    policy: Policy, call: ToolCall, identity: Identity, facts: Facts
) -> Verdict | None:
    """What the tool asks of every call, an operator's too."""
    wrong = failing(policy.tool(call.tool).where, call)
    return _refuse(Reason.ARGUMENT_REFUSED, f"tool:{call.tool}", wrong) if wrong else None


def _undone(policy: Policy, call: ToolCall, identity: Identity, facts: Facts) -> Verdict | None:
    """A write is undone once, whatever the policy says by now of how."""
    if facts.claim is None:
        return None
    reason = {
        ClaimState.PENDING: Reason.IN_FLIGHT,
        ClaimState.UNKNOWN: Reason.OUTCOME_UNKNOWN,
        ClaimState.DONE: Reason.DONE_BUT_NOT_STORED,
    }[facts.claim.state]
    return _refuse(reason, f"tool:{call.tool}", earlier_call=facts.claim.call_id)


UNDO_ORDER: tuple[Line, ...] = (
    _stopped_for_all,
    _faulty,
    _listed,
    _asked_of_all,
    _undone,
    _bounded,
)


def decide_undo(policy: Policy, call: ToolCall, facts: Facts) -> Verdict:
    """Judge a call by which an operator undoes a write. What a tenant, an agent or a run may do
    does not count, and nobody else has to approve it."""
    if facts.identity is None:
        return _refuse(facts.refused or Reason.CREDENTIALS_REQUIRED, "identity")
    for line in UNDO_ORDER:
        verdict = line(policy, call, facts.identity, facts)
        if verdict is not None:
            return verdict
    return Verdict(Action.ALLOW, Reason.ALLOWED, f"tool:{call.tool}")
