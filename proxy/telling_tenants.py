"""Sends messages to tenants: from the command, not from the proxy, one after the other, so that a
proxy that is down or busy keeps nobody from being told.

A message that arrived is recorded at once. Where the command ends between the two, the next one
sends it again under the same id (`digest`), by which who receives it can tell.
"""

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import orjson

from proxy.channels import Slack, Unready, Webhook, target
from proxy.clock import Clock
from proxy.contacts import Contacts, EmailContact, FileContact, SlackContact, WebhookContact
from proxy.credentials import Credentials
from proxy.mailing import Mail, Unsent, send
from proxy.notices import SIGNATURE, signature, slack_text
from proxy.sending import Message, Sender
from proxy.tenant_notices import TenantNotice, whereto

DIRECTORY = "notices"  # of the data directory
_BEHIND = "\n----------------------------------------\n\n"


@dataclass(frozen=True, slots=True)
class Told:
    """What became of one message; `failure` is empty where it arrived."""

    notice: TenantNotice
    to: str
    failure: str


@dataclass(frozen=True, slots=True)
class Post:
    """What is needed to send. `trust` is the file of authorities; None for the system's."""

    data: Path
    contacts: Contacts
    known: Credentials
    trust: Path | None
    clock: Clock


async def tell(
    post: Post, notices: list[TenantNotice], arrived: Callable[[TenantNotice, str], None]
) -> list[Told]:
    """Each message once; `arrived` records it, with where it went."""
    sender = Sender(post.trust, post.clock.now_us)
    found = []
    try:
        for notice in notices:
            to, failure = await _told(post, sender, notice)
            if not failure:
                await asyncio.to_thread(arrived, notice, to)
            found.append(Told(notice, to, failure))
    finally:
        await sender.close()
    return found


async def _told(post: Post, sender: Sender, notice: TenantNotice) -> tuple[str, str]:
    contact = notice.contact
    try:
        if isinstance(contact, FileContact):
            return await asyncio.to_thread(_written, post.data, contact, notice)
        if isinstance(contact, EmailContact):
            await asyncio.to_thread(_mailed, post, contact, notice)
            return contact.to, ""
        ready = target(_channel(contact), post.known)
    except (Unready, Unsent, OSError) as error:
        return whereto(contact), getattr(error, "strerror", None) or str(error)
    body: dict[str, object] = {"text": slack_text(notice.text), "mrkdwn": False}
    headers: tuple[tuple[str, str], ...] = ()
    if isinstance(contact, WebhookContact):
        body = {
            "version": 1,
            "type": "incident.notice",
            "id": notice.digest,
            "incident": notice.incident,
            "tenant": notice.tenant,
            "subject": notice.subject,
            "text": notice.text,
        }
    text = orjson.dumps(body)
    if ready.key:
        signed = signature(ready.key, text, post.clock.now_us() // 1_000_000)
        headers = ((SIGNATURE, signed),)
    heard = await sender.post(Message(ready.url, text, headers, ready.secrets))
    return ready.host, "" if heard.is_sent else heard.said


def _channel(contact: WebhookContact | SlackContact) -> Webhook | Slack:
    if isinstance(contact, SlackContact):
        return Slack(kind="slack", url=contact.url)
    return Webhook(kind="webhook", url=contact.url, secret=contact.secret)


def _mailed(post: Post, contact: EmailContact, notice: TenantNotice) -> None:
    if post.contacts.smtp is None:
        raise Unsent("contacts.yaml has no `smtp:`")
    mail = Mail(contact.to, notice.subject, notice.text, notice.digest)
    send(post.contacts.smtp, mail, post.known, post.trust, post.clock.now_us())


def _written(data: Path, contact: FileContact, notice: TenantNotice) -> tuple[str, str]:
    """Behind what is there; a file of that name that is none of ours to write is left alone."""
    directory = data / DIRECTORY
    directory.mkdir(mode=0o700, exist_ok=True)
    path = directory / contact.file
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "a", encoding="utf-8") as file:
        file.write(f"{notice.subject}\n\n{notice.text}{_BEHIND}")
        file.flush()
        os.fsync(file.fileno())
    return str(path), ""
