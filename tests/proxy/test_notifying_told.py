"""What stands is told to Alertmanager again, failures to `status`, and secrets to nobody."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest
import structlog

from ledger import deliveries
from ledger.connection import open_reader
from ledger.deliveries import TOGETHER_SECONDS
from ledger.store import Store
from proxy.channels import Alertmanager, AnyChannel, PagerDuty, Slack
from proxy.notices import LASTING_SECONDS
from proxy.notifying import STANDING_SECONDS, Notifying
from tests.ledger.made_incidents import an_incident, ended, tripped
from tests.proxy.alerting import KEY, SECRET, a_webhook, alerts, keep_secrets
from tests.proxy.controlled import NOW_US, Controlled, FakeClock, controlled
from tests.proxy.receiver import Receiver, receiving


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        yield made


# Alertmanager


async def test_alertmanager_hears_of_what_stands_before_it_resolves_by_itself(
    running: Controlled, receiver: Receiver
) -> None:
    assert LASTING_SECONDS > 2 * STANDING_SECONDS
    async with alerts(
        running, Alertmanager(kind="alertmanager", url=f"{receiver.url}/am/")
    ) as made:
        await made.made(an_incident, severity="trip")
        await made.look()
        await made.look(STANDING_SECONDS - 1)
        assert len(receiver.got) == 1
        receiver.answers = [500]
        await made.look(1)
        await made.look(1)
        first, failed, again = receiver.bodies
        assert [one.path for one in receiver.got] == ["/am/api/v2/alerts"] * 3
        assert first[0]["labels"] == again[0]["labels"] == failed[0]["labels"]
        assert first[0]["startsAt"] == again[0]["startsAt"]
        assert first[0]["endsAt"] < again[0]["endsAt"]
        await made.made(ended, at_us=running.clock.us)
        await made.look(1)
        (over,) = receiver.bodies[-1]
        assert over["labels"] == first[0]["labels"]
        assert over["endsAt"] < again[0]["endsAt"]
        await made.look(STANDING_SECONDS)
        assert len(receiver.got) == 4


async def test_a_raised_alert_takes_the_place_of_the_lesser_one(
    running: Controlled, receiver: Receiver
) -> None:
    async with alerts(running, Alertmanager(kind="alertmanager", url=receiver.url)) as made:
        await made.made(an_incident)
        await made.look(TOGETHER_SECONDS)
        await made.made(tripped)
        await made.look(1)
    (lesser,), (over, worse) = receiver.bodies
    assert over["labels"] == lesser["labels"]
    assert over["endsAt"] < lesser["endsAt"]
    assert (lesser["labels"]["severity"], worse["labels"]["severity"]) == ("warning", "critical")
    assert {each["labels"]["incident"] for each in (lesser, over, worse)} == {"i1"}


# Acknowledged


async def test_pagerduty_and_webhooks_hear_that_somebody_sees_to_it(
    running: Controlled, receiver: Receiver
) -> None:
    keep_secrets(running.data, chat=f"{receiver.url}/services/T0/B0/{SECRET}")
    channels = (
        a_webhook(receiver),
        Slack(kind="slack", url="chat"),
        PagerDuty(kind="pagerduty", key="pager", url=f"{receiver.url}/enqueue"),
        Alertmanager(kind="alertmanager", url=receiver.url),
    )

    def pages() -> list[tuple[str, str]]:
        found = [one.json for one in receiver.got if one.path == "/enqueue"]
        return [(one["event_action"], one["dedup_key"]) for one in found]

    async with alerts(running, *channels) as made:
        await made.made(an_incident, severity="trip")
        await made.look()

        def ack(store: Store) -> None:
            store.ack_incident("i1", owner="ann", actor="bob", at_us=running.clock.us)

        running.clock.us += 1
        await running.service.decider.act(ack)
        receiver.got.clear()
        receiver.answers = [500, 500]
        await made.look()
        await made.look(2)
        await made.look(60)
        assert {one.path for one in receiver.got} == {"/hook", "/enqueue"}
        assert pages() == [("acknowledge", "i1")] * 2
        (hook, _) = [one.json for one in receiver.got if one.path == "/hook"]
        assert (hook["type"], hook["owner"]) == ("incident.acknowledged", "ann")
        assert ("pagerduty", "acked", True, 2) in made.rows()
        receiver.got.clear()
        await made.made(tripped, at_us=running.clock.us)  # it got worse: another key
        await made.look()
        await made.look(10)
        assert pages() == [("trigger", "i1-1")]
        receiver.got.clear()
        await made.made(ended, at_us=running.clock.us)
        await made.look()
        assert pages() == [("resolve", "i1"), ("resolve", "i1-1")]


# Secrets


async def test_a_channel_whose_secret_is_missing_is_told_and_works_when_it_is_there(
    running: Controlled, receiver: Receiver
) -> None:
    async with alerts(running, a_webhook(receiver)) as made:
        (warning,) = made.notifying.warnings
        assert (
            "alerts do not go to webhook: its secret names no entry of credentials.yaml" in warning
        )
        await made.made(an_incident, severity="trip")
        await made.look()
        assert made.failing
        keep_secrets(running.data)
        await made.look()
        assert (made.failing, made.notifying.warnings, len(receiver.got)) == ({}, [], 1)


async def test_credentials_that_others_may_read_are_not_used(
    running: Controlled, receiver: Receiver
) -> None:
    keep_secrets(running.data)
    (running.data / "credentials.yaml").chmod(0o644)
    async with alerts(running, a_webhook(receiver)) as made:
        assert "chmod 600" in made.failing["webhook"]
        (running.data / "credentials.yaml").chmod(0o600)
        await made.look()
        assert made.failing == {}


@pytest.mark.parametrize("kind", ["webhook", "slack", "pagerduty"])
async def test_no_secret_is_told_anywhere(
    running: Controlled, receiver: Receiver, kind: str
) -> None:
    keep_secrets(running.data, chat=f"{receiver.url}/services/T0/B0/{KEY}")
    secret = SECRET if kind == "webhook" else KEY
    receiver.always = (400, f"what is {secret}, or {secret.upper()}?", {})
    channels: dict[str, AnyChannel] = {
        "webhook": a_webhook(receiver),
        "slack": Slack(kind="slack", url="chat"),
        "pagerduty": PagerDuty(kind="pagerduty", key="pager", url=f"{receiver.url}/enqueue"),
    }
    with structlog.testing.capture_logs() as lines:
        async with alerts(running, channels[kind]) as made:
            await made.made(an_incident, severity="trip")
            await made.look()
            told = json.dumps(made.notifying.as_json())
            assert made.rows() == [(kind, "trip", False, 1)]
            with closing(open_reader(running.data)) as reader:
                stored = repr(deliveries.told(reader, "i1"))
    said = f"{told} {stored} {lines!r} {made.notifying._states!r}"
    assert "what is [redacted], or [redacted]?" in told
    for each in (secret, secret.upper(), "/services/"):
        assert each not in said


def test_a_channel_in_the_clear_is_warned_of(tmp_path: Path) -> None:
    far = Alertmanager(kind="alertmanager", url="http://alertmanager.example:9093")
    near = Alertmanager(kind="alertmanager", url="http://127.0.0.1:9093", name="near")
    (warning,) = Notifying([far, near], tmp_path, None, FakeClock()).warnings
    assert "alertmanager cross the network in the clear" in warning


async def test_the_status_tells_since_when_a_channel_fails(
    running: Controlled, receiver: Receiver
) -> None:
    keep_secrets(running.data)
    receiver.always = 500
    async with alerts(running, a_webhook(receiver)) as made:
        running.service.notifying = made.notifying
        await made.made(an_incident, severity="trip")
        await made.look()
        await made.look(60)
        (told,) = (await running.asked("GET", "/v1/status"))["notify"]
        assert (await running.asked("GET", "/readyz"))["ready"]
    assert told["since"] == "2027-01-15T08:00:00.000Z"
    assert NOW_US == 1_800_000_000_000_000
    assert told["error"] == "127.0.0.1 answered 500: ok"
    assert (told["channel"], told["to"]) == ("webhook", "127.0.0.1")


async def test_what_is_missing_is_told_at_the_start(
    running: Controlled, receiver: Receiver
) -> None:
    with structlog.testing.capture_logs() as lines:
        async with alerts(running, a_webhook(receiver)) as made:
            going = asyncio.create_task(made.notifying.run(made.act))
            await asyncio.sleep(0)
            going.cancel()
    (line,) = lines
    assert line["event"] == "notify.unready"
    assert line["told"].startswith("alerts do not go to webhook: its secret names no entry")
