"""What each kind of channel is sent is what its API documents, and hostile text in it is inert."""

import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import pytest

from ledger.deliveries import Due, Event, Incident
from proxy.channels import Alertmanager, PagerDuty, Slack, Target, Webhook
from proxy.notices import (
    LASTING_SECONDS,
    SUMMARY_CHARACTERS_MAX,
    lines,
    message,
    messages,
    signature,
    standing,
    summary,
    trial,
)
from proxy.sending import Message

US = 1_800_000_000_000_000
ID = "01990000-0000-7000-8000-000000000001"
ONE = Incident(
    id=ID,
    severity="trip",
    kind="run",
    name="r1",
    tenant="acme",
    run="r1",
    tool="stripe.charges.create",
    release="2026-11-20.3",
    agent="biller",
    detector="loop",
    why="the same call 12 times, and nothing new",
    cord="halt:run:r1",
    opened_us=US,
    raised_us=US + 2_000_000,
    closed_us=None,
    calls=("c1", "c2"),
)
NOW_US = US + 5_000_000
TRIP = Due(ONE, Event.TRIP, writes=12)
ALERT = Due(replace(ONE, severity="alert", cord="", raised_us=None), Event.ALERT)
ACKED = Due(replace(ONE, acked_us=US + 4_000_000, owner="ann"), Event.ACKED)
CLOSED = Due(replace(ONE, closed_us=US + 60_000_000), Event.CLOSED, frozenset({"alert", "trip"}))

HOOK = Target(
    Webhook(kind="webhook", url="http://h.example/", secret="s"), "http://h.example/", "k"
)
CHAT = Target(Slack(kind="slack", url="chat"), "http://s.example/x")
PAGER = Target(PagerDuty(kind="pagerduty", key="p"), "http://p.example/", "R0UT1NG")
ALERTS = Target(Alertmanager(kind="alertmanager", url="http://a.example"), "http://a.example/")

HOSTILE = (
    "<!here> <@U1> @channel *x* & http://evil.example/ \x1b[31m \u202eabc\u2066 \r\n{}\"' \ud800"
)


def body(target: Target, due: Due) -> Any:
    return json.loads(message(target, due, NOW_US).body)


def headers(made: Message) -> dict[str, str]:
    return dict(made.headers)


# Words


@pytest.mark.parametrize(
    "due, told",
    [
        (
            TRIP,
            "run r1 of tenant acme: the same call 12 times, and nothing new (loop); "
            "run r1 is halted",
        ),
        (
            ALERT,
            "run r1 of tenant acme: the same call 12 times, and nothing new (loop); "
            "nothing is stopped",
        ),
        (CLOSED, "Closed: the incident with run r1 of tenant acme"),
        (
            Due(replace(ONE, detector="", cord="", why="it pays twice"), Event.TRIP),
            "run r1 of tenant acme: it pays twice; nothing is stopped",  # as a person said
        ),
    ],
)
def test_one_sentence_says_what_happened(due: Due, told: str) -> None:
    assert summary(due) == told


@pytest.mark.parametrize(
    "cord, told",
    [
        ("freeze:tool:r1/pay", "writes of tool r1/pay are frozen"),
        ("throttle:run:r1", "run r1 is throttled"),
        ("halt:global:", "global is halted"),
    ],
)
def test_what_was_pulled_is_told_in_words(cord: str, told: str) -> None:
    assert summary(Due(replace(ONE, cord=cord), Event.TRIP)).endswith(f"; {told}")


# Webhook


def test_a_webhook_says_all_of_it() -> None:
    assert body(HOOK, TRIP) == {
        "version": 1,
        "type": "incident.tripped",
        "incident": ID,
        "severity": "trip",
        "at": "2027-01-15T08:00:05.000Z",
        "summary": summary(TRIP),
        "next": f"pullcord incident show {ID}",
        "subject": {"kind": "run", "name": "r1"},
        "tenant": "acme",
        "run": "r1",
        "tool": "stripe.charges.create",
        "release": "2026-11-20.3",
        "agent": "biller",
        "detector": "loop",
        "why": "the same call 12 times, and nothing new",
        "pulled": "halt:run:r1",
        "writes": 12,
        "calls": ["c1", "c2"],
        "opened_at": "2027-01-15T08:00:00.000Z",
        "raised_at": "2027-01-15T08:00:02.000Z",
        "acked_at": None,
        "owner": None,
        "closed_at": None,
    }
    acked = body(HOOK, ACKED)
    assert (acked["type"], acked["owner"]) == ("incident.acknowledged", "ann")
    assert acked["summary"] == "ann sees to the incident with run r1 of tenant acme"
    assert acked["acked_at"] == "2027-01-15T08:00:04.000Z"
    assert body(HOOK, ALERT)["type"] == "incident.opened"
    assert "again at 2027" not in str(lines(TRIP))
    again = replace(TRIP, told=frozenset({Event.ALERT, Event.TRIP}))
    assert "since 2027-01-15T08:00:00.000Z, again at 2027-01-15T08:00:02.000Z" in lines(again)[0]
    closed = body(HOOK, CLOSED)
    assert (closed["type"], closed["closed_at"]) == ("incident.closed", "2027-01-15T08:01:00.000Z")


def test_a_webhook_is_signed_over_its_time_and_body() -> None:
    made = message(HOOK, TRIP, NOW_US)
    at, _, mark = headers(made)["Pullcord-Signature"].partition(",")
    assert at == f"t={NOW_US // 1_000_000}"
    signed = at.removeprefix("t=").encode() + b"." + made.body
    assert mark == "v1=" + hmac.new(b"k", signed, hashlib.sha256).hexdigest()
    assert signature("k", b"{}", 1) != signature("k", b"{}", 2)
    assert signature("k", b"{}", 1) != signature("l", b"{}", 1)
    assert signature("k", b"{}", 1) != signature("k", b"{ }", 1)


# Slack


def test_slack_gets_one_text() -> None:
    made = body(CHAT, TRIP)
    assert made == {
        "text": f"STOPPED {summary(TRIP)}\n"
        "tool stripe.charges.create, release 2026-11-20.3, agent biller, "
        "since 2027-01-15T08:00:00.000Z, 12 writes within the hour\n"
        f"Next: pullcord incident show {ID}",
        "mrkdwn": False,
        "unfurl_links": False,
    }
    assert body(CHAT, ALERT)["text"].startswith("ALERT run r1")
    observed = Due(replace(ONE, cord=""), Event.TRIP)
    assert body(CHAT, observed)["text"].startswith("TRIPPED run r1")
    assert "closed at 2027-01-15T08:01:00.000Z" in body(CHAT, CLOSED)["text"]


# PagerDuty


def test_pagerduty_gets_a_trigger_and_a_resolve_of_one_key() -> None:
    made = body(PAGER, TRIP)
    payload = made.pop("payload")
    assert made == {
        "routing_key": "R0UT1NG",
        "event_action": "trigger",
        "dedup_key": ID,
        "client": "pullcord",
    }
    assert payload["summary"] == summary(TRIP)
    assert payload["severity"] == "critical"
    assert payload["source"] == "pullcord"
    assert payload["timestamp"] == "2027-01-15T08:00:00.000Z"
    assert payload["component"] == "stripe.charges.create"
    assert payload["custom_details"]["next"] == f"pullcord incident show {ID}"
    assert body(PAGER, ALERT)["payload"]["severity"] == "warning"
    assert body(PAGER, CLOSED) == {
        "routing_key": "R0UT1NG",
        "event_action": "resolve",
        "dedup_key": ID,
    }


def test_what_gets_worse_after_an_acknowledgement_has_a_key_of_its_own() -> None:
    """PagerDuty tells nobody of what comes under a key that is acknowledged."""
    assert body(PAGER, ACKED) == {
        "routing_key": "R0UT1NG",
        "event_action": "acknowledge",
        "dedup_key": ID,
    }
    assert body(PAGER, replace(TRIP, acks=1))["dedup_key"] == f"{ID}-1"
    assert body(PAGER, replace(ACKED, acks=1))["dedup_key"] == f"{ID}-1"
    closed = messages(PAGER, replace(CLOSED, acks=2, threads=(0, 1)), NOW_US)
    told = [json.loads(one.body) for one in closed]
    assert [one["dedup_key"] for one in told] == [ID, f"{ID}-1"]
    assert {one["event_action"] for one in told} == {"resolve"}
    assert len(messages(HOOK, replace(CLOSED, acks=2, threads=(0, 1)), NOW_US)) == 1


# Alertmanager


def test_alertmanager_gets_labels_that_stay_and_an_end() -> None:
    (made,) = body(ALERTS, TRIP)
    assert made["labels"] == {
        "alertname": "PullcordIncident",
        "incident": ID,
        "severity": "critical",
        "subject": "run",
        "name": "r1",
        "tenant": "acme",
    }
    assert made["annotations"]["summary"] == summary(TRIP)
    assert made["annotations"]["next"] == f"pullcord incident show {ID}"
    assert made["startsAt"] == "2027-01-15T08:00:00.000Z"
    assert LASTING_SECONDS == 600
    assert made["endsAt"] == "2027-01-15T08:10:05.000Z"
    (standing_on,) = standing(ALERTS, [ONE], NOW_US + 1_000_000)
    again = json.loads(standing_on.body)
    assert again[0]["labels"] == made["labels"]
    assert again[0]["endsAt"] == "2027-01-15T08:10:06.000Z"


def test_alertmanager_hears_the_end_of_what_it_was_told() -> None:
    warning, critical = body(ALERTS, CLOSED)
    assert (warning["labels"]["severity"], critical["labels"]["severity"]) == (
        "warning",
        "critical",
    )
    assert warning["endsAt"] == critical["endsAt"] == "2027-01-15T08:01:00.000Z"
    assert len(body(ALERTS, replace(CLOSED, told=frozenset({"trip"})))) == 1


def test_an_empty_label_is_left_out() -> None:
    (made,) = body(ALERTS, Due(replace(ONE, tenant=""), Event.TRIP))
    assert "tenant" not in made["labels"]


# Text of the world


@pytest.mark.parametrize("target", [HOOK, CHAT, PAGER, ALERTS])
def test_hostile_text_is_inert_everywhere(target: Target) -> None:
    texts = ("name", "tenant", "run", "tool", "release", "agent", "why")
    words: dict[str, Any] = dict.fromkeys(texts, HOSTILE)
    hostile = replace(ONE, **words, calls=(HOSTILE,) * 50, cord=f"halt:run:{HOSTILE}")
    for event in (Event.TRIP, Event.ALERT):
        text = message(target, Due(hostile, event), NOW_US).body.decode()
        for mark in ("\x1b", "\u202e", "\u2066", "\ud800", "\\u001b", "\\u202e"):
            assert mark not in text
        json.loads(text)


def test_hostile_text_mentions_nobody_in_slack() -> None:
    hostile = replace(ONE, name=HOSTILE, why=HOSTILE)
    text = body(CHAT, Due(hostile, Event.TRIP))["text"]
    assert "&lt;!here&gt;" in text
    assert not {"<", ">"} & set(text)
    assert "@channel" not in text
    assert "@U1" not in text
    assert "://" not in text
    assert "& " not in text
    assert len(text.splitlines()) == 3


def test_long_text_is_cut() -> None:
    long = replace(ONE, name="n" * 10_000, why="w" * 100_000, tool="t" * 10_000, calls=("c",) * 999)
    for target in (HOOK, CHAT, PAGER, ALERTS):
        assert len(message(target, Due(long, Event.TRIP), NOW_US).body) < 6_000
    assert len(body(PAGER, Due(long, Event.TRIP))["payload"]["summary"]) <= SUMMARY_CHARACTERS_MAX


# A test


def test_a_trial_leaves_nothing_that_stands() -> None:
    trigger, resolve = (json.loads(made.body) for made in trial(PAGER, "pager", US))
    assert (trigger["event_action"], trigger["payload"]["severity"]) == ("trigger", "info")
    assert (resolve["event_action"], resolve["dedup_key"]) == ("resolve", trigger["dedup_key"])
    (firing,), (over,) = (json.loads(made.body) for made in trial(ALERTS, "am", US))
    assert firing["labels"]["alertname"] == "PullcordTest"
    assert firing["labels"] == over["labels"]
    assert over["endsAt"] < firing["endsAt"]
    (hook,) = trial(HOOK, "hook", US)
    assert json.loads(hook.body)["type"] == "test"
    (chat,) = trial(CHAT, "chat", US)
    assert json.loads(chat.body)["text"].startswith("Test of pullcord's alerts: somebody typed")
