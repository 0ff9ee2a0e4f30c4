"""The entry: which commands there are, and which error ends with which exit code.

What a command needs is imported when it runs: `pullcord status` must feel instant.
"""

from typing import Any

import click

from proxy.cli import (
    agents,
    alerts,
    budget,
    cords,
    drill,
    holds,
    incident_acts,
    incident_compensate,
    incident_export_test,
    incident_notify,
    incident_recover,
    incident_report,
    incident_scope,
    incidents,
    records,
    replaying,
    rules,
    runbook,
    serving,
    signals,
    status,
    tokens,
    trust,
)
from proxy.cli.terminal import Failure

OK, UNUSABLE, NOT_FOUND, UNREACHABLE = 0, 2, 4, 5

# Errors by full name, because to import them all would take longer than most commands.
EXIT_CODES = {
    "ledger.errors.LedgerError": UNUSABLE,
    "policies.document.MistakenFileError": UNUSABLE,
    "proxy.authority.AuthorityError": UNUSABLE,
    "proxy.control_client.PortUnreachable": UNREACHABLE,
    "proxy.control_client.Refused": UNUSABLE,
    "proxy.control_client.Unreachable": UNREACHABLE,
    "proxy.control_socket.ControlError": UNUSABLE,
    "proxy.operations.NotFound": NOT_FOUND,
    "proxy.operations.OperationError": UNUSABLE,
    "proxy.listening.StartError": UNUSABLE,
    "proxy.settings.SettingsError": UNUSABLE,
}


def exit_code(error: Exception) -> int | None:
    """The exit code of an error of ours; None for one that is a bug."""
    if getattr(error, "status", None) == 404:
        return NOT_FOUND
    names = (f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    return next((EXIT_CODES[name] for name in names if name in EXIT_CODES), None)


class Commands(click.Group):
    """Ends with one clear sentence where an error says what went wrong."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)  # in the order in which a newcomer needs them

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            code = exit_code(error)
            if code is None:
                raise
            raise Failure(str(error), code) from error


def _print_version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from importlib.metadata import PackageNotFoundError, version

        try:
            click.echo(f"pullcord {version('pullcord')}")
        except PackageNotFoundError:
            click.echo("pullcord, not installed: run from its sources")
        ctx.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version)
def cli() -> None:
    """Stops a runaway agent at the network, proves that it stopped, keeps the evidence."""


for _command in (
    serving.up,
    serving.demo,
    agents.env,
    agents.run,
    status.status,
    signals.signals,
    *cords.COMMANDS,
    drill.drill,
    records.ledger,
    rules.policy,
    tokens.token,
    budget.budget,
    holds.hold,
    incidents.incident,
    runbook.runbook,
    replaying.replay,
    alerts.notify,
    trust.ca,
):
    cli.add_command(_command)

for _command in (
    *incident_acts.COMMANDS,
    incident_scope.scope,
    incident_compensate.compensate,
    incident_notify.notify,
    incident_recover.recover,
    incident_report.report,
    incident_export_test.export_test,
):
    incidents.incident.add_command(_command)


def main() -> None:
    """The `pullcord` command."""
    cli(prog_name="pullcord")
