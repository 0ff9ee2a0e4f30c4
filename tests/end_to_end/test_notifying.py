"""Alerts of the running program: whatever becomes of it and of the channel, the alert arrives,
under one id, and what is secret stays where it was written.
"""

import hashlib
import hmac
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

from proxy import control_client
from tests.end_to_end import origin, running
from tests.end_to_end.runaways import LAUNCH, MovedProxy, World, a_place, policy
from tests.proxy.receiver import Receiver, receiving_aside

SECRET = "whsec-of-the-test-0123456789"
WAIT_SECONDS = 20.0
STOP_SECONDS = 6.0  # a message may take 10; nobody waits so long for one
PACE_SECONDS = 2.0


@contextmanager
def alerting(folder: Path, receiver: Receiver) -> Iterator[World]:
    """A proxy that is not started yet, and what it tells of incidents."""
    for name in ("origin", "proxy"):
        (folder / name).mkdir()
    with (
        origin.serving_as(folder / "origin", a_place) as upstream,
        patch.object(running, "LAUNCH", LAUNCH),
    ):
        proxy = MovedProxy(folder / "proxy", policy(), upstream.ca, upstream.routes, workers=1)
        with (proxy.folder / "config" / "pullcord.yaml").open("a") as settings:
            settings.write(
                f"notify: [{{kind: webhook, url: '{receiver.url}/hook', secret: hook}}]\n"
            )
        data = proxy.folder / "data"
        data.mkdir(mode=0o700)
        (data / "credentials.yaml").touch(mode=0o600)
        (data / "credentials.yaml").write_text(f"hook: {{secret: {SECRET}}}\n")
        proxy.start()
        try:
            yield World(proxy, upstream, proxy.mint())
        finally:
            if proxy.process is not None:
                proxy.end(signal.SIGKILL)


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def failing(data: Path) -> bool:
    (channel,) = control_client.ask(data, "GET", "/v1/status")["notify"]
    return bool(channel["error"])


def runs_away(world: World) -> None:
    run = world.mint("alerts")
    for _ in range(40):
        world.proxy.move(PACE_SECONDS)
        if world.ask(run, "GET", "/loop/status/7").reason != "allowed":
            return
    pytest.fail("it was never stopped")


@pytest.mark.slow
def test_an_alert_arrives_through_failures_and_restarts(tmp_path: Path) -> None:
    """About 15 seconds."""
    with receiving_aside() as receiver, alerting(tmp_path, receiver) as world:
        proxy, data = world.proxy, world.proxy.folder / "data"
        receiver.always = 500
        runs_away(world)
        until(lambda: len(receiver.got) > 0, "nothing was sent")
        until(lambda: failing(data), "nothing is told")
        assert control_client.ask(data, "GET", "/readyz")["ready"]
        told = proxy.cli("status")
        assert "alerts  do not arrive at webhook since" in told
        proxy.end(signal.SIGKILL)

        receiver.always, before = "hang", len(receiver.got)
        proxy.start()
        until(lambda: len(receiver.got) > before, "it was forgotten")
        began = time.monotonic()
        proxy.stop()
        assert time.monotonic() - began < STOP_SECONDS

        receiver.always, before = 200, len(receiver.got)
        proxy.start()
        until(lambda: len(receiver.got) > before, "it was forgotten")
        until(lambda: world.rows("SELECT 1 FROM delivery WHERE state = 'sent'") != [], "no row")
        time.sleep(1.0)
        assert len(receiver.got) == before + 1
        (row,) = world.rows("SELECT incident, channel, event, state FROM delivery")
        proxy.stop()

        (incident,) = {one["incident"] for one in receiver.bodies}
        assert row == (incident, "webhook", "trip", "sent")
        last = receiver.got[-1]
        assert last.json["next"] == f"pullcord incident show {incident}"
        at, _, mark = last.headers["pullcord-signature"].removeprefix("t=").partition(",v1=")
        signed = at.encode() + b"." + last.body
        assert hmac.compare_digest(
            mark, hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        )
        assert proxy.broken() == []
        kept = b"".join(path.read_bytes() for path in data.glob("ledger.db*"))
        assert SECRET.encode() not in kept
        assert SECRET not in proxy.log() + told
