"""`status`: is the proxy up, what is pulled, what is on its way."""

from pathlib import Path
from typing import Any

import click

from proxy.cli.places import data_directory, data_option
from proxy.cli.reading import cords_on_disk, told_cord
from proxy.cli.terminal import counted, escaped, loud, say, say_json, say_table, span
from proxy.control_client import Unreachable, ask

PULLED = 10
UNREACHABLE = 5
CALLS_SHOWN_MAX = 20


@click.command(short_help="Is the proxy up, what is pulled, what is on its way.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--exit-code", is_flag=True, help="Exit with 10 when something is halted or frozen.")
@data_option
def status(as_json: bool, exit_code: bool, data: str | None) -> None:
    """Is the proxy up, what is pulled, what is on its way. Exits with 5 when no proxy answers."""
    directory = data_directory(data)
    try:
        state: dict[str, Any] = ask(directory, "GET", "/v1/status")
    except Unreachable as dead:
        _say_dead(directory, dead, as_json)
        raise click.exceptions.Exit(UNREACHABLE) from None
    if as_json:
        say_json({"up": True, **state})
    else:
        _say_up(state)
    if exit_code and state["pulled"]:
        raise click.exceptions.Exit(PULLED)


def _say_dead(data: Path, dead: Unreachable, as_json: bool) -> None:
    cords = cords_on_disk(data)
    if as_json:
        say_json({"up": False, "error": str(dead), "pulled": cords})
        return
    say(f"proxy   {loud('DOWN')}  {escaped(str(dead))}")
    _say_cords(cords)


def _say_up(state: dict[str, Any]) -> None:
    policy, ledger = state["policy"], state["ledger"]
    listening = escaped(state["listening"] or "") or loud("does not listen")
    verdict = f"{loud('INVALID')}, the last good one is in force" if policy["error"] else "OK"
    health = loud("FAILS, nothing passes") if ledger["error"] else "ok"
    say(
        f"proxy   up {span(state['up_seconds'])}  {listening}  "
        f"policy {policy['digest'][:12]} ({escaped(policy['source'])}, {verdict})  ledger {health}"
    )
    if policy["error"]:
        say(loud(f"policy  {escaped(policy['error'], keep='\n')}"))
    if ledger["error"]:
        say(loud(f"ledger  {escaped(ledger['error'])}"))
    if ledger["owed"]:
        say(loud(f"ledger  {counted(ledger['owed'], 'outcome')} not recorded yet"))
    if state["identity"] == "open":
        say(f"{loud('identity open')}: callers name their own run and tenant, unchecked")
    _say_cords(state["pulled"])
    calls = state["calls"]
    say(f"calls   {len(calls)} in flight")
    if calls:
        say_table(
            ("run", "tenant", "tool", "effect", "method", "host", "for"),
            [_call_row(call) for call in calls[:CALLS_SHOWN_MAX]],
        )
    if len(calls) > CALLS_SHOWN_MAX:
        say(f"        and {len(calls) - CALLS_SHOWN_MAX} more: pullcord status --json")


def _say_cords(cords: list[dict[str, Any]]) -> None:
    if not cords:
        say("pulled  nothing")
    for cord in cords:
        say(f"pulled  {told_cord(cord)}")


def _call_row(call: dict[str, Any]) -> tuple[str, ...]:
    return (
        call["run"],
        call["tenant"],
        call["tool"],
        call["effect"],
        call["method"],
        call["host"],
        span(call["seconds"]),
    )
