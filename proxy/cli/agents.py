"""`env` and `run`: an agent's environment, so that its calls go through pullcord."""

import os
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import click

from proxy.cli.budget import dollars
from proxy.cli.places import (
    Command,
    config_option,
    data_directory,
    data_option,
    settings,
)
from proxy.cli.terminal import Failure, counted, escaped, loud, say, warn
from proxy.cli.tokens import DEFAULT_TENANT, minted, seconds
from proxy.cli.trust import trust_files
from proxy.control_client import Unreachable, ask

FORMATS = ("sh", "fish", "pwsh", "dotenv", "json", "docker", "k8s")
HALTED = 77
UNABLE = 2
_BASE32 = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"  # Crockford's: no I, L, O, U to misread


class Door(NamedTuple):
    """Where agents reach the proxy, and how they say who they are."""

    host: str
    port: int
    identity: str
    is_up: bool
    policy: str = ""  # its file, as the running proxy says

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _names(command: Command) -> Command:
    for option in (
        click.option("--expires", metavar="TIME", help="After 90s, 30m, 8h, 7d; else never."),
        click.option("--read-only", is_flag=True, help="Good for reads and model calls alone."),
        click.option(
            "--tool", "tools", multiple=True, metavar="GLOB", help="Only these tools; repeat it."
        ),
        click.option(
            "--budget-usd", metavar="N", help="All that it and those it starts may spend."
        ),
        click.option("--release", default="", metavar="L", help="The pinned triple it runs."),
        click.option("--parent", default="", metavar="R", help="The run that started this one."),
        click.option(
            "--agent", default="", metavar="NAME", help="The agent, as the policy has it."
        ),
        click.option("--tenant", default="", metavar="T", help="Whom it acts for (default)."),
        click.option("--run", metavar="R", help="The run's name; a new one, if left out."),
    ):
        command = option(command)
    return config_option(data_option(command))


@click.command(short_help="Print the environment that sends an agent through the proxy.")
@_names
@click.option("--format", "format_name", type=click.Choice(FORMATS), default="sh", help="How.")
@click.option("--unset", is_flag=True, help="Print what takes it all away again.")
def env(format_name: str, unset: bool, data: str | None, config: str | None, **names: Any) -> None:
    """Print the environment that sends an agent through the proxy: eval "$(pullcord env)".

    Mints a token for the run. The proxy need not run yet.
    """
    from proxy.environment import render, render_unset

    if unset:
        click.echo(render_unset(format_name), nl=False)
        return
    try:
        door = find_door(data, config)
        if not door.is_up:
            warn("no proxy runs yet: start it with pullcord up")
        click.echo(render(environment(door, data, config, **names), format_name), nl=False)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except Exception:
        if format_name in ("sh", "fish"):
            click.echo("false")  # or `eval` succeeds, and the agent goes past the proxy
        raise


@click.command(
    short_help="Run a command behind the proxy.",
    # From the first word on that is no option of ours, all belongs to the command.
    context_settings={"allow_interspersed_args": False},
)
@_names
@click.option("--contain", is_flag=True, help="In namespaces that lead nowhere but to the proxy.")
@click.option("--user", metavar="NAME", help="As this Unix user, not as your own.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run(
    command: tuple[str, ...],
    data: str | None,
    config: str | None,
    user: str | None,
    contain: bool,
    **names: Any,
) -> None:
    """Run COMMAND as a run of its own, behind the proxy: pullcord run -- python agent.py

    Exits with its code, or with 77 if its run stands halted at the end. Without --user and
    --contain nothing keeps the command from going past the proxy.
    """
    from proxy.cli import wards
    from proxy.cli.child import ended_with
    from proxy.clock import SystemClock

    if user and contain:
        raise click.UsageError(
            "--user and --contain exclude each other: a contained command "
            "reaches nothing of pullcord's as any user"
        )
    door = find_door(data, config)
    if not door.is_up:
        raise Failure("no proxy answers, so nothing would pass; start one with: pullcord up", 5)
    place = data_directory(data, config).resolve()
    if contain:
        ward = wards.contained(place, trust_files(str(place), config), door.policy)
    elif user:
        ward = wards.as_user(user, place, trust_files(str(place), config), door.policy)
    else:
        ward = wards.beside(place)
    try:
        seen = door._replace(**ward.door._asdict()) if ward.door else door
        variables = environment(seen, str(place), config, **names)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    name = variables["PULLCORD_RUN_ID"]
    say(f"run {name} via {door} ({ward.said}); watch: pullcord ledger tail run:{name}", err=True)
    started_us = SystemClock().now_us()
    code = ended_with(command[0], lambda: ward.start(command, variables, door.host, door.port))
    halt = _halt_over(door, variables["HTTP_PROXY"])
    _say_end(place, name, started_us, halt)
    raise click.exceptions.Exit(HALTED if halt else code)


def find_door(data: str | None, config: str | None) -> Door:
    """As the running proxy says, else as the settings say."""
    from proxy.settings import host_and_port

    try:
        state = ask(data_directory(data, config), "GET", "/v1/status")
        listening, identity, is_up = state["listening"], state["identity"], True
        policy = state["policy"]["source"]
    except Unreachable:
        named = settings(data, config)
        listening, identity, is_up, policy = named.listen, named.identity, False, ""
    if listening is None:
        raise Failure("the proxy is starting or stopping; try again", 5)
    host, port = host_and_port(listening)
    if port == 0:
        raise Failure("the proxy takes a free port at its start; start it first: pullcord up", 5)
    # Bound to every address, it is reached at this machine's own.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - a comparison
    return Door(host, port, identity, is_up, policy)


def environment(
    door: Door, data: str | None, config: str | None, *, run: str | None, tenant: str, **more: Any
) -> dict[str, str]:
    """The block of one run, its token minted; `more` are the other options of `_names`. Raises
    ValueError for a name that does not fit."""
    import secrets

    from proxy.clock import SystemClock
    from proxy.environment import block

    run = run or new_run(SystemClock().now_us())
    if door.identity == "open":
        second = tenant or DEFAULT_TENANT
        _check_open(more)
    else:
        grant = {"run": run, "tenant": tenant, **_granted(**more)}
        second = minted(data_directory(data, config), grant, config)["secret"]
    ca_file, bundle_file = trust_files(data, config)
    return block(
        host=door.host,
        port=door.port,
        run=run,
        token=second,
        bundle_file=bundle_file,
        ca_file=ca_file,
        trace_id=secrets.token_hex(16),
        span_id=secrets.token_hex(8),
    )


def _granted(
    *,
    parent: str,
    agent: str,
    release: str,
    budget_usd: str | None,
    tools: tuple[str, ...],
    read_only: bool,
    expires: str | None,
) -> dict[str, Any]:
    """What a token carries beside its run, as POST /v1/tokens takes it."""
    grant: dict[str, Any] = {"parent": parent, "agent": agent, "release": release}
    grant |= {"tools": tools or None, "read_only": read_only}
    if expires is not None:
        grant["expires_seconds"] = seconds(expires)
    if budget_usd is not None:
        dollars(budget_usd)
        grant["budget_usd"] = budget_usd
    return grant


_NARROWS = {
    "budget_usd": "--budget-usd",
    "tools": "--tool",
    "read_only": "--read-only",
    "expires": "--expires",
    "agent": "--agent",
}


def _check_open(more: dict[str, Any]) -> None:
    """Raises Failure for what only a token can bind."""
    lost = [option for name, option in _NARROWS.items() if more[name] not in (None, "", (), False)]
    if lost:
        what = "a budget" if lost == ["--budget-usd"] else " and ".join(lost)
        raise Failure(
            f"with identity: open runs have no tokens, and {what} would bind nothing; start "
            f"the proxy with --identity token, or leave {', '.join(lost)} out",
            UNABLE,
        )
    if more["parent"] or more["release"]:
        warn("with identity: open no call carries a parent or a release")


def new_run(now_us: int) -> str:
    """`run_` and 16 characters that sort by time: 48 bits of milliseconds, 32 random ones."""
    number = (now_us // 1_000) << 32 | int.from_bytes(os.urandom(4))
    return "run_" + "".join(_BASE32[number >> shift & 31] for shift in range(75, -1, -5))


def _say_end(data: Path, name: str, since_us: int, halt: str) -> None:
    """One line about the run. What fails here must not hide how the command ended."""
    from ledger.errors import LedgerError
    from proxy.cli.reading import run_totals

    end = f"; {loud('HALTED')} by {escaped(halt)}" if halt else ""
    try:
        totals = run_totals(data, name, since_us)
    except (Failure, LedgerError) as error:
        warn(f"run {name} ended; its calls cannot be counted: {error}{end}")
        return
    say(
        f"run {name} ended: {counted(totals['calls'], 'call')}, "
        f"{counted(totals['writes'], 'write')} let through, {totals['replayed']} replayed, "
        f"{totals['refused']} refused{end}",
        err=True,
    )


def _halt_over(door: Door, proxy: str) -> str:
    """The rule of a halt over the run, as the run itself is told it through the proxy."""
    import http.client
    import json
    from base64 import b64encode

    named = urlsplit(proxy)
    credentials = b64encode(f"{named.username}:{named.password}".encode()).decode()
    connection = http.client.HTTPConnection(door.host, door.port, timeout=10)
    try:
        headers = {"Proxy-Authorization": f"Basic {credentials}"}
        connection.request("GET", "http://pullcord.invalid/self", headers=headers)
        state = json.loads(connection.getresponse().read())
        halts = (cord["rule"] for cord in state["pulled"] if cord["rule"].startswith("halt:"))
        return next(halts, "")
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        warn("the proxy does not answer any more, so whether the run is halted is not known")
        return ""
    finally:
        connection.close()
