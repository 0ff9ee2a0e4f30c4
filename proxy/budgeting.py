"""What a subject has used of the ceilings over it, its correction and a run's own budget, by a
person.

As in operations.py, each act runs inside a transaction of whoever owns the store.
"""

import shlex
from typing import Any

from ledger.allowances import Allowance
from ledger.budgets import Spent
from ledger.store import Store
from policies.ceilings import RESERVED, Ceiling, Count, Per, Then, usd
from policies.policy import Policy
from policies.verdict import Pull
from proxy.identity import NAME
from proxy.operations import NotFound, OperationError, check_name, check_text, has_tool

Answer = dict[str, Any]

CEILING = "ceiling:"  # so the actor of a cord begins that a ceiling pulled
_NO_SCOPE = (Per.AGENT, Per.DESTINATION)  # whose cord does not tell whose window it was


def shown(
    store: Store,
    policy: Policy | None,
    per: Per,
    subject: str,
    at_us: int,
    *,
    all_counts: bool = False,
) -> Answer:
    """What is left of each ceiling on spend, or of all with `all_counts`; the least first. Of a run
    also of those that it shares: its ancestors', its tree's, its tenant's, everybody's.

    Raises OperationError, and NotFound where nothing bounds the subject.
    """
    policy = _readable(policy)
    _check_subject(policy, per, subject)
    if per is Per.TREE:
        subject = store.root_of(subject)
    over = store.allowances(per, subject, policy, at_us)
    found = [each for each in over if all_counts or each.ceiling.count is Count.SPEND]
    if per is Per.RUN and not over:
        raise NotFound(f"there is no run {subject}: it has no token, and has called nothing")
    if per is Per.TREE and not store.has_run(subject) and not any(each.used for each in over):
        raise NotFound(f"there is no tree {subject}: it has no token, and has spent nothing")
    if not found:
        named = f"{per} {subject}" if subject else "everything together"
        does = "does" if all_counts else "spends"
        raise NotFound(f"no ceiling bounds what {named} {does}: {policy.source} has none")
    found.sort(key=_scarce if all_counts else _least)
    return {
        "scope": per,
        "subject": subject,
        "policy": policy.source,
        "ceilings": [_allowance_as_json(each) for each in found],
    }


def _least(each: Allowance) -> tuple[bool, int]:
    return each.ceiling.then is Then.ALERT, each.left


def _scarce(each: Allowance) -> tuple[bool, float]:
    """Unlike things are compared by the share that is left."""
    return each.ceiling.then is Then.ALERT, each.left / max(1, each.ceiling.at_most)


def adjusted(
    store: Store,
    policy: Policy | None,
    per: Per,
    subject: str,
    microusd: int,
    *,
    reason: str,
    actor: str,
    at_us: int,
) -> Answer:
    """Add to what was spent, or with an amount below nothing give back. Raises as `shown` does."""
    policy = _readable(policy)
    check_text("the reason", reason)
    if not any(each.isprintable() and not each.isspace() for each in reason):
        raise OperationError("a correction needs a reason that can be read: --reason TEXT")
    if not microusd:
        raise OperationError("nothing would change: give an amount, such as --usd -0.50")
    if per is Per.TREE:
        _check_subject(policy, per, subject)
        subject = store.root_of(subject)
    _found(store, policy, per, subject, at_us)
    done = store.adjust(per, subject, microusd, policy, reason=reason, actor=actor, at_us=at_us)
    return {
        "scope": per,
        "subject": subject,
        "usd": usd(microusd),
        "reason": reason,
        "actor": actor,
        "ceilings": [
            {**_as_json(each.after), "used_before_usd": usd(each.before.used_microusd)}
            for each in done
        ],
        "unchanged": _unchanged(store, policy, per, subject, at_us),
    }


def _unchanged(store: Store, policy: Policy, per: Per, subject: str, at_us: int) -> list[Answer]:
    """The other windows that count what a run spends: a correction of its own leaves them."""
    if per is not Per.RUN:
        return []
    return [
        _allowance_as_json(each)
        for each in store.allowances(per, subject, policy, at_us)
        if each.ceiling.count is Count.SPEND
        and (each.ceiling.per, each.subject) != (Per.RUN, subject)
    ]


def budgeted(
    store: Store, run: str, microusd: int | None, *, reason: str, actor: str, at_us: int
) -> Answer:
    """Give a run another budget of its own from now on; None takes it away. Raises OperationError,
    and NotFound for a run without a token."""
    if not NAME.fullmatch(run):
        raise OperationError(f"{run!r} can be no run: A-Z a-z 0-9 . _ ~ - only")
    check_name("the run", run)
    check_text("the reason", reason)
    if not any(each.isprintable() and not each.isspace() for each in reason):
        raise OperationError("a budget needs a reason that can be read: --reason TEXT")
    if not store.has_run(run):
        raise NotFound(f"run {run} has no token, and only a run with one has a budget of its own")
    before = store.set_budget(run, microusd, reason=reason, actor=actor, at_us=at_us)
    return {
        "run": run,
        "budget_usd": None if microusd is None else usd(microusd),
        "was_usd": None if before is None else usd(before),
        "reason": reason,
        "actor": actor,
    }


def still_full(store: Store, policy: Policy | None, cord: Pull, at_us: int) -> str:
    """What to do first where a released cord was a ceiling's that has no room yet: what counts next
    pulls it again. Empty where there is room, or the policy has no such ceiling any more."""
    if not cord.actor.startswith(CEILING):
        return ""
    name = cord.actor.removeprefix(CEILING)
    each = store.allowance(name, cord.subject, policy, at_us) if policy else None
    if policy is None or (each and each.ceiling.per in _NO_SCOPE):
        return f"{cord.actor} may still be full, and then the next call pulls the cord again"
    if each is None or (each.left and each.ceiling.count not in RESERVED):
        return ""
    ceiling = each.ceiling
    at_most = ceiling.told(ceiling.at_most)
    state = f"{cord.actor} is still full ({ceiling.told(each.used)} of {at_most}), and the next one"
    if each.left:
        state = f"{cord.actor} has {ceiling.told(each.left)} left of {at_most}; what takes more"
    cures = [f"raise at_most in {_place(policy, ceiling)}"]
    if ceiling.count is Count.SPEND:
        whose = shlex.join(filter(None, (ceiling.per, cord.subject)))
        cures.append(f"pullcord budget adjust {whose} --usd -N --reason TEXT")
    if each.wait_seconds:
        cures.append(f"wait {each.wait_seconds} s")
    return f"{state} pulls the cord again; first {', or '.join(cures)}"


def _place(policy: Policy, ceiling: Ceiling) -> str:
    """Where a person raises it: `FILE:LINE`; a shipped one is stated in the file to be changed."""
    return f"{policy.source}:{ceiling.line}" if ceiling.line else policy.source


def _readable(policy: Policy | None) -> Policy:
    if policy is None:
        raise OperationError(
            "no policy can be read, so what bounds anybody is not known; go to where "
            "config/policy.yaml is, or start the proxy: pullcord up"
        )
    return policy


def _found(store: Store, policy: Policy, per: Per, subject: str, at_us: int) -> list[Spent]:
    _check_subject(policy, per, subject)
    found = store.spent(per, subject, policy, at_us)
    named = f"{per} {subject}" if subject else "everything together"
    if not found:
        raise NotFound(f"no ceiling bounds what {named} spends: {policy.source} has none")
    of_run = per in (Per.RUN, Per.TREE)
    if of_run and not store.has_run(subject) and not any(each.used_microusd for each in found):
        raise NotFound(f"there is no {named}: it has no token, and has spent nothing")
    return found


def _check_subject(policy: Policy, per: Per, subject: str) -> None:
    if per is Per.GLOBAL:
        if subject:
            raise OperationError(f"global covers everything, so it takes no name ({subject!r})")
        return
    if not subject:
        raise OperationError(f"name the {per}: {per} NAME")
    if per in (Per.RUN, Per.TREE, Per.TENANT) and not NAME.fullmatch(subject):
        raise OperationError(f"{subject!r} can be no {per}: A-Z a-z 0-9 . _ ~ - only")
    check_name(f"the {per}", subject)
    if per is Per.TOOL and not has_tool(policy, subject):
        raise NotFound(f"{policy.source} has no tool {subject!r}")


def _allowance_as_json(each: Allowance) -> Answer:
    """Money is dollars as text, exactly; all else are whole numbers."""
    ceiling = each.ceiling
    told = {**_ceiling_as_json(ceiling), "per": ceiling.per, "of": each.subject}
    if ceiling.count is Count.SPEND:
        spent = Spent(ceiling, each.subject, each.used)
        return {**told, **_money(spent)}
    return {**told, "at_most": ceiling.at_most, "used": each.used, "left": each.left}


def _as_json(spent: Spent) -> Answer:
    return {**_ceiling_as_json(spent.ceiling), **_money(spent)}


def _ceiling_as_json(ceiling: Ceiling) -> Answer:
    return {
        "id": ceiling.id,
        "is": str(ceiling),
        "count": ceiling.count,
        "tools": list(ceiling.tools),
        "within_seconds": None if ceiling.within_us is None else ceiling.within_us // 1_000_000,
        "then": ceiling.then,
        "shipped": ceiling.shipped,
        "line": ceiling.line or None,
    }


def _money(spent: Spent) -> Answer:
    return {
        "at_most_usd": usd(spent.ceiling.at_most),
        "used_usd": usd(spent.used_microusd),
        "left_usd": usd(spent.left_microusd),
    }
