"""What each tenant that an incident touched is told of it: one message for each of its contacts.

Made from the record and from the words of operators; agents' own texts are in none of it. A tenant
is told of its own calls alone.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from ledger import incident_notices
from ledger.incident_scope import from_us
from ledger.incident_timeline import milestones
from ledger.open_incidents import Incident
from ledger.sqlite import sqlite3
from policies.ceilings import MICRO
from policies.policy import Policy
from proxy.contacts import PLACE, AnyContact, Contacts, EmailContact, FileContact
from proxy.incidents import as_json
from proxy.notices import plain
from proxy.operations import timestamp
from proxy.runbook import standing_over

TEXT_CHARACTERS_MAX = 500  # of what an operator says of the time

_COUNTS = ("runs", "calls", "done", "unknown", "undone")
_NOT_SAID = "not known yet; we will tell you"
_WHAT = {
    "open": "An automated agent that acts for you made calls that it should not have made. It is "
    "{contained}.",
    "closed": "An incident with an automated agent that acts for you is over.",
}


@dataclass(frozen=True, slots=True)
class Said:
    """What operators say; empty for what they do not know yet."""

    status: str = ""
    eta: str = ""
    next_update: str = ""


@dataclass(frozen=True, slots=True)
class TenantNotice:
    """One message. `digest` tells it from any other; `sent_at` is when just this was sent before,
    `updates` whether another one was."""

    incident: str
    tenant: str
    contact: AnyContact = field(repr=False)
    subject: str
    text: str
    digest: str
    sent_at: str | None = None
    updates: bool = False

    @property
    def title(self) -> str:
        return self.contact.title


def noticed(
    reader: sqlite3.Connection,
    incident: Incident,
    contacts: Contacts,
    policy: Policy | None,
    said: Said,
) -> tuple[list[TenantNotice], list[str]]:
    """The messages, and the tenants that nobody is named for. `policy` may have cords of its own.
    Raises LedgerUnavailable."""
    sent = incident_notices.sent(reader, incident.id)
    told = {(row["tenant"], row["rule"]): row for row in sent}  # the last of each
    common = _common(reader, incident, policy, said)
    found, nobody = [], []
    for own in incident_notices.touched(reader, incident):
        tenant = str(own["tenant"])
        named = contacts.of(tenant)
        if not named:
            nobody.append(tenant)
            continue
        places = {**common, **_own(own), "from": contacts.signed}
        text = _filled(contacts.message, places)
        subject = f"{'Closed: incident' if incident.closed_us else 'Incident'} {incident.id}"
        for contact in named:
            digest = _digest(incident.id, tenant, contact.title, text)
            last = told.get((tenant, contact.title))
            is_same = last is not None and last["digest"] == digest
            at = str(last["at"]) if last is not None and is_same else None
            found.append(
                TenantNotice(
                    *(incident.id, tenant, contact, subject, text, digest, at),
                    updates=last is not None and not is_same,
                )
            )
    return found, nobody


def as_told(notice: TenantNotice) -> dict[str, Any]:
    """As `--json` tells it."""
    return {
        "tenant": notice.tenant,
        "contact": notice.title,
        "kind": notice.contact.kind,
        "to": whereto(notice.contact),
        "digest": notice.digest,
        "sent_at": notice.sent_at,
        "is_update": notice.updates,
        "subject": notice.subject,
        "text": notice.text,
    }


def whereto(contact: AnyContact) -> str:
    """Where it goes, without what may be secret."""
    if isinstance(contact, EmailContact):
        return contact.to
    return contact.file if isinstance(contact, FileContact) else contact.title


def _common(
    reader: sqlite3.Connection, incident: Incident, policy: Policy | None, said: Said
) -> dict[str, str]:
    """What every tenant is told alike."""
    told = as_json(incident)
    contained = _contained(reader, incident, policy)
    public = incident_notices.public_notes(reader, incident.id)
    return {
        "incident": incident.id,
        "what": _WHAT[incident.state].format(contained=contained),
        "since": timestamp(from_us(incident)),
        "until": "now" if incident.closed_us is None else timestamp(incident.closed_us),
        "status": said.status or _status(told, contained),
        "eta": said.eta or _NOT_SAID,
        "next_update": said.next_update or _NOT_SAID,
        "updates": "\n".join(f"{note['at']}  {note['detail']}" for note in public),
    }


def _contained(reader: sqlite3.Connection, incident: Incident, policy: Policy | None) -> str:
    """It is stopped while a cord stands that stops all of it, and no longer."""
    if standing_over(reader, incident, policy):
        return "stopped"
    was = milestones(reader, incident).contained_us is not None
    return "not stopped any more" if was else "not stopped yet"


def _own(touched: Mapping[str, Any]) -> dict[str, str]:
    """Of this tenant's calls alone."""
    counts = {name: str(touched[name]) for name in ("tenant", *_COUNTS)}
    spend = Decimal(touched["cost_microusd"]) / MICRO
    writes = touched["done"] + touched["unknown"]
    return {**counts, "writes": str(writes), "spend_usd": f"{spend:.6f}"}


def _status(told: Mapping[str, Any], contained: str) -> str:
    if told["closed"]:
        return f"closed at {told['closed']}"
    return f"{contained}; we look at what it did"


def _filled(template: str, places: Mapping[str, str]) -> str:
    """Each line of it is plain text; what is filled in cannot add a place."""
    text = PLACE.sub(lambda found: places[found[1]], template)
    lines = [plain(line, TEXT_CHARACTERS_MAX) if line.strip() else "" for line in text.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _digest(*parts: str) -> str:
    return hashlib.sha256("\x00".join(parts).encode()).hexdigest()[:32]
