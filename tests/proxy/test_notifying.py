"""Alerts arrive at least once, at every channel, whatever it answers, and hold up nobody."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ledger import deliveries
from ledger.deliveries import GIVE_UP_SECONDS, TOGETHER_SECONDS
from ledger.errors import LedgerError
from ledger.store import Store
from proxy import notifying, sending
from proxy.channels import Alertmanager, PagerDuty, Slack, Webhook
from proxy.notifying import BACKOFF_SECONDS_MAX, IN_FLIGHT_MAX, LOOK_ALL_SECONDS
from tests.ledger.made_incidents import OPENED_US, an_incident, changed, ended, tripped
from tests.proxy.alerting import SECRET, Alerts, a_webhook, alerts, keep_secrets
from tests.proxy.controlled import Controlled, controlled
from tests.proxy.receiver import Receiver, receiving


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Controlled]:
    async with controlled(tmp_path) as made:
        yield made


@pytest.fixture
async def hooked(running: Controlled, receiver: Receiver) -> AsyncIterator[Alerts]:
    """One webhook, and an incident that tripped."""
    keep_secrets(running.data)
    async with alerts(running, a_webhook(receiver)) as made:
        await made.made(an_incident)
        await made.made(tripped)
        yield made


# Once for each incident and severity


async def test_every_kind_is_told_once_of_each_step(
    running: Controlled, receiver: Receiver
) -> None:
    keep_secrets(running.data, chat=f"{receiver.url}/services/T0/B0/{SECRET}")
    channels = (
        a_webhook(receiver),
        Slack(kind="slack", url="chat"),
        PagerDuty(kind="pagerduty", key="pager", url=f"{receiver.url}/enqueue"),
        Alertmanager(kind="alertmanager", url=receiver.url),
    )

    def steps() -> list[str]:
        found = sorted(one.path.split("/")[1] for one in receiver.got)
        receiver.got.clear()
        return found

    all_of_them = ["api", "enqueue", "hook", "services"]
    async with alerts(running, *channels) as made:
        await made.made(an_incident)
        await made.look(TOGETHER_SECONDS - 1)
        assert steps() == []
        await made.look(1)
        await made.look(1)
        assert steps() == all_of_them
        await made.made(tripped)
        await made.look(1)
        await made.look(1)
        assert steps() == all_of_them
        await made.made(ended, at_us=running.clock.us)
        await made.look(1)
        await made.look(1)
        assert steps() == all_of_them
    assert len(made.rows()) == 12
    assert {sent for _, _, sent, _ in made.rows()} == {True}


async def test_a_trip_right_behind_an_alert_makes_one_message(
    running: Controlled, receiver: Receiver
) -> None:
    keep_secrets(running.data)
    async with alerts(running, a_webhook(receiver)) as made:
        await made.made(an_incident)
        await made.look(1)
        await made.made(tripped)
        for _ in range(3):
            await made.look(TOGETHER_SECONDS)
    (one,) = receiver.bodies
    assert (one["type"], one["severity"]) == ("incident.tripped", "trip")


async def test_the_text_is_of_the_incident_as_it_is_when_it_is_sent(
    hooked: Alerts, receiver: Receiver
) -> None:
    receiver.answers = [500]
    await hooked.look()
    await hooked.made(changed, "i1", why="now 40 times")
    await hooked.look(1)
    assert [one["why"] for one in receiver.bodies][1] == "now 40 times"


async def test_a_trip_that_comes_again_is_told_again_under_the_same_key(
    running: Controlled, receiver: Receiver
) -> None:
    """It was told, somebody lifted the cord and left the incident open, and it was pulled again."""
    keep_secrets(running.data)
    channels = (
        PagerDuty(kind="pagerduty", key="pager", url=f"{receiver.url}/enqueue"),
        Alertmanager(kind="alertmanager", url=receiver.url),
    )
    async with alerts(running, *channels) as made:
        await made.made(an_incident)
        await made.made(tripped)
        await made.look()
        await made.look(3_600)
        receiver.got.clear()
        await made.made(tripped, at_us=running.clock.us)
        for _ in range(4):
            await made.look(5)
        bodies = {one.path: one.json for one in receiver.got}
    assert len(receiver.got) == len(bodies) == 2
    page, (alert,) = bodies["/enqueue"], bodies["/api/v2/alerts"]
    assert (page["dedup_key"], page["event_action"]) == ("i1", "trigger")
    assert alert["labels"]["incident"] == "i1"
    assert (
        made.rows()
        == [
            ("alertmanager", "trip", True, 1),
            ("pagerduty", "trip", True, 1),
        ]
        * 2
    )


async def test_what_a_look_at_what_is_new_misses_the_next_look_at_all_finds(
    hooked: Alerts, receiver: Receiver
) -> None:
    """A clock that was set back, or forward."""
    await hooked.look()
    await hooked.look(3_600)
    await hooked.made(an_incident, "i2", severity="trip", opened_us=OPENED_US)
    await hooked.look(LOOK_ALL_SECONDS - 1)
    assert hooked.rows("i2") == []
    await hooked.look(1)
    assert hooked.rows("i2") == [("webhook", "trip", True, 1)]


# What goes wrong at the other end


@pytest.mark.parametrize("failure", [500, 503, 408, 425, 429, "reset"])
async def test_what_may_pass_is_tried_again(
    hooked: Alerts, receiver: Receiver, failure: Any
) -> None:
    receiver.answers = [failure, failure]
    await hooked.look()
    await hooked.look(0.9)  # too early
    assert (len(receiver.got), hooked.rows()) == (1, [])
    await hooked.look(0.1)
    await hooked.look(1.9)
    assert len(receiver.got) == 2
    assert "127.0.0.1" in hooked.failing["webhook"]
    await hooked.look(0.1)
    assert (len(receiver.got), hooked.failing) == (3, {})
    assert hooked.rows() == [("webhook", "trip", True, 3)]
    assert {one["incident"] for one in receiver.bodies} == {"i1"}


async def test_one_that_says_nothing_is_given_up_and_tried_again(
    hooked: Alerts, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sending, "SEND_SECONDS", 0.5)
    receiver.always = "hang"
    await hooked.look()
    assert "did not answer within" in hooked.failing["webhook"]
    monkeypatch.undo()
    receiver.always = 200
    await hooked.look(1)
    assert hooked.rows() == [("webhook", "trip", True, 2)]


@pytest.mark.parametrize("status", [400, 401, 404, 301])
async def test_what_is_refused_is_not_sent_again(
    hooked: Alerts, receiver: Receiver, status: int
) -> None:
    receiver.answers = [(status, "no such thing", {"Location": f"{receiver.url}/elsewhere"})]
    await hooked.look()
    for _ in range(3):
        await hooked.look(600)
    assert [one.path for one in receiver.got] == ["/hook"]
    assert hooked.rows() == [("webhook", "trip", False, 1)]
    assert f"answered {status}: no such thing" in hooked.failing["webhook"]


async def test_it_waits_as_long_as_the_channel_says(hooked: Alerts, receiver: Receiver) -> None:
    receiver.answers = [(429, "slowly", {"Retry-After": "120"})]
    await hooked.look()
    await hooked.look(119)
    assert len(receiver.got) == 1
    await hooked.look(1)
    assert len(receiver.got) == 2


async def test_a_channel_cannot_ask_for_patience_without_end(
    hooked: Alerts, receiver: Receiver
) -> None:
    receiver.answers = [(503, "later", {"Retry-After": "999999999"})]
    await hooked.look()
    await hooked.look(sending.RETRY_AFTER_SECONDS_MAX)
    assert len(receiver.got) == 2


async def test_what_could_not_be_delivered_for_a_day_is_given_up(
    hooked: Alerts, receiver: Receiver
) -> None:
    receiver.always = 500
    tries = 0
    while not hooked.rows():
        await hooked.look(BACKOFF_SECONDS_MAX)
        tries += 1
    assert tries == GIVE_UP_SECONDS / BACKOFF_SECONDS_MAX == len(receiver.got)
    assert hooked.rows() == [("webhook", "trip", False, tries)]


async def test_one_message_that_fails_does_not_hold_up_the_others(
    hooked: Alerts, receiver: Receiver
) -> None:
    await hooked.made(an_incident, "i2", severity="trip")
    receiver.answers = [500, 500]
    await hooked.look()
    await hooked.look(1)
    await hooked.look(1)
    assert hooked.rows("i2") or hooked.rows("i1")
    await hooked.look(600)
    await hooked.look(600)
    assert hooked.rows("i2")
    assert hooked.rows("i1")


async def test_messages_that_fail_together_are_one_failure(
    hooked: Alerts, receiver: Receiver
) -> None:
    for number in range(2, IN_FLIGHT_MAX + 1):
        await hooked.made(an_incident, f"i{number}", severity="trip")
    receiver.answers = [500] * IN_FLIGHT_MAX
    await hooked.look()
    assert len(receiver.got) == IN_FLIGHT_MAX
    await hooked.look(1)
    assert len(receiver.got) == IN_FLIGHT_MAX + 1  # one tries whether it works again
    assert hooked.failing == {}
    await hooked.look()
    assert len(receiver.got) == 2 * IN_FLIGHT_MAX


async def test_a_channel_that_is_dead_holds_up_no_other(
    running: Controlled, receiver: Receiver
) -> None:
    keep_secrets(running.data)
    dead = Webhook(kind="webhook", url="http://127.0.0.1:1/", secret="hook", name="dead")
    async with alerts(running, dead, a_webhook(receiver)) as made:
        await made.made(an_incident, severity="trip")
        await made.look()
        assert made.rows() == [("webhook", "trip", True, 1)]
        assert "cannot be reached" in made.failing["dead"]


@pytest.mark.slow
async def test_a_thousand_incidents_do_not_flood(running: Controlled, receiver: Receiver) -> None:
    """About 6 seconds."""
    keep_secrets(running.data)
    receiver.slow_seconds = 0.002
    async with alerts(running, a_webhook(receiver)) as made:

        def many(store: Store) -> None:
            for number in range(1_000):
                an_incident(store._conn, f"i{number}", severity="trip")

        await made.act(many)
        going = asyncio.create_task(_often(made))
        async with asyncio.timeout(60):
            while len(receiver.got) < 1_000:
                await asyncio.sleep(0.01)
        going.cancel()
        await made.idle()
        await made.look()
    assert receiver.most == IN_FLIGHT_MAX
    assert len({one["incident"] for one in receiver.bodies}) == len(receiver.got) == 1_000


async def _often(made: Alerts) -> None:
    while True:
        await made.notifying.look(made.act)
        await asyncio.sleep(0.01)


# Restarts


async def test_a_restart_in_the_middle_loses_nothing(
    running: Controlled, receiver: Receiver
) -> None:
    keep_secrets(running.data)
    receiver.answers = ["hang"]
    first = Alerts(running, a_webhook(receiver))
    await first.made(an_incident, severity="trip")
    await first.notifying.look(first.act)
    async with asyncio.timeout(5):
        while not receiver.got:
            await asyncio.sleep(0.01)
    began = asyncio.get_running_loop().time()
    await first.notifying.close()
    assert asyncio.get_running_loop().time() - began < 1.5
    async with alerts(running, a_webhook(receiver)) as second:
        await second.look()
        assert second.rows() == [("webhook", "trip", True, 1)]
    assert [one["incident"] for one in receiver.bodies] == ["i1", "i1"]


async def test_what_the_ledger_does_not_take_is_not_sent_again(
    hooked: Alerts, receiver: Receiver
) -> None:
    real = hooked.act

    def failing(act: Any, *, durable: bool = True) -> "asyncio.Future[Any]":
        def broken(store: Store) -> None:
            raise LedgerError("no room")

        return real(broken, durable=durable)

    hooked.act = failing
    for _ in range(3):
        await hooked.look(10)
    assert (len(receiver.got), hooked.rows()) == (1, [])
    hooked.act = real
    await hooked.look()
    assert hooked.rows() == [("webhook", "trip", True, 1)]
    await hooked.look(10)
    assert len(receiver.got) == 1


# It runs by itself


async def test_it_goes_on_after_a_ledger_that_could_not_be_read(
    hooked: Alerts, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifying, "LOOK_SECONDS", 0.001)
    real = deliveries.due

    def once(*given: Any, **rest: Any) -> Any:
        monkeypatch.setattr(deliveries, "due", real)
        raise ZeroDivisionError

    monkeypatch.setattr(deliveries, "due", once)
    going = asyncio.create_task(hooked.notifying.run(hooked.act))
    async with asyncio.timeout(10):
        while not receiver.got:
            await asyncio.sleep(0.01)
    going.cancel()
