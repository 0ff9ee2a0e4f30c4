"""`notify test`: whether alerts arrive, before one is needed."""

import asyncio
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.places import config_option, data_option, settings
from proxy.cli.terminal import Failure, escaped, loud, say, say_json, warn

if TYPE_CHECKING:
    from pathlib import Path

    from proxy.channels import AnyChannel, Target
    from proxy.sending import Sender

FAILED = 3
NOT_FOUND = 4


@click.group()
def notify() -> None:
    """Alerts over incidents: where they go is the setting notify."""


@notify.command()
@click.argument("channel", default="")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each channel.")
@data_option
@config_option
def test(channel: str, as_json: bool, data: str | None, config: str | None) -> None:
    """Send a test alert to CHANNEL, or to all, and say what came back.

    It goes from here, not through the running proxy. A pager rings, and is told at once that it is
    over. Exits with 3 when it did not arrive.
    """
    known = settings(data, config)
    chosen = [each for each in known.notify if channel in ("", each.title)]
    if not known.notify:
        raise Failure(
            "no channel is set; write `notify:` into pullcord.yaml (docs/incidents.md, Alerts)", 2
        )
    if not chosen:
        there = ", ".join(each.title for each in known.notify)
        raise Failure(f"there is no channel {channel}; there are {there}", NOT_FOUND)
    results = asyncio.run(_tested(chosen, known.data))
    for title, host, failure in results:
        if as_json:
            row: dict[str, Any] = {"channel": title, "to": host, "arrived": not failure}
            say_json({**row, "error": failure or None})
        elif failure:
            say(f"{title}  {loud('FAILED')}  {escaped(failure)}")
        else:
            say(f"{title}  arrived at {escaped(host)}")
    if any(failure for _, _, failure in results):
        raise click.exceptions.Exit(FAILED)


async def _tested(chosen: "list[AnyChannel]", data: "Path") -> list[tuple[str, str, str]]:
    """Of each its name, its host, and why it failed."""
    from proxy.authority import UPSTREAM_FILE
    from proxy.channels import Unready, in_the_clear, target
    from proxy.clock import SystemClock
    from proxy.credentials import load_all
    from proxy.sending import Sender

    known, trust = load_all(data), data / UPSTREAM_FILE
    sender = Sender(trust if trust.exists() else None, SystemClock().now_us)
    found = []
    try:
        for each in chosen:
            try:
                ready = target(each, known)
            except Unready as unready:
                found.append((each.title, "", str(unready)))
                continue
            if in_the_clear(ready):
                warn(f"{each.title}: it crosses the network unencrypted; write https:// in its URL")
            found.append((each.title, ready.host, await _sent(sender, ready)))
    finally:
        await sender.close()
    return found


async def _sent(sender: "Sender", ready: "Target") -> str:
    """Why it did not arrive; empty where it did."""
    from proxy.clock import SystemClock
    from proxy.notices import trial

    for message in trial(ready, ready.channel.title, SystemClock().now_us()):
        heard = await sender.post(message)
        if not heard.is_sent:
            return heard.said
    return ""
