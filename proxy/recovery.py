"""The order in which a recovery is done: the bad release is halted, the rollback is run, some runs
may go first and are watched, the cords are narrowed, and the record tells it.

Each act goes through the running proxy or, without one, is done on its ledger: by the hand that it
is given. What it does is planned in recovering.py.
"""

import shlex
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from ledger import queries, trials
from ledger.sqlite import sqlite3
from ledger.store import Store
from ledger.trial_reads import Course, Health, course, last
from policies.policy import Policy
from policies.verdict import Level, Pull, Scope, Trial
from proxy import going_first, incident_acts, operations, recovering
from proxy.clock import Clock
from proxy.recovering import Plan, Ran

LOOK_SECONDS = 0.5

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
    """How the runs that go first fared, as far as they were watched. `stands`: they still go first;
    `by_proxy`: one ran that could judge them."""

    course: Course
    stands: bool
    by_proxy: bool = True
    widened: tuple[Answer, ...] = ()


class Recovery:
    """One of one incident. Made with a plan, used once."""

    def __init__(self, hand: Hand, plan: Plan, reason: str) -> None:
        self.plan = plan
        self._hand = hand
        self._reason = reason
        self._id = plan.incident.id

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
        self.note(f"recovery onto {self.plan.release}: runs {command}")
        ran = recovering.roll_back(self.plan)
        if ran.code != 0:
            self.note(f"the rollback {ended(ran)}; nothing was resumed")
        return ran

    # Those that go first

    def open(self, runs: Sequence[str], places: int) -> Answer:
        """Let them go first. Raises OperationError where nothing can be gone past."""
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
            )

        named = going_first.cord_names(plan.past)
        body = {"release": plan.release, "runs": list(runs), "places": places, "cords": named}
        return self._hand.act("/v1/incidents/canary", {**self._body(reason), **body}, directly)

    def watch(
        self,
        seconds: float,
        clock: Clock,
        tell: Callable[[Course], None],
        sleep: Callable[[float], None] = time.sleep,
    ) -> Watched:
        """Look at them until something is found, somebody ends it, or the time is over. What is
        heard is told each time that it changes. Without a proxy nobody can come, and nobody is
        waited for."""
        told = Course()
        deadline_seconds = clock.monotonic_seconds() + seconds
        with self._hand.reader() as reader:
            while True:
                now = _look(reader, self._id)
                if now.course != told:
                    told = now.course
                    tell(told)
                left_seconds = deadline_seconds - clock.monotonic_seconds()
                over = left_seconds <= 0 or told.health is Health.BAD
                has_proxy = self._hand.has_proxy()
                if over or not now.stands or not has_proxy:
                    return Watched(now.course, now.stands, has_proxy)
                sleep(min(LOOK_SECONDS, left_seconds))

    def conclude(self, watched: Watched) -> Watched:
        """What follows from it: all of the release passes, or nobody goes first any more, or it
        stays as it is. Whether they fare well is looked at once more where it is decided, and only
        the running proxy decides that."""
        if not watched.stands:
            self.note(f"nobody goes first any more: {'; '.join(watched.course.found) or 'ended'}")
            return watched
        if watched.course.health is Health.BAD:
            return self._end(watched.course)
        if watched.course.health is not Health.GOOD or not watched.by_proxy:
            return watched
        answer = self._hand.through_proxy("/v1/incidents/canary/widen", self._body(self._reason))
        if answer is None:
            return Watched(watched.course, stands=True, by_proxy=False)
        with self._hand.reader() as reader:
            now = _look(reader, self._id)
        return Watched(now.course, now.stands, widened=tuple(answer["widened"]))

    def _end(self, found: Course) -> Watched:
        reason = "; ".join(found.found)[: operations.TEXT_CHARACTERS_MAX]

        def directly(store: Store, actor: str, at_us: int) -> Answer:
            return going_first.ended(store, self._id, reason=reason, actor=actor, at_us=at_us)

        self._hand.act("/v1/incidents/canary/end", self._body(reason), directly)
        return Watched(found, stands=False)

    # All of it

    def resume(self, cord: Pull) -> Answer:
        """Calls of the good release pass it from now on."""
        level = "halt" if cord.level == "halt" else "freeze"  # which lifts a throttle, too
        return self._hand.release(
            {
                "level": level,
                "scope": cord.scope,
                "subject": cord.subject,
                "reason": self._reason,
                "releases": [self.plan.release],
            }
        )

    def record(self, ran: Ran | None, *, after: Course | None = None) -> None:
        """As the step of the runbook that it is."""
        plan = self.plan
        done = [f"release {plan.bad} is halted"] if plan.bad else []
        done += [f"{shlex.join(plan.rollback)} ended with 0"] if ran is not None else []
        if after is not None:
            done.append(f"run {', '.join(after.runs)} went first; its calls: {after.calls}")
        done.append(f"{len(plan.resumes)} cord{'s' if len(plan.resumes) != 1 else ''}")
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


def _look(reader: sqlite3.Connection, incident: str) -> Watched:
    """How they fare now; of those that go first no more, as far as the record knows who they
    were."""
    trial: Trial | None
    standing = trials.of(queries.pulls(reader), incident)
    trial = next((cord.trial for cord in standing), None) or last(reader, incident)
    return Watched(course(reader, trial) if trial else Course(), bool(standing))
