"""The store's acts on incidents: what a person says of them. None of them pulls or lifts a cord."""

import re
from dataclasses import replace

from ledger import incidents, open_incidents
from ledger.batch import Batch
from ledger.errors import LedgerError
from ledger.keeping import Keeping
from ledger.open_incidents import OPEN, Incident, Key, Standing
from ledger.redact import check_storable, redact
from ledger.states import EventType
from policies.detectors.step import Severity
from policies.verdict import Scope

SINCE_SECONDS = 3_600
"""Calls of so long before belong to an incident that a person opens, unless told since when."""
PUBLIC = "public"
"""The rule of a note that those who are affected may read."""

_DIGEST = re.compile(r"[0-9a-f]{16,128}")


class IncidentActs(Keeping):
    """Every act is a transaction of its own, or part of the one around it. All take a named person,
    and give None where there is no such incident."""

    def incident(self, incident_id: str) -> Incident | None:
        """As it is now, by its whole id."""
        with self._joined():
            return open_incidents.by_id(self._conn, incident_id)

    def open_incident(
        self,
        kind: Scope,
        name: str,
        tenant: str,
        since_us: int | None,
        reason: str,
        actor: str,
        at_us: int,
        *,
        severity: Severity | None = None,
    ) -> tuple[Incident, bool]:
        """The incident over this, and whether it is a new one. To one that is open the reason is a
        note; an alert becomes a trip where `severity` says so, else it stays as it is.

        `name` of a run is that of its root (incident_reads.subject). Calls since `since_us` (UTC
        microseconds) belong to it, None: of the hour before. A new one is a trip unless `severity`
        says otherwise. Raises LedgerError.
        """
        _check("an incident is opened by a named person with a reason", reason, actor, name)
        check_storable(tenant)
        since_us = at_us - SINCE_SECONDS * 1_000_000 if since_us is None else since_us
        if since_us > at_us:
            raise LedgerError("an incident cannot begin in the future")
        key = Key(kind.value, "" if kind is Scope.RELEASE else tenant, name)
        with self._joined() as batch:
            standing = open_incidents.open_of(self._conn, key)
            if standing is not None:
                return _opened_again(batch, standing, severity, reason, actor, at_us), False
            made = _made(key, redact(reason, batch.key), since_us, actor, at_us)
            made = replace(made, severity=(severity or Severity.TRIP).value)
            batch.incidents.keep(key, Standing(made))
            detail = f"{incidents.about_words(made)}: {made.why}"
            _tell(batch, made, EventType.INCIDENT_OPENED, actor, detail, at_us)
            return made, True

    def ack_incident(
        self, incident_id: str, *, owner: str = "", actor: str, at_us: int
    ) -> tuple[Incident, Incident] | None:
        """It is seen, and `owner` (or else who says so) takes care of it: no channel is told of it
        again until it gets worse. As it was, and as it is. Raises LedgerError for a closed one."""
        _check("an incident is acknowledged by a named person", actor)
        owner = owner.strip() or actor
        check_storable(owner)
        with self._joined() as batch:
            found = open_incidents.by_id(self._conn, incident_id)
            if found is None:
                return None
            if found.state != OPEN:
                raise LedgerError(f"{found.closed_by} has closed it; there is nothing to see to")
            seen_us = found.acked_us
            is_news = seen_us is None or (found.raised_us or 0) > seen_us
            if not is_news and (found.owner, found.acked_by) == (owner, actor):
                return found, found
            # What was raised in the same moment is what was seen.
            acked = replace(
                found, owner=owner, acked_us=max(at_us, found.told_since_us), acked_by=actor
            )
            was = f", before {found.owner}" if found.owner not in ("", owner) else ""
            _tell(batch, acked, EventType.INCIDENT_ACKED, actor, f"owner {owner}{was}", at_us)
            return found, acked

    def note_incident(
        self, incident_id: str, text: str, *, public: bool = False, actor: str, at_us: int
    ) -> Incident | None:
        """What somebody wants remembered, of a closed one too; a public note is for those who are
        affected."""
        _check("a note is a named person's, and says something", text, actor)
        rule = PUBLIC if public else ""
        return self._told_of(incident_id, EventType.INCIDENT_NOTED, actor, text, at_us, rule)

    def step_incident(
        self, incident_id: str, step: str, text: str, *, actor: str, at_us: int
    ) -> Incident | None:
        """A step of the runbook that was done; `text` is what came of it."""
        _check("a step is done by a named person, and has a name", step, actor)
        check_storable(text)
        return self._told_of(incident_id, EventType.INCIDENT_STEP, actor, text, at_us, step)

    def notified_incident(
        self,
        incident_id: str,
        *,
        tenant: str,
        contact: str,
        digest: str,
        to: str,
        actor: str,
        at_us: int,
    ) -> Incident | None:
        """A message to a tenant arrived; `digest` says which (proxy/tenant_notices.py)."""
        _check("a tenant is told by a named person", tenant, contact, actor)
        if not _DIGEST.fullmatch(digest):
            raise LedgerError("the digest of a message is hexadecimal: 16 to 128 digits")
        check_storable(to)
        with self._joined() as batch:
            found = open_incidents.by_id(self._conn, incident_id)
            if found is not None:
                batch.journal.noted(
                    EventType.INCIDENT_NOTIFIED,
                    at_us=at_us,
                    actor=actor,
                    detail=f"{digest} to {redact(to, batch.key)}",
                    tenant=tenant,
                    rule=contact,
                    incident=found.id,
                )
                batch.must_last = True
            return found

    def prove_incident(
        self, incident_id: str, digest: str, where: str, *, actor: str, at_us: int
    ) -> Incident | None:
        """Its regression test fails without its mend and passes with it: the digest of that test
        (hexadecimal), and where it lies. Raises LedgerError."""
        _check("a regression test is proven by a named person", actor, where)
        if not _DIGEST.fullmatch(digest):
            raise LedgerError("the digest of a regression test is hexadecimal: 16 to 128 digits")
        with self._joined() as batch:
            found = open_incidents.by_id(self._conn, incident_id)
            if found is None:
                return None
            proven = replace(found, proof=digest)
            kind, detail = EventType.INCIDENT_PROVEN, redact(where, batch.key)
            _tell(batch, proven, kind, actor, detail, at_us, digest)
            return proven

    def close_incident(
        self, incident_id: str, *, reason: str, waived: str = "", actor: str, at_us: int
    ) -> Incident | None:
        """A named person says that it is over. Cords stay as they are. `waived` is why it is closed
        without a regression test that is proven. Raises LedgerError when it is closed already, or
        has neither."""
        _check("an incident is closed by a named person with a reason", reason, actor)
        check_storable(incident_id, waived)
        with self._joined() as batch:
            found = open_incidents.by_id(self._conn, incident_id)
            if found is None:
                return None
            if found.state != OPEN:
                raise LedgerError(f"{found.closed_by} has closed it: {found.closed_because}")
            if wants_proof(found) and not waived.strip():
                raise LedgerError(
                    "nothing shows yet that it cannot come again: "
                    f"pullcord incident export-test {found.id} --out DIR --prove; "
                    "or say why it is closed without: --waive REASON"
                )
            waived = "" if found.proof else waived
            return incidents.close(batch, found, actor, reason, at_us, waived)

    def _told_of(
        self, incident_id: str, kind: EventType, actor: str, text: str, at_us: int, rule: str
    ) -> Incident | None:
        with self._joined() as batch:
            found = open_incidents.by_id(self._conn, incident_id)
            if found is not None:
                _tell(batch, found, kind, actor, redact(text, batch.key), at_us, rule)
            return found


def _check(wanted: str, *words: str) -> None:
    if not all(word.strip() for word in words):
        raise LedgerError(wanted)
    check_storable(*words)


def wants_proof(incident: Incident) -> bool:
    """Whether it is closed only with a proven regression test, or a reason why there is none. Of
    what only alerted and stopped nothing there is nothing to prevent."""
    is_harmless = incident.severity == Severity.ALERT and not incident.rule
    return not (incident.proof or is_harmless)


def _opened_again(
    batch: Batch,
    standing: Incident,
    severity: Severity | None,
    reason: str,
    actor: str,
    at_us: int,
) -> Incident:
    said, after = redact(reason, batch.key), standing
    if severity is Severity.TRIP and standing.severity != Severity.TRIP:
        raised_us = max(at_us, standing.told_since_us + 1, (standing.acked_us or 0) + 1)
        after = replace(standing, severity=Severity.TRIP.value, raised_us=raised_us)
        said = f"a trip from now on: {said}"
    _tell(batch, after, EventType.INCIDENT_NOTED, actor, said, at_us)
    return after


def _made(key: Key, why: str, since_us: int, actor: str, at_us: int) -> Incident:
    def named(kind: Scope) -> str:
        return key.name if key.kind == kind else ""

    return Incident(
        id=open_incidents.new_id(at_us),
        kind=key.kind,
        name=key.name,
        tenant=key.tenant,
        state=OPEN,
        severity=Severity.TRIP.value,
        detector="",
        why=why,
        rule="",
        run=named(Scope.RUN),
        root=named(Scope.RUN),
        tool=named(Scope.TOOL),
        release=named(Scope.RELEASE),
        agent="",
        findings=0,
        evidence=(),
        opened_us=at_us,
        updated_us=at_us,
        opened_by=actor,
        since_us=since_us,
    )


def _tell(
    batch: Batch,
    incident: Incident,
    kind: EventType,
    actor: str,
    detail: str,
    at_us: int,
    rule: str = "",
) -> None:
    """The incident as it is now, with a row of the record."""
    open_incidents.write(batch.conn, incident)
    batch.incidents.changed(incident)
    batch.journal.noted(
        kind,
        at_us=at_us,
        actor=actor,
        detail=detail,
        run=incident.run,
        tenant=incident.tenant,
        tool=incident.tool,
        release=incident.release,
        rule=rule,
        incident=incident.id,
    )
    batch.must_last = True
