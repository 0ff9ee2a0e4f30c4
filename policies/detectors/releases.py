"""D5's third count: a release of which more calls fail than of the one before it.

A cumulative sum of failures over what was usual with the predecessor; it takes several runs, each
of a tree of its own, so that one broken run with its children does not condemn a release
(notes/detection.md, section 3).
"""

from collections import OrderedDict
from dataclasses import dataclass, field

from policies.detectors.progress import Progress
from policies.detectors.step import Finding, Kind, Severity, Step, Subject

NAME = "release"
RELEASES_MAX = 1_024
TENANTS_MAX = 1_024
MILLI = 1_000


@dataclass(frozen=True, slots=True)
class Limits:
    """`calls` of the predecessor must be known. Sums and shares in thousandths."""

    runs: int = 5
    calls: int = 200
    sum_milli: int = 5_000
    usual_milli: int = 20  # nobody's share of failures is taken to be smaller
    times: int = 2


LIMITS = Limits()


@dataclass(slots=True)
class Shares:
    """Of one release of a tenant; `runs` are roots, `before` is the release before it. `at_us` is
    when its first call was made."""

    before: "Shares | None" = None
    at_us: int = 0
    runs: frozenset[str] = frozenset()
    calls: int = 0
    failed: int = 0
    sum_milli: int = 0


@dataclass(slots=True)
class Releases:
    """Of all runs. The releases that were not heard of for longest are forgotten first."""

    limits: Limits = LIMITS
    _known: OrderedDict[tuple[str, str], Shares] = field(default_factory=OrderedDict)
    _newest: OrderedDict[str, Shares] = field(default_factory=OrderedDict)

    def feed(self, step: Step, progress: Progress) -> Finding | None:
        if step.kind is not Kind.TOOL or step.replayed or not step.release:
            return None
        shares = self._shares(step)
        shares.calls += 1
        shares.failed += not step.is_ok
        root = step.root or step.run  # what one tree does is no release's fault
        if len(shares.runs) < self.limits.runs and root not in shares.runs:
            shares.runs |= {root}
        before = shares.before
        if before is None or before.calls < self.limits.calls:
            return None
        return self._judged(step, shares, before)

    def followed(self, tenant: str, release: str) -> bool:
        """Whether this release of a tenant came after another one, and no other after it."""
        shares = self._known.get((tenant, release))
        return shares is not None and shares.before is not None

    def forget(self, subject: Subject, name: str) -> None:
        if subject is Subject.RELEASE:
            for shares in [one for (_, release), one in self._known.items() if release == name]:
                shares.sum_milli, shares.runs = 0, frozenset()

    def _shares(self, step: Step) -> Shares:
        key = (step.tenant, step.release)
        shares = self._known.get(key)
        if shares is not None:
            self._known.move_to_end(key)
        else:
            before = self._newest.get(step.tenant)
            if before is not None:
                before.before = None  # else a chain of all that ever were
            shares = self._known[key] = self._newest[step.tenant] = Shares(before, step.at_us)
            for known, size_max in ((self._known, RELEASES_MAX), (self._newest, TENANTS_MAX)):
                if len(known) > size_max:
                    known.popitem(last=False)
        return shares

    def _judged(self, step: Step, shares: Shares, before: Shares) -> Finding | None:
        limits = self.limits
        usual_milli = max(MILLI * before.failed // before.calls, limits.usual_milli)
        drift_milli = min(limits.times * usual_milli, MILLI - 1)
        more_milli = (0 if step.is_ok else MILLI) - drift_milli
        shares.sum_milli = max(0, shares.sum_milli + more_milli)
        if shares.sum_milli < limits.sum_milli or len(shares.runs) < limits.runs:
            return None
        now = f"{shares.failed} of {shares.calls}"
        why = f"{now} calls failed; of the release before {before.failed} of {before.calls}"
        return Finding(
            NAME,
            Severity.TRIP,
            Subject.RELEASE,
            step.release,
            why,
            (step.call_id,),
            "",
            step.release,
            since_us=shares.at_us,
        )
