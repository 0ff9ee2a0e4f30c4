"""The room in which calls wait for their turn under a ceiling.

A call that a ceiling has no room for may wait for its turn (`turns.py`). Those who wait are judged
again whenever something may have made room, and before whatever was asked after that. A newcomer
that would fit overtakes nobody of its tenant, and nobody who was not tried yet though there may be
room: it waits behind them if it may; if it may not, it is judged as it stands. So is a call whose
turn it is: it does not wait behind those of other windows, or two lines could keep each other
waiting. Others' calls that need more than there is left hold up nobody; they may find that calls
that need less take it first, until their wait is over and they are refused.

Touched in the decider's thread alone, but for `ended` and, while nobody waits, for reading.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from math import inf
from typing import Any, Protocol

from ledger.admission import Judge
from ledger.records import Ask, Decision
from policies import bounds, ceilings
from policies.call import Draw, Effect, Facts, Identity, ToolCall
from policies.ceilings import Count
from policies.decide import decide
from policies.policy import Policy
from policies.standing import standing
from policies.verdict import Action, Level, Pulls, Reason, Verdict
from proxy.judging import NotJudged, PolicyMoved
from proxy.turns import Turns, Window
from proxy.work import Admit, Turn

TRIES_MAX = 64  # of those who wait, in one batch: what else is in it must not wait for long

WAITS = object()
"""The answer of one that waits: there is none yet."""

_ANEW: Window = ("", "")
"""Where those wait of whom nobody knows what they wait for: the policy is another one."""

Told = tuple["asyncio.Future[Any]", Any]
"""Who is told, and what."""


class Court(Protocol):
    """Where calls are judged: inside one transaction, under one policy."""

    def current(self, admit: Admit) -> Admit | None:
        """The call as the policy in force knows it; None when it is not whole enough to tell."""

    def judged(self, ask: Ask, judge: Judge) -> Decision | NotJudged: ...


class _Judge:
    """Judges one call, and notes which window it has to wait for. A newcomer queues."""

    def __init__(self, turns: Turns, *, queues: bool) -> None:
        self.window: Window | None = None
        self.amount = 0
        self.again_seconds = inf
        self._turns = turns
        self._queues = queues

    def __call__(self, policy: Policy, call: ToolCall, facts: Facts) -> Verdict:
        self.window = None
        verdict = decide(policy, call, facts)
        run, tenant = (facts.identity.run, facts.identity.tenant) if facts.identity else ("", "")
        draws = [draw for draw in facts.drawn if draw.ceiling.wait_seconds and draw.amount]
        if verdict.reason is Reason.OVER_CEILING and verdict.wait_seconds:
            self._note(next(d for d in draws if bounds.is_over(d, facts.now_us)), facts)
        elif verdict.action is Action.ALLOW and self._queues:
            for draw in draws:
                if self._turns.awaits(tenant, _window(draw)):
                    self._note(draw, facts)
                    behind = bounds.exhausted(draw, run, call.tool, facts.now_us)  # none has a cord
                    return replace(behind, wait_seconds=draw.ceiling.wait_seconds)
        return verdict

    def _note(self, draw: Draw, facts: Facts) -> None:
        """Room in flight comes with a call's end, which is seen when it comes."""
        seconds = ceilings.wait_seconds(draw.ceiling, draw.window, facts.now_us, draw.amount)
        if seconds is not None and draw.ceiling.count is not Count.IN_FLIGHT:
            self.again_seconds = seconds
        self.window, self.amount = _window(draw), draw.amount


class WaitingRoom:
    """`clock` tells the seconds that a `Turn` is in."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._turns = Turns()
        self._waiting: dict[int, tuple[Turn, Identity]] = {}
        self._numbers: dict[Turn, int] = {}
        self._left: deque[Turn] = deque()
        self._stopped: deque[int] = deque()
        self._told: list[Told] = []
        self._policy: Policy | None = None
        self._pulls: Pulls = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def ended(self, turn: Turn) -> None:
        """From any thread, when its `answer` is done: if it was cancelled, whoever waited left."""
        if turn.answer.cancelled():
            self._left.append(turn)

    def idle_seconds(self, pulls: Pulls, policy: Policy) -> float:
        """How long nothing has to be done here, if nothing happens; 0 where something has."""
        if not self._waiting:
            return inf
        moved = pulls is not self._pulls or policy is not self._policy
        if moved or self._left or self._stopped:
            return 0.0
        return max(0.0, self._turns.due_seconds - self._clock())

    def fail(self, failure: Exception) -> list[Told]:
        """Whoever waits, and whoever was let through meanwhile, is told this in place of it. Kept,
        too, since it may have been called in a transaction that is not committed."""
        turns = [turn for turn, _ in self._waiting.values()]
        answers = [answer for answer, _ in self._told] + [turn.answer for turn in turns]
        self._turns = Turns()
        for forgotten in (self._waiting, self._numbers, self._left, self._stopped):
            forgotten.clear()
        self._told = [(answer, failure) for answer in answers]
        return self.told()

    # In a transaction

    def begin(self, pulls: Pulls, policy: Policy) -> None:
        """See who has left, whom a cord stops, and whether another policy is in force."""
        self._told = []
        while self._left:
            number = self._numbers.get(self._left.popleft())
            if number is not None:
                self._forget(number)
        if policy is not self._policy:
            for number in self._waiting:
                self._turns.refused(number, _ANEW)
            self._turns.stir()
        if policy is not self._policy or pulls is not self._pulls:
            self._stopped.clear()
            self._stopped += [
                number
                for number, (turn, identity) in self._waiting.items()
                if _is_stopped(policy, turn.admit.ask.call, identity, pulls)
            ]
        self._policy, self._pulls = policy, pulls

    def stir(self, window: Window | None = None) -> None:
        """Something may have made room in this window, or in any."""
        self._turns.stir(window)

    def newcomer(self) -> Judge:
        """How a call is judged that may wait, while others do."""
        return _Judge(self._turns, queues=True)

    def enter(self, turn: Turn, court: Court) -> Any:
        """Judge a newcomer that may wait; it waits, or its answer."""
        if turn.answer.cancelled():
            return WAITS
        judge = _Judge(self._turns, queues=True)
        answer = self._judged(turn, court, judge, may_wait=True)
        if not _must_wait(answer) or answer.identity is None or judge.window is None:
            return answer
        identity, now_seconds = answer.identity, self._clock()
        if now_seconds >= turn.until_seconds or not self._turns.has_room(identity.tenant):
            return self._judged(turn, court, judge, may_wait=False)
        number = self._turns.join(
            identity.tenant,
            judge.window,
            until_seconds=turn.until_seconds,
            again_seconds=now_seconds + judge.again_seconds,
            amount=judge.amount,
        )
        self._waiting[number] = turn, identity
        self._numbers[turn] = number
        return WAITS

    def call(self, court: Court, tries: int) -> int:
        """Judge again those who are stopped, those whose turn it may be, and those whose wait is
        over, in that order. Gives how many tries are left."""
        while tries > 0:
            now_seconds = self._clock()
            last = False
            number = self._stopped.popleft() if self._stopped else self._turns.next(now_seconds)
            if number is None:
                number, last = self._turns.over(now_seconds), True
            if number is None:
                break
            if number in self._waiting:
                self._try(number, court, now_seconds, last=last)
                tries -= 1
        return tries

    def told(self) -> list[Told]:
        """Kept until the next transaction begins: if this one is not committed, `fail` tells them
        otherwise."""
        return list(self._told)

    def _try(self, number: int, court: Court, now_seconds: float, *, last: bool) -> None:
        turn, _ = self._waiting[number]
        if turn.answer.cancelled():
            self._forget(number)
            return
        judge = _Judge(self._turns, queues=False)
        answer = self._judged(turn, court, judge, may_wait=not last)
        if not last and _must_wait(answer) and judge.window is not None:
            again_seconds = now_seconds + judge.again_seconds
            self._turns.refused(number, judge.window, again_seconds, judge.amount)
            return
        if isinstance(answer, Decision) and answer.verdict.action is Action.ALLOW:
            self._turns.served(number)
        self._forget(number)
        self._told.append((turn.answer, answer))

    def _judged(self, turn: Turn, court: Court, judge: _Judge, *, may_wait: bool) -> Any:
        admit = court.current(turn.admit)
        if admit is None:
            return PolicyMoved()
        turn.admit = admit
        at_us = turn.at_us(self._clock())
        return court.judged(replace(admit.ask, at_us=at_us, may_wait=may_wait), judge)

    def _forget(self, number: int) -> None:
        turn, _ = self._waiting.pop(number)
        del self._numbers[turn]
        self._turns.leave(number)


def _window(draw: Draw) -> Window:
    return draw.ceiling.window or draw.ceiling.id, draw.subject


def _must_wait(answer: Any) -> bool:
    """Whether it was told to wait for room, which leaves no trace."""
    if not isinstance(answer, Decision):
        return False
    return answer.verdict.reason is Reason.OVER_CEILING and answer.verdict.wait_seconds > 0


def _is_stopped(policy: Policy, call: ToolCall, identity: Identity, pulls: Pulls) -> bool:
    levels = (Level.HALT, Level.FREEZE) if call.effect is Effect.WRITE else (Level.HALT,)
    return any(standing(policy, call.tool, identity, pulls, level) for level in levels)
