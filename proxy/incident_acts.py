"""What people do about incidents, as JSON: on a store in its transaction, whoever owns it. None of
it pulls or lifts a cord. How incidents are looked at is in incidents.py.
"""

import shlex
from dataclasses import dataclass
from typing import Any

from ledger import incident_reads, incident_scope, queries
from ledger.events import DETECTOR
from ledger.filters import moment, parse
from ledger.incident_acts import SINCE_SECONDS
from ledger.open_incidents import Incident
from ledger.sqlite import sqlite3
from ledger.store import Store
from policies.detectors.step import Severity
from policies.verdict import Scope
from proxy import operations
from proxy.incidents import as_json

Answer = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """An incident that a person wants opened: what it is about, as the record knows it, and what
    they should know of that."""

    kind: Scope
    name: str
    tenant: str
    since_us: int
    notes: tuple[str, ...]


def wanted(
    reader: sqlite3.Connection, kind: str, name: str, tenant: str, since: str | None, now_us: int
) -> Wanted:
    """What a person means by a name; `since` is a time, or how long ago: `2h`. `global` takes no
    name, and a time. Raises NotFound, OperationError, and LedgerError for no time and where several
    are meant."""
    scope = Scope(kind)
    if scope is Scope.GLOBAL and (name or tenant):
        raise operations.OperationError("an incident over everything takes no name")
    if scope is not Scope.GLOBAL and not name:
        raise operations.OperationError(f"name the {kind}")
    if scope is Scope.GLOBAL and since is None:
        raise operations.OperationError("say since when everything is in it: --since 10m")
    operations.check_name(f"the {kind}", name)
    operations.check_name("the tenant", tenant)
    since_us = now_us - SINCE_SECONDS * 1_000_000 if since is None else moment(since, now_us)
    if since_us > now_us:
        raise operations.OperationError(f"--since {since} is in the future")
    found = incident_reads.subject(reader, scope, name, tenant, since_us)
    who = f"{kind} {name}" if name else "anybody"
    if found is None:
        of = f" of tenant {tenant}" if tenant else ""
        raise operations.NotFound(f"the record has no call of {who}{of}")
    if found.last_us < since_us:
        last = operations.timestamp(found.last_us)
        raise operations.OperationError(
            f"the last call of {who} was made at {last}; say since when it goes wrong: "
            f"--since {operations.timestamp(found.last_us - SINCE_SECONDS * 1_000_000)}"
        )
    return Wanted(scope, found.key.name, found.key.tenant, since_us, _notes(found, name, since))


def _notes(found: incident_reads.Subject, name: str, since: str | None) -> tuple[str, ...]:
    if found.key.kind == Scope.GLOBAL:
        return (_OF_EVERYTHING,)
    notes = []
    if found.key.name != name:
        notes.append(f"run {name} was started below {found.key.name}: it is about that whole tree")
    if since is None:
        notes.append("calls of the hour before belong to it; --since says otherwise")
    return tuple(notes)


_OF_EVERYTHING = (
    "it is over every call since then, of healthy runs, too: incident compensate and incident "
    "export-test refuse it; for those open one over the run, tool, release or tenant that went "
    "wrong"
)


def opened(
    store: Store,
    asked: Wanted,
    *,
    reason: str,
    severity: str | None = None,
    actor: str,
    at_us: int,
) -> Answer:
    """Open one; `new` is False where it is open already: then the reason is a note. Raises
    OperationError."""
    _check("the reason", reason, "opening needs a reason that can be read: --reason TEXT")
    wanted = None if severity is None else Severity(severity)
    found, is_new = store.open_incident(
        *(asked.kind, asked.name, asked.tenant, asked.since_us, reason, actor, at_us),
        severity=wanted,
    )
    notes = list(asked.notes) if is_new else ["what you said is a note of it"]
    if not is_new and wanted is not None and wanted != found.severity:
        notes.append(f"it stays a {found.severity}: what was told is not taken back")
    return {**as_json(found), "new": is_new, "notes": notes}


def acked(store: Store, incident_id: str, *, owner: str, actor: str, at_us: int) -> Answer:
    """Somebody has seen it, and takes care of it; `was` is who did. Raises NotFound, and
    LedgerError for a closed one."""
    operations.check_name("the owner", owner)
    found = store.ack_incident(incident_id, owner=owner, actor=actor, at_us=at_us)
    if found is None:
        raise _unknown(incident_id)
    before, after = found
    return {**as_json(after), "was": before.owner or None, "changed": before != after}


def noted(
    store: Store, incident_id: str, text: str, *, public: bool, actor: str, at_us: int
) -> Answer:
    """Raises NotFound, OperationError."""
    _check("the note", text, "a note needs words that can be read")
    return _known(
        incident_id, store.note_incident(incident_id, text, public=public, actor=actor, at_us=at_us)
    )


def stepped(
    store: Store, incident_id: str, step: str, text: str, *, actor: str, at_us: int
) -> Answer:
    """Raises NotFound, OperationError."""
    operations.check_name("the step", step)
    _check("the step", step, "a step has a name")
    operations.check_text("what came of the step", text)
    return _known(
        incident_id, store.step_incident(incident_id, step, text, actor=actor, at_us=at_us)
    )


def proven(
    store: Store, incident_id: str, digest: str, where: str, *, actor: str, at_us: int
) -> Answer:
    """Raises NotFound, OperationError, and LedgerError for what is no digest."""
    operations.check_text("where the test lies", where)
    return _known(
        incident_id, store.prove_incident(incident_id, digest, where, actor=actor, at_us=at_us)
    )


def notified(
    store: Store,
    incident_id: str,
    tenant: str,
    contact: str,
    digest: str,
    to: str,
    *,
    actor: str,
    at_us: int,
) -> Answer:
    """A message to a tenant arrived. Raises NotFound, OperationError, and LedgerError."""
    for what, text in (("the tenant", tenant), ("the contact", contact), ("where it went", to)):
        operations.check_text(what, text)
    found = store.notified_incident(
        incident_id,
        tenant=tenant, contact=contact, digest=digest, to=to, actor=actor, at_us=at_us,
    )  # fmt: skip
    return _known(incident_id, found)


def closing(reader: sqlite3.Connection, incident: Incident) -> list[str]:
    """What whoever closes it should know. Raises LedgerUnavailable."""
    notes = []
    if incident.severity == Severity.TRIP and not incident_reads.cords_of(reader, incident):
        notes.append("nothing was ever pulled over it, so nothing shows that it was stopped")
    unknown = (*incident_scope.terms(incident), "effect:write", "state:unknown")
    count = sum(row["calls"] for row in queries.totals(reader, parse(unknown, 0)))
    if count:
        whether = "1 write of it is" if count == 1 else f"{count} writes of it are"
        notes.append(
            f"{whether} unknown, which nobody has looked after: "
            f"pullcord {shlex.join(['ledger', 'query', *unknown])}"
        )
    return notes


def closed(
    store: Store, incident_id: str, *, reason: str, waived: str = "", actor: str, at_us: int
) -> Answer:
    """Close one, by its whole id. Raises NotFound, OperationError, and LedgerError for one that is
    closed already, or that has neither a regression test nor a reason why not."""
    _check("the reason", reason, "closing needs a reason that can be read: --reason TEXT")
    if waived:
        _check("--waive", waived, "it is waived for a reason that can be read: --waive REASON")
    found = store.close_incident(
        incident_id, reason=reason, waived=waived, actor=actor, at_us=at_us
    )
    if found is None:
        raise _unknown(incident_id)
    about = {found.run, found.root, found.name} - {""}
    standing = [
        cord
        for cord in store.pulls.values()
        if cord.rule == found.rule
        or (cord.actor.startswith(DETECTOR) and not about.isdisjoint(cord.names.values()))
    ]
    return {**as_json(found), "pulled": [operations.pull_as_json(cord) for cord in standing]}


def _known(incident_id: str, found: Incident | None) -> Answer:
    if found is None:
        raise _unknown(incident_id)
    return as_json(found)


def _unknown(incident_id: str) -> operations.NotFound:
    return operations.NotFound(f"no incident {incident_id!r}")


def _check(what: str, text: str, wanted: str) -> None:
    operations.check_text(what, text)
    if not any(each.isprintable() and not each.isspace() for each in text):
        raise operations.OperationError(wanted)
