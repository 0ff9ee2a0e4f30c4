"""The detectors over one ledger: each settled call and each act of a run is fed once, in the order
of the record. What stops a run at once is found inside the transaction that records the step. Those
that may wait are fed right after it, and so are all with a step over which nothing can be found at
once: whoever settled the call does not wait for that.

What they remember is not stored. It is a function of the record: after a start, an edit of their
limits, or a transaction that failed after they were fed, it is made again from the newest rows. A
trip may come later by that, and none is lifted. While it is not made, nothing is fed: the rows that
are written meanwhile are read then. What is found in rows that are read was acted on when they were
written, and is not again.
"""

from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from threading import Lock
from typing import Any, NamedTuple

from ledger import steps
from ledger.sqlite import sqlite3
from ledger.steps import Forgotten
from policies.detectors.response import Responding
from policies.detectors.rules import Mode, Response, Rule
from policies.detectors.runs import DetectorError, Runs
from policies.detectors.signals import Signals
from policies.detectors.step import Finding, Severity, Step, Subject
from policies.verdict import Level, Pull, Scope

ROWS_MAX = 10_000  # read to make the state again: a quarter of a second, in which nobody passes
SPAN_US = 600_000_000  # of these, the last ten minutes of the record
WAITING_MAX = 16  # steps that the signals count at once, in a third of the time of one by one
RETRY_US = 1_000_000  # a record that cannot be read back is not tried again by every call

_BROKEN = Rule(Mode.ENFORCE, None, Response.HALT_RUN)
"""What follows from a detector that failed, whatever the policy says of its findings."""

_FROM = "SELECT seq, at_us FROM event ORDER BY seq DESC LIMIT 1"
_NEWEST = (
    f"SELECT {', '.join(steps.COLUMNS)} FROM event "  # noqa: S608 - names of ours
    f"WHERE seq > ? AND at_us >= ? AND type IN ({', '.join('?' * len(steps.TYPES))}) ORDER BY seq"
)


class Found(NamedTuple):
    """What a detector said over a step, what the policy says of that detector, and the cord that a
    trip pulls, or would pull if the policy let it; None of an alert."""

    finding: Finding
    rule: Rule
    step: Step
    pull: Pull | None


_Uncounted = tuple[Step, int, bool]
"""A step, what it earned, and whether the signals have all but that already."""


class Watch:
    """Part of the store's memory; only its thread calls, but for the signals."""

    def __init__(self) -> None:
        self._rules: Mapping[str, Rule] = {}
        self._limits: Mapping[str, Any] = {}
        self._runs: Runs | None = None
        self._responding = Responding()
        self._last: Step | None = None  # of which `follow` was not asked yet
        self._failed_us: int | None = None
        self._signals = Signals()
        self._is_fed = False  # to those that cannot wait
        self._waiting: deque[_Uncounted] = deque()
        self._counting = Lock()

    @property
    def signals(self) -> Signals:
        """With all that was fed until now. Any thread may ask."""
        self._count()
        return self._signals

    def _count(self, *, patient: bool = True) -> None:
        """Who feeds waits for nobody: what it leaves is counted by who counts just now, or next."""
        if not self._counting.acquire(blocking=patient):
            return
        try:
            while self._waiting:
                step, credit_milli, is_counted = self._waiting.popleft()
                count = self._signals.earned if is_counted else self._signals.feed
                count(step, credit_milli)
        finally:
            self._counting.release()

    def is_made(self, rules: Mapping[str, Rule]) -> bool:
        """Whether the state is there, and of these limits. The rules hold from now on."""
        if self._runs is None:
            return False
        if rules is not self._rules:
            if _limits(rules) != self._limits:
                return False
            self._rules = rules
        return True

    def make(self, conn: sqlite3.Connection, rules: Mapping[str, Rule], at_us: int) -> bool:
        """Make the state from the newest rows. False when they cannot be read back: a bug of ours,
        or they are not as they were recorded. Raises sqlite3.Error."""
        if self._failed_us is not None and 0 <= at_us - self._failed_us < RETRY_US:
            return False
        limits = _limits(rules)
        self._rules, self._limits = rules, limits
        self._runs, self._responding, self._last = Runs(limits), Responding(), None
        with self._counting:
            self._waiting.clear()
            self._signals = Signals()
        try:
            self._read(conn)
        except sqlite3.Error:
            self._runs = None
            raise
        except Exception:
            self._runs, self._failed_us = None, at_us
            return False
        self._failed_us = None
        return True

    def _read(self, conn: sqlite3.Connection) -> None:
        last = conn.execute(_FROM).fetchone()
        if last is None:
            return
        rows = conn.execute(_NEWEST, (last[0] - ROWS_MAX, last[1] - SPAN_US, *steps.TYPES))
        for told in steps.of_rows(rows, steps.intent_of(conn)):
            if isinstance(told, Forgotten):
                self.forget(told)
            else:
                self.feed(told)
        self.follow()

    def feed(self, step: Step) -> list[Found]:
        """What is found over one step by those that cannot wait, of detectors that are not off;
        before it what `follow` has not told yet. A detector that fails is a reason to halt the run
        whose step it was, and no other; over a step of which nothing else is to be said `follow`
        tells so."""
        runs = self._runs
        if runs is None:
            return []
        found = self.follow() if self._last is not None else []
        self._last = step
        try:
            self._is_fed = runs.may_find(step)
        except Exception:  # a look that fails tells nothing: then those are asked that it is for
            self._is_fed = True
        if self._is_fed:
            found += self._found(runs, step, partial(runs.at_once, step))
            self._waiting.append((step, runs.earned_milli, False))
        else:
            self._waiting.append((step, 0, False))
        return found

    @property
    def is_behind(self) -> bool:
        return self._last is not None

    def follow(self) -> list[Found]:
        """What the others find over the step that was fed last; nothing when asked again."""
        runs, step, self._last = self._runs, self._last, None
        if runs is None or step is None:
            return []
        found = [] if self._is_fed else self._late(runs, step)
        if len(self._waiting) >= WAITING_MAX:
            self._count(patient=False)
        return found + self._found(runs, step, runs.later)

    def _late(self, runs: Runs, step: Step) -> list[Found]:
        """Feed those that cannot wait with a step over which they find nothing: what is not empty
        is that one of them failed."""
        found = self._found(runs, step, partial(runs.at_once, step))
        if runs.earned_milli:
            try:
                self._waiting.pop()  # the step itself, without what it earned
                is_counted = False
            except IndexError:  # somebody has read the signals meanwhile
                is_counted = True
            self._waiting.append((step, runs.earned_milli, is_counted))
        return found

    def _found(self, runs: Runs, step: Step, ask: Callable[[], list[Finding]]) -> list[Found]:
        try:
            findings = ask()
            return self._answered(findings, step) if findings else []
        except DetectorError as error:
            return [_broken(error, step)]
        except Exception as error:
            runs.forget(Scope.RUN, step.run)
            return [_broken(DetectorError("response", error), step)]

    def _answered(self, findings: list[Finding], step: Step) -> list[Found]:
        found = []
        for finding in findings:
            rule = self._rules[finding.detector]
            if rule.mode is not Mode.OFF:
                pull = self._responding.cord(finding, rule, step)
                found.append(Found(finding, rule, step, pull))
        return found

    def forget(self, what: Forgotten) -> None:
        """A person has let this go on: the detectors begin anew with it."""
        if self._runs is not None:
            self.follow()
            self._runs.forget(what.scope, what.subject)
            self._responding.forget(what.scope, what.subject)

    def lost(self) -> None:
        """The transaction in which calls were fed has failed: they will be fed again."""
        self._runs = None


def _limits(rules: Mapping[str, Rule]) -> dict[str, Any]:
    return {name: rule.limits for name, rule in rules.items()}


def _broken(error: DetectorError, step: Step) -> Found:
    name = error.detector
    why = f"the detector {error}; nobody watches this run"
    finding = Finding(name, Severity.TRIP, Subject.RUN, step.run, why, (step.call_id,))
    pull = Pull(Level.HALT, Scope.RUN, step.run, why, f"detector:{name}", step.at_us)
    return Found(finding, _BROKEN, step, pull)
