"""Which cords stand over a call. Pure.

What they do to it is judged in decide.py; what a throttle lets pass is counted as under a ceiling.
"""

from policies import bounds
from policies.call import Identity, ToolCall
from policies.ceilings import Ceiling
from policies.policy import CANARY, Policy, subjects
from policies.verdict import Level, Pull, Pulls


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


def throttled(
    policy: Policy, call: ToolCall, identity: Identity, pulls: Pulls
) -> list[tuple[Ceiling, str, int]]:
    """The ceilings that stand over a call since a throttle was pulled, as `bounds.drawn_on` has
    them. None stands over the canary: it would look like a cord that holds."""
    pull = None
    if pulls and call.tool != CANARY:
        pull = standing(policy, call.tool, identity, pulls, Level.THROTTLE)
    return [] if pull is None else list(bounds.throttled(pull, identity))
