"""What becomes of each piece of work inside one transaction of the decider's.

Nothing here waits, and nothing is committed here. Whatever may make room under a ceiling calls
those who wait for it, before anything that was asked later is judged.
"""

from dataclasses import replace
from typing import Any

from ledger.admission import Judge
from ledger.records import Ask, Decision
from ledger.store import LedgerError, LedgerUnavailable, Store
from policies.decide import decide
from policies.policy import Policy
from policies.verdict import Reason, Verdict
from proxy.canary import identified
from proxy.judging import NotJudged, PolicyMoved
from proxy.waiting_room import TRIES_MAX, Told, WaitingRoom
from proxy.work import Admit, Settle, Turn, Work


class Sitting:
    """`do` each piece of work in order, then `close`. `stepped_seconds` is how far the system's
    clock was moved: while it was, no call is judged."""

    def __init__(
        self,
        store: Store,
        policy: Policy,
        room: WaitingRoom,
        canary_port: int,
        stepped_seconds: float,
    ) -> None:
        self._store = store
        self._policy = policy
        self._room = room
        self._canary_port = canary_port
        self._stepped_seconds = stepped_seconds
        self._tries = TRIES_MAX
        room.begin(store.pulls, policy)

    def stir(self) -> None:
        """Something else made room."""
        self._room.stir()

    def do(self, work: Work) -> Any:
        """What its caller is told. Raises LedgerUnavailable, which ends the whole batch."""
        if isinstance(work, Admit):
            return self._admitted(work)
        if isinstance(work, Turn):
            self._call()
            return self._room.enter(work, self)
        if isinstance(work, Settle):
            if self._room:
                for window in self._store.leased(work.outcome.call_id):
                    self._room.stir(window)
            return self._store.settle(work.outcome, self._policy)
        if work.durable:
            self._room.stir()
        try:
            return work.act(self._store)
        except LedgerUnavailable:
            raise
        except LedgerError as error:
            return error  # a wrong request: nothing was written, and only its caller is told

    def close(self) -> list[Told]:
        """Whose wait has ended meanwhile, and how."""
        if self._stepped_seconds:
            return self._room.fail(self._not_judged())
        self._call()
        return self._room.told()

    def current(self, admit: Admit) -> Admit | None:
        """The call as the policy in force knows it; None when only its asker has it whole."""
        ask = admit.ask
        if admit.policy is self._policy or ask.call.fault is not None:
            return admit
        if not admit.whole:
            return None
        call = identified(self._policy, ask.request, self._canary_port)
        return replace(admit, ask=replace(ask, call=call), policy=self._policy)

    def judged(self, ask: Ask, judge: Judge) -> Decision | NotJudged:
        if self._stepped_seconds:
            return self._not_judged()
        return self._store.admit(ask, self._policy, judge)

    def _admitted(self, work: Admit) -> Any:
        if work.told is not None:
            return self._written(work, work.told)
        self._call()
        admit = self.current(work)
        if admit is None:
            return PolicyMoved()
        queues = self._room and admit.ask.may_wait
        return self.judged(admit.ask, self._room.newcomer() if queues else decide)

    def _written(self, work: Admit, told: Verdict) -> Decision:
        """A call that has gone on already: it is not judged another time."""
        admit = self.current(work) or work
        return self._store.admit(admit.ask, self._policy, lambda *_: told)

    def _call(self) -> None:
        if self._room and not self._stepped_seconds:
            self._tries = self._room.call(self, self._tries)

    def _not_judged(self) -> NotJudged:
        return NotJudged(Reason.CLOCK_STEPPED, f"by {self._stepped_seconds:+.0f} s")
