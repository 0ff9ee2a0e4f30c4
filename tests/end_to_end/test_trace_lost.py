"""A trace that cannot be kept: it is told in the record, and no call is stopped by it.

Each test takes 3 to 8 seconds: processes start and end.
"""

import json
import os
import signal
import time

import pytest

from proxy import control_client
from tests.end_to_end.line import opened
from tests.end_to_end.traced import (
    WAYS,
    Start,
    ask,
    called,
    kill_tracer,
    losses,
    shown,
    start,
    status,
    the_tracer,
    tracers,
    until,
    upstream,
    whole,
)  # fmt: skip

__all__ = ["start", "upstream"]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("workers", [1, 2])
def test_a_tracer_that_dies_is_back_and_what_it_had_is_told(start: Start, workers: int) -> None:
    proxy = start(workers)
    run = proxy.mint()
    ask("tls", run, "POST", "/orders/1", '{"n": 1}')
    whole(proxy, called(proxy, run)["id"])
    stopped = the_tracer(proxy)
    os.kill(stopped, signal.SIGSTOP)  # it takes what is sent, and keeps nothing of it
    lost = range(2, 22)  # so many that the first message at least is under way when it dies
    for number in lost:
        assert ask("tls", run, "POST", f"/orders/{number}", "{}").status == 200
    assert until(lambda: status(proxy)["trace"]["behind"])
    os.kill(stopped, signal.SIGKILL)
    told = until(lambda: losses(proxy))
    assert {tuple(loss["runs"]) for loss in told} == {(run.name,)}
    assert ask("tls", run, "POST", "/orders/99", '{"n": 4}').status == 200
    rows = proxy.calls(run, at_least=len(lost) + 2)
    request, _ = whole(proxy, rows[-1]["id"])
    assert json.loads(request["text"]) == {"n": 4}
    assert the_tracer(proxy) != stopped
    missing = sum(loss["messages"] for loss in losses(proxy))
    assert 1 <= missing <= 2 * len(lost)
    assert status(proxy)["trace"]["lost_per_hour"] == missing
    assert "LOST" in proxy.cli("status")
    ready = control_client.ask(proxy.folder / "data", "GET", "/readyz")
    assert "missing from the trace" in ready["warnings"][0]
    assert "may be lost" in shown(proxy, rows[1]["id"])["trace_note"]
    assert "trace.lost" in proxy.log()


def test_a_trace_that_cannot_be_written_stops_nothing(start: Start) -> None:
    proxy = start()
    run = proxy.mint()
    place = proxy.folder / "data" / "trace.db"
    place.write_bytes(b"no database at all " * 1000)
    for way in WAYS:
        assert ask(way, run, "POST", f"/orders/{way}", "{}").status == 200
    rows = proxy.calls(run, at_least=len(WAYS))
    assert [row["state"] for row in rows] == ["done"] * len(WAYS)
    assert sum(loss["messages"] for loss in until(lambda: losses(proxy))) >= 1
    assert "FAILS" in proxy.cli("status")
    assert "cannot be read" in proxy.cli("ledger", "show", proxy.calls(run)[0]["id"])
    place.unlink()
    assert ask("tls", run, "POST", "/orders/after", '{"n": 5}').status == 200

    def kept_again() -> bool:
        ask("tls", run, "POST", f"/orders/{time.monotonic_ns()}", '{"n": 6}')
        return bool(proxy.ledger("text:5") or proxy.ledger("text:6"))

    assert until(kept_again)


def test_engines_that_die_take_little_with_them(start: Start) -> None:
    proxy = start(workers=2)
    run = proxy.mint()
    ask("tls", run, "POST", "/orders/1", '{"n": 1}')
    whole(proxy, called(proxy, run)["id"])
    for worker in status(proxy)["workers"]:
        os.kill(worker["pid"], signal.SIGKILL)

    def answered() -> bool:
        try:
            return ask("tls", run, "GET", "/orders/2?n=again").status == 200
        except OSError:
            return False

    assert until(answered)
    row = proxy.calls(run, at_least=2)[-1]
    assert "n=again" in whole(proxy, row["id"])[0]["start"]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_was_caught_before_the_end_is_kept(start: Start, workers: int) -> None:
    """In order by SIGTERM; after a SIGKILL what was sent, and the tracer leaves with its proxy."""
    proxy = start(workers)
    run = proxy.mint()
    with opened(run, tls=True) as line:
        for number in range(20):
            line.ask("POST", f"/orders/{number}", json.dumps({"n": number}))
    proxy.stop()
    rows = proxy.calls(run, at_least=20)
    for row in rows:
        request, response = whole(proxy, row["id"])
        assert (request["side"], response["side"]) == ("request", "response")
    assert losses(proxy) == []
    proxy.start()
    ask("tls", run, "POST", "/orders/last", '{"n": "last"}')
    whole(proxy, proxy.calls(run, at_least=21)[-1]["id"])
    assert tracers(proxy)
    proxy.end(signal.SIGKILL)
    assert until(lambda: not tracers(proxy))


def test_killed_again_and_again_it_comes_back(start: Start) -> None:
    proxy = start()
    run = proxy.mint()
    ask("tls", run, "GET", "/orders/0")
    seen = set()
    for _ in range(3):
        seen.add(kill_tracer(proxy))
        assert until(lambda: not seen & set(tracers(proxy)) and bool(tracers(proxy)))
    ask("tls", run, "POST", "/orders/1", '{"n": "after all"}')
    whole(proxy, proxy.calls(run, at_least=2)[-1]["id"])
