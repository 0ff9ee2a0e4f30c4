"""Alertmanager's webhook: which alert pulls what, once; what it answers and what is recorded."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from policies.load import load
from tests.proxy.controlled import POLICY, Controlled, controlled

START = "2026-11-22T10:00:00.123456789Z"


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        yield made


def alert(name: str = "AgentLoop", /, status: str = "firing", **more: Any) -> dict[str, Any]:
    """As Alertmanager 0.28 sends it, with what we do not read."""
    labels = {"alertname": name, "severity": "page", **more.pop("labels", {})}
    return {
        "status": status,
        "labels": labels,
        "annotations": {"summary": f"{name} is firing", "runbook_url": "https://wiki.example/r"},
        "startsAt": START,
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "https://prometheus.example/graph?g0.expr=up",
        "fingerprint": "c0ffee0123456789",
        **more,
    }


def notification(*alerts: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "version": "4",
        "groupKey": '{}:{alertname="AgentLoop"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": "pullcord",
        "groupLabels": {"alertname": "AgentLoop"},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "https://alertmanager.example",
        "alerts": list(alerts),
        **more,
    }


async def sent(running: Controlled, *alerts: dict[str, Any]) -> list[tuple[str, str | None]]:
    """What became of each alert, and why."""
    answer = await running.asked("POST", "/v1/alertmanager", **notification(*alerts))
    return [(each["result"], each["why"]) for each in answer["alerts"]]


def standing(running: Controlled) -> list[str]:
    return sorted(pull.rule for pull in running.service.decider.pulls.values())


LOOP = alert(labels={"run": "r17"})
HALT = {"level": "halt", "scope": "run", "subject": "r17"}


async def test_an_alert_that_the_policy_lists_pulls_its_cord_and_cuts(running: Controlled) -> None:
    secret = await running.enrolled("pull", "alertmanager")
    await running.called("r17")
    await running.called("r18")
    status, answer, _ = await running.at_port(
        "POST", "/v1/alertmanager", secret, body=notification(LOOP)
    )
    assert status == 200
    assert answer == {
        "alerts": [
            {
                "fingerprint": "c0ffee0123456789",
                "alert": "AgentLoop",
                "result": "pulled",
                "rule": "halt:run:r17",
                "why": None,
            }
        ],
        "cut": 1,
        "truncated": 0,
    }
    assert running.cut_calls == ["r17 halt:run:r17"]
    (pull,) = running.service.decider.pulls.values()
    assert pull.actor == "alertmanager:alertmanager"
    assert pull.reason == "AgentLoop: AgentLoop is firing"
    (row,) = running.rows("alert.received")
    assert (row["actor"], row["run"]) == ("alertmanager:alertmanager", "r17")
    assert row["detail"] == "AgentLoop pulled: halt:run:r17"


async def test_a_repeat_pulls_nothing_also_after_a_release(running: Controlled) -> None:
    assert await sent(running, LOOP) == [("pulled", None)]
    assert await sent(running, LOOP) == [("repeated", None)]
    await running.asked("POST", "/v1/release", **HALT, reason="mended")
    assert await sent(running, LOOP) == [("repeated", None)]
    assert standing(running) == []


async def test_a_restart_forgets_no_alert(tmp_path: Path) -> None:
    async with controlled(tmp_path) as running:
        await sent(running, LOOP)
        await running.asked("POST", "/v1/release", **HALT, reason="mended")
    async with controlled(tmp_path) as running:
        assert await sent(running, LOOP) == [("repeated", None)]


@pytest.mark.parametrize(
    "change", [{"startsAt": "2026-11-22T11:00:00Z"}, {"fingerprint": "0123456789abcdef"}], ids=str
)
async def test_another_start_or_fingerprint_is_another_alert(
    running: Controlled, change: dict[str, str]
) -> None:
    await sent(running, LOOP)
    await running.asked("POST", "/v1/release", **HALT, reason="mended")
    assert await sent(running, {**LOOP, **change}) == [("pulled", None)]


async def test_the_same_start_in_another_zone_is_the_same(running: Controlled) -> None:
    await sent(running, LOOP)
    there = {**LOOP, "startsAt": "2026-11-22T12:00:00.123456+02:00"}
    assert await sent(running, there) == [("repeated", None)]


async def test_repeats_at_the_same_moment_pull_once(running: Controlled) -> None:
    both = await asyncio.gather(*(sent(running, LOOP, LOOP) for _ in range(8)))
    results = [result for answer in both for result, _ in answer]
    assert sorted(results) == ["pulled"] + ["repeated"] * 15
    assert len(running.rows("cord.pulled")) == 1


async def test_a_cord_that_stands_already_stays_as_it_is(running: Controlled) -> None:
    await running.asked("POST", "/v1/pull", **HALT, reason="by hand")
    assert await sent(running, LOOP) == [("stood", None)]
    assert [pull.reason for pull in running.service.decider.pulls.values()] == ["by hand"]


async def test_what_is_resolved_lifts_nothing(running: Controlled) -> None:
    await sent(running, LOOP)
    assert await sent(running, {**LOOP, "status": "resolved"}) == [("resolved", None)]
    assert standing(running) == ["halt:run:r17"]
    assert running.rows("alert.received")[-1]["detail"] == "AgentLoop resolved"


async def test_an_alert_that_comes_in_resolved_pulls_later(running: Controlled) -> None:
    await sent(running, {**LOOP, "status": "resolved"})
    assert await sent(running, LOOP) == [("pulled", None)]


@pytest.mark.parametrize(
    "labels, why",
    [
        ({"alertname": "Other"}, None),
        ({"alertname": "AgentLoop"}, None),
        ({"alertname": "agentloop", "run": "r1"}, None),
        ({"run": "r1 r2"}, "'r1 r2' can be no run"),
        ({"run": "r" * 300}, "its label names no run"),
        ({"run": "r1\n"}, "its label names no run"),
        ({"run": "r1\u202e"}, "its label names no run"),
        ({"alertname": "BadTool", "tool": "mail.sent"}, "has no tool 'mail.sent'"),
        ({"alertname": "BadTool", "tool": "mail.*"}, "has no tool 'mail.*'"),
    ],
    ids=str,
)
async def test_what_can_pull_nothing_is_ignored_and_recorded(
    running: Controlled, labels: dict[str, str], why: str | None
) -> None:
    ((result, told),) = await sent(running, alert(labels=labels))
    assert result == "ignored"
    assert (told is None) == (why is None)
    assert why is None or why in str(told)
    assert standing(running) == []
    (row,) = running.rows("alert.received")
    assert "ignored" in row["detail"]


async def test_an_alert_that_could_not_pull_is_not_taken_for_a_repeat(running: Controlled) -> None:
    """The policy is mended while it still fires: then it counts."""
    firing = alert("New", labels={"run": "r1"})
    assert await sent(running, firing) == [("ignored", None)]
    running.service.decider.adopt(load(POLICY.replace("AgentLoop", "New"), "policy.yaml"))
    assert await sent(running, firing) == [("pulled", None)]


async def test_the_first_entry_that_matches_decides_for_each_alert(running: Controlled) -> None:
    results = await sent(
        running,
        LOOP,
        alert("BadTool", labels={"tool": "mail.send"}, fingerprint="b"),
        alert("Burning", fingerprint="c"),
        alert("Other", fingerprint="d"),
        alert("Other", fingerprint="e"),
    )
    assert [result for result, _ in results] == ["pulled"] * 3 + ["ignored"] * 2
    assert standing(running) == ["freeze:tool:mail.send", "halt:global", "halt:run:r17"]
    details = [row["detail"] for row in running.rows("alert.received")]
    assert details == [
        "AgentLoop pulled: halt:run:r17",
        "BadTool pulled: freeze:tool:mail.send",
        "Burning pulled: halt:global",
        "2 x Other ignored",
    ]


async def test_no_secret_and_no_control_character_of_an_alert_is_recorded(
    running: Controlled,
) -> None:
    secret = "sk_live_abcdefghijklmnop"
    told = {"summary": f"key {secret}\x1b[31m\nforged: line\u202e" + "x" * 5_000}
    await sent(running, {**LOOP, "annotations": told})
    (pull,) = running.service.decider.pulls.values()
    assert secret not in pull.reason
    assert "[redacted:" in pull.reason
    assert pull.reason.isprintable()
    assert len(pull.reason) <= 400


@pytest.mark.parametrize(
    "body, told",
    [
        ({}, "version: Field required"),
        (notification(LOOP, version="3"), "version: Input should be '4'"),
        (notification({**LOOP, "startsAt": "yesterday"}), "alerts.0.startsAt"),
        (notification({**LOOP, "startsAt": "2026-11-22T10:00:00"}), "alerts.0.startsAt"),
        (notification({**LOOP, "fingerprint": ""}), "alerts.0.fingerprint"),
        (notification({**LOOP, "fingerprint": "a b"}), "alerts.0.fingerprint"),
        (notification({**LOOP, "status": "suppressed"}), "alerts.0.status"),
        (notification({**LOOP, "labels": {"run": 17}}), "alerts.0.labels.run"),
    ],
    ids=str,
)
async def test_what_is_no_notification_is_told(
    running: Controlled, body: dict[str, Any], told: str
) -> None:
    secret = await running.enrolled("pull")
    status, answer, _ = await running.at_port("POST", "/v1/alertmanager", secret, body=body)
    assert status == 400
    assert told in answer["error"]
    assert standing(running) == []


async def test_a_notification_may_be_longer_than_other_bodies(running: Controlled) -> None:
    many = [alert("Other", fingerprint=f"f{number}") for number in range(500)]
    assert len(await sent(running, *many, LOOP)) == 501
    assert standing(running) == ["halt:run:r17"]
    assert len(running.rows("alert.received")) == 2


async def test_the_earliest_of_times_is_a_time(running: Controlled) -> None:
    early = {**LOOP, "startsAt": "0001-01-01T00:00:00+05:00"}
    assert await sent(running, early) == [("pulled", None)]


async def test_when_the_ledger_fails_alertmanager_is_told_to_come_again(
    running: Controlled,
) -> None:
    (running.data / "ledger.db").rename(running.data / "elsewhere.db")
    error = await running.refused("POST", "/v1/alertmanager", **notification(LOOP))
    assert error.status == 503
    (running.data / "elsewhere.db").rename(running.data / "ledger.db")
    async with asyncio.timeout(10):
        while (await sent(running, LOOP))[0][0] != "pulled":
            await asyncio.sleep(0.01)
