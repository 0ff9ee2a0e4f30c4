"""Calls that wait for their turn under a ceiling, under the running program with one engine and
with two: a ceiling in flight holds over both."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256

import pytest

from proxy import control_client
from tests.end_to_end import origin
from tests.end_to_end.line import Line, Told, asked, opened
from tests.end_to_end.origin import Origin
from tests.end_to_end.running import Proxy, Run

POLICY = """\
version: 1
tools:
  orders: {match: {host: api.origin.example}, allow_addresses: [127.0.0.0/8]}
ceilings:
  - {per: tenant, count: in_flight, at_most: 2, wait_seconds: 20}
"""

CALLS = 6
PLACES = 2
CALL_SECONDS = 0.3
WAIT_SECONDS = 10.0


class Counting:
    """An upstream's pause: how many calls are in it, at most."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> float:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        time.sleep(CALL_SECONDS)
        with self._lock:
            self.now -= 1
        return 0.0


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Origin]:
    with origin.serving(tmp_path_factory.mktemp("origin")) as served:
        yield served


@pytest.fixture(scope="module", params=[1, 2])
def proxy(
    request: pytest.FixtureRequest, upstream: Origin, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Proxy]:
    folder = tmp_path_factory.mktemp("p")
    started = Proxy(folder, POLICY, upstream.ca, upstream.routes, workers=request.param)
    started.start()
    yield started
    started.stop()
    assert started.broken() == []


def all_at_once(run: Run, method: str, label: str) -> list[Told]:
    def call(number: int) -> Told:
        body = f"{label} {number}" if method == "POST" else None
        return asked(run, method, f"/orders/{label}-{number}", body, tls=number % 2 == 1)

    with ThreadPoolExecutor(CALLS) as callers:
        return list(callers.map(call, range(CALLS)))


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_calls_wait_for_their_turn_and_never_more_than_two_are_upstream(
    proxy: Proxy, upstream: Origin, method: str
) -> None:
    run, upstream.pause_seconds = proxy.mint(), Counting()
    assert [told.status for told in all_at_once(run, method, f"{run.name}-{method}")] == [200] * 6
    assert upstream.pause_seconds.most == PLACES
    rows = proxy.calls(run, at_least=CALLS)
    assert [row["state"] for row in rows] == ["done"] * CALLS


def test_who_leaves_while_it_waits_is_not_sent_and_holds_nobody_up(
    proxy: Proxy, upstream: Origin
) -> None:
    """2 seconds: nothing outside tells that a call waits."""
    run, upstream.pause_seconds = proxy.mint(), lambda: 0.0
    label = f"{proxy.workers}-{run.name}"  # the upstream is that of both proxies
    left = f"/orders/{label}-left"
    upstream.gate.clear()
    with ThreadPoolExecutor(PLACES) as callers, opened(run, tls=False) as leaving:
        try:
            held = [f"/held/{label}-{number}" for number in range(PLACES)]
            answers = [callers.submit(asked, run, "GET", path) for path in held]
            for path in held:
                upstream.wait_for(path)
            sent(leaving, left)
            time.sleep(1.0)  # by now it waits
            leaving.close()
            time.sleep(1.0)  # and by now it is known to have left; if it is not, it arrives below
        finally:
            upstream.gate.set()
        assert [answer.result().status for answer in answers] == [200] * PLACES
    assert asked(run, "GET", f"/orders/{label}-after").status == 200
    rows = proxy.calls(run, at_least=PLACES + 1)
    assert left not in upstream.paths()
    assert {row["path"]: row["state"] for row in rows}.get(left, "not_sent") == "not_sent"


def test_where_no_call_may_wait_the_others_are_told_when_to_come_again(
    proxy: Proxy, upstream: Origin
) -> None:
    run, upstream.pause_seconds = proxy.mint(), Counting()
    proxy.edit_policy(POLICY.replace("wait_seconds: 20", "wait_seconds: 0"))
    try:
        until_in_force(proxy)
        told = all_at_once(run, "GET", run.name)
    finally:
        proxy.edit_policy(POLICY)
    assert sorted(each.status for each in told) == [200] * PLACES + [429] * (CALLS - PLACES)
    for each in told:
        if each.status == 429:
            assert each.reason == "over_ceiling"
            assert each.headers["retry-after"] == "1"
            assert {"ratelimit", "ratelimit-policy"} <= set(each.headers)


def until_in_force(proxy: Proxy) -> None:
    digest = sha256((proxy.folder / "config" / "policy.yaml").read_bytes()).hexdigest()
    deadline = time.monotonic() + WAIT_SECONDS
    while (
        digest != control_client.ask(proxy.folder / "data", "GET", "/v1/status")["policy"]["digest"]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def sent(line: Line, path: str) -> None:
    """Ask, and do not listen."""
    head = f"GET http://{origin.HOST}{path} HTTP/1.1\r\nHost: {origin.HOST}\r\n"
    fields = "".join(f"{name}: {value}\r\n" for name, value in line.credentials.items())
    line.sock.sendall(f"{head}{fields}\r\n".encode())
