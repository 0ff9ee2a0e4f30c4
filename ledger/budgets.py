"""What runs may spend and start, beside calls: spawned runs, declared steps, and spend corrected by
hand. Called in transactions; the arithmetic is policies/ceilings.py, the rules policies/bounds.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from ledger import steps, tokens
from ledger.batch import Batch
from ledger.errors import LedgerError, OverCeiling
from ledger.following import follow
from ledger.records import Claimant
from ledger.states import EventType
from policies import bounds, ceilings
from policies.call import Draw, Effect, Facts, Identity, ToolCall
from policies.ceilings import Ceiling, Count, Per
from policies.detectors.step import Kind
from policies.policy import Policy, covers
from policies.verdict import Action, Pulls, Reason, Verdict

Stops = Callable[[Policy, Identity, Pulls], Verdict | None]
"""What keeps a run from doing anything at all: a halt that stands over it."""

_NO_CALL = ToolCall("", Effect.MODEL, "", b"")

# ---------------------------------------------------------------------------------- runs act


def acting(
    batch: Batch, claimant: Claimant, policy: Policy, stops: Stops, now_us: int
) -> Identity | Verdict | Reason:
    """Who asks to do something for itself, or why it may not.

    It is a call for the ceilings on all calls, whatever comes of it: asking is not free.
    """
    identity, refused = batch.resolve(claimant, now_us)
    if identity is None or refused is not None:
        return refused or Reason.CREDENTIALS_REQUIRED
    stopped = stops(policy, identity, batch.pulls)
    return stopped or _counted(batch, identity, policy, Count.CALLS, 1, now_us) or identity


def spawn(batch: Batch, policy: Policy | None, child: Identity, actor: str, now_us: int) -> None:
    """Count a run that another one starts, on every ceiling on spawned runs, and record it. Raises
    OverCeiling where there is no room; the ceiling's cord, if it has one, is pulled then."""
    if policy is None:
        raise LedgerError(
            f"no policy can be read, so whether run {child.parent} may start {child.run} is not "
            "known; go to where config/policy.yaml is, or start the proxy: pullcord up"
        )
    drawn = batch.windows.draws_of_spawn(policy, child)
    # A cord is the parent's where the child itself would be stopped: it never comes to be.
    parent = replace(child, run=child.parent, ancestors=child.ancestors[1:])
    verdict = _over(batch, parent, drawn, now_us)
    if verdict is not None:
        raise OverCeiling(_spawn_refused(child, verdict), verdict)
    if not batch.watched(policy, now_us):
        raise OverCeiling(_unwatched_spawn(child), _UNWATCHED)
    batch.windows.charge(drawn, now_us)
    batch.journal.acted(EventType.SPAWNED, child, at_us=now_us, actor=actor)
    follow(batch, steps.acted(Kind.SPAWN, child, now_us))


_UNWATCHED = Verdict(
    Action.REFUSE,
    Reason.DETECTOR_FAILURE,
    "detectors",
    "the newest rows of the record cannot be read back",
)
"""As a call is refused of which no detector would know what was before it."""


def _unwatched_spawn(child: Identity) -> str:
    return (
        f"run {child.parent} may start no run now, so {child.run} was not made: "
        f"{_UNWATCHED.detail}, so the detectors do not know what was before it; "
        "see what is wrong: pullcord ledger verify"
    )


def _spawn_refused(child: Identity, verdict: Verdict) -> str:
    wait = verdict.retry_after_seconds
    cure = "raise it in the policy"
    if verdict.pull is not None:
        cure = f"its cord {verdict.pull.rule} is pulled now"
    elif wait is not None:
        cure = f"there is room in {wait} s"
    return (
        f"run {child.parent} may start no more runs, so {child.run} was not made: a ceiling is "
        f"reached ({verdict.detail}, {verdict.rule}); {cure}"
    )


_KINDS = {EventType.PROGRESSED: Kind.MARK, EventType.ENDED: Kind.END}
_TOLD = {kind: Ceiling(f"self:{kind.value}", Per.RUN, Count.STEPS, 1, 1_000_000) for kind in _KINDS}
"""A run gets one row of each kind in a second, by telling of itself."""


def tell(
    batch: Batch,
    identity: Identity,
    kind: EventType,
    policy: Policy,
    now_us: int,
    *,
    mark: int = 0,
    note: str = "",
) -> Verdict | None:
    """Record what a run tells of itself; the verdict that refuses it, and then nothing is."""
    ceiling, run = _TOLD[kind], identity.run
    drawn = (Draw(ceiling, run, batch.windows.window(ceiling, run), 1),)
    verdict = _over(batch, identity, drawn, now_us)
    if verdict is not None:
        return replace(verdict, detail="a run may tell this of itself once in a second")
    if not batch.watched(policy, now_us):
        return _UNWATCHED
    batch.windows.charge(drawn, now_us)
    batch.journal.acted(kind, identity, at_us=now_us, actor=f"run:{run}", detail=note, mark=mark)
    follow(batch, steps.acted(_KINDS[kind], identity, now_us, mark))
    return None


def step(
    batch: Batch, identity: Identity, count: int, policy: Policy, now_us: int
) -> Verdict | None:
    """Count steps that an agent declares, on every ceiling on the steps of all its tools. The
    verdict that refuses them all; None when they are counted."""
    return _counted(batch, identity, policy, Count.STEPS, count, now_us)


def _counted(
    batch: Batch, identity: Identity, policy: Policy, count: Count, amount: int, now_us: int
) -> Verdict | None:
    """Count what is of no tool on every ceiling that is on all tools; the verdict that refuses it,
    and then nothing is counted."""
    drawn = tuple(
        Draw(ceiling, subject, batch.windows.window(ceiling, subject), amount)
        for ceiling in policy.ceilings
        if ceiling.count is count and ceiling.tools == ("*",) and ceiling.per not in _OF_CALLS
        for subject in bounds.subjects_of(ceiling.per, identity, _NO_CALL)
    )
    verdict = _over(batch, identity, drawn, now_us)
    if verdict is None:
        for told in bounds.crossed(drawn, now_us):
            batch.tell(EventType.CROSSED, told, identity, "", now_us)
        batch.windows.charge(drawn, now_us)
    return verdict


_OF_CALLS = frozenset({Per.TOOL, Per.DESTINATION})


def _over(batch: Batch, identity: Identity, drawn: tuple[Draw, ...], now_us: int) -> Verdict | None:
    """The refusal where a ceiling has no room; its cord is pulled. There is no call that a person
    could let pass, so a ceiling that would ask one refuses."""
    verdict = bounds.bounded(_NO_CALL, identity, Facts(now_us, identity, drawn=drawn))
    if verdict is None:
        return None
    if verdict.pull is not None:
        batch.trip(verdict.pull)
    if verdict.action is Action.HOLD:
        verdict = replace(verdict, action=Action.REFUSE, reason=Reason.OVER_CEILING)
    return replace(verdict, wait_seconds=0)


# ---------------------------------------------------------------------------------- spend


@dataclass(frozen=True, slots=True)
class Spent:
    """What counts under one ceiling on spend, in micro-dollars; reserved money is spent."""

    ceiling: Ceiling
    subject: str
    used_microusd: int

    @property
    def left_microusd(self) -> int:
        return max(0, self.ceiling.at_most - self.used_microusd)


@dataclass(frozen=True, slots=True)
class Adjusted:
    """One window before and after a correction. It never falls below nothing."""

    before: Spent
    after: Spent


def spent(batch: Batch, per: Per, subject: str, policy: Policy, now_us: int) -> list[Spent]:
    return [
        _spent(batch, ceiling, subject, now_us)
        for ceiling in _bounding(batch, per, subject, policy)
    ]


def adjust(
    batch: Batch, per: Per, subject: str, microusd: int, policy: Policy, now_us: int
) -> list[Adjusted]:
    """Add to what a subject has spent, or give back, in each of its windows once."""
    before = spent(batch, per, subject, policy, now_us)
    if not before:
        raise LedgerError(
            f"no ceiling bounds what {per} {subject} spends, so there is nothing to adjust".replace(
                "  ", " "
            )
        )
    done = set()
    for each in before:
        name = each.ceiling.window or each.ceiling.id
        if name not in done:
            done.add(name)
            batch.windows.adjust(each.ceiling, subject, now_us, microusd)
    return [Adjusted(each, _spent(batch, each.ceiling, subject, now_us)) for each in before]


def _bounding(batch: Batch, per: Per, subject: str, policy: Policy) -> Iterator[Ceiling]:
    for ceiling in policy.ceilings:
        of_it = per is not Per.TOOL or covers(ceiling.tools, subject)
        if ceiling.count is Count.SPEND and ceiling.per is per and of_it:
            yield ceiling
    own = tokens.budget(batch.conn, subject) if per is Per.RUN else None
    if own is not None:
        yield bounds.budget(subject, own)


def _spent(batch: Batch, ceiling: Ceiling, subject: str, now_us: int) -> Spent:
    window = batch.windows.window(ceiling, subject)
    return Spent(ceiling, subject, ceilings.used(ceiling, window, now_us))
