"""Alertmanager's webhook: an alert that the policy lists pulls its cord, once.

An alert is known by its fingerprint and start: its repeats pull nothing, also after a person has
released the cord. That it is resolved lifts nothing. Which alert may pull what is the policy's
(policies/alerts.py).
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import structlog
from aiohttp import web
from pydantic import AwareDatetime, BaseModel, Field

from ledger.redact import redact
from ledger.states import EventType
from ledger.store import Store
from policies.alerts import cord_for
from policies.policy import Policy
from policies.verdict import Pull, Scope
from proxy import operations
from proxy.control_access import Role, Route, actor
from proxy.control_service import SERVICE, act, read

log = structlog.get_logger()

NOTIFICATION_BYTES_MAX = 1024 * 1024  # some hundred alerts with all their labels
REASON_CHARACTERS_MAX = 300
SUBJECT_CHARACTERS_MAX = 256

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_KEPT = {"pulled", "stood"}  # these alerts have a row of their own


class Alert(BaseModel):
    """One alert of a notification (Alertmanager, "webhook_config", version 4)."""

    status: Literal["firing", "resolved"]
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    starts_at: Annotated[AwareDatetime, Field(alias="startsAt")]
    fingerprint: Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")]

    @property
    def name(self) -> str:
        return _line(self.labels.get("alertname", ""), SUBJECT_CHARACTERS_MAX) or "no name"

    @property
    def start(self) -> str:
        """The same moment in the same words, whatever zone it was told in: microseconds."""
        return str((self.starts_at - _EPOCH) // (datetime.resolution))

    @property
    def reason(self) -> str:
        """The name, and the first line of words that somebody wrote about it."""
        told = self.annotations.get("summary") or self.annotations.get("description", "")
        line = _line(f"{self.name}: {told}" if told else self.name, REASON_CHARACTERS_MAX)
        return redact(line, secrets.token_bytes(32))


class Notification(BaseModel):
    version: Literal["4"]
    alerts: list[Alert]
    truncated: Annotated[int, Field(alias="truncatedAlerts", ge=0)] = 0


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of an alert. `why` tells where it pulled nothing of what it might have."""

    alert: Alert
    result: Literal["pulled", "stood", "repeated", "ignored", "resolved"]
    cord: Pull | None = None
    why: str = ""

    def as_json(self) -> dict[str, Any]:
        return {
            "fingerprint": self.alert.fingerprint,
            "alert": self.alert.name,
            "result": self.result,
            "rule": None if self.cord is None else self.cord.rule,
            "why": self.why or None,
        }


def take(
    store: Store, policy: Policy, alerts: list[Alert], *, operator: str, at_us: int
) -> list[Taken]:
    """What each alert does, done and recorded in the transaction around this."""
    who = f"alertmanager:{operator}"
    taken = [_taken(store, policy, alert, who, at_us) for alert in alerts]
    others: dict[str, int] = {}
    for each in taken:
        told = f"{each.alert.name} {each.result}" + (f" ({each.why})" if each.why else "")
        if each.result in _KEPT and each.cord is not None:
            subject = each.cord.names
            store.note(
                EventType.ALERTED,
                actor=who,
                at_us=at_us,
                detail=f"{told}: {each.cord.rule}",
                run=subject.get(Scope.RUN, ""),
                tenant=subject.get(Scope.TENANT, ""),
                tool=subject.get(Scope.TOOL, ""),
            )
        else:
            others[told] = others.get(told, 0) + 1
    if others:
        detail = "; ".join(told if n == 1 else f"{n} x {told}" for told, n in others.items())
        store.note(EventType.ALERTED, actor=who, at_us=at_us, detail=detail)
    return taken


def _taken(store: Store, policy: Policy, alert: Alert, who: str, at_us: int) -> Taken:
    cord = cord_for(policy.alerts, alert.labels)
    if alert.status == "resolved":
        return Taken(alert, "resolved")
    if cord is None:
        return Taken(alert, "ignored")
    pull = Pull(*cord, alert.reason, who, at_us)
    wrong = _mistake(policy, pull)
    if wrong:  # not noted as seen: once the policy or the label is mended, a repeat pulls
        return Taken(alert, "ignored", why=wrong)
    # Nothing in the pull can be refused any more, so that no alert is noted that did not pull.
    if not store.alert_is_new(alert.fingerprint, alert.start, at_us):
        return Taken(alert, "repeated", pull)
    standing, changed = operations.pull(store, policy, pull)
    return Taken(alert, "pulled" if changed else "stood", standing)


def _mistake(policy: Policy, pull: Pull) -> str:
    """Why there can be no such cord; empty when there can."""
    if len(pull.subject) > SUBJECT_CHARACTERS_MAX or not pull.subject.isprintable():
        return f"its label names no {pull.scope}"
    try:
        operations.check(policy, pull)
    except operations.OperationError as error:
        return str(error)
    return ""


def _line(text: str, characters_max: int) -> str:
    """One line of what can be shown."""
    text = text[: 4 * characters_max]
    plain = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(plain.split())[:characters_max]


async def _alertmanager(request: web.Request) -> web.Response:
    service = request.app[SERVICE]
    body = await read(request, Notification, NOTIFICATION_BYTES_MAX)
    policy, now_us = service.decider.policy, service.clock.now_us()
    operator = actor(request).removeprefix("operator:")
    taken = await act(
        service,
        lambda store: take(store, policy, body.alerts, operator=operator, at_us=now_us),
    )
    cut = 0
    if any(each.result in _KEPT for each in taken):
        cut = len((await service.fleet.sweep()).cut)
    counts: Mapping[str, int] = {
        result: sum(each.result == result for each in taken)
        for result in sorted({each.result for each in taken})
    }
    log.info("alerts.taken", operator=operator, cut=cut, truncated=body.truncated, **counts)
    answer = {"alerts": [each.as_json() for each in taken], "cut": cut}
    return web.json_response({**answer, "truncated": body.truncated})


ROUTES = (Route("POST", "/v1/alertmanager", _alertmanager, Role.PULL),)
