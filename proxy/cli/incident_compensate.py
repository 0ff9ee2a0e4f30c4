"""`incident compensate`: the writes of an incident, what would undo each, and undoing them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.acting import policy_or_none
from proxy.cli.incidents import about, id_argument
from proxy.cli.places import config_option, data_directory, data_option
from proxy.cli.reading import reader
from proxy.cli.resolving import values_of
from proxy.cli.terminal import Failure, counted, escaped, loud, say, say_json, say_table
from proxy.control_client import ask

if TYPE_CHECKING:
    from policies.policy import Policy

STEP_SECONDS = 30.0  # the tool answers within half of it, and the proxy's store may be busy
STEPS_SHOWN_MAX = 100  # the newest; --json has more
STEP_DIGITS = 6  # a longer number is the start of an id
CHECK_FAILED, UNUSABLE, NOT_FOUND = 3, 2, 4

Told = dict[str, Any]


@click.command()
@id_argument
@click.option("--plan", is_flag=True, help="Show what would undo each write; this is the default.")
@click.option("--do", "wanted", metavar="STEP|all", help="Undo this one, or all that can be.")
@click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
@click.option(
    "--set",
    "given",
    multiple=True,
    metavar="PLACE=VALUE",
    help="A value that one step lacks: response.id=ch_1.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON: the plan, or one step a line.")
@data_option
@config_option
def compensate(
    incident_id: str,
    plan: bool,
    wanted: str | None,
    reason: str,
    given: tuple[str, ...],
    as_json: bool,
    data: str | None,
    config: str | None,
) -> None:
    """Undo the writes of an incident, the newest first, as the policy says (`undo` of a tool).

    STEP is the number of a write in the plan, or the start of its call's id. The running proxy
    makes each call once, however often this is typed; of one whose outcome is unknown it says what
    to type. Contain the incident first. ID may be the start of one.
    """
    if plan and wanted:
        raise click.UsageError("--plan only shows; leave it out to undo")
    if reason and not wanted:
        raise click.UsageError("--reason goes with --do")
    if given and wanted in (None, "all"):
        raise click.UsageError("--set goes with one step: --do STEP")
    values = values_of(given, "response.id=ch_1")
    directory = data_directory(data, config)
    policy = policy_or_none(config)
    if policy is None:
        raise Failure(
            "no policy can be read, and only that says how writes are undone; go to where "
            "config/policy.yaml is, or name its directory: --config DIR",
            UNUSABLE,
        )
    answer = _planned(directory, incident_id, policy, wanted)
    if wanted is None:
        if as_json:
            say_json(answer)
        else:
            _say_plan(answer)
        return
    chosen = _chosen(answer, wanted)
    done = [_undone(directory, answer, one, (reason, values), as_json) for one in chosen]
    _end(answer, done, wanted, as_json)


def _planned(directory: Path, incident_id: str, policy: "Policy", wanted: str | None) -> Told:
    """The plan; of a step that is named by its call's id, that step alone. It is shown also while
    the incident may go on, since it helps to decide how much to stop; nothing is undone then."""
    from ledger.queries import pulls
    from proxy import compensations
    from proxy.compensations import Steps
    from proxy.compensations_shown import as_json
    from proxy.incidents import named
    from proxy.operations import OperationError, cord_name

    with reader(directory) as connection:
        incident = named(connection, incident_id)
        standing = {cord_name(cord): cord for cord in pulls(connection)}
        compensations.check_whose(incident)
        if wanted is not None:
            compensations.check_contained(incident, policy, standing)
        with compensations.on(directory, connection, policy) as ground:
            if wanted in (None, "all") or _is_number(wanted):
                goes_on = compensations.uncontained(incident, policy, standing)
                return as_json(ground, incident, compensations.steps(ground, incident), goes_on)
            try:
                one = compensations.named_step(ground, incident, wanted)
            except OperationError as error:
                raise Failure(f"--do {wanted}: {error}", NOT_FOUND) from None
            return as_json(ground, incident, Steps([one]))


def _is_number(wanted: str | None) -> bool:
    return wanted is not None and wanted.isdecimal() and len(wanted) <= STEP_DIGITS


def _chosen(answer: Told, wanted: str) -> list[Told]:
    """The steps to do: those that are ready, or the one that is named, ready or not."""
    steps: list[Told] = answer["steps"]
    if wanted == "all":
        return [one for one in steps if one["state"] == "ready"]
    found = [one for one in steps if not _is_number(wanted) or one["step"] == int(wanted)]
    if found:
        return found
    plan = f"pullcord incident compensate {answer['incident']['id']} --plan"
    raise Failure(
        f"--do {wanted}: the plan lists no such write; write the id of its call, or look: {plan}",
        NOT_FOUND,
    )


def _undone(
    directory: Path, answer: Told, one: Told, said: tuple[str, dict[str, str]], as_json: bool
) -> Told:
    """One step, asked of the running proxy and told. Raises Unreachable where none runs."""
    body = {"incident": answer["incident"]["id"], "call": one["call"]["id"], "reason": said[0]}
    body |= {"given": said[1]} if said[1] else {}
    told: Told = ask(directory, "POST", "/v1/incidents/compensate", body, STEP_SECONDS)
    told["step"] = one["step"]
    if as_json:
        say_json(told)
    else:
        say(f"{told['step'] or '':>6}  {told['call']['id']}  {_word(told)}  {escaped(_what(told))}")
        if told["next"]:
            say(f"        {told['next']}")
    return told


def _end(answer: Told, done: list[Told], wanted: str, as_json: bool) -> None:
    """What is left, and the exit code that tells it."""
    undone = sum(one["state"] == "compensated" for one in done)
    left = [one for one in done if one["state"] != "compensated"]
    totals = answer["totals"]
    others = {
        word: totals[word]
        for word in ("blocked", "impossible", "verify", "unknown", "pending", "in_flight")
        if wanted == "all" and totals[word]
    }
    if not as_json:
        say(f"{counted(undone, 'write')} of {len(done)} undone")
        for word, count in others.items():
            say(f"{counted(count, 'other')}: {_WORDS[word]}")
        incident = answer["incident"]["id"]
        if answer["is_cut"]:
            say(f"older ones follow: pullcord incident compensate {incident} --do all")
        elif left or others:
            say(f"what is left: pullcord incident compensate {incident} --plan")
        else:
            say(f"when it is over: pullcord incident show {incident}")
    if left or others or answer["is_cut"]:
        raise click.exceptions.Exit(CHECK_FAILED)


# ---------------------------------------------------------------------------------- shown

_WORDS = {
    "ready": "can be undone",
    "compensated": "undone",
    "pending": "being undone",
    "unknown": "UNKNOWN: it may have been undone",
    "unneeded": "nothing to undo",
    "impossible": "CANNOT BE UNDONE",
    "blocked": "NOT READY",
    "verify": "VERIFY FIRST: it may not have been made",
    "in_flight": "in flight",
    "declined": "was not made",
}
_LOUD = frozenset({"unknown", "impossible", "blocked", "verify"})


def _word(one: Told) -> str:
    word = _WORDS[one["state"]]
    return loud(word) if one["state"] in _LOUD else word


def _what(one: Told) -> str:
    """The call that undoes it, or why there is none."""
    by = one["by"]
    if one.get("refused"):
        return str(one["refused"])
    if one["state"] == "compensated" and by:
        return f"by call {by['id']} at {by['at']}: {by['status'] or by['state']}"
    if one["state"] == "ready":
        undo = one["undo"]
        call = f"{undo['tool']}: {undo['method']} {undo['url']}"
        told = f"{call}  {undo['body']}" if undo["body"] else call
        return f"{told}  ({one['why']})" if one["why"] else told
    return str(one["why"] or "")


def _say_plan(answer: Told) -> None:
    incident, totals = answer["incident"], answer["totals"]
    say(f"incident  {incident['id']}  {incident['state']}, about {about(incident)}")
    if answer["uncontained"]:
        say(f"{loud('first')}     {escaped(answer['uncontained'])};")
        say("          until it is stopped nothing is undone, and this plan may change")
    told = [f"{count} {_WORDS[word]}" for word, count in totals.items() if count]
    say(f"writes    {', '.join(told) or 'none'}")
    if answer["is_cut"]:
        say("          and older ones, which are looked at when these are undone")
    first = [one for one in answer["steps"] if one["state"] in ("verify", "unknown")]
    later = [one for one in answer["steps"] if one["state"] not in ("verify", "unknown")]
    if first:
        say()
        say(f"{loud('first')}, of these nobody knows whether they were made:")
        for one in first[:STEPS_SHOWN_MAX]:
            say(f"{one['step']:>6}  {escaped(one['call']['tool'])}  {_word(one)}")
            say(f"        {escaped(one['why'])}")
            say(f"        {one['next']}")
    if later:
        say()
        titles = ("step", "call", "tool", "status", "state", "undo, or why not")
        say_table(titles, [_row(one) for one in later[:STEPS_SHOWN_MAX]])
    if max(len(first), len(later)) > STEPS_SHOWN_MAX:
        say(f"the newest {STEPS_SHOWN_MAX} are shown; --json has more")
    say()
    say(f"next: {escaped(answer['next'])}")


def _row(one: Told) -> tuple[object, ...]:
    call = one["call"]
    return (
        one["step"],
        call["id"],
        call["tool"],
        call["status"],
        _WORDS[one["state"]],
        _what(one),
    )
