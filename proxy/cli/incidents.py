"""`incident list|show|close`: what went wrong, each under one id."""

from typing import TYPE_CHECKING, Any

import click

from proxy.cli.acting import act
from proxy.cli.places import data_directory, data_option
from proxy.cli.reading import reader, told_cord
from proxy.cli.terminal import escaped, loud, say, say_json, say_table

if TYPE_CHECKING:
    from ledger.store import Store

EVENTS_SHOWN_MAX = 40  # the newest; --json has them all

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
id_argument = click.argument("incident_id", metavar="ID")

Told = dict[str, Any]


@click.group()
def incident() -> None:
    """Look at what went wrong, and close it when it is over."""


@incident.command("list")
@click.option("--all", "everything", is_flag=True, help="Closed ones too.")
@json_option
@data_option
def list_incidents(everything: bool, as_json: bool, data: str | None) -> None:
    """List the open incidents, the newest first. It reads the ledger, whether a proxy runs or
    not."""
    from proxy.incidents import listed

    with reader(data_directory(data)) as connection:
        found = listed(connection, closed=everything)["incidents"]
    if as_json:
        for one in found:
            say_json(one)
        return
    if not found:
        say("no incident" if everything else "no incident is open")
        return
    titles = ("id", "state", "severity", "about", "detector", "why", "cord", "opened")
    say_table(titles, [_row(one) for one in found])
    say("look at one: pullcord incident show ID", err=True)


@incident.command()
@id_argument
@json_option
@data_option
def show(incident_id: str, as_json: bool, data: str | None) -> None:
    """Show who and what it was, when, what was pulled, the calls that convinced, and what to type
    next. ID may be the start of one."""
    from proxy.incidents import shown

    with reader(data_directory(data)) as connection:
        answer = shown(connection, incident_id)
    if as_json:
        say_json(answer)
    else:
        _say(answer)


@incident.command()
@id_argument
@click.option("--reason", required=True, metavar="TEXT", help="Why it is over, for the record.")
@json_option
@data_option
def close(incident_id: str, reason: str, as_json: bool, data: str | None) -> None:
    """Say that it is over. Nothing that is pulled is lifted by it; what goes wrong again opens
    another incident."""
    directory = data_directory(data)
    from proxy.incidents import named

    with reader(directory) as connection:
        whole = named(connection, incident_id).id

    def directly(store: "Store", actor: str, at_us: int) -> Told:
        from proxy.incidents import closed

        return closed(store, whole, reason=reason, actor=actor, at_us=at_us)

    body = {"incident": whole, "reason": reason}
    answer = act(directory, "/v1/incidents/close", body, directly)
    if as_json:
        say_json(answer)
        return
    say(f"closed {whole}, {about(answer)}")
    for cord in answer["pulled"]:
        say(f"still pulled: {told_cord(cord)}")


def about(one: Told) -> str:
    """What an incident is about, made harmless for a terminal."""
    of = f" of tenant {one['tenant']}" if one["tenant"] else ""
    return escaped(f"{one['kind']} {one['name']}{of}")


def in_one_line(one: Told) -> str:
    """An incident on one line, for a screen."""
    mark = loud("TRIP") if one["severity"] == "trip" else "alert"
    why = escaped(f"{one['why']} ({one['detector']})")
    over = "; what was pulled for it is released, it is open until closed"
    return f"{mark} {about(one)}: {why}, since {one['opened']}{over if one.get('released') else ''}"


def _row(one: Told) -> tuple[object, ...]:
    of = f" of {one['tenant']}" if one["tenant"] else ""
    return (
        one["id"],
        one["state"],
        one["severity"],
        f"{one['kind']} {one['name']}{of}",
        one["detector"],
        one["why"],
        one["cord"],
        one["opened"],
    )


def _say(answer: Told) -> None:
    severity = answer["severity"]
    mark = loud(severity.upper()) if severity == "trip" else severity
    say(f"incident  {answer['id']}  {answer['state']}  {mark}")
    say(f"about     {about(answer)}{_whose(answer)}")
    say(f"why       {escaped(answer['why'])}, by the detector {escaped(answer['detector'])}")
    raised = f", a trip since {answer['raised']}" if answer["raised"] else ""
    say(f"when      opened {answer['opened']}{raised}, last heard of {answer['updated']}")
    _say_cords(answer)
    if answer["closed"]:
        by, because = escaped(answer["closed_by"]), escaped(answer["closed_because"])
        say(f"closed    {answer['closed']} by {by}: {because}")
    _say_calls(answer)
    say()
    events = answer["events"]
    if len(events) > EVENTS_SHOWN_MAX:
        say(f"the newest {EVENTS_SHOWN_MAX} of {len(events)} rows; --json has them all")
    for row in events[-EVENTS_SHOWN_MAX:]:
        cord = f"  {escaped(row['rule'])}" if row["rule"] else ""
        said = f"  {escaped(row['detail'])}" if row["detail"] else ""
        say(f"{row['at']}  {row['type']}  {escaped(row['actor'] or '')}{cord}{said}")
    say()
    for step in answer["next"]:
        say(f"{step['what']}: {escaped(step['command'])}")


def _whose(answer: Told) -> str:
    named = {answer["kind"]: answer["name"]}
    words = ("run", "root", "tool", "release", "agent")
    told = [
        f"{word} {answer[word]}"
        for word in words
        if answer[word] and named.get(word) != answer[word]
        and not (word == "root" and answer["root"] in (answer["run"], answer["name"]))
    ]  # fmt: skip
    return escaped(f"  first over {', '.join(told)}") if told else ""


def _say_cords(answer: Told) -> None:
    for cord in answer["pulled"]:
        say(f"pulled    {told_cord(cord)}")
    if answer["pulled"]:
        return
    if answer["cord"]:
        say(f"pulled    {escaped(answer['cord'])}, which was released since")
    else:
        say("pulled    nothing: it only tells")


def _say_calls(answer: Told) -> None:
    """The calls that convinced; of those that were pruned only the ids."""
    there = {call["id"] for call in answer["evidence"]}
    gone = [one for one in answer["calls"] if one not in there]
    say(f"calls     {len(answer['calls'])} that convinced it; one of them: pullcord ledger show ID")
    if answer["evidence"]:
        titles = ("id", "at", "run", "tool", "method", "host", "path", "state", "status")
        say_table(titles, [[call[title] for title in titles] for call in answer["evidence"]])
    if gone:
        say(f"          not in the ledger any more: {escaped(', '.join(gone))}")
