"""`incident recover`: let it flow again, on a release that is known to be good."""

import contextlib
import shlex
from typing import TYPE_CHECKING, Any

import click

from proxy.cli import recovered
from proxy.cli.hand import Hand
from proxy.cli.incidents import id_argument, json_option
from proxy.cli.places import config_option, data_directory, data_option, settings
from proxy.cli.pulled import done, say_pulled, say_released
from proxy.cli.recovered import First
from proxy.cli.terminal import Failure, escaped, loud, say, say_json, warn

if TYPE_CHECKING:
    from ledger.trial_reads import Course
    from policies.verdict import Pull
    from proxy.recovering import Plan, Ran
    from proxy.recovery import Recovery, Watched

USAGE, FAILED = 2, 3
AT_CANARY = 10  # as `status --exit-code` has it: something is pulled
WATCH_SECONDS = 300  # an agent makes some calls in it, and a detector its mind up
WATCH_SECONDS_MAX = 3_600  # a longer watch is one more command

Told = dict[str, Any]


@click.command()
@id_argument
@click.option("--release", metavar="L", help="Onto this one; it must be known to be good.")
@click.option("--reason", default="", metavar="TEXT", help="Why it may flow again.")
@click.option(
    "--canary",
    type=click.IntRange(min=1),
    metavar="N",
    help="The next N runs of it that come go first, alone.",
)
@click.option("--canary-run", "runs", multiple=True, metavar="R", help="This run goes first.")
@click.option(
    "--watch",
    type=click.FloatRange(0, WATCH_SECONDS_MAX),
    default=WATCH_SECONDS,
    show_default=True,
    metavar="SECONDS",
    help="For so long those are watched that go first.",
)
@click.option("--dry-run", "-n", is_flag=True, help="Only show what would be done.")
@json_option
@config_option
@data_option
def recover(
    incident_id: str,
    release: str | None,
    reason: str,
    canary: int | None,
    runs: tuple[str, ...],
    watch: float,
    dry_run: bool,
    as_json: bool,
    config: str | None,
    data: str | None,
) -> None:
    """Resume what was stopped for it, for calls of one good release alone.

    The release that did it is halted, the `rollback` command of pullcord.yaml is run and must end
    with 0, then the incident's cords are narrowed. Before that the runs are shown with the release
    and the models of each. All of it is in the record.

    With --canary N or --canary-run R a few runs go first and are watched. Where a detector speaks
    up, nobody goes first any more (exit code 3); where they fare well, the rest of the release
    follows; where none has called, or anything is in doubt, it stays at that (exit code 10), and
    so it does when this command is ended. Type it again to go on. A cord that somebody pulls again
    meanwhile ends it (3); what was pulled since is never let flow, but told.
    """
    from proxy.recovering import turn
    from proxy.recovery import Recovery

    if not dry_run and not reason.strip():
        raise click.UsageError("say why it may flow again: --reason TEXT")
    hand = Hand(data_directory(data, config), config)
    first = First(runs, canary or 0, watch) if canary or runs else None
    with contextlib.nullcontext() if dry_run else turn(hand.data):
        recovery = Recovery(hand, _plan(hand, incident_id, release, data), reason)
        plan = recovery.plan
        _check_first(hand, plan, first)
        if plan.is_done and not as_json and not dry_run:
            recovered.say_done(plan)
            return
        if dry_run or not as_json:
            recovered.say_plan(plan, as_json, first)
        if dry_run:
            return
        told = _Answer(recovery, as_json)
        if plan.is_done:
            told.say_json([])
            return
        if plan.untold is not None or (first is None and plan.trial is not None):
            told.look(first)
        told.prepare()
    if first is None or plan.unrecorded or told.go_first(first):
        told.resume()


def _plan(hand: Hand, start: str, release: str | None, data: str | None) -> "Plan":
    from proxy.incidents import named
    from proxy.recovering import plan

    with hand.reader() as connection:
        incident = named(connection, start)
        rollback = settings(data, hand.config).rollback
        return plan(connection, incident, hand.policy(), release, rollback)


def _check_first(hand: Hand, plan: "Plan", first: First | None) -> None:
    """Before anything is done. Raises Failure where others go first already, or none can."""
    trial = plan.trial
    if trial is None:
        if first is not None and not (plan.is_done or plan.unrecorded):
            _check_new(hand, plan, first)
        return
    going = First(trial.runs, trial.places)
    said = f"{going} of {trial.release} may go first already"
    if trial.release != plan.release:
        stop = recovered.stop_command(plan)
        raise Failure(f"{said}; end that before, which stops all of it: {stop}", USAGE)
    if first is None:
        return
    more = len(first.runs) + first.places > len(trial.runs) + trial.places
    if more or not set(first.runs) <= set(trial.runs):
        raise Failure(f"{said}; watch them: {recovered.again(plan, going)}", USAGE)


def _check_new(hand: Hand, plan: "Plan", first: First) -> None:
    from proxy.going_first import check, unseen

    if not plan.past:
        raise Failure(
            f"no cord of it keeps {plan.release} out past which a run could go first; leave "
            "--canary out",
            USAGE,
        )
    for cord in plan.past:
        if cord.trial is not None:
            one = cord.trial.incident
            raise Failure(
                f"runs go first past {cord.rule} for incident {one}; recover that before: "
                f"pullcord incident show {one}",
                USAGE,
            )
    check(first.runs, first.places)
    with hand.reader() as reader:
        for run in unseen(reader, plan.release, first.runs):
            warn(f"the ledger has never seen run {escaped(run)}: is that its name? pullcord status")


class _Answer:
    """What is done, told as it is done; or with --json in one object at the end."""

    def __init__(self, recovery: "Recovery", as_json: bool) -> None:
        self.recovery = recovery
        self.plan = recovery.plan
        self.as_json = as_json
        self.halted: Told | None = None
        self.ran: Ran | None = None
        self.watched: Watched | None = None
        self.left: list[Pull] = []

    def prepare(self) -> None:
        """The bad release is halted, the rollback is run. Raises Failure where that fails, and then
        nothing is resumed."""
        plan = self.plan
        if plan.bad and not plan.stands:
            self.halted = self.recovery.halt()
            if not self.as_json:
                with done("pulled"):
                    say_pulled(self.halted)
        if plan.trial is not None:
            return  # it was run before they went first
        if plan.rolled_back:
            if not self.as_json:
                say("the rollback was run already, by a recovery that did not come to its end")
            return
        if not plan.rollback:
            if not self.as_json:
                say("no rollback is configured (rollback in pullcord.yaml): what runs is as it was")
            return
        self.ran = ran = self.recovery.roll_back()
        for line in [] if self.as_json else ran.said.splitlines():
            say(f"  | {escaped(line)}")
        if ran.code != 0:
            from proxy.recovery import ended

            tail = f": {ran.said.splitlines()[-1]}" if ran.said.strip() else ""
            raise Failure(
                f"the rollback {shlex.join(plan.rollback)} {ended(ran)}, so nothing was "
                f"resumed{tail}; mend it, and type the same again",
                FAILED,
            )

    def go_first(self, first: First) -> bool:
        """Whether the rest of the release may follow. Raises Exit where it may not."""
        from proxy.clock import SystemClock
        from proxy.fate import State

        plan = self.plan
        try:
            if plan.trial is None:
                self.recovery.open(first.runs, first.places)
            if not self.as_json:
                say(f"canary of {escaped(plan.release)}: {escaped(str(first))}; it is watched")
            watched = self.recovery.watch(first.watch_seconds, SystemClock(), self._say_course)
        except KeyboardInterrupt:
            words = f"it was not watched to its end; {recovered.goes_on(plan, first)}"
            raise Failure(words, AT_CANARY) from None
        self.watched = watched = self.recovery.conclude(watched)
        state = watched.fate.state
        if state is State.WIDENED and watched.widened:
            return True
        if state in (State.WIDENED, State.LIFTED) and not watched.course.found:
            return self._overtaken(watched)
        if watched.stands:
            raise self._stopped(recovered.stays(plan, watched, first), AT_CANARY)
        raise self._stopped(recovered.failed(plan, watched, first), FAILED)

    def look(self, first: First | None) -> None:
        """Those that went first unwatched are looked at once before anything follows. Raises Exit
        where they fare badly, or were stopped and nobody has said so."""
        watched, trial = self.recovery.look(), self.plan.trial or self.plan.untold
        if trial is not None and (watched.course.found or self.plan.untold is not None):
            self.watched = watched = self.recovery.conclude(watched)
            first = first or First(trial.runs, trial.places)
            raise self._stopped(recovered.failed(self.plan, watched, first), FAILED)

    def _stopped(self, words: str, code: int) -> Exception:
        """Nothing is resumed, and that is how to end."""
        if not self.as_json:
            return Failure(words, code)
        self.say_json([], words)
        return click.exceptions.Exit(code)

    def _overtaken(self, watched: "Watched") -> bool:
        """Somebody else let it through, and says so: whether it is as it was wanted here."""
        from proxy.fate import State

        words = recovered.overtaken(self.plan, watched)
        if watched.fate.state is State.WIDENED:
            if not self.as_json:
                say(escaped(words))
            return True
        if self.as_json:
            self.say_json([], words)
        else:
            say(loud(escaped(words)))
        return False

    def _say_course(self, course: "Course") -> None:
        if not self.as_json:
            say(f"  | {recovered.told(course)}")

    def resume(self) -> None:
        """What waits flows, unless somebody pulled it since; after a canary only that past which
        it went first, and throttles. Raises Failure where a cord was left."""
        plan, watched = self.plan, self.watched
        wide = {} if watched is None else {one["rule"]: one for one in watched.widened}
        released = []
        for cord in plan.waits:
            answer: Told | None = None
            if cord.rule in wide:
                answer = {"released": wide[cord.rule], "narrowed_to": [plan.release], "still": None}
            elif watched is None or cord not in plan.past:
                answer = self.recovery.resume(cord)
            elif cord.rule in self.recovery.tried:
                continue  # somebody else let it pass, and that is told
            if answer is None:
                self.left.append(cord)
                continue
            released.append(answer)
            if not self.as_json:
                with done("released"):
                    say_released(answer)
        self._record(released)
        words = recovered.left(self.left)
        if self.as_json:
            self.say_json(released, words)
        elif not words:
            say(f"recovered {plan.incident.id} onto {escaped(plan.release)}")
            say(f"go on: pullcord runbook {plan.incident.id}")
        if words and self.as_json:
            raise click.exceptions.Exit(AT_CANARY)
        if words:
            raise Failure(words, AT_CANARY)

    def _record(self, released: list[Told]) -> None:
        """Once, though several commands watched it; not where nothing came of it."""
        watched = self.watched
        if self.left and not released:
            return
        if watched is not None and not watched.widened and self.recovery.is_recorded():
            return
        course = watched.course if watched is not None else None
        self.recovery.record(self.ran, after=course, left=len(self.left))

    def say_json(self, released: list[Told], why: str = "") -> None:
        from proxy.going_first import as_json as course_as_json
        from proxy.operations import pull_as_json
        from proxy.recovering import as_json as told

        plan, ran, watched = self.plan, self.ran, self.watched
        answer = told(plan)
        answer["bad_release_halted"] = plan.stands or self.halted is not None
        answer |= {"halted": self.halted, "released": released}
        answer["rolled_back"] = ran and {"code": ran.code, "said": ran.said}
        if watched is not None:
            said = {"state": watched.fate.state, "changed": list(watched.fate.said)}
            answer["canary"] = {**course_as_json(watched.course), **said}
        answer["left"] = [pull_as_json(cord) for cord in self.left]
        say_json({**answer, **({"why": why} if why else {})})
