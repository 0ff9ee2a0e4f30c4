"""`incident scope`: what an incident reached and did, each figure with its command."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.incidents import about, id_argument
from proxy.cli.places import config_directory, config_option, data_directory, data_option
from proxy.cli.reading import reader
from proxy.cli.terminal import Failure, counted, escaped, loud, say, say_json, warn

if TYPE_CHECKING:
    from policies.policy import Policy

Told = dict[str, Any]

NAMES_SHOWN_MAX = 5  # on one line; the command under it names all
_WIDTH = 14


@click.command()
@id_argument
@click.option(
    "--policy",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Which writes can be undone, and what they move; the policy in force, if left out.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@config_option
@data_option
def scope(
    incident_id: str, file: Path | None, as_json: bool, config: str | None, data: str | None
) -> None:
    """Show how far it went: runs, tenants, tools, destinations and releases; writes by state and by
    whether they can be undone; what it spent, what is at risk; what was prevented.

    It reads the ledger, whether a proxy runs or not; under each figure stands what to type for its
    calls. ID may be the start of one.
    """
    from proxy.incidents import named
    from proxy.scoping import scope as found

    policy = policy_at_hand(file, config)
    with reader(data_directory(data, config)) as connection:
        answer = found(connection, named(connection, incident_id), policy)
    if as_json:
        say_json(answer)
    else:
        _say(answer, policy)


def policy_at_hand(file: Path | None, config: str | None) -> "Policy | None":
    """The one that is asked for, or is configured. None, with a warning, where that cannot be used:
    what needs no policy is told all the same. Raises Failure for one that was typed."""
    from policies.load import PolicyError, load_file

    try:
        return load_file(file or config_directory(config) / "policy.yaml")
    except PolicyError as error:
        if file is not None:
            raise Failure(str(error), 2) from None
        warn(str(error))
    except Failure as error:
        if config is not None:
            raise
        warn(error.message)
    return None


def _say(answer: Told, policy: "Policy | None") -> None:
    one = answer["incident"]
    say(f"incident  {one['id']}  {one['state']}, about {about(one)}")
    say(f"time      {answer['from']} to {answer['until'] or 'now'}")
    say()
    _say_reach(answer)
    _say_writes(answer, policy)
    _say_money(answer, policy)
    first = answer["first_bad_call"]
    if first is not None:
        words = (first["at"], first["run"], first["tool"], first["decision"], first["state"])
        told = "  ".join(str(word) for word in words if word is not None)
        _figure("first call", told, f"pullcord ledger show {first['id']}")
    _say_prevented(answer)
    say()
    _say_next(answer)


def _figure(name: str, told: str, command: str) -> None:
    """`told` may hold text of the world."""
    say(f"{name:<{_WIDTH}} {escaped(told)}")
    say(f"{'':<{_WIDTH}} {escaped(command)}")


def _say_reach(answer: Told) -> None:
    calls = answer["calls"]
    kinds = ", ".join(f"{calls[kind]:,} {kind}" for kind in ("reads", "writes", "models"))
    _figure("calls", f"{calls['count']:,}: {kinds}", answer["command"])
    for name in ("runs", "tenants", "tools", "destinations", "releases", "agents"):
        found = answer[name]
        shown = found["names"][:NAMES_SHOWN_MAX]
        more = found["count"] - len(shown)
        rest = f" and {more:,} more" if more else ""
        if found["unnamed"]:
            rest += f"; {counted(found['unnamed'], 'call')} without one"
        if name == "runs" and answer["silent_root"]:
            rest += f"; its root {answer['silent_root']} made no call"
        _figure(name, f"{found['count']:,}: {', '.join(shown) or 'none'}{rest}", found["command"])


def _say_writes(answer: Told, policy: "Policy | None") -> None:
    writes = answer["writes"]
    say()
    say("its writes, by what became of them; `unknown`: they may have been made")
    for one in writes["by_state"]:
        if one["count"] or one["state"] in ("done", "unknown"):
            _figure(one["state"], counted(one["count"], "write"), one["command"])
    say()
    if not writes["by_reversibility"]:
        say("nothing to undo: no write was made")
        return
    say("those that were made or may have been, by whether they can be undone")
    for one in writes["by_reversibility"]:
        told = f"{one['done']:,} done, {one['unknown']:,} unknown: {', '.join(one['tools'])}"
        if one["declined"]:
            told += f"; {one['declined']:,} of them did nothing: the tool declined"
        _figure(one["reversibility"], told, one["command"])
    undo, sent = answer["undo"], answer["told"]
    left = "" if undo["left"] is None else f", {undo['left']:,} left to undo"
    _figure("undone", f"{counted(undo['undone'], 'write')}{left}", undo["command"])
    tenants = f"{counted(sent['tenants'], 'tenant')}, {sent['left']:,} left to tell"
    _figure("told", tenants, sent["command"])
    if policy is None:
        say("no policy is at hand, so nobody knows what can be undone: name it by --policy FILE")
    elif any(one["reversibility"] == "unknown" for one in writes["by_reversibility"]):
        say("unknown: the policy says nothing of it; give the tool its `undo`")


def _say_money(answer: Told, policy: "Policy | None") -> None:
    say()
    _figure("spent", f"{answer['spend_usd']} USD", answer["calls"]["command"])
    for one in answer["value_at_risk"]:
        told = f"{one['amount']} {one['currency']} by {counted(one['writes'], 'write')}"
        if one["currency"] is None:
            told = f"unknown: {counted(one['unreadable'], 'write')} whose amount cannot be read"
        elif one["unreadable"]:
            told += f", and {one['unreadable']:,} of them tell no amount that can be read"
        if one["left_writes"] < one["writes"]:
            told += f"; left {one['left_amount']} by {counted(one['left_writes'], 'write')}"
        _figure("at risk", told, one["command"])
    if policy is not None and not answer["value_at_risk"]:
        say(f"{'at risk':<{_WIDTH}} not known: no tool that wrote says its `value` in the policy")


def _say_prevented(answer: Told) -> None:
    say()
    for one in answer["prevented"]:
        _figure("prevented", f"{one['count']:,} {one['reason']}", one["command"])
    if not answer["prevented"]:
        say(f"{'prevented':<{_WIDTH}} nothing: no call was refused or answered from the record")
    _say_cords(answer)


def _say_cords(answer: Told) -> None:
    """What passed each of its cords, of what that stands over, and what came of all of it."""
    if not answer["cords"]:
        say(f"{'after the cord':<{_WIDTH}} nothing was pulled for it")
    whole = answer["after_all"]
    for one in answer["cords"]:
        _say_passed("after the cord", one, " that it covers")
    if whole is not None:
        what = "contained" if whole["contained"] else "not contained"
        _say_passed(what, whole, " of all of it")


def _say_passed(name: str, one: Told, which: str) -> None:
    count = counted(one["admitted"], "write")
    told = loud(count) if one["admitted"] else count
    cord = f"{escaped(one['cord'])}, pulled {one['pulled_at']}"
    say(f"{name:<{_WIDTH}} {told}{which} let through after {cord}")
    say(f"{'':<{_WIDTH}} {escaped(one['command'])}")


def _say_next(answer: Told) -> None:
    incident_id = answer["incident"]["id"]
    unknown = next(one for one in answer["writes"]["by_state"] if one["state"] == "unknown")
    if unknown["count"]:
        say(f"ask what became of the unknown ones: {escaped(unknown['command'])}")
    if answer["writes"]["by_reversibility"]:
        say(f"see what can be undone: pullcord incident compensate {incident_id} --plan")
    else:
        say(f"when it is over: pullcord incident show {incident_id}")
