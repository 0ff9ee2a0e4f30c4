"""SIGKILL of the proxy while agents write: nothing happens twice, and the record knows of all.

The proxy is the real program and the upstream counts. `make proof` takes 50 rounds (ROUNDS); the
seed that is printed gives the same kills again (SEED).
"""

import os
import random
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from ledger import queries
from ledger.connection import open_reader
from tests.end_to_end import origin
from tests.end_to_end.fleet import ANSWERED, UNKNOWN, Fleet
from tests.end_to_end.origin import Origin
from tests.end_to_end.running import Proxy

POLICY = """\
version: 1
tools:
  orders.create:
    match: {host: api.origin.example, method: POST, path: "/orders/{number}"}
    allow_addresses: [127.0.0.0/8]
ceilings:
  - {per: run, count: calls, unbounded: true}
  - {per: tenant, count: calls, unbounded: true}
"""

ROUNDS = int(os.environ.get("ROUNDS", "3"))
BUSY_SECONDS = 0.8  # a kill comes at any moment of these
START_SECONDS = 1.2  # and in every third round a second one at any moment of the start
PAUSES_SECONDS = (0.0, 0.0, 0.002, 0.05)  # of the upstream, so that a kill finds every step
ASKED_AGAIN = 50


def kill_in_its_start(proxy: Proxy, after_seconds: float) -> None:
    """It may have come as far as to recover, or to serve."""
    with ThreadPoolExecutor(1) as starting:
        start = starting.submit(proxy.start)
        time.sleep(after_seconds)
        process = proxy.process
        if process is not None:
            process.kill()
        wait([start])
    with suppress(pytest.fail.Exception, AssertionError):
        start.result()
    if proxy.process is not None:
        proxy.end(signal.SIGKILL)


def recorded(proxy: Proxy) -> list[dict[str, Any]]:
    with closing(open_reader(proxy.folder / "data")) as reader:
        return list(queries.calls(reader, limit=10_000_000))


def check(upstream: Origin, fleet: Fleet, rows: list[dict[str, Any]]) -> Counter[str]:
    """What must hold at the end, whatever was killed when. Returns the states of the effects."""
    arrivals = Counter(upstream.paths())
    assert [path for path, count in arrivals.items() if count > 1] == [], "made twice"
    assert {row["state"] for row in rows} <= {
        *("done", "not_sent", "unknown"),
        *("refused", "replayed"),
    }
    allowed = [row for row in rows if row["decision"] == "allow"]
    sent = Counter(row["path"] for row in allowed if row["state"] in ("done", "unknown"))
    assert set(arrivals) <= set(sent), "an effect without a row"
    assert [path for path, count in sent.items() if count > 1] == [], "let through twice"
    states = {row["path"]: row["state"] for row in allowed if row["state"] != "not_sent"}
    for number, ends in fleet.ends.items():
        path = f"/orders/{number}"
        assert set(ends) in ({ANSWERED}, {UNKNOWN}), f"write {number} ended with {ends}"
        told_as = "done" if ends[0] == ANSWERED else "unknown"
        assert states[path] == told_as, f"write {number} was told {ends}, recorded {states[path]}"
        assert told_as == "unknown" or path in arrivals, f"write {number} was answered, not made"
    return Counter(row["state"] for row in allowed)


@pytest.mark.proof
@pytest.mark.slow
def test_no_write_happens_twice_or_unrecorded_however_often_the_proxy_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """4 seconds a round, most of them the start of the proxy."""
    seed = int(os.environ.get("SEED") or random.randrange(2**32))
    choice, started = random.Random(seed), time.monotonic()
    (tmp_path / "origin").mkdir()
    (tmp_path / "proxy").mkdir()
    with origin.serving(tmp_path / "origin") as upstream:
        upstream.pause_seconds = lambda: random.choice(PAUSES_SECONDS)
        proxy = Proxy(tmp_path / "proxy", POLICY, upstream.ca, upstream.routes)
        proxy.start()
        fleet, kills = Fleet(proxy.mint(), choice), 0
        with fleet.writing():
            for number in range(ROUNDS):
                time.sleep(choice.uniform(0.0, BUSY_SECONDS))
                proxy.end(signal.SIGKILL)
                kills += 1
                if number % 3 == 1:
                    kill_in_its_start(proxy, choice.uniform(0.0, START_SECONDS))
                    kills += 1
                proxy.start()
            time.sleep(BUSY_SECONDS)
        asked_again = choice.sample(sorted(fleet.ends), min(ASKED_AGAIN, len(fleet.ends)))
        told_again = {number: fleet.again(number) for number in asked_again}
        proxy.stop()
        states = check(upstream, fleet, recorded(proxy))
    with capsys.disabled():
        print(
            f"\nkill: seed {seed}, {ROUNDS} rounds, {kills} kills, {len(fleet.ends)} writes in "
            f"{fleet.tries} tries: {dict(states)}, {len(upstream.arrived)} reached the upstream, "
            f"{time.monotonic() - started:.0f} s"
        )
    assert told_again == {number: fleet.ends[number][0] for number in asked_again}
    assert states["done"] >= ROUNDS
    assert states["unknown"] >= 1, "no kill met a write in flight: the test has shown nothing"
    assert proxy.broken() == []
