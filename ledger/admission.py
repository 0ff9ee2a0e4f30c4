"""One call in the admission transaction: facts, verdict, and the rows that the verdict asks for.

It is the one place where a verdict meets the record. A verdict that the record contradicts (an
allowed write over a live claim, a replay of nothing) is a refusal.
"""

from collections.abc import Callable
from dataclasses import replace

from ledger import claims, following, holds, steps, trials
from ledger.batch import Batch, Held
from ledger.claims import Met, Slot
from ledger.records import Answer, Ask, Decision, Hold
from ledger.sqlite import sqlite3
from ledger.states import EventType
from ledger.vault import Vault
from policies.call import ClaimState, Draw, Effect, Facts, Identity, ToolCall
from policies.ceilings import Count
from policies.detectors.step import Step
from policies.policy import Policy
from policies.verdict import MEANING, Action, Reason, Verdict

Judge = Callable[[Policy, ToolCall, Facts], Verdict]

_REPLAYED = frozenset({Count.CALLS})
# A write that meets its own body again and is told that it was made keeps it protected.
_TOLD = frozenset({Reason.REPLAYED, Reason.DONE_BUT_NOT_STORED})
# A sent key that was told one of these of a write stands for that write from then on.
_BINDS = _TOLD | {Reason.OUTCOME_UNKNOWN, Reason.IN_FLIGHT}


class Admission:
    """One ask on its way through the transaction. Made, used once, dropped."""

    def __init__(self, batch: Batch, vault: Vault, ask: Ask, policy: Policy) -> None:
        self._batch = batch
        self._vault = vault
        self._ask = ask
        self._policy = policy
        self._known: Identity | None = None
        self._slot: Slot | None = None
        self._met: Met | None = None
        self._drawn: tuple[Draw, ...] = ()
        self._approval: Hold | None = None

    def decide(self, judge: Judge) -> Decision:
        identity: Identity | None = None
        answer: Answer | None = None
        try:
            facts = self._facts()
            identity = facts.identity
            verdict = judge(self._policy, self._ask.call, facts)
            places: list[trials.Place] = []
            if verdict.action is Action.REFUSE:
                verdict, facts = self._placed(verdict, facts, judge, places)
            if verdict.action is Action.HOLD:
                verdict = self._answered(verdict, facts, judge)
            verdict = self._watched(self._consistent(verdict, identity))
            if places and identity and verdict.action is Action.ALLOW:
                for place in places:
                    trials.take(self._batch, place, identity, self._ask.at_us)
            if verdict.action is Action.REPLAY:
                verdict, answer = self._recalled(verdict)
        except sqlite3.Error:
            raise
        except Exception as error:
            # One call that cannot be judged is refused; the others of the transaction go on.
            verdict = Verdict(Action.REFUSE, Reason.POLICY_FAILURE, "policy", type(error).__name__)
        waits_on = verdict.action is Action.HOLD and self._ask.bound_to  # that is told already
        if not (_waits(verdict) and self._ask.may_wait) and not waits_on:
            self._write(verdict, answer)
        approval = self._approval.ticket if self._approval else ""
        return Decision(verdict, identity, answer, approval)

    def _facts(self) -> Facts:
        ask, batch = self._ask, self._batch
        self._known, refused = batch.resolve(ask.claimant, ask.at_us)
        if self._known is None or refused is not None:
            return Facts(ask.at_us, None, refused, batch.pulls)
        call, identity = ask.call, self._known
        if call.fault is not None:
            return Facts(ask.at_us, identity, None, batch.pulls)
        if call.effect is Effect.WRITE:
            self._slot = claims.slot(call, identity, self._policy.tool(call.tool).key)
            if self._slot is not None:
                self._met = claims.find(batch.conn, self._slot, ask.at_us)
        self._drawn = batch.windows.draws(self._policy, call, identity, pulls=batch.pulls)
        claim = None if self._met is None else self._met.claim
        return Facts(ask.at_us, identity, None, batch.pulls, claim, self._drawn)

    def _placed(
        self, refused: Verdict, facts: Facts, judge: Judge, places: list[trials.Place]
    ) -> tuple[Verdict, Facts]:
        """The verdict where the run has all `places` that it may take past the cords that refuse
        it, one after the other. It takes none of them unless the call passes."""
        verdict, policy = refused, self._policy
        while place := trials.place(facts.pulls, verdict, facts.identity, policy):
            places.append(place)
            facts = replace(facts, pulls=place.pulls)
            verdict = judge(policy, self._ask.call, facts)
        # Nobody waits before a cord, and what is not judged to its end is not told.
        return (refused if places and _waits(verdict) else verdict), facts

    def _answered(self, held: Verdict, facts: Facts, judge: Judge) -> Verdict:
        """What a call that is held is told; one that a person approved is judged once more."""

        def approved() -> Verdict:
            return judge(self._policy, self._ask.call, replace(facts, approved=True))

        if self._known is None:
            return held
        verdict, hold = holds.answer(
            self._batch, self._vault, self._ask, self._known, held, approved
        )
        self._approval = hold if verdict.action is Action.ALLOW else None
        return verdict

    def _consistent(self, verdict: Verdict, identity: Identity | None) -> Verdict:
        """The verdict, unless the record says that it cannot be."""
        wrong = ""
        if verdict.action is Action.ALLOW:
            if identity is None or self._ask.call.fault is not None:
                wrong = "allowed without an identity, or in spite of a fault"
            elif self._batch.is_open(self._ask.call_id):
                wrong = "this call id is in use"
            elif self._ask.worker and self._ask.worker not in self._batch.workers:
                wrong = "the worker that asks is not registered"
            elif self._met is not None:
                wrong = "allowed over a live claim"
        elif verdict.action is Action.REPLAY and (identity is None or self._met is None):
            wrong = "a replay of nothing"
        if wrong:
            return Verdict(Action.REFUSE, Reason.POLICY_FAILURE, "policy", wrong)
        return verdict

    def _watched(self, verdict: Verdict) -> Verdict:
        """The verdict, unless it lets something pass of which no detector would know what was
        before it."""
        if verdict.action is Action.REFUSE or self._batch.watched(self._policy, self._ask.at_us):
            return verdict
        wrong = "the newest rows of the record cannot be read back"
        return Verdict(Action.REFUSE, Reason.DETECTOR_FAILURE, "detectors", wrong)

    def _recalled(self, verdict: Verdict) -> tuple[Verdict, Answer | None]:
        """The stored answer; a refusal when it cannot be opened (another vault key)."""
        if self._met is None:
            return verdict, None
        claim = self._met.claim
        answer = self._vault.get(self._batch.conn, self._met.row, claim.call_id)
        if answer is not None:
            return verdict, answer
        done = claim.state is ClaimState.DONE
        reason = Reason.DONE_BUT_NOT_STORED if done else Reason.OUTCOME_UNKNOWN
        detail = "the stored answer cannot be opened"
        return replace(verdict, action=Action.REFUSE, reason=reason, detail=detail), None

    def _write(self, verdict: Verdict, answer: Answer | None) -> None:
        ask, batch = self._ask, self._batch
        claim_key = None if self._slot is None else self._slot.key
        step = self._step(verdict.action)
        if verdict.action is Action.ALLOW:
            claim = self._take()
            leases = batch.windows.charge(self._drawn, ask.at_us, ask.call.host)
            batch.opened(ask.call_id, Held(claim, ask.worker, leases, step))
            if self._approval is not None:
                holds.use(batch, self._approval, ask.call_id, ask.at_us)
            self._tell(verdict)
        elif verdict.action is Action.REPLAY:
            batch.windows.charge(self._drawn, ask.at_us, counts=_REPLAYED)
        if self._met is not None:
            claim_key = self._met.key
            self._remember(self._met, verdict)
        status = answer.status if answer else None
        if verdict.action is Action.REFUSE:
            status = MEANING[verdict.reason].status
        batch.tally.decided(ask.call.tool, ask.call.effect, verdict)
        policy_id = batch.policy_id(self._policy, ask.at_us)
        batch.journal.decided(
            ask,
            self._known,
            verdict,
            step,
            status=status,
            claim_key=claim_key,
            policy=self._policy,
            policy_id=policy_id,
        )
        if verdict.pull is not None:
            batch.trip(verdict.pull, ask.call_id)
        if step is not None and step.replayed:
            # It costs and does nothing; but who asks for one again and again gets nowhere.
            following.follow(batch, step)

    def _remember(self, met: Met, verdict: Verdict) -> None:
        """What a write was told through the claim that it has met by its body."""
        conn, ask = self._batch.conn, self._ask
        sent = ask.call.key is not None
        if met.by_key and sent:
            return
        if sent and self._slot is not None and verdict.reason in _BINDS:
            claims.bind(conn, self._slot, met.row, ask.at_us)
            self._batch.must_last = True
        if verdict.reason in _TOLD:
            claims.use(conn, met.row, ask.at_us)

    def _step(self, action: Action) -> Step | None:
        """The call as the detectors see it; None of one that is not answered, or not yet."""
        if self._known is None or action not in (Action.ALLOW, Action.REPLAY):
            return None
        replayed = action is Action.REPLAY
        return steps.asked(self._ask, self._known, self._batch.key, replayed=replayed)

    def _tell(self, verdict: Verdict) -> None:
        """What somebody should know of a call that passes: a limit that only tells, a model that
        has no price."""
        batch, call = self._batch, self._ask.call
        told = [(EventType.CROSSED, text) for text in verdict.alerts]
        if not call.worth.priced and batch.is_news(call.worth.model):
            told.append((EventType.UNPRICED, call.worth.model[:80] or "a model it does not name"))
        for kind, text in told:
            batch.tell(kind, text, self._known, call.tool, self._ask.at_us)

    def _take(self) -> int | None:
        if self._slot is None:
            return None
        self._batch.must_last = True
        ask = self._ask
        return claims.take(self._batch.conn, self._slot, ask.call, ask.call_id, ask.at_us)


def _waits(verdict: Verdict) -> bool:
    """Whether a call that is refused so may wait for its turn instead."""
    if verdict.reason is Reason.OVER_CEILING:
        return verdict.wait_seconds > 0
    return verdict.reason is Reason.IN_FLIGHT
