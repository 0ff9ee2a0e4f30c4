"""`signals`: how much is going on, all together, by tenant and by run."""

from typing import Any
from urllib.parse import urlencode

import click

from proxy.cli.places import data_directory, data_option
from proxy.cli.terminal import say, say_json, say_table
from proxy.control_client import ask

TITLES = (
    *("of", "tool calls/min", "writes/min", "model calls/min", "steps", "$/h"),
    *("new destinations", "progress"),
)


@click.command(short_help="How much is going on: calls, writes, dollars, progress.")
@click.option("--run", metavar="R", help="Of one run.")
@click.option("--tenant", metavar="T", help="Of one tenant, and of its busiest runs.")
@click.option("--top", type=click.IntRange(1, 1000), default=10, help="How many are listed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@data_option
def signals(run: str | None, tenant: str | None, top: int, as_json: bool, data: str | None) -> None:
    """How much is going on: all together, the busiest tenants, the busiest runs.

    Of calls that ended: those of the last minute, and dollars an hour, new destinations and
    progress over the last five. Steps are a run's model calls; of others, those of the run that
    made most. Exits with 5 when no proxy answers.
    """
    if run is not None and tenant is not None:
        raise click.UsageError("name one: --run R or --tenant T")
    asked = {"run": run, "tenant": tenant, "top": str(top)}
    query = urlencode({name: text for name, text in asked.items() if text is not None})
    answer = ask(data_directory(data), "GET", f"/v1/signals?{query}")
    fleet = [answer["fleet"]] if answer["fleet"] else []
    rows = [*fleet, *answer["tenants"], *answer["runs"]]
    if as_json:
        for each in rows:
            say_json({"at": answer["at"], **each})
        return
    say_table(TITLES, [_row(each) for each in rows])
    if not answer["runs"]:
        say("no call ended in the last five minutes", err=True)


def _row(each: dict[str, Any]) -> tuple[str, ...]:
    minute, five = each["minute"], each["five_minutes"]
    most = "" if each["run"] else "at most "
    return (
        _whose(each),
        str(minute["tool_calls"]),
        str(minute["writes"]),
        str(minute["model_calls"]),
        f"{most}{each['steps']}",
        f"{each['usd_per_hour']:.2f}",
        str(five["new_destinations"]),
        _progress(five),
    )


def _whose(each: dict[str, Any]) -> str:
    if each["run"]:
        return f"run {each['run']} ({each['tenant'] or 'no tenant'})"
    return f"tenant {each['tenant']}" if each["tenant"] else "everything"


def _progress(five: dict[str, Any]) -> str:
    gained = five["progress_per_usd"]
    if gained is None:
        return f"{five['progress']:.1f}, nothing spent"
    return "none" if not five["progress"] else f"{gained:.1f} per $"
