"""`halt`, `freeze`, `resume`, `thaw`: pulling has no friction, releasing asks for a reason."""

from typing import TYPE_CHECKING, Any

import click

from proxy.cli import acting
from proxy.cli.places import Command, data_directory, data_option
from proxy.cli.pulled import (
    done,
    longer,
    say_proof,
    say_pulled,
    say_released,
    what_flows,
    would_stop,
)
from proxy.cli.reading import preview, standing
from proxy.cli.terminal import say, say_json, warn

if TYPE_CHECKING:
    from policies.verdict import Level, Pull, Scope
    from proxy.clock import Clock

SCOPES = ("global", "tenant", "run", "release", "tool")


def _scope(command: Command) -> Command:
    command = click.argument("name", required=False, default="")(command)
    command = click.argument("scope", type=click.Choice(SCOPES), metavar="SCOPE")(command)
    command = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(
        command
    )
    return data_option(command)


def _pulling(command: Command) -> Command:
    for option in (
        click.option("--dry-run", "-n", is_flag=True, help="Only show what it would stop."),
        click.option("--for", "lasts", metavar="TIME", help="Until 90s, 30m, 2h, 1d have passed."),
        click.option("--reason", default="", help="For the record and for the agent; optional."),
    ):
        command = option(command)
    return _scope(command)


def _releasing(command: Command) -> Command:
    for option in (
        click.option(
            "--release",
            "releases",
            multiple=True,
            metavar="L",
            help="Only for calls of this known good release; repeat it.",
        ),
        click.option("--reason", required=True, help="Why it may flow again."),
    ):
        command = option(command)
    return _scope(command)


@click.command(short_help="Stop every call of a scope, and cut those in flight.")
@_pulling
def halt(**typed: Any) -> None:
    """Stop every call of SCOPE (global, tenant T, run R, release L, tool NAME) at once.

    A run is halted with all its descendants; `tool RUN/NAME` is the tool for these alone. It holds
    until `pullcord resume`.
    """
    _pull("halt", **typed)


@click.command(short_help="Stop the writes of a scope; reads and model calls still flow.")
@_pulling
def freeze(**typed: Any) -> None:
    """Stop the writes of SCOPE (global, tenant T, run R, release L, tool NAME or RUN/NAME).

    It holds until `pullcord thaw`.
    """
    _pull("freeze", **typed)


@click.command(short_help="Lift a halt.")
@_releasing
def resume(**typed: Any) -> None:
    """Lift the halt of SCOPE (global, tenant T, run R, release L, tool NAME)."""
    _release("halt", **typed)


@click.command(short_help="Lift a freeze, or a detector's throttle.")
@_releasing
def thaw(**typed: Any) -> None:
    """Lift the freeze and the throttle of SCOPE (global, tenant T, run R, release L, tool NAME)."""
    _release("freeze", **typed)


COMMANDS = (halt, freeze, resume, thaw)


def _pull(
    level: str,
    *,
    scope: str,
    name: str,
    reason: str,
    lasts: str | None,
    dry_run: bool,
    data: str | None,
    as_json: bool,
) -> None:
    directory = data_directory(data)
    # Bytes that are no text must not keep a cord from being pulled.
    reason = reason.encode("utf-8", "backslashreplace").decode()
    body: dict[str, Any] = {"level": level, "scope": scope, "subject": name, "reason": reason}
    for_seconds = None if lasts is None else _seconds(lasts)
    if for_seconds is not None:
        body["for_seconds"] = for_seconds
    if dry_run:
        blast = preview(directory, level, scope, name)
        if as_json:
            say_json(blast)
        else:
            say(would_stop(blast))
        return

    def wanted(clock: "Clock", actor: str) -> "Pull":
        from policies.verdict import Pull

        now_us = clock.now_us()
        until_us = None if for_seconds is None else now_us + for_seconds * 1_000_000
        return Pull(*_named(level, scope, name), reason, actor, now_us, until_us)

    answer = acting.pull(directory, body, wanted)
    with done("pulled"):
        if as_json:
            say_json(answer)
        else:
            say_pulled(answer)
            say_proof(answer)
        if answer.get("stands_longer"):
            warn(f"--for {lasts} shortens nothing: {longer(answer['pulled'])}")


def _release(
    level: str,
    *,
    scope: str,
    name: str,
    reason: str,
    releases: tuple[str, ...],
    data: str | None,
    as_json: bool,
) -> None:
    directory = data_directory(data)
    # Counted before it flows, and said once it does: what is refused must not look done.
    cord_name = (level, scope, name)
    flows = [] if as_json else what_flows(directory, standing(directory), cord_name, releases)

    def alone(clock: "Clock", actor: str) -> dict[str, Any]:
        from proxy.pulling import release_on_store

        acting.check_place(directory)
        policy = acting.policy_or_none()
        cord = _named(level, scope, name)
        return release_on_store(
            directory, cord, policy, clock, reason=reason, actor=actor, releases=releases
        )

    body: dict[str, Any] = {"level": level, "scope": scope, "subject": name, "reason": reason}
    if releases:
        body["releases"] = releases
    answer = acting.act_alone(directory, "/v1/release", body, alone)
    with done("released"):
        if as_json:
            say_json(answer)
            return
        for line in flows:
            say(line)
        say_released(answer)


def _named(level: str, scope: str, name: str) -> "tuple[Level, Scope, str]":
    from policies.verdict import Level, Scope

    return Level(level), Scope(scope), name


def _seconds(text: str) -> int:
    """As the policy writes lengths of time. Raises click.BadParameter."""
    from policies.schema_parts import duration_us

    try:
        return duration_us(text) // 1_000_000
    except ValueError:
        raise click.BadParameter(
            f"{text!r} is no length of time; write 90s, 30m, 2h or 1d, 366d at most",
            param_hint="'--for'",
        ) from None
