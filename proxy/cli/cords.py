"""`halt`, `freeze`, `resume`, `thaw`: pulling has no friction, releasing asks for a reason."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.acting import act, policy_or_none
from proxy.cli.places import Command, data_directory, data_option
from proxy.cli.reading import Cord, refused_by, standing, told_cord
from proxy.cli.terminal import counted, escaped, loud, say, say_json

if TYPE_CHECKING:
    from ledger.store import Store

SCOPES = ("global", "tenant", "run", "release", "tool")
DONE = {"halt": "halted", "freeze": "froze writes of"}
FLOWS = {"halt": "calls", "freeze": "writes"}
UNDONE = {"halt": "resumed", "freeze": "thawed"}


def _scope(command: Command) -> Command:
    command = click.argument("name", required=False, default="")(command)
    command = click.argument("scope", type=click.Choice(SCOPES), metavar="SCOPE")(command)
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(
        command
    )
    return data_option(command)


@click.command(short_help="Stop every call of a scope, and cut those in flight.")
@_scope
@click.option("--reason", default="", help="For the record and for the agent; optional.")
def halt(scope: str, name: str, reason: str, data: str | None, as_json: bool) -> None:
    """Stop every call of SCOPE (global, tenant T, run R, release L, tool NAME) at once.

    A run is halted with all its descendants. It holds until `pullcord resume`.
    """
    _pull("halt", scope, name, reason, data, as_json)


@click.command(short_help="Stop the writes of a scope; reads and model calls still flow.")
@_scope
@click.option("--reason", default="", help="For the record and for the agent; optional.")
def freeze(scope: str, name: str, reason: str, data: str | None, as_json: bool) -> None:
    """Stop the writes of SCOPE (global, tenant T, run R, release L, tool NAME).

    It holds until `pullcord thaw`.
    """
    _pull("freeze", scope, name, reason, data, as_json)


@click.command(short_help="Lift a halt.")
@_scope
@click.option("--reason", required=True, help="Why it may flow again.")
def resume(scope: str, name: str, reason: str, data: str | None, as_json: bool) -> None:
    """Lift the halt of SCOPE (global, tenant T, run R, release L, tool NAME)."""
    _release("halt", scope, name, reason, data, as_json)


@click.command(short_help="Lift a freeze.")
@_scope
@click.option("--reason", required=True, help="Why it may flow again.")
def thaw(scope: str, name: str, reason: str, data: str | None, as_json: bool) -> None:
    """Lift the freeze of SCOPE (global, tenant T, run R, release L, tool NAME)."""
    _release("freeze", scope, name, reason, data, as_json)


COMMANDS = (halt, freeze, resume, thaw)


def _pull(level: str, scope: str, name: str, reason: str, data: str | None, as_json: bool) -> None:
    def directly(store: "Store", actor: str, at_us: int) -> dict[str, Any]:
        from policies.verdict import Level, Pull, Scope
        from proxy import operations

        wanted = Pull(Level(level), Scope(scope), name, reason, actor, at_us)
        cord, changed = operations.pull(store, policy_or_none(), wanted)
        return {
            "pulled": operations.pull_as_json(cord),
            "changed": changed,
            "cut": 0,
            "undo": operations.undo_command(cord),
        }

    body = {"level": level, "scope": scope, "subject": name, "reason": reason}
    answer = act(data_directory(data), "/v1/pull", body, directly)
    if as_json:
        say_json(answer)
        return
    what = escaped(f"{scope} {name}" if name else "everything")
    if answer["changed"]:
        cut = f"; {counted(answer['cut'], 'call')} cut" if level == "halt" else ""
        say(f"{loud(DONE[level])} {what}{cut}")
    else:
        say(f"stood already: {told_cord(answer['pulled'])}")
    say(f"undo: {escaped(answer['undo'])}")


def _preview(data: Path, cords: list[Cord], name: tuple[str, str, str]) -> None:
    """What will flow again, shown before it does."""
    level, scope, subject = name
    mine = [cord for cord in cords if not cord["actor"].startswith("policy:")]
    this = [cord for cord in mine if (cord["level"], cord["scope"], cord["subject"]) == name]
    if not this:
        return  # there is nothing to lift, and the answer will say so
    say(f"lifting {told_cord(this[0])}; {counted(refused_by(data, this[0]), 'call')} refused by it")
    what = escaped(f"of {scope} {subject}" if subject else "of everything")
    others = [cord for cord in cords if cord not in this]
    say(f"{FLOWS[level]} {what} will flow again" + (", but these still stand:" if others else ""))
    for cord in others:
        say(f"  {told_cord(cord)}")


def _release(
    level: str, scope: str, name: str, reason: str, data: str | None, as_json: bool
) -> None:
    directory = data_directory(data)
    cords = standing(directory)
    if not as_json:
        _preview(directory, cords, (level, scope, name))

    def directly(store: "Store", actor: str, at_us: int) -> dict[str, Any]:
        from policies.verdict import Level, Scope
        from proxy import operations

        policy, wanted = policy_or_none(), (Level(level), Scope(scope), name)
        cord = operations.release(store, policy, wanted, reason=reason, actor=actor, at_us=at_us)
        written = policy.pulls.get(wanted) if policy else None
        return {
            "released": operations.pull_as_json(cord),
            "still": written and operations.pull_as_json(written),
        }

    body = {"level": level, "scope": scope, "subject": name, "reason": reason}
    answer = act(directory, "/v1/release", body, directly)
    if as_json:
        say_json(answer)
        return
    say(f"{UNDONE[level]} {escaped(f'{scope} {name}' if name else 'everything')}")
    if answer["still"]:
        say(f"but it still stands in the policy: {told_cord(answer['still'])}")
