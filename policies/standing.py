"""Which cords stand over a call. Pure.

What they do to it is judged in decide.py; what a throttle lets pass is counted as under a ceiling.
"""

from dataclasses import replace

from policies import bounds
from policies.call import Effect, Identity, ToolCall
from policies.ceilings import Ceiling
from policies.policy import CANARY, Policy, subjects
from policies.verdict import Level, Pull, Pulls, Scope


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
            if pull is not None and not lets_pass(pull, policy, identity):
                return pull
    return None


def lets_pass(pull: Pull, policy: Policy, identity: Identity) -> bool:
    """Whether a narrowed resume holds for a caller: for all of its release, or for its run or one
    above it. The policy has the last word on which releases are good: one that is taken off its
    list is stopped again by every cord that let it pass."""
    release = identity.release
    if not release or not pull.lets_some_pass or release not in policy.known_good:
        return False
    trial = pull.trial
    return release in pull.but_releases or (
        trial is not None
        and not trial.shut
        and trial.release == release
        and any(run in trial.runs for run in (identity.run, *identity.ancestors))
    )


def would_stop(
    cord: tuple[Level, Scope, str], tool: str, effect: Effect, identity: Identity
) -> bool:
    """Whether a cord that lets nobody pass would refuse such a call."""
    level, scope, subject = cord
    if level is Level.THROTTLE or (level is Level.FREEZE and effect is not Effect.WRITE):
        return False
    return (scope, subject) in subjects(identity, tool)


def may_take_place(pull: Pull, policy: Policy, identity: Identity) -> bool:
    """Whether a caller whom the cord stops may be one of the runs that go first past it. A tree of
    runs takes but one place, so that none takes all; where the cord is over a run there is no other
    tree."""
    trial = pull.trial
    return (
        trial is not None
        and not trial.shut
        and trial.places > 0
        and identity.run not in trial.runs
        and (pull.scope is Scope.RUN or identity.root not in trial.roots)
        and trial.release == identity.release
        and identity.release in policy.known_good
    )


def narrowed_as(before: Pull | None, told: Pull) -> Pull:
    """A cord as it is behind what a row of the record tells of it: one that narrows it names only
    whom it lets pass as well."""
    if before is None or not told.lets_some_pass:
        return told
    passing = tuple(dict.fromkeys((*before.but_releases, *told.but_releases)))
    first = told.trial or before.trial
    over = first is not None and first.release in passing
    return replace(told, but_releases=passing, trial=None if over else first)


def throttled(
    policy: Policy, call: ToolCall, identity: Identity, pulls: Pulls
) -> list[tuple[Ceiling, str, int]]:
    """The ceilings that stand over a call since a throttle was pulled, as `bounds.drawn_on` has
    them. None stands over the canary: it would look like a cord that holds."""
    pull = None
    if pulls and call.tool != CANARY:
        pull = standing(policy, call.tool, identity, pulls, Level.THROTTLE)
    return [] if pull is None else list(bounds.throttled(pull, identity))
