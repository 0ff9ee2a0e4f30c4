"""`incident recover`: let it flow again, on a release that is known to be good."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli import acting
from proxy.cli.incidents import id_argument, json_option
from proxy.cli.places import config_option, data_directory, data_option, settings
from proxy.cli.pulled import done, say_pulled, say_released
from proxy.cli.reading import reader, told_cord
from proxy.cli.terminal import Failure, counted, escaped, loud, say, say_json, say_table, warn

if TYPE_CHECKING:
    from ledger.store import Store
    from policies.verdict import Pull
    from proxy.clock import Clock
    from proxy.recovering import Plan, Ran

FAILED = 3
RUNS_SHOWN_MAX = 20
TEXT_CHARACTERS = 1_000  # as proxy/operations.py bounds it

Told = dict[str, Any]


@click.command()
@id_argument
@click.option("--release", metavar="L", help="Onto this one; it must be known to be good.")
@click.option("--reason", default="", metavar="TEXT", help="Why it may flow again.")
@click.option("--dry-run", "-n", is_flag=True, help="Only show what would be done.")
@json_option
@config_option
@data_option
def recover(
    incident_id: str,
    release: str | None,
    reason: str,
    dry_run: bool,
    as_json: bool,
    config: str | None,
    data: str | None,
) -> None:
    """Resume what was stopped for it, for calls of one good release alone.

    The release that did it is halted, the `rollback` command of pullcord.yaml is run and must end
    with 0, then the incident's cords are narrowed. Before that the runs are shown with the release
    and the models of each. All of it is in the record.
    """
    if not dry_run and not reason.strip():
        raise click.UsageError("say why it may flow again: --reason TEXT")
    desk = _desk(incident_id, release, reason, data, config)
    plan = desk.plan
    if dry_run:
        _say_plan(plan, as_json)
        return
    if not as_json:
        _say_plan(plan, as_json)
    halted = desk.halt(as_json) if plan.bad and not plan.stands else None
    ran = desk.roll_back(as_json)
    released = [desk.resume(cord, as_json) for cord in plan.resumes]
    desk.record(ran)
    if as_json:
        from proxy.recovering import as_json as told

        rolled = ran and {"code": ran.code, "said": ran.said}
        say_json({**told(plan), "halted": halted, "rolled_back": rolled, "released": released})
    else:
        say(f"recovered {plan.incident.id} onto {escaped(plan.release)}")
        say(f"go on: pullcord runbook {plan.incident.id}")


def _desk(
    start: str, release: str | None, reason: str, data: str | None, config: str | None
) -> "_Desk":
    from proxy.incidents import named
    from proxy.recovering import plan

    directory = data_directory(data, config)
    policy = acting.policy_or_none(config)
    with reader(directory) as connection:
        incident = named(connection, start)
        found = plan(connection, incident, policy, release, settings(data, config).rollback)
    return _Desk(directory, config, reason, found)


class _Desk:
    """What a recovery is done with; each act goes through the proxy, or without one on its
    ledger."""

    def __init__(self, data: Path, config: str | None, reason: str, plan: "Plan") -> None:
        self.data = data
        self.config = config
        self.reason = reason
        self.plan = plan

    def halt(self, as_json: bool) -> Told:
        """The release that did it. Nothing is written into a file of the policy."""
        reason = f"incident {self.plan.incident.id}"
        bad = self.plan.bad

        def wanted(clock: "Clock", actor: str) -> "Pull":
            from policies.verdict import Level, Pull, Scope

            return Pull(Level.HALT, Scope.RELEASE, bad, reason, actor, clock.now_us())

        body = {"level": "halt", "scope": "release", "subject": bad, "reason": reason}
        answer = acting.pull(self.data, body, wanted)
        if not as_json:
            with done("pulled"):
                say_pulled(answer)
        return answer

    def roll_back(self, as_json: bool) -> "Ran | None":
        """Raises Failure, and then nothing is resumed."""
        from proxy.recovering import roll_back

        plan = self.plan
        if not plan.rollback:
            if not as_json:
                say("no rollback is configured (rollback in pullcord.yaml): what runs is as it was")
            return None
        command = shlex.join(plan.rollback)
        self._note(f"recovery onto {plan.release}: runs {command}")
        ran = roll_back(plan)
        for line in [] if as_json else ran.said.splitlines():
            say(f"  | {escaped(line)}")
        if ran.code != 0:
            ended = "did not end" if ran.code is None else f"ended with {ran.code}"
            self._note(f"the rollback {ended}; nothing was resumed")
            tail = f": {ran.said.splitlines()[-1]}" if ran.said.strip() else ""
            raise Failure(
                f"the rollback {command} {ended}, so nothing was resumed{tail}; mend it, and type "
                "the same again",
                FAILED,
            )
        return ran

    def resume(self, cord: "Pull", as_json: bool) -> Told:
        """Calls of the good release pass it from now on."""
        level = "halt" if cord.level == "halt" else "freeze"  # which lifts a throttle, too

        def alone(clock: "Clock", actor: str) -> Told:
            from policies.verdict import Level
            from proxy.pulling import release_on_store

            name = Level(level), cord.scope, cord.subject
            policy = acting.policy_or_none(self.config)
            only = [self.plan.release]
            return release_on_store(
                self.data, name, policy, clock, reason=self.reason, actor=actor, releases=only
            )

        body = {"level": level, "scope": cord.scope, "subject": cord.subject}
        more = {"reason": self.reason, "releases": [self.plan.release]}
        answer = acting.act_alone(self.data, "/v1/release", {**body, **more}, alone)
        if not as_json:
            with done("released"):
                say_released(answer)
        return answer

    def record(self, ran: "Ran | None") -> None:
        """As the step of the runbook that it is."""
        from proxy.recovering import STEP

        whole, plan = self.plan.incident.id, self.plan
        rolled = f"{shlex.join(plan.rollback)} ended with 0; " if ran is not None else ""
        halted = f"release {plan.bad} is halted; " if plan.bad else ""
        text = f"resumed for {plan.release} alone: {self.reason} ({halted}{rolled}"
        text = f"{text}{counted(len(plan.resumes), 'cord')})"[:TEXT_CHARACTERS]

        def directly(store: "Store", actor: str, at_us: int) -> Told:
            from proxy.incident_acts import stepped

            return stepped(store, whole, STEP, text, actor=actor, at_us=at_us)

        body = {"incident": whole, "step": STEP, "text": text}
        acting.act(self.data, "/v1/incidents/step", body, directly)

    def _note(self, text: str) -> None:
        whole, text = self.plan.incident.id, text[:TEXT_CHARACTERS]

        def directly(store: "Store", actor: str, at_us: int) -> Told:
            from proxy.incident_acts import noted

            return noted(store, whole, text, public=False, actor=actor, at_us=at_us)

        body = {"incident": whole, "text": text, "public": False}
        acting.act(self.data, "/v1/incidents/note", body, directly)


def _say_plan(plan: "Plan", as_json: bool) -> None:
    from proxy.operations import pull_as_json, undo_command
    from proxy.recovering import as_json as told

    if as_json:
        say_json(told(plan))
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
        if not cord.actor.startswith("policy:"):
            say(f"          {escaped(undo_command(cord))}")
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
