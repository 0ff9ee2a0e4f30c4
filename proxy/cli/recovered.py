"""What is said about a recovery: its plan, who goes first and how they fare, what to type next."""

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

from proxy.cli.reading import told_cord
from proxy.cli.terminal import counted, escaped, loud, say, say_json, say_table, warn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ledger.trial_reads import Course
    from policies.verdict import Pull
    from proxy.recovering import Plan
    from proxy.recovery import Watched

RUNS_SHOWN_MAX = 20


@dataclass(frozen=True, slots=True)
class First:
    """Who goes first: these runs, and so many more that come; watched for so long."""

    runs: tuple[str, ...]
    places: int
    watch_seconds: float = 0.0

    def __str__(self) -> str:
        parts = [f"run {', '.join(self.runs)}"] if self.runs else []
        parts += [f"the next {counted(self.places, 'run')} to come"] if self.places else []
        return " and ".join(parts)

    @property
    def options(self) -> str:
        runs = "".join(f" --canary-run {run}" for run in self.runs)
        return runs + (f" --canary {self.places}" if self.places else "")


def again(plan: "Plan", first: First | None = None) -> str:
    """The same command once more; without `first` for all of the release."""
    return (
        f"pullcord incident recover {plan.incident.id} --release {shlex.quote(plan.release)}"
        f'{first.options if first else ""} --reason "..."'
    )


def stop_command(plan: "Plan") -> str:
    """What keeps out those that go first."""
    return "; ".join(
        f"pullcord {shlex.join(filter(None, [cord.level, cord.scope, cord.subject]))}"
        for cord in plan.past
    )


def failed(plan: "Plan", watched: "Watched", first: First) -> str:
    """Of a canary that was ended, for what it did or by somebody; or that somebody let through
    although something was found."""
    from proxy.fate import State

    found = watched.course.found
    if watched.fate.state is not State.ENDED:
        return (
            f"THE CANARY FAILED: {'; '.join(found)}. Yet it flows: "
            f"{'; '.join(watched.fate.said)}; to stop it again: {stop_command(plan)}"
        )
    head = "THE CANARY FAILED" if found else "THE CANARY WAS ENDED"
    why = "; ".join((*found, *watched.fate.said)) or "somebody ended it"
    return (
        f"{head}: {why}. Nobody goes first any more. Look at it: pullcord incident "
        f"show {plan.incident.id}; when it is mended: {again(plan, first)}"
    )


def overtaken(plan: "Plan", watched: "Watched") -> str:
    """Of one that somebody else let through before it was judged, or while the answer was lost."""
    from proxy.fate import State

    why = "; ".join(watched.fate.said)
    if watched.fate.state is State.WIDENED:
        return f"it was let through whole: {why}"
    return (
        f"it was lifted, so that every release passes, and nothing was judged: {why}; to stop it "
        f"again: {stop_command(plan)}"
    )


def left(cords: "Sequence[Pull]") -> str:
    """What was not let flow, for somebody changed it since; empty where nothing is left."""
    from proxy.operations import undo_command

    if not cords:
        return ""
    named = "; ".join(f"{cord.rule}, to lift it: {undo_command(cord)}" for cord in cords)
    return f"it was pulled or changed since, and is left as it is: {named} (look: pullcord status)"


def stays(plan: "Plan", watched: "Watched", first: First) -> str:
    from ledger.trial_reads import Health

    course, then = watched.course, goes_on(plan, first)
    if not watched.by_proxy:
        why = "no proxy runs, so none can go first or be judged (start it: pullcord up)"
    elif course.health is Health.DOUBTFUL:
        why = f"for it is in doubt: {'; '.join(_doubts(course))}"
    elif course.pending:
        why = f"{counted(course.pending, 'call')} of it has not ended yet"
    elif course.done:
        why = "it fared well only after it was judged"
    elif course.calls:
        why = "none of its calls was done with success"
    else:
        why = "no run of it has called yet"
    if course.refused:
        then = (
            f"that stays so; to begin anew: {stop_command(plan)}; then {again(plan, first)}; to "
            f"let all of {plan.release} pass: {again(plan)}"
        )
    return f"it stays at the canary: {why}; {then}"


def goes_on(plan: "Plan", first: First) -> str:
    return (
        f"to watch on: {again(plan, first)}; to let all of {plan.release} pass: {again(plan)}; "
        f"to stop the canary: {stop_command(plan)}"
    )


def told(course: "Course") -> str:
    """How they fare, on one line made harmless for a terminal."""
    runs = f"run {', '.join(course.runs)}" if course.runs else "nobody came yet"
    said = f"{counted(course.calls, 'call')}, {counted(course.writes, 'write')}, {course.done} done"
    said += f", {course.pending} not ended" if course.pending else ""
    return escaped("; ".join([f"{runs}: {said}", *_doubts(course), *course.found]))


def _doubts(course: "Course") -> list[str]:
    found = [f"{counted(calls, 'call')} refused: {why}" for why, calls in course.refused.items()]
    if course.failed:
        found.append(f"{counted(course.failed, 'call')} failed")
    if course.unknown:
        found.append(f"{counted(course.unknown, 'call')} of unknown outcome")
    return found


# ---------------------------------------------------------------------------------- the plan


def say_done(plan: "Plan") -> None:
    release = escaped(plan.release)
    say(f"{plan.incident.id} was recovered onto {release} before; nothing is left to do of it")
    say(f"go on: pullcord runbook {plan.incident.id}")


def say_plan(plan: "Plan", as_json: bool, first: First | None) -> None:
    from policies.verdict import Scope
    from proxy.operations import pull_as_json, undo_command
    from proxy.recovering import as_json as plan_as_json

    if as_json:
        say_json(plan_as_json(plan))
        return
    say(f"incident  {plan.incident.id}")
    say(f"onto      {escaped(plan.release)}, known to be good")
    if plan.bad:
        how = "halted already" if plan.stands else "to be halted"
        say(f"off       {escaped(plan.bad)}, {how}")
    elif plan.did:
        did = f"{plan.did} did it, and {plan.source} lists it under known_good"
        say(loud(f"off       nothing: {escaped(did)}; is it?"))
    else:
        say("off       nothing: no one release did it; see the runs: pullcord halt release L")
    _say_stamps(plan)
    say(f"rollback  {escaped(shlex.join(plan.rollback)) or 'none is configured'}")
    for cord in plan.resumes:
        say(f"resumes   {told_cord(pull_as_json(cord))}")
    for cord in plan.stays:
        say(f"stays     {told_cord(pull_as_json(cord))}")
        # That of the bad release is to stay; to lift it now is what brings the trouble back.
        if not cord.actor.startswith("policy:") and cord.names != {Scope.RELEASE: plan.bad}:
            say(f"          {escaped(undo_command(cord))}")
    if plan.trial is not None:
        going = First(plan.trial.runs, plan.trial.places)
        say(f"canary    {escaped(str(going))}; it is open already")
        if plan.course is not None:
            say(f"          {told(plan.course)}")
    elif first is not None:
        seconds = f"watched for {first.watch_seconds:g} s"
        say(f"canary    {escaped(str(first))}, alone; {seconds}")
    if plan.ended:
        say(loud(f"before    {escaped(plan.ended)}"))
    if not plan.resumes:
        warn("no cord of this incident can be narrowed to a release; what stays is lifted by hand")


def _say_stamps(plan: "Plan") -> None:
    """What each run was started with, and where the record contradicts it."""
    rows = [
        (
            stamp.run,
            stamp.release or "none",
            "yes" if stamp.release in plan.known_good else "no",
            stamp.writes,
            ", ".join(stamp.models) or "not recorded",
        )
        for stamp in plan.stamps[:RUNS_SHOWN_MAX]
    ]
    if rows:
        say_table(("run", "release", "known good", "writes", "models asked"), rows)
    if len(plan.stamps) > RUNS_SHOWN_MAX:
        say(f"and {len(plan.stamps) - RUNS_SHOWN_MAX} more: --json has them all")
    for stamp in plan.stamps:
        if stamp.contradicts:
            asked, usual = ", ".join(stamp.models), ", ".join(stamp.usual)
            what = f"run {stamp.run} asked {asked}; most runs of {stamp.release} ask {usual}"
            say(loud(f"contradicts its release: {escaped(what)}"))
