"""`up` and `demo`: what serves."""

import os
from pathlib import Path

import click

from proxy.cli.places import Command, config_directory, config_option
from proxy.cli.reading import DATABASE
from proxy.cli.terminal import warn

VAULT_KEY_FILE = Path("private", "vault.key")  # as proxy/secret_keys.py has it: slow to import

# Flags of `up`, one for each setting (proxy/settings.py), as config/pullcord.yaml explains them.
FLAGS = {
    "listen": ("HOST:PORT", "Where agents reach the proxy."),
    "control": ("HOST:PORT", "A port of this machine for operators' tokens, beside the socket."),
    "data": ("DIR", "Ledger, certificate authority, keys, control socket."),
    "identity": ("token|open", "How runs are known."),
    "upstream_ca": ("FILE", "Certificates to trust upstream beside the system's."),
    "invalid_policy": ("keep|freeze", "What an invalid edit of the policy does."),
    "failed_drill": ("keep|halt", "What a drill that fails does."),
    "connect_seconds": ("N", "How long an upstream may take to resolve and connect."),
    "first_byte_seconds": ("N", "How long to the first byte of its answer."),
    "idle_seconds": ("N", "How long between two bytes of it."),
    "body_bytes_max": ("N", "The longest request body."),
    "drain_seconds": ("N", "How long calls in flight may take to end at the stop."),
    "engine": (
        "mitmproxy|http1|auto",
        "What speaks HTTP: all of it; HTTP/1.1 alone, faster; both.",
    ),
    "log_calls": ("refused|all", "Which calls have lines in the log."),
    "workers": ("N", "Engine processes that share the port, beside one that decides."),
    "trace": ("full|digest|none", "What is kept of requests and answers for people to read."),
    "trace_body_bytes_max": ("N", "How much of one body."),
    "trace_keep_days": ("N", "For how long."),
    "trace_keep_bytes": ("N", "How much of all calls."),
    "seals": ("FILE|URL|syslog", "Where copies of the record's seals go."),
    "notify": ("YAML", "Where alerts go, a list as in pullcord.yaml."),
    "rollback": ("COMMAND", "What `incident recover` runs before it resumes."),
}


def _setting_options(command: Command) -> Command:
    for name, (metavar, text) in reversed(FLAGS.items()):
        flag = "--" + name.replace("_", "-")
        command = click.option(flag, name, metavar=metavar, help=text)(command)
    return command


@click.command(short_help="Start the proxy; it stops with Ctrl-C or SIGTERM.")
@config_option
@_setting_options
def up(config: str | None, **flags: str | None) -> None:
    """Start the proxy. A flag wins over its PULLCORD_ variable, that over pullcord.yaml."""
    directory = config_directory(config)

    from proxy.settings import load

    settings = load(directory, flags, os.environ)
    _warn_of_keys(settings.data)
    _warn_of_places(settings.seals)
    if settings.workers > 1:
        from proxy.supervisor import run
    else:
        from proxy.serve import run
    raise click.exceptions.Exit(run(settings))


def _warn_of_keys(data: Path) -> None:
    """A ledger that was put back without its keys starts, with new ones; somebody has to know."""
    if not (data / DATABASE).exists() or (data / VAULT_KEY_FILE).exists():
        return

    from ledger.connection import is_ledger

    if is_ledger(data):
        warn(
            f"THE KEYS ARE MISSING: a ledger is in {data}, but no {VAULT_KEY_FILE}. New keys are "
            "made now: kept answers cannot be opened any more, and `pullcord ledger verify` finds "
            "the seals wrong. If you have put back a backup, stop, and put the folder private/ "
            "that was beside it here, too, in place of the new one"
        )


def _warn_of_places(seals: tuple[str, ...]) -> None:
    """At once: the first copy is made a minute later, and nobody looks then."""
    for place in seals:
        folder = Path(place).parent
        if place.startswith("/") and not folder.is_dir():
            warn(f"seals: there is no directory {folder}, so no seal is copied to {place}; make it")


@click.command(short_help="Watch a runaway agent being contained, in half a minute.")
@click.option("--fast", is_flag=True, help="Without pauses.")
@click.option("--policy", metavar="FILE", help="In place of the demo's own policy.")
@click.option(
    "--scenario",
    type=click.Choice(("refund-loop", "reflection-spiral", "fan-out", "bad-release")),
    help="A whole incident, from the runaway to its regression test, command by command.",
)
def demo(fast: bool, policy: str | None, scenario: str | None) -> None:
    """A real proxy, made-up services and a runaway agent, contained before your eyes.

    It checks its own figures: exit 1 when one is not as it must be.
    """
    if scenario is not None:
        from proxy.demo import rehearsal

        if policy:
            raise click.UsageError("a scenario has a policy of its own")
        raise click.exceptions.Exit(rehearsal.run(scenario))

    from policies.load import load_file
    from proxy.demo import main

    text = load_file(Path(policy)).text if policy else None
    raise click.exceptions.Exit(main.run(fast, text))
