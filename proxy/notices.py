"""What each kind of channel is sent of an incident, in the form that its public API documents.

Every text in it may be an agent's: it is one line without controls and marks of direction, cut,
and nothing in it is markup. JSON is made by a library.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson

from ledger.deliveries import Due, Event, Incident
from proxy.channels import Alertmanager, PagerDuty, Slack, Target, Webhook
from proxy.sending import Message

NAME_CHARACTERS_MAX = 200
WHY_CHARACTERS_MAX = 500
SUMMARY_CHARACTERS_MAX = 1_024  # PagerDuty takes no longer one
CALLS_MAX = 20
LASTING_SECONDS = 600  # an alert ends by itself when pullcord is gone for so long

SIGNATURE = "Pullcord-Signature"
TEST = "test"
"""The id of the incident that `pullcord notify test` makes up."""

_TYPES = {
    Event.ALERT: "incident.opened",
    Event.TRIP: "incident.tripped",
    Event.ACKED: "incident.acknowledged",
    Event.CLOSED: "incident.closed",
}
_ENDS = {Event.CLOSED: "resolve", Event.ACKED: "acknowledge"}  # in PagerDuty's words
_AM_SEVERITY = {Event.ALERT: "warning", Event.TRIP: "critical"}


def plain(text: str, characters_max: int = NAME_CHARACTERS_MAX) -> str:
    """One line that holds only what can be printed."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= characters_max else line[: characters_max - 1] + "…"


def command(incident: Incident) -> str:
    """What to type next."""
    if incident.id == TEST:
        return "pullcord status"
    return f"pullcord incident show {incident.id}"


def summary(due: Due) -> str:
    """What happened, in one sentence."""
    one = due.incident
    of = f" of tenant {plain(one.tenant)}" if one.tenant and one.kind != "tenant" else ""
    what = f"{plain(one.kind)} {plain(one.name)}{of}"
    why = plain(one.why, WHY_CHARACTERS_MAX)
    if one.id == TEST:
        return f"Test of pullcord's alerts: {why}"
    if due.event is Event.CLOSED:
        return f"Closed: the incident with {what}"
    if due.event is Event.ACKED:
        return f"{plain(one.owner) or 'Somebody'} sees to the incident with {what}"
    done = _pulled(one.cord) if one.cord else "nothing is stopped"
    by = f" ({plain(one.detector)})" if one.detector else ""  # none where a person opened it
    return f"{what}: {why}{by}; {done}"


def _pulled(cord: str) -> str:
    """`halt:run:r1` as words."""
    level, _, rest = plain(cord).partition(":")
    scope, _, name = rest.partition(":")
    whose = f"{scope} {name}".rstrip()
    if level == "freeze":
        return f"writes of {whose} are frozen"
    return f"{whose} is {'throttled' if level == 'throttle' else 'halted'}"


def lines(due: Due) -> list[str]:
    """The rest of it, for people."""
    one = due.incident
    facts = [
        f"{word} {plain(text)}"
        for word, text in (
            ("run", one.run),
            ("tool", one.tool),
            ("release", one.release),
            ("agent", one.agent),
        )
        if text and text != one.name
    ]
    at_us = one.closed_us if due.event is Event.CLOSED else one.opened_us
    until = "closed at" if due.event is Event.CLOSED else "since"
    facts.append(f"{until} {moment(at_us or 0)}")
    if due.event in due.told:
        facts.append(f"again at {moment(due.since_us)}")
    if due.writes is not None:
        facts.append(f"{due.writes} {'write' if due.writes == 1 else 'writes'} within the hour")
    return [", ".join(facts), f"Next: {command(one)}"]


def moment(at_us: int) -> str:
    """RFC 3339, UTC, milliseconds."""
    text = datetime.fromtimestamp(at_us / 1e6, UTC).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


def messages(target: Target, due: Due, now_us: int) -> list[Message]:
    """What to send to a channel of any kind, in this order."""
    if isinstance(target.channel, PagerDuty) and due.event is Event.CLOSED:
        return [message(target, replace(due, acks=each), now_us) for each in due.threads]
    return [message(target, due, now_us)]


def message(target: Target, due: Due, now_us: int) -> Message:
    """One of them."""
    headers = target.headers
    channel = target.channel
    body: Any
    if isinstance(channel, Slack):
        body = _slack(due)
    elif isinstance(channel, PagerDuty):
        body = _pagerduty(target.key, due)
    elif isinstance(channel, Alertmanager):
        body = _alerts(due, now_us)
    else:
        body = _webhook(due, now_us)
    text = orjson.dumps(body)
    if isinstance(channel, Webhook):
        headers = (*headers, (SIGNATURE, signature(target.key, text, now_us // 1_000_000)))
    return Message(target.url, text, headers, target.secrets)


def signature(secret: str, body: bytes, at_seconds: int) -> str:
    """`t=SECONDS,v1=HEX`: HMAC-SHA256 by the secret over `SECONDS.BODY`."""
    signed = b"%d.%s" % (at_seconds, body)
    return f"t={at_seconds},v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"


# ---------------------------------------------------------------------------------- the kinds


def _webhook(due: Due, now_us: int) -> dict[str, Any]:
    one = due.incident
    return {
        "version": 1,
        "type": "test" if one.id == TEST else _TYPES[due.event],
        "incident": one.id,
        "severity": one.severity,
        "at": moment(now_us),
        "summary": summary(due),
        "next": command(one),
        **_details(due),
        "opened_at": moment(one.opened_us),
        "raised_at": None if one.raised_us is None else moment(one.raised_us),
        "acked_at": None if one.acked_us is None else moment(one.acked_us),
        "owner": plain(one.owner) or None,
        "closed_at": None if one.closed_us is None else moment(one.closed_us),
    }


def _details(due: Due) -> dict[str, Any]:
    one = due.incident
    return {
        "subject": {"kind": plain(one.kind), "name": plain(one.name)},
        "tenant": plain(one.tenant),
        "run": plain(one.run),
        "tool": plain(one.tool),
        "release": plain(one.release),
        "agent": plain(one.agent),
        "detector": plain(one.detector),
        "why": plain(one.why, WHY_CHARACTERS_MAX),
        "pulled": plain(one.cord) or None,
        "writes": due.writes,
        "calls": [plain(call) for call in one.calls[-CALLS_MAX:]],
    }


def _slack(due: Due) -> dict[str, Any]:
    one = due.incident
    word = {Event.ALERT: "ALERT", Event.TRIP: "STOPPED" if one.cord else "TRIPPED"}
    first = summary(due)
    if due.event in word and one.id != TEST:
        first = f"{word[due.event]} {first}"
    text = "\n".join([first, *lines(due)])
    return {"text": slack_text(text), "mrkdwn": False, "unfurl_links": False}


def slack_text(text: str) -> str:
    """Nothing in it mentions anybody, or leads anywhere (api.slack.com, "Formatting text")."""
    for mark, inert in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;")):
        text = text.replace(mark, inert)
    return text.replace("@", "@\u200b").replace("://", ":\u200b//")


def _pagerduty(key: str, due: Due) -> dict[str, Any]:
    """Events API v2. Of what is acknowledged nobody is told there until it is resolved, so that
    what gets worse afterwards has a key of its own."""
    one = due.incident
    name = f"pullcord-{one.id}" if one.id == TEST else one.id
    again = f"-{due.acks}" if due.acks else ""
    event: dict[str, Any] = {"routing_key": key, "dedup_key": f"{name}{again}"}
    if due.event in _ENDS:
        return {**event, "event_action": _ENDS[due.event]}
    severity = "critical" if due.event is Event.TRIP else "warning"
    return {
        **event,
        "event_action": "trigger",
        "client": "pullcord",
        "payload": {
            "summary": plain(summary(due), SUMMARY_CHARACTERS_MAX),
            "source": "pullcord",
            "severity": "info" if one.id == TEST else severity,
            "timestamp": moment(one.opened_us),
            "component": plain(one.tool) or plain(one.name),
            "group": plain(one.tenant),
            "class": plain(one.detector),
            "custom_details": {**_details(due), "next": command(one)},
        },
    }


def trial(target: Target, title: str, now_us: int) -> list[Message]:
    """A test, and its end, so that nothing stands after it."""
    why = "somebody typed pullcord notify test; nothing is wrong"
    one = Incident(
        *(TEST, "alert", "channel", title, "", "", "", "", "", "test", why, ""),
        *(now_us, None, None, ()),
    )
    found = [message(target, Due(one, Event.ALERT), now_us)]
    if isinstance(target.channel, PagerDuty | Alertmanager):
        over = replace(one, closed_us=now_us + 1_000)
        told = frozenset({Event.ALERT})
        found.append(message(target, Due(over, Event.CLOSED, told), now_us + 1_000))
    return found


def standing(target: Target, incidents: Sequence[Incident], now_us: int) -> list[Message]:
    """Alerts that stand on: Alertmanager resolves by itself what it does not hear of again."""
    body = [_alert(one, Event(one.severity), now_us) for one in incidents]
    return [Message(target.url, orjson.dumps(body), target.headers, target.secrets)]


def _alerts(due: Due, now_us: int) -> list[dict[str, Any]]:
    """API v2. Labels are what tells alerts apart, so one of another severity is another alert."""
    told = [event for event in _AM_SEVERITY if event in due.told]
    if due.event is Event.CLOSED:
        at_us = due.incident.closed_us or now_us
        return [_alert(due.incident, event, now_us, ends_us=at_us) for event in told]
    over = [
        _alert(due.incident, event, now_us, ends_us=now_us) for event in told if event != due.event
    ]
    return [*over, _alert(due.incident, due.event, now_us)]


def _alert(
    one: Incident, event: Event, now_us: int, *, ends_us: int | None = None
) -> dict[str, Any]:
    due = Due(one, event)
    ends_us = now_us + LASTING_SECONDS * 1_000_000 if ends_us is None else ends_us
    labels = {
        "alertname": "PullcordTest" if one.id == TEST else "PullcordIncident",
        "incident": one.id,
        "severity": "info" if one.id == TEST else _AM_SEVERITY[event],
        "subject": plain(one.kind),
        "name": plain(one.name),
        "tenant": plain(one.tenant),
    }
    return {
        "labels": {name: text for name, text in labels.items() if text},
        "annotations": {
            "summary": summary(due),
            "description": "\n".join(lines(due)),
            "next": command(one),
        },
        "startsAt": moment(one.opened_us),
        "endsAt": moment(max(ends_us, one.opened_us + 1_000)),
    }
