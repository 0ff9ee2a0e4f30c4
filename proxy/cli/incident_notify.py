"""`incident notify`: the tenants that an incident touched are told of it."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from proxy.cli.acting import act
from proxy.cli.incident_scope import policy_at_hand
from proxy.cli.incidents import id_argument
from proxy.cli.places import config_directory, config_option, data_directory, data_option
from proxy.cli.reading import reader
from proxy.cli.terminal import Failure, escaped, loud, say, say_json, warn

if TYPE_CHECKING:
    from ledger.store import Store
    from proxy.contacts import Contacts
    from proxy.telling_tenants import Told
    from proxy.tenant_notices import TenantNotice

FAILED = 3
NOT_FOUND = 4

Answer = dict[str, Any]


@click.command()
@id_argument
@click.option(
    "--plan", "planned", is_flag=True, help="Show the messages and send none: the default."
)
@click.option("--send", "sends", is_flag=True, help="Send those that were not sent before.")
@click.option("--tenant", multiple=True, metavar="T", help="This tenant alone; may be repeated.")
@click.option("--status", default="", metavar="TEXT", help="How it stands, in your words.")
@click.option("--eta", default="", metavar="TEXT", help="When it will be solved.")
@click.option("--next", "next_", default="", metavar="TEXT", help="When they hear from you again.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each message.")
@config_option
@data_option
def notify(
    incident_id: str,
    planned: bool,
    sends: bool,
    tenant: tuple[str, ...],
    status: str,
    eta: str,
    next_: str,
    as_json: bool,
    config: str | None,
    data: str | None,
) -> None:
    """Tell each tenant that it touched what happened, what was affected, how it stands and when
    they hear more, as config/contacts.yaml says: by file, webhook, Slack or e-mail.

    A message is sent once; with other words (--status, a public note, other figures) it is another
    one. Exits with 3 where one did not arrive; type it again, and the rest is sent.
    """
    if planned and sends:
        raise Failure("either --plan or --send", 2)
    from proxy.incidents import named
    from proxy.tenant_notices import Said, as_told, noticed

    directory = data_directory(data, config)
    contacts = _contacts(config)
    policy = policy_at_hand(None, config)
    with reader(directory) as connection:
        incident = named(connection, incident_id)
        said = Said(*(_masked(directory, text) for text in (status, eta, next_)))
        notices, nobody = noticed(connection, incident, contacts, policy, said)
    touched = dict.fromkeys([*(one.tenant for one in notices), *nobody])
    if strange := [one for one in tenant if one not in touched]:
        there = escaped(", ".join(sorted(touched)) or "none")
        raise Failure(f"it touched no tenant {escaped(strange[0])}; it touched {there}", NOT_FOUND)
    if tenant:
        notices = [one for one in notices if one.tenant in tenant]
        nobody = [one for one in nobody if one in tenant]
    for one in nobody:
        warn(f"nobody is named for tenant {escaped(one)}: add it to contacts.yaml, or '*'")
    if sends:
        _send(directory, incident.id, contacts, notices, as_json)
        return
    for notice in notices:
        if as_json:
            say_json(as_told(notice))
        else:
            _say(notice)
    if not as_json:
        _say_next(incident.id, notices)


def _masked(data: Path, text: str) -> str:
    """What looks like a secret is told to no tenant, as in notes."""
    from ledger.redact import redact, redact_key
    from proxy.secret_keys import vault_key

    return redact(text, redact_key(vault_key(data))) if text else ""


def _contacts(config: str | None) -> "Contacts":
    from policies.document import MistakenFileError
    from proxy.contacts import FILE, load

    where = config_directory(config)
    try:
        found = load(where)
    except MistakenFileError as error:
        raise Failure(str(error), 2) from None
    if found is None:
        raise Failure(
            f"there is no {where / FILE}; write whom to tell there, such as:\n"
            'version: 1\ntenants: {"*": [{kind: file, file: all.txt}]}',
            2,
        )
    return found


def _send(
    data: Path, incident: str, contacts: "Contacts", notices: "list[TenantNotice]", as_json: bool
) -> None:
    from proxy.authority import UPSTREAM_FILE
    from proxy.clock import SystemClock
    from proxy.credentials import load_all
    from proxy.telling_tenants import Post, tell
    from proxy.tenant_notices import as_told

    trust = data / UPSTREAM_FILE
    post = Post(data, contacts, load_all(data), trust if trust.exists() else None, SystemClock())
    waiting = [one for one in notices if one.sent_at is None]

    def arrived(notice: "TenantNotice", to: str) -> None:
        _record(data, incident, notice, to)

    told = asyncio.run(tell(post, waiting, arrived))
    for one in told:
        if as_json:
            row = as_told(one.notice)
            say_json({**row, "arrived": not one.failure, "error": one.failure or None})
        else:
            _say_told(one)
    if not as_json:
        before = len(notices) - len(waiting)
        say(f"{sum(not one.failure for one in told)} sent, {before} were sent before")
    if any(one.failure for one in told):
        raise click.exceptions.Exit(FAILED)


def _record(data: Path, incident: str, notice: "TenantNotice", to: str) -> None:
    def directly(store: "Store", actor: str, at_us: int) -> Answer:
        from proxy.incident_acts import notified

        return notified(store, incident, *body.values(), actor=actor, at_us=at_us)

    body = {
        "tenant": notice.tenant,
        "contact": notice.title,
        "digest": notice.digest,
        "to": to,
    }
    act(data, "/v1/incidents/notified", {"incident": incident, **body}, directly)


def _say(notice: "TenantNotice") -> None:
    from proxy.tenant_notices import whereto

    to = f"{notice.contact.kind} {whereto(notice.contact)}"
    when = f"sent {notice.sent_at}" if notice.sent_at else "not sent yet"
    update = ", an update" if notice.updates else ""
    say(f"to tenant {escaped(notice.tenant)} by {escaped(to)}: {when}{update}")
    say(f"  {escaped(notice.subject)}")
    for line in notice.text.split("\n"):
        say(f"  {escaped(line)}" if line else "")


def _say_told(one: "Told") -> None:
    head = f"{escaped(one.notice.tenant)}  {one.notice.contact.kind}"
    if one.failure:
        say(f"{head}  {loud('FAILED')}  {escaped(one.failure)}")
    else:
        say(f"{head}  arrived at {escaped(one.to)}")


def _say_next(incident: str, notices: "list[TenantNotice]") -> None:
    waiting = sum(one.sent_at is None for one in notices)
    if waiting:
        say(f"send the {waiting} that wait: pullcord incident notify {incident} --send")
    elif notices:
        say(f'all were told; an update: pullcord incident note {incident} --public "..."')
    else:
        say("no tenant has a write that was made, or may have been")
