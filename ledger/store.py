"""The store: the one writer of the record. Admission and settlement in shared transactions.

One thread owns it. What it writes reaches the disk when `transaction` returns; whatever fails in
between is rolled back, in the database and in memory alike, and raises LedgerUnavailable. The
rules themselves come in as `judge`; this file decides nothing.
"""

from collections.abc import Iterable

from ledger import (
    claims,
    compensation,
    cords,
    following,
    holds,
    incidents,
    operators,
    reservations,
    trials,
    windows,
    workers,
)
from ledger.admission import Admission, Judge
from ledger.batch import Batch
from ledger.compensation import Undoing
from ledger.errors import LedgerBusy, LedgerError, LedgerUnavailable
from ledger.events import PROGRAM, is_detectors
from ledger.records import (
    Answer,
    Ask,
    Bearer,
    Claimant,
    Decision,
    Drawn,
    Operator,
    Outcome,
    OwnState,
    Recovered,
    Worker,
)
from ledger.redact import check_storable
from ledger.states import CallState, EventType, may_be_replayed
from ledger.steps import Forgotten
from ledger.tokens import Grant, Token
from ledger.transactions import PROOF
from ledger.trials import TrialActs
from ledger.watching import Found
from ledger.windows import MESSAGES, PARTS
from policies import bounds, ceilings
from policies.call import Facts, ToolCall
from policies.ceilings import Count
from policies.policy import Policy, subjects
from policies.standing import lets_pass
from policies.verdict import Action, Level, Pull, Reason, Scope, Verdict

# The words that come with the store, so that the gate has one place to take them from.
__all__ = [
    "Answer",
    "Ask",
    "Bearer",
    "Claimant",
    "Decision",
    "Drawn",
    "Grant",
    "LedgerBusy",
    "LedgerError",
    "LedgerUnavailable",
    "Operator",
    "Outcome",
    "OwnState",
    "Recovered",
    "Store",
    "Token",
    "Worker",
]


SWEEP_SECONDS = 60  # how often files of answers that are kept no more are looked for


class Store(TrialActs):
    """Made by `open`. Every change happens inside `transaction`, or in one of its own.

    LedgerError (but not LedgerUnavailable) is raised before anything is written: the transaction
    around it may go on.
    """

    _reaped_to = ("", "")
    _sweep_us = 0
    _found: tuple[Found, ...] = ()

    # Calls

    def admit(self, ask: Ask, policy: Policy, judge: Judge) -> Decision:
        """Judge one call and write what follows. Only inside `transaction`.

        If anything fails after the verdict, the whole transaction does, also when the caller
        catches what is raised here.
        """
        batch = self._open_batch()
        try:
            return Admission(batch, self._vault, ask, policy).decide(judge)
        except Exception as error:
            batch.broken = error
            raise

    def compensate(self, ask: Ask, undoing: Undoing, policy: Policy, judge: Judge) -> Decision:
        """Judge a call by which an operator undoes a write, and write what follows.

        Raises LedgerError, and nothing is written, where the write is none that can be undone.
        """
        with self._joined() as batch:
            return compensation.admit(batch, ask, undoing, policy, judge)

    def count(
        self, claimant: Claimant, call: ToolCall, policy: Policy, judge: Judge, now_us: int
    ) -> Verdict:
        """One more message of a call that was admitted, or more of its body: who sends it is
        resolved again, and it is judged and charged like a call of its own.

        It leaves no row and takes no claim.
        """
        with self._joined() as batch:
            identity, refused = batch.resolve(claimant, now_us)
            if refused is not None or identity is None:
                reason = refused or Reason.CREDENTIALS_INVALID
                return Verdict(Action.REFUSE, reason, reason)
            counts = PARTS if call.part else MESSAGES
            drawn = batch.windows.draws(policy, call, identity, counts, batch.pulls)
            facts = Facts(now_us, identity, None, batch.pulls, None, drawn)
            verdict = judge(policy, call, facts)
            if verdict.action is Action.ALLOW:
                batch.windows.charge(drawn, now_us)
                for text in verdict.alerts:
                    batch.tell(EventType.CROSSED, text, identity, call.tool, now_us)
                self._conn.execute(PROOF)  # on a ledger that only reads, no message passes
            elif verdict.pull is not None:
                batch.trip(verdict.pull)
            return verdict

    def settle(self, outcome: Outcome, policy: Policy | None = None) -> bool:
        """Record how an admitted call ended; False when it has ended already or never began.

        With the policy in force, a limit that only tells is told when this takes it over.
        """
        with self._joined() as batch:
            if not batch.is_open(outcome.call_id):
                return False
            if policy is not None:
                batch.watched(policy, outcome.at_us)
            error = outcome.error
            by_cord = bool(error) and any(pull.rule == error for pull in batch.pulls.values())
            batch.journal.ended(outcome, by_cord=by_cord)
            if outcome.state is CallState.NOT_SENT:
                holds.give_back(batch, outcome.call_id, outcome.at_us)
            held = batch.closed(outcome.call_id)
            batch.tally.ended(held.step, outcome)
            quiet = reservations.under(batch, held.leases, policy, outcome.at_us)
            batch.windows.settle(held.leases, outcome.at_us, _used(outcome))
            reservations.tell_over(batch, quiet, outcome.call_id, outcome.at_us)
            if held.claim is not None:
                self._settle_claim(held.claim, outcome)
                batch.must_last = True
            if policy is not None:
                following.settled(batch, held.step, outcome)
            return True

    def watch(self, policy: Policy, at_us: int) -> bool:
        """Have the detectors and the signals know what the record tells, before a call needs it.
        False where it cannot be read back."""
        with self._joined() as batch:
            return batch.watched(policy, at_us)

    @property
    def is_behind(self) -> bool:
        """Whether `follow` has anything to do. Safe in any thread."""
        return bool(self._found) or self._memory.watch.is_behind

    def follow(self, *, patient: bool = True) -> None:
        """Feed the detectors that may wait with the call that was settled last, and act on what
        they find: before the next call is judged, but not before whoever settled it is answered.
        Raises LedgerUnavailable: then that is done when this is asked again."""
        self._found = (*self._found, *self._memory.watch.follow())
        if self._found:
            with self._joined(patient=patient) as batch:
                batch.must_last = True
                following.act_on(batch, self._found)
            self._found = ()

    def leased(self, call_id: str) -> list[tuple[str, str]]:
        """The windows in which an open call holds what its end may give back."""
        with self._joined() as batch:
            if not batch.is_open(call_id):
                return []
            return [lease.name for lease in batch.held(call_id).leases]

    def _settle_claim(self, claim: int, outcome: Outcome) -> None:
        answer, after, answered = outcome.answer, outcome.claim_after, False
        if answer is not None and may_be_replayed(after, answer.status):
            answered = self._vault.put(self._conn, claim, outcome.call_id, answer)
        claims.settle(self._conn, claim, outcome.at_us, after, answered=answered)

    def keep(self, call_id: str, answer: Answer) -> bool:
        """Keep the answer of a call that was settled before all of it had come. False: nothing
        protects by it any more, or it is not one to give again."""
        with self._joined() as batch:
            found = claims.settled(self._conn, call_id)
            if found is None:
                return False
            row, after = found
            if not may_be_replayed(after, answer.status):
                return False
            if not self._vault.put(self._conn, row, call_id, answer):
                return False
            claims.answer(batch.conn, row)
            return True

    def draw(self, call_id: str, tokens: int, microusd: int, policy: Policy, at_us: int) -> Drawn:
        """A running call asks for more than it reserved; it gets at most what is left of every
        ceiling that it draws on."""
        with self._joined() as batch:
            if not batch.is_open(call_id):
                gone = Verdict(Action.REFUSE, Reason.CUT, "pullcord", "the call has ended")
                return Drawn(0, 0, gone)
            return reservations.draw(batch, call_id, tokens, microusd, policy, at_us)

    def refused(self, ask: Ask) -> Reason | None:
        """Why this claimant may not call at all, whatever it asks; nothing is recorded."""
        with self._joined() as batch:
            return batch.resolve(ask.claimant, ask.at_us)[1]

    def own_state(self, ask: Ask, policy: Policy) -> OwnState | Reason:
        """What the claimant may know about itself, or why it may know nothing."""
        with self._joined() as batch:
            identity, refused = batch.resolve(ask.claimant, ask.at_us)
            if identity is None or refused is not None:
                return refused or Reason.CREDENTIALS_REQUIRED
            over = {(scope, subject) for scope, subject in subjects(identity, "") if subject}
            over.add((Scope.GLOBAL, ""))
            runs = {identity.run, *identity.ancestors}
            pulls = [
                pull
                for pull in (*policy.pulls.values(), *batch.pulls.values())
                if not lets_pass(pull, policy, identity)
            ]
            own = tuple(bounds.own(policy, identity))
            return OwnState(
                identity,
                tuple(
                    pull
                    for pull in pulls
                    if (pull.scope, pull.subject) in over or pull.names.get(Scope.RUN) in runs
                ),
                tuple(
                    ceilings.limit(ceiling, batch.windows.window(ceiling, subject), ask.at_us)
                    for ceiling, subject in own
                ),
                own,
            )

    # Cords

    def pull(self, pull: Pull, *, tells: bool = False) -> bool:
        """Latch a cord, or tighten the one that stands: the most restrictive of both then holds.

        False when nothing changes: then there is no new row, or where it `tells`, for somebody
        wants it stopped now, one of another kind.
        """
        cords.check(pull)
        with self._joined() as batch:
            new = batch.pull(pull)
            if new or tells:
                kind = EventType.PULLED if new else EventType.PULLED_AGAIN
                self._moved(batch, kind, pull, pull.actor, pull.reason, pull.at_us)
                batch.must_last = True
            return new

    def release(
        self,
        level: Level,
        scope: Scope,
        subject: str,
        *,
        reason: str,
        actor: str,
        at_us: int,
        releases: tuple[str, ...] = (),
    ) -> Pull | None:
        """Lift a cord; the cord that was lifted, or None. It takes a person and a reason.

        With `releases` it stays and lets calls of these pass as well; the cord as it is then.
        """
        if not reason.strip() or not actor.strip():
            raise LedgerError("a cord is released by a named person with a reason")
        cords.check_releases(scope, releases)
        check_storable(subject, reason, actor, *releases)
        with self._joined() as batch:
            cord = (level, scope, subject)
            if not releases:
                return self._lift(batch, cord, actor, reason, at_us)
            standing = batch.pulls.get(cord)
            if standing is None:
                return None
            narrowed = cords.narrowed(standing, releases)
            if narrowed != standing:
                batch.put_pull(narrowed)
                why = cords.told_narrowed(releases, reason)
                # Where some of it went first, the detectors have begun anew already.
                anew = standing.trial is None or standing.trial.release not in releases
                trials.narrow(batch, narrowed, actor, why, at_us, anew=anew)
            return narrowed

    def expire(self, at_us: int) -> list[Pull]:
        """Release the cords whose time is up; those that went."""
        with self._joined() as batch:
            over = [
                cord
                for cord, pull in batch.pulls.items()
                if pull.until_us is not None and pull.until_us <= at_us
            ]
            gone = [self._lift(batch, cord, PROGRAM, "its time was up", at_us) for cord in over]
            return [pull for pull in gone if pull is not None]

    def _lift(
        self, batch: Batch, cord: cords.CordName, actor: str, reason: str, at_us: int
    ) -> Pull | None:
        pull = batch.release(cord)
        if pull is not None:
            self._moved(batch, EventType.RELEASED, pull, actor, reason, at_us)
            if is_detectors(pull):
                batch.forgotten(Forgotten(pull.scope, pull.subject))
        return pull

    def _moved(
        self, batch: Batch, kind: EventType, pull: Pull, actor: str, reason: str, at_us: int
    ) -> None:
        batch.journal.moved(kind, pull, actor=actor, reason=reason, at_us=at_us)

    # Workers

    def register(self, worker: Worker) -> None:
        """Note an engine process; its asks are judged from now on. The same one again is no news.

        Raises LedgerError when another process has this id: `forsake` that one first.
        """
        with self._joined() as batch:
            workers.register(batch, worker)

    def seen(self, ids: Iterable[str], at_us: int) -> None:
        """Workers that were heard of."""
        with self._joined() as batch:
            workers.seen(batch, ids, at_us)

    def workers(self) -> list[Worker]:
        with self._joined() as batch:
            return list(batch.workers.values())

    def forsake(self, worker_id: str, at_us: int, why: str) -> int:
        """Strike off a worker that is dead: its open calls are `unknown` now. How many calls."""
        with self._joined() as batch:
            return workers.forsake(batch, worker_id, at_us, why)

    def leave(self, worker_id: str) -> None:
        """A worker has settled its calls and ends."""
        at_us = self._clock()
        with self._joined() as batch:
            workers.leave(batch, worker_id, at_us)

    # Housekeeping

    def reap(self, limit: int = 100) -> int:
        """Drop up to `limit` expired claims with their answers, closed tickets, empty windows and
        old alerts each, and close as many incidents that were quiet for long.

        How many went.
        """
        at_us = self._clock()
        with self._joined() as batch:
            if at_us >= self._sweep_us:
                self._vault.sweep(self._conn, at_us)
                self._sweep_us = at_us + SWEEP_SECONDS * 1_000_000
            count = claims.reap(self._conn, at_us, limit) + holds.reap(batch, at_us, limit)
            self._reaped_to, dropped = windows.reap(self._conn, self._reaped_to, at_us, limit)
            count += dropped + incidents.reap(batch, at_us, limit)
            return count + operators.reap_alerts(self._conn, at_us, limit)


def _used(outcome: Outcome) -> dict[str, int | None]:
    """What a call's reservations become."""
    if outcome.state is CallState.NOT_SENT:
        return {Count.TOKENS: 0, Count.SPEND: 0}
    return {Count.TOKENS: outcome.used_tokens, Count.SPEND: outcome.used_microusd}
