"""Recovering from an incident: what would be let flow again, on which release, and what stays shut.

Nothing is changed here but by the rollback command, which is the operator's own. In which order it
is done is in recovery.py.
"""

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ledger import cord_reads, cords, incident_reads, queries, trials
from ledger.incident_stamps import Stamp, stamps
from ledger.open_incidents import CLOSED, Incident
from ledger.sqlite import sqlite3
from ledger.states import EventType
from ledger.trial_reads import Course, course, last
from policies.policy import Policy
from policies.verdict import Level, Pull, Scope, Trial
from proxy import operations
from proxy.fate import State, fate
from proxy.going_first import as_json as course_as_json
from proxy.runbook import covering

ROLLBACK_SECONDS = 900  # of one deployment; what takes longer is started by it and not awaited
OUTPUT_BYTES_MAX = 64 * 1024  # the end of what it says
LOCK = "recover.lock"
STEP = "recover"
"""The name of the runbook's step that this is."""

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Plan:
    """`did` is the release that did it, empty where several may have; `bad` the same, where the
    policy (`source`) does not know it as good, and `stands` whether it is halted. What was pulled
    behind row `seq` of the record, it does not know of. `resumes` are the
    cords that calls of `release` pass from then on, `stays` those that a person lifts by hand.
    `trial` are the runs that go first past them already, `course` how they fare; `ended` is why
    some that did were stopped, `untold` these where nobody has said so; `is_done`: it was recovered
    so before.
    `rolled_back`: the rollback was run for this very recovery, which did not come to its end;
    `unrecorded`: all of that one is done but for its step in the record."""

    incident: Incident
    release: str
    did: str
    known_good: tuple[str, ...]
    bad: str
    stands: bool
    resumes: tuple[Pull, ...]
    stays: tuple[Pull, ...]
    stamps: tuple[Stamp, ...]
    rollback: tuple[str, ...]
    source: str
    trial: Trial | None
    seq: int
    is_done: bool
    rolled_back: bool = False
    unrecorded: bool = False
    course: Course | None = None
    ended: str = ""
    untold: Trial | None = None

    @property
    def waits(self) -> tuple[Pull, ...]:
        """Those past which not all of the release goes yet."""
        return tuple(cord for cord in self.resumes if self.release not in cord.but_releases)

    @property
    def past(self) -> tuple[Pull, ...]:
        """Those past which some runs may go first. A throttle lets a few calls pass as it is."""
        return tuple(cord for cord in self.waits if cord.level is not Level.THROTTLE)


def plan(
    reader: sqlite3.Connection,
    incident: Incident,
    policy: Policy | None,
    release: str | None,
    rollback: tuple[str, ...],
) -> Plan:
    """What a recovery would do. Raises OperationError for one that is out of turn, or onto a
    release that is not known to be good."""
    if incident.state == CLOSED:
        raise operations.OperationError(
            f"it is closed; what still stands is lifted by resume or thaw: pullcord status, "
            f"pullcord incident show {incident.id}"
        )
    if policy is None:
        raise operations.OperationError(
            "no policy can be read, so no release is known to be good; go to where "
            "config/policy.yaml is, or name its directory: --config DIR"
        )
    seq, standing = cord_reads.head(reader), list(queries.pulls(reader))
    covers = covering(incident, standing, policy)
    if not covers:
        raise operations.OperationError(
            "what stands does not stop it, so there is nothing to recover from yet; "
            f"first stop it: pullcord runbook {incident.id}"
        )
    good = _good(policy, release)
    stamped = tuple(stamps(reader, incident))
    did = _did(incident, stamped, policy)
    bad = "" if did in policy.known_good else did
    every = [*standing, *policy.pulls.values()]
    halts = {cord.subject for cord in every if (cord.level, cord.scope) == _HALTED}
    pulled = [one for one in incident_reads.pulled_over(reader, incident) if one.stands]
    over_it = {one.rule for one in pulled}
    own = {one.rule for one in pulled if one.is_own}
    over = [cord for cord in every if cord in covers or cord.rule in over_it]
    resumes = tuple(cord for cord in over if _resumes(incident, cord, own))
    trial = next((each.trial for each in trials.of(standing, incident.id)), None)
    made = Plan(
        incident=incident,
        release=good,
        did=did,
        known_good=tuple(sorted(policy.known_good)),
        bad=bad,
        stands=bad in halts,
        resumes=resumes,
        stays=tuple(cord for cord in over if not _resumes(incident, cord, own)),
        stamps=stamped,
        rollback=rollback,
        source=policy.source,
        trial=trial,
        seq=seq,
        is_done=False,
    )
    return _since(reader, made, policy.pulls.values())


def _since(reader: sqlite3.Connection, made: Plan, lines: Iterable[Pull]) -> Plan:
    """The plan with what the record says was done of it, and became of that."""
    flows = not made.waits and made.trial is None and not (made.bad and not made.stands)
    is_done = flows and is_recorded(reader, made)
    begun = _begun(reader, made)
    untold, ended = _untold(reader, made, begun)
    return replace(
        made,
        is_done=is_done,
        rolled_back=begun.went_on or (begun.runs and not made.waits),
        unrecorded=flows and not is_done and begun.widened,
        course=course(reader, made.trial, lines) if made.trial else None,
        ended=ended,
        untold=untold,
    )


def is_recorded(reader: sqlite3.Connection, found: Plan, since_seq: int = 0) -> bool:
    """Whether the record says behind this row that it was done."""
    return any(
        row["seq"] > since_seq and _is_step(row, found.release)
        for row in incident_reads.rows_of(reader, found.incident)
    )


class _Begun(NamedTuple):
    """A recovery that did not come to its end: its rollback was begun; it ended well, or something
    was let through after that; all of the release was, past some cord; the release of which runs
    went first last; why they do no more, and whether nobody has said so."""

    runs: bool = False
    went_on: bool = False
    widened: bool = False
    first: str = ""
    ended: str = ""
    untold: bool = False


def _begun(reader: sqlite3.Connection, found: Plan) -> _Begun:
    """From the rows of its record, for whoever did it may have been killed at any of them. What
    ends one, well or badly, makes the next begin anew."""
    begun = _Begun()
    for row in incident_reads.rows_of(reader, found.incident):
        kind, detail = row["type"], row["detail"] or ""
        if kind == EventType.INCIDENT_NOTED and detail.startswith(told_rolling(found.release)):
            begun = begun._replace(runs=True, went_on=False, widened=False)
        elif kind == EventType.INCIDENT_NOTED and detail.startswith(told_rolled(found.release)):
            begun = begun._replace(went_on=begun.runs)
        elif kind == EventType.NARROWED:
            releases, trial = cords.narrowed_to(detail)
            widened = begun.widened or found.release in releases
            first, ended = (trial.release, "") if trial else (begun.first, begun.ended)
            begun = _Begun(begun.runs, begun.runs, widened, first, ended, trial is not None)
        elif kind == EventType.INCIDENT_STEP and row["rule"] == STEP:
            begun = _Begun()
        elif kind == EventType.INCIDENT_NOTED and detail.startswith(OVERTAKEN):
            begun = begun._replace(untold=False)
        elif kind == EventType.INCIDENT_NOTED and detail.startswith(ENDED):
            begun = _Begun(first=begun.first, ended=detail)
        elif kind == EventType.PULLED or (
            kind == EventType.INCIDENT_NOTED and detail.startswith("the rollback ")
        ):
            begun = _Begun(first=begun.first, ended=begun.ended, untold=begun.untold)
    return begun


ENDED, OVERTAKEN = "nobody goes first any more: ", "the canary was overtaken: "
"""How the notes begin of what became of a canary."""


def _untold(reader: sqlite3.Connection, found: Plan, begun: _Begun) -> tuple[Trial | None, str]:
    """Those of the release that went first and were stopped while nobody watched; and why nobody
    goes first any more."""
    if found.trial is not None or begun.first != found.release:
        return None, ""
    trial = last(reader, found.incident.id) if begun.untold else None
    if trial is None:
        return None, begun.ended
    came = fate(reader, trial)
    return (trial, f"{ENDED}{'; '.join(came.said)}") if came.state is State.ENDED else (None, "")


def _is_step(row: Answer, release: str) -> bool:
    return (
        row["type"] == EventType.INCIDENT_STEP
        and row["rule"] == STEP
        and (row["detail"] or "").startswith(told_as(release))
    )


def told_as(release: str) -> str:
    """How the row of a recovery begins."""
    return f"resumed for {release} alone: "


def told_rolling(release: str) -> str:
    """How the note of a rollback begins that is run."""
    return f"recovery onto {release}: runs "


def told_rolled(release: str) -> str:
    """The same of one that ended well."""
    return f"recovery onto {release}: ran "


_HALTED = (Level.HALT, Scope.RELEASE)


def _good(policy: Policy, release: str | None) -> str:
    known = ", ".join(sorted(policy.known_good)) or "none yet"
    if release is None and len(policy.known_good) == 1:
        return next(iter(policy.known_good))
    if release is None:
        raise operations.OperationError(
            f"say onto which release: --release L; known to be good: {known} ({policy.source}, "
            "releases: known_good)"
        )
    if release not in policy.known_good:
        raise operations.OperationError(
            f"release {release!r} is not known to be good; write it into {policy.source} under "
            f"releases: known_good (there: {known})"
        )
    return release


def _did(incident: Incident, stamped: Sequence[Stamp], policy: Policy) -> str:
    """The release that an incident is about, or of the call over which it was opened; where a
    person opened it, the one of all its runs of which calls passed, beside known good ones."""
    if incident.kind == Scope.RELEASE:
        return incident.name
    found = {stamp.release for stamp in stamped if stamp.release and stamp.passed}
    found = found - policy.known_good or found
    return incident.release or (found.pop() if len(found) == 1 else "")


def _resumes(incident: Incident, cord: Pull, own: set[str]) -> bool:
    """Those that were pulled for it, and those over just what it is about; any other may stand for
    something else. A cord on a release is lifted whole or not at all; one of the policy ends with
    its line."""
    if cord.scope is Scope.RELEASE or cord.actor.startswith("policy:"):
        return False
    return cord.rule in own or (cord.scope, cord.subject) == (incident.kind, incident.name)


def as_json(found: Plan) -> Answer:
    return {
        "incident": found.incident.id,
        "release": found.release,
        "release_that_did_it": found.did or None,
        "known_good": list(found.known_good),
        "bad_release": found.bad or None,
        "bad_release_halted": found.stands,
        "rollback": list(found.rollback) or None,
        "resumes": [operations.pull_as_json(cord) for cord in found.resumes],
        "stays": [operations.pull_as_json(cord) for cord in found.stays],
        "goes_first": asdict(found.trial) if found.trial else None,
        "fares": course_as_json(found.course) if found.course else None,
        "canary_ended": found.ended or None,
        "recovered_before": found.is_done,
        "runs": [
            {
                "run": stamp.run,
                "release": stamp.release or None,
                "known_good": stamp.release in found.known_good,
                "calls": stamp.calls,
                "writes": stamp.writes,
                "models": list(stamp.models),
                "usual_models": list(stamp.usual),
                "contradicts": stamp.contradicts,
            }
            for stamp in found.stamps
        ],
    }


@contextlib.contextmanager
def turn(data: Path) -> Iterator[None]:
    """One recovery at a time is planned and rolls back. The lock is the kernel's, so it ends with
    its process. Raises OperationError while another process has it."""
    path = data / LOCK
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except FileNotFoundError:
        yield  # there is no ledger either, and that is told
        return
    except OSError as error:
        raise operations.OperationError(f"{path} cannot be opened: {error.strerror}") from None
    with os.fdopen(handle, "r+") as file:
        if os.geteuid() == 0:  # the proxy's user recovers, too
            owner = data.stat()
            os.fchown(handle, owner.st_uid, owner.st_gid)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise operations.OperationError(
                f"another recovery goes on here (pid {file.read() or 'unknown'}); when that has "
                "ended, type the same again"
            ) from None
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield


@dataclass(frozen=True, slots=True)
class Ran:
    """How the rollback command ended: its exit code, None where it took too long or could not be
    started; the end of what it said."""

    code: int | None
    said: str


def roll_back(found: Plan, seconds_max: float = ROLLBACK_SECONDS) -> Ran:
    """Run the configured command, without a shell, and wait for its end. It is told what it is for
    by PULLCORD_INCIDENT, PULLCORD_GOOD_RELEASE and PULLCORD_BAD_RELEASE."""
    told = {
        "PULLCORD_INCIDENT": found.incident.id,
        "PULLCORD_GOOD_RELEASE": found.release,
        "PULLCORD_BAD_RELEASE": found.bad,
    }
    with tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                found.rollback,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **told},
                start_new_session=True,  # so that what it starts ends with it
            )
        except (OSError, ValueError) as error:
            return Ran(None, f"{shlex.join(found.rollback)} cannot be started: {error}")
        try:
            code: int | None = process.wait(seconds_max)
        except subprocess.TimeoutExpired:
            code = None
        except BaseException:
            _end(process)
            raise
        if code is None:
            _end(process)
        size = output.seek(0, os.SEEK_END)
        output.seek(max(0, size - OUTPUT_BYTES_MAX))
        said = output.read().decode("utf-8", "backslashreplace")
    late = f"\nit was ended: it took longer than {seconds_max:g} s" if code is None else ""
    return Ran(code, said + late)


def _end(process: "subprocess.Popen[bytes]") -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
