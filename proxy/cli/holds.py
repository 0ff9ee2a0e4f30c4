"""`hold list|show|approve|reject`: calls that wait for a person."""

from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import click

from proxy.cli.acting import act, on_store
from proxy.cli.places import data_directory, data_option
from proxy.cli.terminal import escaped, loud, say, say_json, say_table, span
from proxy.control_client import Unreachable, ask

if TYPE_CHECKING:
    from ledger.store import Store

OPEN = ("waiting", "approved")  # as ledger/states.py has them, which is slow to import

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
ticket_argument = click.argument("ticket", metavar="TICKET")


@click.group()
def hold() -> None:
    """Look at calls that wait for a person, let them through once, or refuse them."""


@hold.command("list")
@click.option("--all", "everything", is_flag=True, help="Closed ones too, for a day.")
@json_option
@data_option
def list_holds(everything: bool, as_json: bool, data: str | None) -> None:
    """List the calls that wait, the one that has waited longest first, and unused approvals."""

    def directly(store: "Store", _: str, at_us: int) -> dict[str, Any]:
        from proxy.control_holds import listed

        return listed(store, at_us)

    directory = data_directory(data)
    try:
        answer = ask(directory, "GET", "/v1/holds")
    except Unreachable as dead:
        answer = on_store(directory, dead, directly)
    found = [each for each in answer["holds"] if everything or each["state"] in OPEN]
    if as_json:
        for each in found:
            say_json(each)
        return
    if not found:
        say("no call waits for a person")
        return
    titles = ("ticket", "state", "left", "run", "tenant", "tool", "what", "rule", "by")
    say_table(titles, [_row(each) for each in found])
    if any(each["state"] == "waiting" for each in found):
        say("look at one: pullcord hold show TICKET", err=True)


@hold.command()
@ticket_argument
@json_option
@data_option
def show(ticket: str, as_json: bool, data: str | None) -> None:
    """Show all that a call asks for, as its agent sent it: an approval is for this request, byte
    for byte, and once.

    Credentials in headers and in the URL are masked, equal ones alike; they were never kept, and
    the same request with others needs another approval.
    """

    def directly(store: "Store", _: str, at_us: int) -> dict[str, Any]:
        from proxy.control_holds import shown

        return shown(store, ticket, at_us)

    directory = data_directory(data)
    try:
        answer = ask(directory, "GET", f"/v1/holds/show?{urlencode({'ticket': ticket})}")
    except Unreachable as dead:
        answer = on_store(directory, dead, directly)
    if as_json:
        say_json(answer)
        return
    _say(answer)


@hold.command()
@ticket_argument
@click.option("--reason", default="", metavar="TEXT", help="Why, for the record.")
@json_option
@data_option
def approve(ticket: str, reason: str, as_json: bool, data: str | None) -> None:
    """Let a call through, once. It is judged again first: what was halted since stays halted.

    Where its agent has left, the approval waits ten minutes for the same request.
    """
    answer = _decided(data_directory(data), "approve", ticket, reason)
    if as_json:
        say_json(answer)
        return
    what, run = escaped(answer["what"]), escaped(answer["run"])
    say(f"approved {what}, for run {run}: it passes once, until {answer['until']}")
    say(f"take it back while it is unused: pullcord hold reject {ticket}", err=True)


@hold.command()
@ticket_argument
@click.option("--reason", default="", metavar="TEXT", help="Why; the agent is told.")
@json_option
@data_option
def reject(ticket: str, reason: str, as_json: bool, data: str | None) -> None:
    """Refuse a call that waits, or take back an approval that is unused."""
    answer = _decided(data_directory(data), "reject", ticket, reason)
    if as_json:
        say_json(answer)
        return
    say(f"rejected {escaped(answer['what'])}, of run {escaped(answer['run'])}")


def _decided(data: Path, verb: str, ticket: str, reason: str) -> dict[str, Any]:
    def directly(store: "Store", actor: str, at_us: int) -> dict[str, Any]:
        from ledger.states import HoldState
        from proxy.control_holds import decided

        to = HoldState.APPROVED if verb == "approve" else HoldState.REJECTED
        return decided(store, ticket, to, reason=reason, actor=actor, at_us=at_us)

    return act(data, f"/v1/holds/{verb}", {"ticket": ticket, "reason": reason}, directly)


def _row(each: dict[str, Any]) -> tuple[object, ...]:
    left = each["left_seconds"]
    return (
        each["ticket"],
        each["state"],
        None if left is None else span(left),
        each["run"],
        each["tenant"],
        each["tool"],
        each["what"],
        each["rule"],
        each["actor"],
    )


def _say(answer: dict[str, Any]) -> None:
    left = "" if answer["left_seconds"] is None else f", {span(answer['left_seconds'])} left"
    by = f" by {escaped(answer['actor'])}" if answer["actor"] else ""
    why = f": {escaped(answer['reason'])}" if answer["reason"] else ""
    say(f"ticket  {escaped(answer['ticket'])}  {answer['state']}{by}{why}{left}")
    agent = f"  agent {escaped(answer['agent'])}" if answer["agent"] else ""
    say(f"asked   {answer['at']}  run {escaped(answer['run'])}  tenant {escaped(answer['tenant'])}"
        f"{agent}")  # fmt: skip
    say(f"held    tool {escaped(answer['tool'])}  by {escaped(answer['rule'])}")
    arguments = answer["arguments"]
    if arguments is None:
        say(loud("its arguments cannot be opened: they were sealed with another vault key"))
        return
    say(f"call    {escaped(arguments['method'])} {escaped(arguments['url'])}")
    for name, value in arguments["headers"]:
        say(f"        {escaped(name)}: {escaped(value)}")
    if not arguments["body_bytes"]:
        say("body    none")
        return
    text = arguments["body"]
    kind = "text" if text is not None else "not text, in base64"
    say(f"body    {arguments['body_bytes']} bytes, {kind}; what cannot be printed is escaped")
    for line in (text if text is not None else arguments["body_base64"]).split("\n"):
        say(f"        | {escaped(line)}")  # so that no body looks like words of ours
    if answer["state"] == "waiting":
        say(f"decide: pullcord hold approve {answer['ticket']}, or reject", err=True)
