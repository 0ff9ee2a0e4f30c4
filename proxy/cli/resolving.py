"""`ledger resolve`: a person says how a call of unknown outcome ended."""

from typing import TYPE_CHECKING, Any

import click

from proxy.cli.acting import act_alone, check_place, policy_or_none
from proxy.cli.places import config_option, data_directory, data_option
from proxy.cli.pulled import done
from proxy.cli.terminal import escaped, loud, say, say_json

if TYPE_CHECKING:
    from proxy.clock import Clock

STATES = ("done", "not_sent")  # as proxy/resolutions.py has them, which is slow to import

Answer = dict[str, Any]


@click.command()
@click.argument("call", metavar="CALL")
@click.option("--as", "state", type=click.Choice(STATES), required=True, help="How it ended.")
@click.option("--reason", default="", metavar="TEXT", help="How you know; for the record.")
@click.option("--dry-run", is_flag=True, help="Only show the call, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@data_option
@config_option
def resolve(
    call: str,
    state: str,
    reason: str,
    dry_run: bool,
    as_json: bool,
    data: str | None,
    config: str | None,
) -> None:
    """Say how CALL, whose outcome is unknown, has ended.

    CALL is its id, or the start of it. Look at the service first: nothing here can. As done, a
    repeat of the write is told that it was made; as not_sent, the same write may be made again. It
    is in the record, with who and why.
    """
    if not dry_run and not reason.strip():
        raise click.UsageError("say how you know: --reason TEXT")
    directory = data_directory(data, config)

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
    answer = act_alone(directory, "/v1/calls/resolve", body, alone)
    with done("resolved"):
        if as_json:
            say_json(answer)
            return
        _say_call(answer)
        _say_done(answer, dry_run)


def _say_call(answer: Answer) -> None:
    """What it is about, on a few lines."""
    call = answer["call"]
    place = f"{call['method']} {call['host']}{call['path']}"
    release = f"  release {call['release']}" if call["release"] else ""
    say(f"call {call['id']}  {call['at']}  {call['effect']}")
    say(f"  {escaped(f'{call["tool"]}  {place}')}")
    say(f"  {escaped(f'run {call["run"]}  tenant {call["tenant"]}{release}')}")
    if answer["why_unknown"]:
        say(f"  unknown because: {escaped(answer['why_unknown'])}")


def _say_done(answer: Answer, dry_run: bool) -> None:
    state, why = answer["state"], escaped(answer["reason"] or "")
    if not answer["changed"]:
        if answer["actor"]:
            who = escaped(answer["actor"])
            say(f"was resolved as {loud(state)} already, by {who} at {answer['at']}: {why}")
        elif dry_run:
            say(f"would be resolved as {loud(state)}; nothing was changed")
        return
    say(f"resolved as {loud(state)}: {why}")
    if answer["claim"] == "done":
        say(f"a repeat is told that it was done, until {answer['protected_until']}")
    elif answer["claim"] == "released":
        say("the same write may be made again")
    if answer["give_back"]:
        say("what it reserved is still counted as spent; if nobody bills it, give it back:")
        for command in answer["give_back"]:
            say(f"  {escaped(command)}")
