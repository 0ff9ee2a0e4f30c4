"""A resume that is tried out: a few runs of a good release go first past the cords of an incident,
before all of that release may. Called in transactions.

Which runs go first stands on the cords themselves (policies/verdict.py, `Trial`), so that neither
a crash nor another process knows it otherwise. A run takes its place in the transaction that lets
its first call pass. How they fare is read in trial_reads.py.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from ledger import cord_reads, open_incidents
from ledger.batch import Batch
from ledger.cords import CordName, name, named, narrowed, told_narrowed, told_tried, tried_for
from ledger.errors import LedgerError
from ledger.events import PROGRAM, is_detectors
from ledger.incident_acts import IncidentActs
from ledger.redact import check_storable
from ledger.states import EventType
from ledger.steps import Forgotten
from ledger.trial_reads import FOUND_MAX, Course, Health, course
from policies.call import Identity
from policies.policy import Policy
from policies.standing import may_take_place
from policies.verdict import Level, Pull, Pulls, Reason, Scope, Trial, Verdict

PLACES_MAX = 100  # more than that are no few that go first; each is a name on every cord

_BY_CORD = frozenset({Reason.HALTED, Reason.FROZEN})


def narrow(
    batch: Batch, pull: Pull, actor: str, reason: str, at_us: int, *, anew: bool, incident: str = ""
) -> None:
    """Keep a cord that lets more pass than before, and tell so. `anew`: where a detector pulled it,
    the detectors forget what convinced them."""
    batch.put_pull(pull)
    batch.journal.moved(
        EventType.NARROWED,
        pull,
        actor=actor,
        reason=reason,
        at_us=at_us,
        incident=incident,
        anew=anew,
    )
    if anew and is_detectors(pull):
        batch.forgotten(Forgotten(pull.scope, pull.subject))


# ---------------------------------------------------------------------------------- a run comes


class Place(NamedTuple):
    """How the cords stand when a run has taken its place: all of them, and those that change."""

    pulls: Pulls
    changed: tuple[Pull, ...]


def place(
    pulls: Pulls, refused: Verdict, identity: Identity | None, policy: Policy
) -> Place | None:
    """The place that a caller may take whom a cord refused; None where there is none for it."""
    if refused.reason not in _BY_CORD or identity is None:
        return None
    pull = pulls.get(named(refused.rule))
    if pull is None or pull.trial is None or not may_take_place(pull, policy, identity):
        return None
    trial = pull.trial
    taken = replace(
        trial,
        runs=(*trial.runs, identity.run),
        places=trial.places - 1,
        roots=(*trial.roots, identity.root),
    )
    changed = tuple(replace(each, trial=taken) for each in of(pulls.values(), trial.incident))
    return Place({**pulls, **{name(each): each for each in changed}}, changed)


def take(batch: Batch, taken: Place, identity: Identity, at_us: int) -> None:
    """The run is one of those that go first from now on."""
    for pull in taken.changed:
        if pull.trial is not None:
            why = told_tried(pull.trial, f"run {identity.run} came and goes first")
            narrow(
                batch, pull, PROGRAM, why, at_us, anew=False, incident=pull.trial.incident
            )  # fmt: skip


of = tried_for


# ---------------------------------------------------------------------------------- acts


class TrialActs(IncidentActs):
    """Every act is a transaction of its own, or part of the one around it."""

    def open_trial(
        self,
        incident_id: str,
        cords: Sequence[CordName],
        release: str,
        runs: Sequence[str],
        places: int,
        *,
        reason: str,
        actor: str,
        at_us: int,
        after_seq: int | None = None,
    ) -> list[Pull]:
        """Let these runs of a release, and so many more that come, go first past these cords; the
        cords as they are then. All of them, or none.

        Raises LedgerError where one does not stand or is none to go past, or was pulled behind the
        row `after_seq`, where all of the release may pass them already, where others go first past
        one, and where the incident is closed.
        """
        _check(reason, actor, release)
        check_storable(release, *runs)
        firsts = tuple(dict.fromkeys(runs))
        if not 0 < len(firsts) + places <= PLACES_MAX or places < 0:
            raise LedgerError(f"between 1 and {PLACES_MAX} runs may go first")
        with self._joined() as batch:
            incident = open_incidents.by_id(self._conn, incident_id)
            if incident is not None and incident.state == open_incidents.CLOSED:
                raise LedgerError(f"{incident.closed_by} has closed it; nobody goes first for it")
            found = [_open_to(batch.pulls, cord) for cord in cords]
            self.check_unpulled(cords, after_seq)
            if of(batch.pulls.values(), incident_id):
                raise LedgerError("some runs go first for this incident already; end that first")
            past = [pull for pull in found if release not in pull.but_releases]
            if not past:
                raise LedgerError(f"no cord of it keeps release {release!r} out")
            batch.journal.write(self._conn)
            rules = tuple(pull.rule for pull in past)
            trial = Trial(incident_id, release, firsts, places, batch.journal.head.seq, rules)
            opened = [replace(pull, trial=trial) for pull in past]
            for pull in opened:
                why = told_tried(trial, reason)
                narrow(batch, pull, actor, why, at_us, anew=True, incident=incident_id)
            return opened

    def check_unpulled(self, cords: Iterable[CordName], after_seq: int | None) -> None:
        """Raises LedgerError where one that stands was pulled behind this row of the record, also
        as it stood: whoever did that means what was planned before it, too."""
        if after_seq is None:
            return
        with self._joined() as batch:
            batch.journal.write(self._conn)
            for pull in filter(None, map(batch.pulls.get, cords)):
                move = cord_reads.pulled(self._conn, pull.rule, after_seq)
                if move is not None:
                    why = f": {move.detail}" if move.detail else ""
                    raise LedgerError(
                        f"{pull.rule} was pulled since, by {move.actor}{why}; look: pullcord "
                        "status; if it may flow all the same, type this again"
                    )

    def end_trial(self, incident_id: str, *, reason: str, actor: str, at_us: int) -> list[Pull]:
        """Nobody goes first any more: the cords are as they were before; those that changed."""
        _check(reason, actor)
        with self._joined() as batch:
            return batch.end_trial(incident_id, reason, actor, at_us)

    def widen_trial(
        self, incident_id: str, policy: Policy, *, reason: str, actor: str, at_us: int
    ) -> tuple[Course, list[Pull]]:
        """How the runs fare that go first, at this very moment, and the cords that let all of the
        release pass from now on: none, unless they fare well.

        Where they fare badly nobody goes first any more, nor where a cord past which they go was
        pulled again, or stands no more: that is `found` then. Raises LedgerError where none goes
        first, or the release is not known to be good any more.
        """
        _check(reason, actor)
        with self._joined() as batch:
            past = of(batch.pulls.values(), incident_id)
            trial = next((pull.trial for pull in past if pull.trial is not None), None)
            if trial is None:
                raise LedgerError("no run goes first for this incident: somebody ended that")
            if trial.release not in policy.known_good:
                raise LedgerError(
                    f"release {trial.release!r} is not known to be good any more ({policy.source})"
                )
            batch.journal.write(self._conn)
            now = course(self._conn, trial, policy.pulls.values())
            now = replace(now, found=(*lost(trial, past), *now.found)[:FOUND_MAX])
            if now.health is Health.BAD:
                batch.end_trial(incident_id, "; ".join(now.found), actor, at_us)
            if now.health is not Health.GOOD:
                return now, []
            widened = [narrowed(pull, (trial.release,)) for pull in past]
            for pull in widened:
                why = told_narrowed((trial.release,), reason)
                narrow(batch, pull, actor, why, at_us, anew=False, incident=incident_id)
            return now, widened


def _open_to(pulls: Pulls, cord: CordName) -> Pull:
    level, scope, subject = cord
    pull = pulls.get(cord)
    if pull is None:
        raise LedgerError(f"no {level} is pulled for {scope} {subject}".rstrip())
    if level is Level.THROTTLE or scope is Scope.RELEASE:
        raise LedgerError(f"{pull.rule} is none past which runs go first")
    if pull.trial is not None:
        raise LedgerError(f"runs go first past {pull.rule} for incident {pull.trial.incident}")
    return pull


def lost(trial: Trial, past: Iterable[Pull]) -> list[str]:
    """What is wrong with those cords on which it was opened and that are not among `past`, which
    hold it still."""
    held = {pull.rule for pull in past}
    gone = [rule for rule in trial.cords if rule not in held]
    return [f"{rule} was pulled again, or changed by somebody, since" for rule in gone]


def _check(reason: str, actor: str, release: str = "-") -> None:
    if not reason.strip() or not actor.strip() or not release:
        raise LedgerError("a release is let through by a named person with a reason")
    check_storable(reason, actor)
