"""Bounds under load: an edit of the YAML, and a ceiling that many writers meet at once.

About 10 seconds in all.
"""

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tests.end_to_end.running import Proxy, Run, StartProxy, Upstreams

pytestmark = pytest.mark.slow

POLICY = """\
version: 1
unlisted: refuse
tools:
  orders.create:
    match: {host: api.echo.example, method: POST, path: /orders}
    allow_addresses: [127.0.0.0/8]
  refunds.create:
    match: {host: api.echo.example, method: POST, path: /refunds}
    allow_addresses: [127.0.0.0/8]
  tickets.create:
    match: {host: api.echo.example, method: POST, path: /tickets}
    allow_addresses: [127.0.0.0/8]
  echo.read:
    match: {host: api.echo.example, method: GET}
    allow_addresses: [127.0.0.0/8]
ceilings:
  - {per: tool, tool: refunds.create, count: writes, at_most: 10, within: 1m}
  - {per: tool, tool: tickets.create, count: writes, at_most: 10, within: 1m, then: freeze}
"""
FROZEN = POLICY + "frozen: [orders.create]\n"

BASE = "https://api.echo.example"
EDIT_SECONDS = 1.0  # an edit takes effect within this
WRITERS = 64


@pytest.fixture(scope="module")
def proxy(start_proxy: StartProxy) -> Proxy:
    return start_proxy(POLICY)


def seconds_until(status: int, session: requests.Session, label: str) -> float:
    """Write, each time something else, until a write is answered so."""
    start = time.monotonic()
    for number in range(10_000):
        answer = session.post(f"{BASE}/orders", data=f"{label} {number}")
        if answer.status_code == status or time.monotonic() - start > 10 * EDIT_SECONDS:
            assert answer.status_code == status, answer.text
            break
    return time.monotonic() - start


def test_a_freeze_in_the_yaml_stops_writes_within_a_second_and_no_read(
    proxy: Proxy, upstreams: Upstreams
) -> None:
    with proxy.mint().session() as session:
        assert session.post(f"{BASE}/orders", data="first").status_code == 200
        proxy.edit_policy(FROZEN)
        assert seconds_until(403, session, "before") < EDIT_SECONDS
        start = len(upstreams.journal)
        for number in range(20):
            answer = session.post(f"{BASE}/orders", data=f"after {number}")
            assert answer.status_code == 403
            assert "FROZEN by pullcord: writes of tool orders.create" in answer.json()["message"]
            assert "policy.yaml:19" in answer.json()["message"]
            assert session.get(f"{BASE}/orders").status_code == 200
        assert {request.method for request in upstreams.seen(start)} == {"GET"}
        proxy.edit_policy(POLICY)
        assert seconds_until(200, session, "thawed") < EDIT_SECONDS


def test_an_edit_that_does_not_load_leaves_the_freeze_in_force(proxy: Proxy) -> None:
    with proxy.mint().session() as session:
        proxy.edit_policy(FROZEN)
        seconds_until(403, session, "frozen")
        proxy.edit_policy(POLICY.replace("tools:", "tolls:"))
        time.sleep(2 * EDIT_SECONDS)
        assert session.post(f"{BASE}/orders", data="still").status_code == 403
        assert "tolls" in proxy.cli("status")
        proxy.edit_policy(POLICY)
        seconds_until(200, session, "mended")


def written_at_once(run: Run, path: str) -> list[requests.Response]:
    """Every writer's answer; each writes something else, all at the same moment."""
    barrier = threading.Barrier(WRITERS)

    def write(number: int) -> requests.Response:
        with run.session() as session:
            barrier.wait()
            return session.post(f"{BASE}{path}", data=f"order {number}", timeout=60)

    with ThreadPoolExecutor(WRITERS) as writers:
        return list(writers.map(write, range(WRITERS)))


def test_of_64_parallel_writers_exactly_ten_pass_a_ceiling_of_ten(
    proxy: Proxy, upstreams: Upstreams
) -> None:
    run, start = proxy.mint(), len(upstreams.journal)
    answers = written_at_once(run, "/refunds")
    assert len(upstreams.seen(start)) == 10
    assert Counter(answer.status_code for answer in answers) == {200: 10, 429: 54}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["message"].startswith("LIMITED by pullcord")
            assert 1 <= int(answer.headers["Retry-After"]) <= 61
            assert "r=0" in answer.headers["RateLimit"]
    rows = proxy.calls(run, at_least=WRITERS)
    assert Counter(row["state"] for row in rows) == {"done": 10, "refused": 54}


def test_a_ceiling_that_freezes_stops_also_what_it_let_pass_and_is_not_sent_yet(
    proxy: Proxy, upstreams: Upstreams
) -> None:
    run, start = proxy.mint(), len(upstreams.journal)
    answers = written_at_once(run, "/tickets")
    reached = len(upstreams.seen(start))
    assert reached <= 10
    assert sum(answer.status_code == 200 for answer in answers) == reached
    assert {answer.status_code for answer in answers} <= {200, 403, 429}
    states = Counter(row["state"] for row in proxy.calls(run, at_least=WRITERS))
    assert states["done"] == reached
    assert states["not_sent"] + states["refused"] == WRITERS - reached
    assert "tickets.create" in proxy.cli("status")
