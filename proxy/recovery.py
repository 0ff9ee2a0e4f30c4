"""The order in which a recovery is done: the bad release is halted, the rollback is run, some runs
may go first and are watched, the cords are narrowed, and the record tells it.

Each act goes through the running proxy or, without one, is done on its ledger: by the hand that it
is given. What it does is planned in recovering.py.
"""

import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from ledger import cord_reads, queries, trials
from ledger.errors import LedgerError
from ledger.sqlite import sqlite3
from ledger.store import Store
from ledger.trial_reads import Course, Health, course, last
from policies.policy import Policy
from policies.verdict import Level, Pull, Scope
from proxy import going_first, incident_acts, operations, recovering
from proxy.clock import Clock
from proxy.control_client import Refused
from proxy.fate import Fate, State, fate
from proxy.recovering import Plan, Ran

LOOK_SECONDS = 0.5
MUTE_SECONDS = 3.0  # a proxy that is busy, or whose decider starts again, answers within that

Answer = dict[str, Any]
Directly = Callable[[Store, str, int], Answer]
"""Given the store, who acts and the time; gives what the proxy would have answered."""


class Hand(Protocol):
    """By which an act is done. All raise what the act raises, and a failure of their own where
    neither a proxy nor its ledger can take it."""

    def pull(self, body: Answer, wanted: Callable[[Clock, str], Pull]) -> Answer: ...
    def act(self, path: str, body: Answer, directly: Directly) -> Answer: ...
    def release(self, body: Answer) -> Answer: ...
    def through_proxy(self, path: str, body: Answer) -> Answer | None:
        """None where none runs here: nothing is done then."""

    def has_proxy(self) -> bool: ...
    def policy(self) -> Policy | None: ...
    def reader(self) -> AbstractContextManager[sqlite3.Connection]: ...


@dataclass(frozen=True, slots=True)
class Watched:
    """How the runs that go first fared, as far as they were watched, and what became of the cords.
    `by_proxy`: one ran that could judge them; `widened` are the cords that it then let all of the
    release pass, none where somebody else was quicker."""

    course: Course
    fate: Fate
    by_proxy: bool = True
    widened: tuple[Answer, ...] = ()

    @property
    def stands(self) -> bool:
        """They still go first."""
        return self.fate.state is State.STAYS


class Recovery:
    """One of one incident. Made with a plan, used once."""

    def __init__(self, hand: Hand, plan: Plan, reason: str) -> None:
        self.plan = plan
        self._hand = hand
        self._reason = reason
        self._id = plan.incident.id
        self._trial = plan.trial or plan.untold

    @property
    def tried(self) -> tuple[str, ...]:
        """The rules of the cords past which they went first."""
        return self._trial.cords if self._trial is not None else ()

    # The release that did it

    def halt(self) -> Answer:
        """The release that did it. Nothing is written into a file of the policy."""
        reason, bad = f"incident {self._id}", self.plan.bad

        def wanted(clock: Clock, actor: str) -> Pull:
            return Pull(Level.HALT, Scope.RELEASE, bad, reason, actor, clock.now_us())

        body = {"level": "halt", "scope": "release", "subject": bad, "reason": reason}
        return self._hand.pull(body, wanted)

    def roll_back(self) -> Ran:
        """Run the command; the record tells that it is run, and where it fails."""
        command = shlex.join(self.plan.rollback)
        self.note(f"{recovering.told_rolling(self.plan.release)}{command}")
        ran = recovering.roll_back(self.plan)
        if ran.code != 0:
            self.note(f"the rollback {ended(ran)}; nothing was resumed")
        else:
            self.note(f"{recovering.told_rolled(self.plan.release)}{command}, which {ended(ran)}")
        return ran

    # Those that go first

    def open(self, runs: Sequence[str], places: int) -> Answer:
        """Let them go first. Raises OperationError where nothing can be gone past, and what the act
        raises where one of the cords was pulled since it was planned."""
        plan, reason = self.plan, self._reason
        cords = [operations.cord_name(cord) for cord in plan.past]
        if not cords:
            raise operations.OperationError(
                "no cord of it can be narrowed to a release, so no run can go first past one"
            )

        def directly(store: Store, actor: str, at_us: int) -> Answer:
            return going_first.opened(
                *(store, self._hand.policy(), self._id, cords),
                release=plan.release,
                runs=runs,
                places=places,
                reason=reason,
                actor=actor,
                at_us=at_us,
                after_seq=plan.seq,
            )

        named = going_first.cord_names(plan.past)
        body = {"release": plan.release, "runs": list(runs), "places": places, "cords": named}
        body = {**self._body(reason), **body, "after_seq": plan.seq}
        answer = self._hand.act("/v1/incidents/canary", body, directly)
        self._trial = going_first.trial_of(answer)
        return answer

    def watch(
        self,
        seconds: float,
        clock: Clock,
        tell: Callable[[Course], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> Watched:
        """Look at them until something is found or is in doubt for good, somebody ends it, or the
        time is over. What is heard is told each time that it changes. Without a proxy nobody can
        come, and nobody is waited for."""
        told = Course()
        deadline_seconds = clock.monotonic_seconds() + seconds
        heard_seconds: float | None = None
        with self._hand.reader() as reader:
            while True:
                now = self._look(reader)
                if now.course != told:
                    told = now.course
                    tell(told)
                at_seconds = clock.monotonic_seconds()
                left_seconds = deadline_seconds - at_seconds
                over = left_seconds <= 0 or told.health is Health.BAD or bool(told.refused)
                if self._hand.has_proxy():
                    heard_seconds = at_seconds
                lives = heard_seconds is not None and at_seconds - heard_seconds <= MUTE_SECONDS
                if over or not now.stands or not lives:
                    return replace(now, by_proxy=lives)
                sleep(min(LOOK_SECONDS, left_seconds))

    def conclude(self, watched: Watched) -> Watched:
        """What follows from it: all of the release passes, or nobody goes first any more, or it
        stays as it is. Whether they fare well is looked at once more where it is decided, and only
        the running proxy decides that. What then is, is read from the cords."""
        if watched.stands and watched.course.health is not Health.BAD:
            if watched.course.health is not Health.GOOD or not watched.by_proxy:
                return watched
            watched = self._widen()
            if watched.stands or (watched.widened and watched.fate.state is State.WIDENED):
                return watched
        return self._over(watched)

    def _widen(self) -> Watched:
        """Raises Refused where they go first all the same."""
        path, refused, answer = "/v1/incidents/canary/widen", None, None
        try:
            answer = self._hand.through_proxy(path, self._body(self._reason))
        except Refused as error:
            refused = error
        now = self.look()  # an answer that did not come tells nothing
        if refused is not None and now.stands:
            raise refused
        widened = tuple(answer["widened"]) if answer is not None else ()
        return replace(now, by_proxy=answer is not None or refused is not None, widened=widened)

    def _over(self, watched: Watched) -> Watched:
        """Nobody goes first any more, past none of the cords; the record tells why."""
        why = "; ".join((*watched.course.found, *watched.fate.said)) or "it was ended"
        if watched.fate.is_left:
            reason = why[: operations.TEXT_CHARACTERS_MAX]

            def directly(store: Store, actor: str, at_us: int) -> Answer:
                return going_first.ended(store, self._id, reason=reason, actor=actor, at_us=at_us)

            self._hand.act("/v1/incidents/canary/end", self._body(reason), directly)
            now = self.look().fate
            if now.state is State.ENDED:
                now = replace(now, said=watched.fate.said)
            else:  # somebody let it pass just before
                why = "; ".join((*watched.course.found, *now.said))
            watched = replace(watched, fate=now)
        if watched.fate.state is State.ENDED:
            self.note(f"{recovering.ENDED}{why}")
        else:
            self.note(f"{recovering.OVERTAKEN}{why}")
        return watched

    def look(self) -> Watched:
        """Once, at how they fare now."""
        policy = self._hand.policy()
        with self._hand.reader() as reader:
            return self._look(reader, policy.pulls.values() if policy else ())

    def _look(self, reader: sqlite3.Connection, lines: Iterable[Pull] = ()) -> Watched:
        """How they fare now; of those that go first no more, as far as the record knows who they
        were."""
        if self._trial is None:
            raise operations.OperationError("no run goes first for this incident")
        standing = trials.of(queries.pulls(reader), self._id)
        trial = next((cord.trial for cord in standing), None) or last(reader, self._id)
        return Watched(
            course(reader, trial, lines) if trial else Course(), fate(reader, self._trial)
        )

    # All of it

    def resume(self, cord: Pull) -> Answer | None:
        """Calls of the good release pass it from now on; None where it is not as it was when this
        was planned, and then it is left: whoever pulled it since did not mean this."""
        if not self._is_as_planned(cord):
            return None
        body = {
            "level": cord.level.value,
            "scope": cord.scope,
            "subject": cord.subject,
            "reason": self._reason,
            "releases": [self.plan.release],
            "after_seq": self.plan.seq,
        }
        try:
            return self._hand.release(body)
        except (Refused, LedgerError, operations.OperationError):
            if self._is_as_planned(cord):
                raise
            return None  # it was changed at this very moment

    def _is_as_planned(self, cord: Pull) -> bool:
        with self._hand.reader() as reader:
            now = next((each for each in queries.pulls(reader) if each.rule == cord.rule), None)
            if now is None or cord_reads.pulled(reader, cord.rule, self.plan.seq) is not None:
                return False
        if self.plan.release in now.but_releases:
            return True
        if now.trial is None or cord.trial is None:
            return now.trial is cord.trial
        return now.trial.incident == cord.trial.incident == self._id

    def is_recorded(self) -> bool:
        """Whether the step of this recovery is in the record since some runs go first."""
        since_seq = self._trial.after_seq if self._trial is not None else 0
        with self._hand.reader() as reader:
            return recovering.is_recorded(reader, self.plan, since_seq)

    def record(self, ran: Ran | None, *, after: Course | None = None, left: int = 0) -> None:
        """As the step of the runbook that it is; so many cords were left as they are."""
        plan = self.plan
        done = [f"release {plan.bad} is halted"] if plan.bad else []
        done += [f"{shlex.join(plan.rollback)} ended with 0"] if ran is not None else []
        if after is not None:
            done.append(f"run {', '.join(after.runs)} went first; its calls: {after.calls}")
        cords = len(plan.resumes) - left
        done.append(f"{cords} cord{'s' if cords != 1 else ''}{f', {left} left' if left else ''}")
        text = f"{recovering.told_as(plan.release)}{self._reason} ({'; '.join(done)})"
        text = text[: operations.TEXT_CHARACTERS_MAX]

        def directly(store: Store, actor: str, at_us: int) -> Answer:
            step = recovering.STEP
            return incident_acts.stepped(store, self._id, step, text, actor=actor, at_us=at_us)

        body = {"incident": self._id, "step": recovering.STEP, "text": text}
        self._hand.act("/v1/incidents/step", body, directly)

    def note(self, text: str) -> None:
        text = text[: operations.TEXT_CHARACTERS_MAX]

        def directly(store: Store, actor: str, at_us: int) -> Answer:
            return incident_acts.noted(
                store, self._id, text, public=False, actor=actor, at_us=at_us
            )

        body = {"incident": self._id, "text": text, "public": False}
        self._hand.act("/v1/incidents/note", body, directly)

    def _body(self, reason: str) -> Answer:
        return {"incident": self._id, "reason": reason}


def ended(ran: Ran) -> str:
    """How a rollback ended, in words."""
    return "did not end" if ran.code is None else f"ended with {ran.code}"
