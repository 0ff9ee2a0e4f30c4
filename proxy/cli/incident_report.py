"""`incident report`: all that is known of an incident, as one file that can be sent around."""

import sys
from pathlib import Path
from typing import Any

import click

from proxy.cli.incident_scope import policy_at_hand
from proxy.cli.incidents import id_argument
from proxy.cli.places import config_option, data_directory, data_option
from proxy.cli.reading import reader
from proxy.cli.terminal import escaped, say, say_json

Told = dict[str, Any]


@click.command()
@id_argument
@click.option("--html", is_flag=True, help="One page that needs nothing else.")
@click.option("--md", is_flag=True, help="Markdown; so if left out.")
@click.option("--json", "as_json", is_flag=True, help="The facts of it, as one JSON object.")
@click.option("--output", metavar="FILE", help="A new file, readable by you alone; else stdout.")
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@config_option
@data_option
def report(
    incident_id: str,
    html: bool,
    md: bool,
    as_json: bool,
    output: str | None,
    force: bool,
    config: str | None,
    data: str | None,
) -> None:
    """Write down what happened: times, trigger, scope, chart, timeline, what the model was asked
    and answered, what was undone, what is left to do.

    It reads the ledger, whether a proxy runs or not, and says under each sentence what to type to
    see what it stands on. Secrets are masked. ID may be the start of one.
    """
    form = _form(html=html, md=md, json=as_json)
    if output is None and force:
        raise click.UsageError("--force is for --output FILE")
    if output is None and form == "html" and sys.stdout.isatty():
        raise click.UsageError("HTML is no text for a terminal: --output FILE")
    facts = _facts(incident_id, config, data)
    if form == "json" and output is None:
        say_json(facts)
        return
    text = _text(facts, form)
    if output is None:
        click.echo(text, nl=False)
        return
    _write(text, Path(output).absolute(), force=force)
    say(f"wrote the report of {facts['incident']['id']} to {escaped(output)}", err=True)
    say(f"what is left to do: pullcord runbook {facts['incident']['id']}", err=True)


def _form(**given: bool) -> str:
    forms = [form for form, is_given in given.items() if is_given]
    if len(forms) > 1:
        several = " and ".join(f"--{form}" for form in forms)
        raise click.UsageError(f"{several} were given; ask for one at a time")
    return forms[0] if forms else "md"


def _facts(incident_id: str, config: str | None, data: str | None) -> Told:
    from proxy import reporting, traces
    from proxy.clock import SystemClock
    from proxy.incidents import named

    directory, policy = data_directory(data, config), policy_at_hand(None, config)
    with reader(directory) as connection, traces.opened(connection, directory) as opened:
        incident = named(connection, incident_id)
        return reporting.report(connection, opened, incident, policy, SystemClock().now_us())


def _text(facts: Told, form: str) -> str:
    from proxy.report_sentences import ROOMS, document

    if form == "html":
        from proxy.report_html import fitting

        return fitting(lambda size: document(facts, ROOMS[size]), len(ROOMS))
    if form == "md":
        from proxy.report_markdown import markdown

        return markdown(document(facts))
    import json

    return json.dumps(facts, ensure_ascii=False, indent=2) + "\n"


def _write(text: str, path: Path, *, force: bool) -> None:
    from ledger.whole_file import new_file

    with new_file(path, force=force) as unfinished:
        unfinished.write_text(text, "utf-8", "backslashreplace", "\n")
