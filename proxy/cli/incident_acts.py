"""`incident open|ack|note|close`: what people do about what goes wrong."""

from typing import TYPE_CHECKING, Any

import click

from proxy.cli.acting import act, act_alone
from proxy.cli.incidents import about, id_argument, json_option
from proxy.cli.places import data_directory, data_option
from proxy.cli.reading import reader, told_cord
from proxy.cli.terminal import escaped, say, say_json, warn

if TYPE_CHECKING:
    from pathlib import Path

    from ledger.store import Store
    from proxy.clock import Clock

Told = dict[str, Any]

reason_option = click.option("--reason", required=True, metavar="TEXT", help="Why, for the record.")


@click.command("open")
@click.option("--run", metavar="R", help="A run, with its whole tree.")
@click.option("--tenant", metavar="T", help="A tenant; or whose tool, or run, is meant.")
@click.option("--tool", metavar="NAME", help="What one tenant does with a tool.")
@click.option("--release", metavar="L", help="A release.")
@click.option(
    "--since",
    metavar="WHEN",
    help="Calls since then belong to it: 2h, or a time. [1h] With no other name: all calls.",
)
@click.option(
    "--severity",
    type=click.Choice(["alert", "trip"]),
    help="How bad it is: a trip, if left out. One that is open becomes a trip by it.",
)
@reason_option
@json_option
@data_option
def open_incident(
    run: str | None,
    tenant: str | None,
    tool: str | None,
    release: str | None,
    since: str | None,
    severity: str | None,
    reason: str,
    as_json: bool,
    data: str | None,
) -> None:
    """Open an incident by hand: over a run, a tenant, a tool or a release; or by --since alone over
    every call since then. It stops nothing; halt or freeze what runs first. One that is open over
    the same stays the one, and your reason is a note of it."""
    kind, name = _over(run, tenant, tool, release, since)
    directory = data_directory(data)
    whose = "" if kind == "tenant" else tenant or ""
    body = {"kind": kind, "name": name, "tenant": whose, "since": since, "reason": reason}
    body |= {"severity": severity} if severity else {}
    alone = _opening(directory, body)
    answer = act_alone(directory, "/v1/incidents/open", body, alone)
    if as_json:
        say_json(answer)
        return
    done = "opened" if answer["new"] else "is open already:"
    since = f", calls since {answer['since']} belong to it" if answer["since"] else ""
    say(f"{done} {answer['id']}, {answer['severity']}, {about(answer)}{since}")
    for note in answer["notes"]:
        say(escaped(note))
    say(f"look at it: pullcord incident show {answer['id']}")


def _over(
    run: str | None,
    tenant: str | None,
    tool: str | None,
    release: str | None,
    since: str | None,
) -> tuple[str, str]:
    named = {"run": run, "tool": tool, "release": release}
    given = [(kind, name) for kind, name in named.items() if name is not None]
    if not given and tenant is not None:
        return "tenant", tenant
    if not given and since is not None:
        return "global", ""
    if not given:
        raise click.UsageError(
            "say what it is over: --run R, --tenant T, --tool NAME or --release L; or --since WHEN "
            "alone, which is over all calls since then"
        )
    if len(given) > 1:
        several = " and ".join(f"--{kind}" for kind, _ in given)
        raise click.UsageError(f"{several} were given, and an incident is over one thing")
    if release is not None and tenant is not None:
        raise click.UsageError(
            "--release and --tenant were given, and an incident over a release is about everybody"
        )
    return given[0]


def _opening(directory: "Path", body: Told) -> Any:
    def alone(clock: "Clock", actor: str) -> Told:
        from proxy.incident_acts import opened, wanted
        from proxy.operations import opened as opened_store

        now_us = clock.now_us()
        with reader(directory) as connection:
            asked = wanted(
                connection, body["kind"], body["name"], body["tenant"], body["since"], now_us
            )
        with opened_store(directory, clock.now_us) as store:
            said = {"reason": body["reason"], "severity": body.get("severity")}
            return opened(store, asked, **said, actor=actor, at_us=now_us)

    return alone


@click.command()
@id_argument
@click.option("--owner", metavar="NAME", default="", help="Who takes care of it; else you.")
@json_option
@data_option
def ack(incident_id: str, owner: str, as_json: bool, data: str | None) -> None:
    """Say that it is seen, and who takes care of it. Alerts of it stop until it gets worse; nothing
    that is pulled is lifted."""
    directory = data_directory(data)
    whole = _whole(directory, incident_id)

    def directly(store: "Store", actor: str, at_us: int) -> Told:
        from proxy.incident_acts import acked

        return acked(store, whole, owner=owner, actor=actor, at_us=at_us)

    body = {"incident": whole, "owner": owner}
    answer = act(directory, "/v1/incidents/ack", body, directly)
    if as_json:
        say_json(answer)
        return
    was = f", before it was {answer['was']}" if answer["was"] not in (None, answer["owner"]) else ""
    done = "acknowledged" if answer["changed"] else "was acknowledged already:"
    say(f"{done} {whole}, {about(answer)}; its owner is {escaped(answer['owner'] + was)}")
    say(f"what to do about it: pullcord incident show {whole}")


@click.command()
@id_argument
@click.argument("text")
@click.option("--public", is_flag=True, help="For those who are affected, too.")
@json_option
@data_option
def note(incident_id: str, text: str, public: bool, as_json: bool, data: str | None) -> None:
    """Write something down, with your name and the time; of a closed incident, too."""
    directory = data_directory(data)
    whole = _whole(directory, incident_id)

    def directly(store: "Store", actor: str, at_us: int) -> Told:
        from proxy.incident_acts import noted

        return noted(store, whole, text, public=public, actor=actor, at_us=at_us)

    body = {"incident": whole, "text": text, "public": public}
    answer = act(directory, "/v1/incidents/note", body, directly)
    if as_json:
        say_json(answer)
        return
    say(f"noted{' for all who are affected' if public else ''}: {whole}, {about(answer)}")
    say(f"all notes: pullcord incident show {whole}")


@click.command()
@id_argument
@click.option("--reason", required=True, metavar="TEXT", help="Why it is over, for the record.")
@click.option(
    "--waive", metavar="REASON", default="", help="Why there is no regression test that is proven."
)
@json_option
@data_option
def close(incident_id: str, reason: str, waive: str, as_json: bool, data: str | None) -> None:
    """Say that it is over. It takes a regression test that is proven, or a reason why there is
    none. Nothing that is pulled is lifted by it; what goes wrong again opens another incident."""
    from proxy.incident_acts import closing
    from proxy.incidents import named

    directory = data_directory(data)
    with reader(directory) as connection:
        incident = named(connection, incident_id)
        notes = closing(connection, incident)
    whole = incident.id

    def directly(store: "Store", actor: str, at_us: int) -> Told:
        from proxy.incident_acts import closed

        found = closed(store, whole, reason=reason, waived=waive, actor=actor, at_us=at_us)
        return {**found, "notes": notes}

    body = {"incident": whole, "reason": reason, **({"waive": waive} if waive else {})}
    answer = act(directory, "/v1/incidents/close", body, directly)
    if as_json:
        say_json(answer)
        return
    say(f"closed {whole}, {about(answer)}")
    for told in answer["notes"]:
        warn(told)
    for cord in answer["pulled"]:
        say(f"still pulled: {told_cord(cord)}")
    say(f"all of it: pullcord incident show {whole}")


def _whole(directory: "Path", start: str) -> str:
    """The whole id. Raises NotFound, OperationError."""
    from proxy.incidents import named

    with reader(directory) as connection:
        return named(connection, start).id


COMMANDS = (open_incident, ack, note, close)
