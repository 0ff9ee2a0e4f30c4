"""`ledger resolve`: a person looks at a call of unknown outcome and says how it ended."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli import saying_resolved as saying
from proxy.cli.acting import act_alone, check_place, policy_or_none
from proxy.cli.places import config_option, data_directory, data_option, settings
from proxy.cli.pulled import done
from proxy.cli.terminal import Failure, say_json

if TYPE_CHECKING:
    from proxy.clock import Clock

STATES = ("done", "not_sent")  # as proxy/resolutions.py has them, which is slow to import

VERIFY_SECONDS = 30.0  # the proxy answers within half of it, and its store may be busy
CHECK_FAILED = 3

Answer = dict[str, Any]


@click.command()
@click.argument("call", metavar="CALL")
@click.option("--as", "state", type=click.Choice(STATES), help="How it ended.")
@click.option("--reason", default="", metavar="TEXT", help="How you know; for the record.")
@click.option("--verify", is_flag=True, help="Ask the upstream first, as the policy says.")
@click.option(
    "--set",
    "given",
    multiple=True,
    metavar="PLACE=VALUE",
    help="A value that --verify lacks: request.customer=cus_1.",
)
@click.option("--dry-run", is_flag=True, help="Only show the call, ask nobody, change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_option
@config_option
def resolve(
    call: str,
    state: str | None,
    reason: str,
    verify: bool,
    given: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    data: str | None,
    config: str | None,
) -> None:
    """Say how CALL, whose outcome is unknown, has ended.

    CALL is its id, or the start of it. Look at the service first: with --verify pullcord asks it,
    by the read that the policy names for the tool, and shows the answer. As done, a repeat of the
    write is told that it was made; as not_sent, the same write may be made again. It is in the
    record, with who and why.
    """
    if state is None and not verify:
        raise click.UsageError("say how it ended: --as done or --as not_sent; or look: --verify")
    if given and not verify:
        raise click.UsageError("--set says what --verify asks with")
    if state and not dry_run and not reason.strip():
        raise click.UsageError("say how you know: --reason TEXT")
    directory = data_directory(data, config)
    looked: Answer | None = None
    if verify:
        looked = _verified(directory, (data, config), call, values_of(given), dry_run)
        call = looked["call"]["id"]
        if not as_json:
            with done("asked"):
                saying.say_looked(looked, dry_run)
                if state is None and not dry_run:
                    saying.say_next(looked)
    told = bool(looked is None or looked["tells"] or dry_run)
    answer: Answer | None = None
    if state is not None and told:
        answer = _resolved(directory, config, call, state, reason, dry_run)
    if as_json:
        with done("resolved"):
            say_json(answer if looked is None else {**looked, "resolved": answer})
    elif answer is not None:
        with done("resolved"):
            if looked is None:
                saying.say_call(answer)
            saying.say_done(answer, dry_run)
    if looked is not None and dry_run and looked["why_unheard"]:
        raise click.exceptions.Exit(CHECK_FAILED)  # it is told already
    if looked is not None and not told and (state is not None or looked["heard"] is None):
        raise Failure(saying.untold(looked, state), CHECK_FAILED)


def values_of(given: tuple[str, ...], such_as: str = "request.customer=cus_1") -> dict[str, str]:
    pairs = [each.partition("=") for each in given]
    for place, sign, value in pairs:
        if not place or not sign or not value:
            raise click.UsageError(f"write --set PLACE=VALUE, such as {such_as}")
    return {place: value for place, _, value in pairs}


def _verified(
    directory: Path,
    places: tuple[str | None, str | None],
    call: str,
    given: dict[str, str],
    dry_run: bool,
) -> Answer:
    def alone(clock: "Clock", actor: str) -> Answer:
        from proxy.verifying import Question, verified_alone

        check_place(directory)
        ask = Question(call, given, actor, dry_run)
        found = settings(*places)
        return verified_alone(ask, found, policy_or_none(places[1]), clock)

    body = {"call": call, "given": given, "dry_run": dry_run}
    path = "/v1/calls/verify"
    return act_alone(directory, path, body, alone, VERIFY_SECONDS, counts_later=False)


def _resolved(
    directory: Path, config: str | None, call: str, state: str, reason: str, dry_run: bool
) -> Answer:
    def alone(clock: "Clock", actor: str) -> Answer:
        from ledger.states import CallState
        from proxy.operations import opened
        from proxy.resolutions import resolved

        check_place(directory)
        with opened(directory, clock.now_us) as store:
            return resolved(
                store,
                policy_or_none(config),
                call,
                CallState(state),
                reason=reason,
                actor=actor,
                at_us=clock.now_us(),
                dry_run=dry_run,
            )

    body = {"call": call, "state": state, "reason": reason, "dry_run": dry_run}
    return act_alone(directory, "/v1/calls/resolve", body, alone)
