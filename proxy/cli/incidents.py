"""`incident list|show`: what went wrong, each under one id. What people do about it is in
incident_acts.py.
"""

from typing import Any

import click

from proxy.cli.places import config_or_none, data_directory, data_option
from proxy.cli.reading import reader, told_cord
from proxy.cli.terminal import escaped, loud, say, say_json, say_table, span

EVENTS_SHOWN_MAX = 40  # the newest; --json has them all

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
id_argument = click.argument("incident_id", metavar="ID")

Told = dict[str, Any]


@click.group()
def incident() -> None:
    """Look at what went wrong, see to it, and close it when it is over."""


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
    titles = (
        *("id", "state", "severity", "about", "detector", "why", "cord", "opened"),
        *("owner", "acked"),
    )
    say_table(titles, [_row(one) for one in found])
    say("look at one: pullcord incident show ID", err=True)


@incident.command()
@id_argument
@json_option
@data_option
def show(incident_id: str, as_json: bool, data: str | None) -> None:
    """Show who and what it was, when, who sees to it, what was pulled, how long each took, what
    happened, the calls that convinced, and what to type next. ID may be the start of one."""
    from proxy.incidents import shown

    with reader(data_directory(data)) as connection:
        answer = shown(connection, incident_id, config_or_none())
    if as_json:
        say_json(answer)
    else:
        _say(answer)


def about(one: Told) -> str:
    """What an incident is about, made harmless for a terminal."""
    of = f" of tenant {one['tenant']}" if one["tenant"] and one["kind"] != "tenant" else ""
    return escaped(f"{one['kind']} {one['name']}{of}")


def in_one_line(one: Told) -> str:
    """An incident on one line, for a screen."""
    mark = loud("TRIP") if one["severity"] == "trip" else "alert"
    why = escaped(f"{one['why']} ({one['detector'] or one['opened_by']})")
    over = "; what was pulled for it is released, it is open until closed"
    mine = f"; {escaped(one['owner'])} sees to it" if one.get("owner") else ""  # none of older ones
    over = over if one.get("released") else ""
    return f"{mark} {about(one)}: {why}, since {one['opened']}{mine}{over}"


def _row(one: Told) -> tuple[object, ...]:
    of = f" of {one['tenant']}" if one["tenant"] and one["kind"] != "tenant" else ""
    return (
        one["id"],
        one["state"],
        one["severity"],
        f"{one['kind']} {one['name']}{of}",
        one["detector"],
        one["why"],
        one["cord"],
        one["opened"],
        one["owner"],
        one["acked"],
    )


def _say(answer: Told) -> None:
    severity = answer["severity"]
    mark = loud(severity.upper()) if severity == "trip" else severity
    say(f"incident  {answer['id']}  {answer['state']}  {mark}")
    say(f"about     {about(answer)}{_whose(answer)}")
    by = f"the detector {answer['detector']}" if answer["detector"] else answer["opened_by"]
    say(f"why       {escaped(answer['why'])}, by {escaped(by)}")
    raised = f", a trip since {answer['raised']}" if answer["raised"] else ""
    say(f"when      opened {answer['opened']}{raised}, last heard of {answer['updated']}")
    say(f"owner     {_owner(answer)}")
    _say_cords(answer)
    say(f"turned    {_turned(answer['milestones'])}")
    _say_end(answer)
    _say_calls(answer)
    for note in answer["notes"]:
        public = " (public)" if note["public"] else ""
        say(f"note      {note['at']}  {escaped(note['actor'])}{public}: {escaped(note['text'])}")
    say()
    _say_events(answer["timeline"])
    say()
    for step in answer["next"]:
        say(f"{step['what']}: {escaped(step['command'])}")


def _owner(answer: Told) -> str:
    if not answer["acked"]:
        if answer["closed"]:
            return "nobody"
        return f"nobody yet: pullcord incident ack {answer['id']}"
    return escaped(
        f"{answer['owner']}, acknowledged {answer['acked']} by {answer['acked_by']}; "
        "no channel is told of it again until it gets worse"
    )


def _turned(when: Told) -> str:
    """How long it took to detect, to contain and to recover, since the first bad call."""
    if when["first_bad"] is None:
        return "no call of it is in the ledger"
    said = [f"first bad call {when['first_bad']}"]
    for key, word in _TURNS:
        seconds = when[f"{key}_seconds"]
        if key == "first_cord" and seconds in (None, when["contain_seconds"]):
            continue
        if seconds is None:
            said.append(f"not {word}")
        else:
            said.append(f"{word} {_length(abs(seconds))} {'later' if seconds >= 0 else 'before'}")
    return "; ".join(said)


_TURNS = (
    *(("detect", "detected"), ("first_cord", "first cord pulled"), ("contain", "contained")),
    ("recover", "recovered"),
)


def _length(seconds: float) -> str:
    return span(seconds) if seconds >= 10 else f"{seconds:g}s"


def _say_end(answer: Told) -> None:
    if answer["proof"]:
        say(f"test      proven, {answer['proof']}")
    elif answer["waived"]:
        say(f"test      none: {escaped(answer['waived'])}")
    if answer["closed"]:
        by, because = escaped(answer["closed_by"]), escaped(answer["closed_because"])
        say(f"closed    {answer['closed']} by {by}: {because}")


def _say_events(events: list[Told]) -> None:
    if len(events) > EVENTS_SHOWN_MAX:
        say(f"the newest {EVENTS_SHOWN_MAX} rows; --json has more")
    for row in events[-EVENTS_SHOWN_MAX:]:
        words = [
            escaped(text) for text in (row["actor"], row["rule"], row["run"], row["detail"]) if text
        ]
        say("  ".join([row["at"], row["type"], *words]))


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
        say(f"pulled    nothing{': it only tells' if answer['detector'] else ' yet'}")


def _say_calls(answer: Told) -> None:
    """The calls that convinced; of those that were pruned only the ids."""
    if answer["since"]:
        who = f", as {escaped(answer['opened_by'])} said" if answer["opened_by"] else ""
        say(f"calls     those since {answer['since']} belong to it{who}")
    if not answer["calls"]:
        return
    there = {call["id"] for call in answer["evidence"]}
    gone = [one for one in answer["calls"] if one not in there]
    say(f"calls     {len(answer['calls'])} that convinced it; one of them: pullcord ledger show ID")
    if answer["evidence"]:
        titles = ("id", "at", "run", "tool", "method", "host", "path", "state", "status")
        say_table(titles, [[call[title] for title in titles] for call in answer["evidence"]])
    if gone:
        say(f"          not in the ledger any more: {escaped(', '.join(gone))}")
